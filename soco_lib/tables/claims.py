"""The paper's claims beside what the toy runs say: claim -> the paper's difference -> ours -> verdict; from records
alone.

    python -m soco_lib.tables.claims --results results

makes results/tables/claims.{csv,md} and headline.md from the studies that claims.yaml names (study_rows.py). A claim
is "OF scores higher than AGAINST"; both are fine-tuned from the same seeds, so their difference is taken seed by seed.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from soco_lib import ROOT, one_line_errors
from soco_lib.config import Pretrain
from soco_lib.fields import from_dict, load, one_of
from soco_lib.runs import records
from soco_lib.runs.folder import one_kind
from soco_lib.studies import study as studies
from soco_lib.studies.paper import paper_value
from soco_lib.studies.study import Study
from soco_lib.tables import pages
from soco_lib.tables.study_rows import Row, folder_of, rows_of
from soco_lib.tables.study_table import paired
from soco_lib.transfer import benchmarks

FILE = Path(__file__).with_name("claims.yaml")
#: Fewest seeds of which a verdict is given, and resamples of the bootstrap.
FEWEST, RESAMPLES = 3, 10000
VERDICTS = ("confirmed", "contradicted", "undecided")


@dataclass(frozen=True)
class Printed:
    """A number of the paper, added or taken away."""

    sign: int  # 1 or -1
    table: str
    benchmark: str
    row: str
    epoch: int = 0  # 0: the row has one or none


@dataclass(frozen=True)
class Claim:
    """One comparison; checked by `read`."""

    says: str  # the claim in words
    where: str  # in the paper
    study: str
    of: str  # variant that should score higher ...
    against: str  # ... than this one
    benchmark: str  # of the study, that scores both
    less: str = ""  # a second benchmark: the claim is that the difference is larger than on this one
    metric: str = "AP_bb"
    printed: tuple[
        Printed, ...
    ] = ()  # the paper's numbers whose sum its difference is; (): those of the study's two variants


@dataclass(frozen=True)
class ClaimsReport:
    """What notebook 10 shows."""

    data: str
    pretrained: str
    images: int


@dataclass(frozen=True)
class Found:
    """What the runs say of a claim: the differences by seed, in points of AP, and the mean scores of both sides."""

    claim: Claim
    differences: dict[int, float]
    scores: tuple[float, float]  # of, against; NaN where there is no run
    paper: float | None  # the printed difference
    mixed: int = 0  # differences between runs on two kinds of processor


def read(path: Path = FILE) -> list[Claim]:
    """The claims. Raises BookError for an unknown study, variant, benchmark or metric, with the nearest known name."""
    claims = [
        from_dict(Claim, fields, f"claim {i}") for i, fields in enumerate(yaml.safe_load(path.read_text()), start=1)
    ]
    for claim in claims:
        study = studies.read(claim.study)
        for name in (claim.of, claim.against):
            study.variant(name)
        for name in filter(None, (claim.benchmark, claim.less)):
            one_of("metric", claim.metric, benchmarks.find(name).metrics)
        _printed(study, claim)
    return claims


def bootstrap(values: list[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean by the percentile bootstrap (SciPy's); NaN for fewer than two values, a point where all
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


def verdict(differences: list[float], expected: float = 1.0) -> str:
    """One of VERDICTS: two intervals of the mean difference must agree on its sign, and `expected` is the paper's sign.

    The bootstrap's and Student's: of a few values the first one is too narrow, the second leans on the normal
    distribution.
    """
    if len(differences) < FEWEST or not expected:
        return "undecided"
    low, high = bootstrap(differences)
    _, _, low_t, high_t = paired(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))
    low, high = min(low, low_t), max(high, high_t)
    if low <= 0 <= high:
        return "undecided"
    return "confirmed" if (low > 0) == (expected > 0) else "contradicted"


def _row(rows: list[Row], variant: str, benchmark: str) -> Row | None:
    return next((row for row in rows if row.variant.name == variant and row.benchmark == benchmark), None)


def _difference(rows: list[Row], claim: Claim, benchmark: str) -> tuple[dict[int, float], tuple[float, float]]:
    sides = [
        row.scores(claim.metric) if (row := _row(rows, name, benchmark)) else {} for name in (claim.of, claim.against)
    ]
    both = sorted({*sides[0]} & {*sides[1]})
    means = tuple(float(np.mean([side[seed] for seed in both])) if both else math.nan for side in sides)
    return {seed: sides[0][seed] - sides[1][seed] for seed in both}, means


def _mixed(rows: list[Row], claim: Claim, seeds: Iterable[int]) -> int:
    """Of how many seeds the runs that the claim compares name two kinds of processor."""
    sides = itertools.product((claim.of, claim.against), filter(None, (claim.benchmark, claim.less)))
    found = [row for side in sides if (row := _row(rows, *side))]
    return sum(not one_kind(set().union(*(row.processors(seed) for row in found))) for seed in seeds)


def _printed(study: Study, claim: Claim) -> float | None:
    """The paper's difference, None where it prints none or one of its runs diverged."""
    cells = [
        (cell.sign, paper_value(cell.table, cell.benchmark, cell.row, claim.metric, cell.epoch or None))
        for cell in claim.printed
    ]
    if not cells:
        for sign, benchmark in ((1, claim.benchmark), (-1, claim.less)):
            sides = ((sign, claim.of), (-sign, claim.against)) if benchmark else ()
            cells += [(each, study.printed(study.variant(side), benchmark, claim.metric)) for each, side in sides]
    if any(value is None or math.isnan(value) for _, value in cells):
        return None
    return round(sum(sign * value for sign, value in cells), 4)


