"""What a few seeds say of a difference: the paired difference, two intervals of its mean, a verdict; of many
differences, how many verdicts chance would give; and how many seeds another one would take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Fewest seeds of which a verdict is given, and resamples of the bootstrap.
FEWEST, RESAMPLES = 3, 10000
VERDICTS = ("confirmed", "contradicted", "undecided")
#: Chance of a false verdict, and of a verdict where there is a difference, of `seeds_needed`; the most seeds it tries.
LEVEL, POWER, MOST = 0.05, 0.8, 999


@dataclass(frozen=True)
class Paired:
    """Differences of scores that share their seeds, in points of AP: n, mean, and Student's 95 % interval of the mean.
    NaN: no mean of none, no interval of fewer than two.
    """

    values: dict[int, float]  # seed -> difference
    mean: float
    low: float
    high: float

    @property
    def n(self) -> int:
        return len(self.values)


def paired(scores: Mapping[int, float], base: Mapping[int, float] | None = None) -> Paired:
    """Differences to the base seed by seed, on the seeds of both (None: the scores are differences)."""
    base = dict.fromkeys(scores, 0.0) if base is None else base
    seeds = sorted({*scores} & {*base})
    differences = {seed: scores[seed] - base[seed] for seed in seeds}
    mean = float(np.mean([*differences.values()])) if seeds else math.nan
    low = high = math.nan if len(seeds) < 2 else mean  # of differences that all agree, a point
    if len(seeds) > 1 and np.ptp([*differences.values()]):
        from scipy import stats  # here, because it takes a second to load

        found = stats.ttest_rel([scores[seed] for seed in seeds], [base[seed] for seed in seeds])
        low, high = map(float, found.confidence_interval(0.95))
    return Paired(differences, mean, low, high)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean by SciPy's percentile bootstrap; NaN for fewer than two values, a point where all
    agree.
    """
    if len(values) < 2:
        return math.nan, math.nan
    if np.ptp(values) == 0:
        return values[0], values[0]
    from scipy import stats

    generator = np.random.default_rng(seed)
    found = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", random_state=generator)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def verdict(differences: Sequence[float], expected: float = 1.0) -> str:
    """One of VERDICTS; `expected` has the sign of the paper's difference. Both intervals of the mean must agree on its
    sign: of a few values the bootstrap's is too narrow, and Student's leans on the normal distribution.
    """
    if len(differences) < FEWEST or not expected:
        return "undecided"
    student, (low, high) = paired(dict(enumerate(differences))), bootstrap(differences)
    low, high = min(low, student.low), max(high, student.high)
    if low <= 0 <= high:
        return "undecided"
    return "confirmed" if (low > 0) == (expected > 0) else "contradicted"


def p_value(differences: Sequence[float]) -> float:
    """Student's two-sided p-value of no mean difference; NaN for fewer than FEWEST, 0 where all agree on another."""
    if len(differences) < FEWEST:
        return math.nan
    if np.ptp(differences) == 0:
        return float(differences[0] == 0)
    from scipy import stats

    return float(stats.ttest_1samp(differences, 0).pvalue)


def false_discovery(p_values: Sequence[float]) -> np.ndarray:
    """Benjamini and Hochberg's adjusted p-values in the same order, NaN where p is: of the differences at or below 0.05
    no more than 5 % are expected to be none.
    """
    adjusted = np.array(p_values, float)
    known = ~np.isnan(adjusted)
    if known.any():
        from scipy import stats

        adjusted[known] = stats.false_discovery_control(adjusted[known])
    return adjusted


def seeds_needed(differences: Sequence[float]) -> int | None:
    """Fewest seeds, FEWEST to MOST, with which Student's test at LEVEL finds with probability POWER a difference as
    large as the mean here and as scattered as these; None: more than MOST, or fewer than FEWEST differences to go by.
    """
    if len(differences) < FEWEST or not np.mean(differences):
        return None
    spread = np.std(differences, ddof=1)
    if spread == 0:
        return FEWEST
    from scipy import stats

    n = np.arange(FEWEST, MOST + 1)
    bound, shift = stats.t.isf(LEVEL / 2, n - 1), abs(np.mean(differences)) / spread * np.sqrt(n)
    found = n[stats.nct.sf(bound, n - 1, shift) >= POWER]  # the other sign's chance is nothing beside it
    return int(found[0]) if len(found) else None
