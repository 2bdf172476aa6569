"""What a few seeds say of a difference: the paired difference, two intervals of its mean, a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Fewest seeds of which a verdict is given, and resamples of the bootstrap.
FEWEST, RESAMPLES = 3, 10000
VERDICTS = ("confirmed", "contradicted", "undecided")


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