def find(claim: Claim, results: Path, profile: str = "toy") -> Found:
    """The claim's differences from the records of its study."""
    study = studies.read(claim.study)
    rows = rows_of(study, profile, folder_of(study, profile, results))
    differences, scores = _difference(rows, claim, claim.benchmark)
    if claim.less:
        other, _ = _difference(rows, claim, claim.less)
        differences = {seed: differences[seed] - other[seed] for seed in differences if seed in other}
    return Found(claim, differences, scores, _printed(study, claim), _mixed(rows, claim, differences))


def table(found: list[Found]) -> pd.DataFrame:
    """A row a claim: its words and place, the paper's difference, ours with both 95 % intervals, n, both scores,
    verdict, mixed.
    """
    lines = []
    for each in found:
        claim, values = each.claim, list(each.differences.values())
        n, mean, low_t, high_t = paired(each.differences, dict.fromkeys(each.differences, 0.0))
        low, high = bootstrap(values)
        line = {
            "claim": claim.says,
            "where": claim.where,
            "study": claim.study,
            "of": claim.of,
            "against": claim.against,
        }
        line |= {
            "benchmark": claim.benchmark + f" - {claim.less}" * bool(claim.less),
            "metric": claim.metric,
            "paper": each.paper,
        }
        line |= {"of_score": each.scores[0], "against_score": each.scores[1], "n": n, "change": mean}
        line |= {"low": low, "high": high, "low_t": low_t, "high_t": high_t}
        expected = 1.0 if each.paper is None else each.paper
        lines.append(line | {"verdict": verdict(values, expected) if n else "not run", "mixed": each.mixed})
    return pd.DataFrame(lines).round(4)


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as printed."""

    def interval(line, low, high):
        return f"[{line[low]:+.2f}, {line[high]:+.2f}]" if pd.notna(line[low]) else ""

    lines = []
    for _, line in frame.iterrows():
        both = pd.notna(line["of_score"]) and " - " not in line["benchmark"]
        scores = f"{line['of_score']:.2f} - {line['against_score']:.2f}" if both else ""
        lines.append({
            "claim": f"{line['claim']} ({line['where']})",
            "study: of - against": f"{line['study']}: {line['of']} - {line['against']}, {line['benchmark']}",
            "paper": f"{line['paper']:+.1f}" if pd.notna(line["paper"]) else "not printed",
            "scores here": scores,
            "here": f"{line['change']:+.2f}" if pd.notna(line["change"]) else "",
            "bootstrap 95 %": interval(line, "low", "high"),
            "Student 95 %": interval(line, "low_t", "high_t"),
            "n": line["n"],
            "verdict": f"**{line['verdict']}**" if line["verdict"] in VERDICTS[:2] else line["verdict"],
        })  # fmt: skip
    return pd.DataFrame(lines)


def counted(frame: pd.DataFrame) -> str:
    """How many claims have each verdict, in words."""
    counts = {word: int((frame["verdict"] == word).sum()) for word in (*VERDICTS, "not run")}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def reading(frame: pd.DataFrame) -> str:
    """How many claims were confirmed, contradicted, undecided, and what chance would give."""
    judged, mixed = int((frame["n"] >= FEWEST).sum()), frame.loc[frame["mixed"] > 0]
    kinds = "No difference is one between runs on two kinds of processor, as far as their records tell."
    if len(mixed):
        kinds = (
            f"{mixed['mixed'].sum()} of {frame['n'].sum()} differences are between runs on two kinds of processor, which changes scores by "
            f"itself: {'; '.join(mixed['claim'])}."
        )
    return (
        f"{len(frame)} comparisons: {counted(frame)}. A verdict needs {FEWEST} seeds and both 95 % intervals of the mean difference on "
        f"one side of 0. Each of the {judged} judged is for itself: were there no effect anywhere, up to {0.05 * judged:.1f} would still "
        f"get a verdict by chance. {kinds}"
    )


#: (study, benchmark) -> a row of the README's first table, in words.
FIRST = {
    ("labels", "minicoco-5"): "drawn scenes, 5 % of the labels",
    ("labels", "minicoco-10"): "drawn scenes, 10 % of the labels",
    ("labels", "coco-fpn-1x"): "drawn scenes, all labels",
    ("longer", "coco-fpn-4x"): "drawn scenes, all labels, four times the iterations",
    ("photographs", "minicoco-5"): "people in photographs, 5 % of the labels, four times the iterations",
    ("photographs", "minicoco-10"): "people in photographs, 10 % of the labels, four times the iterations",
    ("photographs", "coco-fpn-1x"): "people in photographs, all labels, four times the iterations",
}


def headline(frame: pd.DataFrame) -> str:
    """What the book found, with its scale, as a sentence and a table: the README's first."""
    pretrain, transfer = load(Pretrain, "notebooks/params/pretrain-toy.yaml"), benchmarks.settings("minicoco-10", "toy")
    scale = (
        f"**Toy scale, two CPU cores** (a quarter-width ResNet-50, {pretrain.steps} updates of {pretrain.batch} images in pretraining, "
        f"{transfer.iterations} iterations at {transfer.test_size} pixels in fine-tuning)"
    )
    rows, found = [], {"scratch": [], "whole-image": []}
    for (study, benchmark), words in FIRST.items():
        row = {"fine-tuned on": words, "random weights": "", "whole images": "", "SoCo": ""}
        for against, name in (("scratch", "random weights"), ("whole-image", "whole images")):
            asked = {"study": study, "of": "soco", "against": against, "benchmark": benchmark}
            lines = frame[(frame[[*asked]] == pd.Series(asked)).all(axis=1) & (frame["n"] > 1)]
            found[against].append(lines)
            for line in lines.itertuples():
                row |= {name: f"{line.against_score:.2f}", "SoCo": row["SoCo"] or f"{line.of_score:.2f}"}
                row[f"SoCo - {name}"] = (
                    f"{line.change:+.2f} [{line.low:+.2f}, {line.high:+.2f}], n = {line.n}, {line.verdict}"
                )
        if row["SoCo"]:
            rows.append(row)
    if not rows:
        return f"{scale}: no run of the study `labels` is finished: `make reproduce-toy`.\n"
    scratch, whole = (pd.concat(found[name])["verdict"].value_counts() for name in found)
    settings = lambda counts: (
        " and ".join(f"{word} in {count}" for word, count in counts.items()) + f" of {counts.sum()} settings"
    )
    return (
        f"{scale}: that a detector learns better from SoCo's weights than from random ones is **{settings(scratch)}**; that SoCo is "
        f"better than pretraining on whole images, the paper's baseline, is **{settings(whole) if len(whole) else 'not run'}**.\n\n"
        f"{pages.markdown(pd.DataFrame(rows).fillna(''))}\n\n"
        "AP^bb, means over seeds; differences are paired over seeds, with the bootstrap's 95 % interval; a verdict asks Student's as well. Of "
        f"{len(frame)} comparisons that the paper makes, the small runs leave {counted(frame)}: [the table](results/tables/claims.md).\n"
    )


def build(results: Path, profile: str = "toy") -> tuple[pd.DataFrame, str]:
    """Write results/tables/claims.{csv,md} and headline.md from the records; returns the table and the page."""
    frame = table([find(claim, results, profile) for claim in read()])
    said = (
        f"What small runs (scale '{profile}', the setting of notebooks/params and soco_lib/transfer/benchmarks.yaml) say of the paper's claims. "
        "Differences in points of AP, paired over seeds; the paper's numbers are of its own scale and only their sign is compared."
    )
    page = "\n\n".join([said, pages.markdown(shown(frame)), f"**Reading.** {reading(frame)}"]) + "\n"
    folder = Path(results) / "tables"
    with records.writing(folder):
        frame.to_csv(folder / "claims.csv", index=False)
        (folder / "claims.md").write_text(page)
        (folder / "headline.md").write_text(headline(frame))
    return frame, page


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="results", help="folder of the run folders")
    _, page = build(ROOT / parser.parse_args(arguments).results)
    print(page, end="")


if __name__ == "__main__":
    sys.exit(main())
