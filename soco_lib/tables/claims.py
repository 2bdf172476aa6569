"""The paper's claims beside what the toy runs say: claim -> the paper's difference -> ours -> verdict; from records
alone. notebooks/claims.yaml names the claims and the studies that speak to them.

A claim is "OF scores higher than AGAINST"; both are fine-tuned from the same seeds, so their difference is taken seed
by seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from soco_lib import ROOT
from soco_lib.config import Pretrain
from soco_lib.fields import from_dict, one_of
from soco_lib.runs import records
from soco_lib.runs.folder import one_kind
from soco_lib.runs.settings import load
from soco_lib.studies import study as studies
from soco_lib.studies.paper import paper_value
from soco_lib.studies.study import Study
from soco_lib.tables import pages
from soco_lib.tables.stats import (
    FEWEST,
    LEVEL,
    MOST,
    POWER,
    VERDICTS,
    Paired,
    bootstrap,
    false_discovery,
    p_value,
    paired,
    seeds_needed,
    verdict,
)
from soco_lib.tables.study_rows import Row, rows_of
from soco_lib.transfer import benchmarks

FILE = ROOT / "notebooks" / "claims.yaml"


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
    printed: tuple[Printed, ...] = ()  # the paper's difference is their sum; (): that of the study's two variants


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
    differences: Paired
    scores: tuple[float, float]  # of, against; NaN where there is no run
    paper: float | None  # the printed difference
    mixed: int = 0  # differences between runs on two kinds of processor


def read(path: Path = FILE) -> list[tuple[Claim, Study]]:
    """The claims, each with its study. Raises BookError for an unknown study, variant, benchmark or metric, with the
    nearest known name.
    """
    lines = yaml.safe_load(path.read_text())
    claims = [from_dict(Claim, fields, f"claim {i}") for i, fields in enumerate(lines, start=1)]
    of_name = {name: studies.read(name) for name in dict.fromkeys(claim.study for claim in claims)}
    for claim in claims:
        study = of_name[claim.study]
        for name in (claim.of, claim.against):
            study.variant(name)
        for name in filter(None, (claim.benchmark, claim.less)):
            one_of("metric", claim.metric, benchmarks.find(name).metrics)
        printed(study, claim)
    return [(claim, of_name[claim.study]) for claim in claims]


def printed(study: Study, claim: Claim) -> float | None:
    """The paper's difference, None where it prints none or one of its runs diverged."""
    cells = [(cell.sign, paper_value(cell.table, cell.benchmark, cell.row, claim.metric, cell.epoch or None))
             for cell in claim.printed]  # fmt: skip
    if not cells:
        sides = [(1, claim.of, claim.benchmark), (-1, claim.against, claim.benchmark)]
        sides += [(-1, claim.of, claim.less), (1, claim.against, claim.less)] if claim.less else []
        cells = [(sign, study.printed(study.variant(side), name, claim.metric)) for sign, side, name in sides]
    if any(value is None or math.isnan(value) for _, value in cells):
        return None
    return round(sum(sign * value for sign, value in cells), 4)


def find(claim: Claim, study: Study, rows: list[Row]) -> Found:
    """The claim's differences from the rows of its study (see study_rows.rows_of)."""
    row_of = {(row.variant.name, row.benchmark): row for row in rows}
    names = [name for name in (claim.benchmark, claim.less) if name]
    compared = [row_of.get((side, name)) for name in names for side in (claim.of, claim.against)]
    scores = [row.scores(claim.metric) if row else {} for row in compared]
    both = sorted({*scores[0]} & {*scores[1]})
    means = tuple(float(np.mean([side[seed] for seed in both])) if both else math.nan for side in scores[:2])
    differences = paired(*scores[:2])
    if claim.less:
        differences = paired(differences.values, paired(*scores[2:]).values)
    begun = [row for row in compared if row]
    mixed = sum(not one_kind(set().union(*(row.processors(seed) for row in begun))) for seed in differences.values)
    return Found(claim, differences, means, printed(study, claim), mixed)


def table(found: list[Found]) -> pd.DataFrame:
    """A row a claim: its words and place, the paper's difference, ours with both 95 % intervals, n, both scores,
    verdict, mixed, Student's p-value, the same adjusted for all claims (q), seeds that a verdict would take.
    """
    lines = []
    for each in found:
        claim, ours, values = each.claim, each.differences, list(each.differences.values.values())
        line = {name: getattr(claim, name) for name in ("says", "where", "study", "of", "against")}
        line |= {"benchmark": claim.benchmark + f" - {claim.less}" * bool(claim.less), "metric": claim.metric}
        line |= {"paper": each.paper, "of_score": each.scores[0], "against_score": each.scores[1]}
        line |= {"n": ours.n, "change": ours.mean} | dict(zip(("low", "high"), bootstrap(values)))
        line |= {"low_t": ours.low, "high_t": ours.high}
        expected = 1.0 if each.paper is None else each.paper
        line |= {"verdict": verdict(values, expected) if values else "not run", "mixed": each.mixed}
        lines.append(line | {"p": p_value(values), "needs": seeds_needed(values)})
    frame = pd.DataFrame(lines).rename(columns={"says": "claim"})
    frame.insert(frame.columns.get_loc("needs"), "q", false_discovery(frame["p"]))
    return frame.astype({"needs": "Int64"}).round(4)


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as printed."""
    number = lambda form, *values: form.format(*values) if pd.notna(values[0]) else ""
    lines = []
    for line in frame.itertuples():
        simple = " - " not in line.benchmark
        lines.append({
            "claim": f"{line.claim} ({line.where})",
            "study: of - against": f"{line.study}: {line.of} - {line.against}, {line.benchmark}",
            "paper": number("{:+.1f}", line.paper) or "not printed",
            "scores here": number("{:.2f} - {:.2f}", line.of_score, line.against_score) if simple else "",
            "here": number("{:+.2f}", line.change),
            "bootstrap 95 %": number("[{:+.2f}, {:+.2f}]", line.low, line.high),
            "Student 95 %": number("[{:+.2f}, {:+.2f}]", line.low_t, line.high_t),
            "n": line.n,
            "q": number("{:.3f}", line.q),
            "verdict": f"**{line.verdict}**" if line.verdict in VERDICTS[:2] else line.verdict,
            "needs seeds": _needs(line),
        })  # fmt: skip
    return pd.DataFrame(lines)


def _needs(line) -> str:
    """Seeds that an undecided claim would take, in words."""
    if line.verdict != "undecided" or line.n < FEWEST:
        return ""
    return f"more than {MOST}" if pd.isna(line.needs) else str(line.needs)


def counted(frame: pd.DataFrame) -> str:
    """How many claims have each verdict, in words."""
    counts = frame["verdict"].value_counts()
    return ", ".join(f"{counts[word]} {word}" for word in (*VERDICTS, "not run") if word in counts)


def reading(frame: pd.DataFrame) -> str:
    """How many claims were confirmed, contradicted, undecided, and what chance would give."""
    judged, mixed = int((frame["n"] >= FEWEST).sum()), frame.loc[frame["mixed"] > 0]
    kinds = "No difference is one between runs on two kinds of processor, as far as their records tell."
    if len(mixed):
        kinds = (
            f"{mixed['mixed'].sum()} of {frame['n'].sum()} differences are between runs on two kinds of processor, "
            f"which changes scores by itself: {'; '.join(mixed['claim'])}."
        )
    weak = frame[frame["verdict"].isin(VERDICTS[:2]) & ~(frame["q"] <= LEVEL)]
    fallen = f"; not: {'; '.join(weak['claim'])}" if len(weak) else ""
    return (
        f"{len(frame)} comparisons: {counted(frame)}. A verdict needs {FEWEST} seeds and both 95 % intervals of the "
        f"mean difference on one side of 0. Each of the {judged} judged is for itself: were there no effect anywhere, "
        f"up to {LEVEL * judged:.1f} would still get a verdict by chance. q is Student's p-value adjusted for all of "
        f"them (Benjamini and Hochberg): {standing(frame)}{fallen}. Needs seeds: with so many, a difference as large "
        f"and as scattered as the measured one is found {POWER:.0%} of the time; from three seeds this is a rough "
        f"guess. {kinds}"
    )


def standing(frame: pd.DataFrame) -> str:
    """How many verdicts are left with false discoveries controlled over the whole table, in words."""
    decided = frame[frame["verdict"].isin(VERDICTS[:2])]
    stand = f"{(decided['q'] <= LEVEL).sum()} of {len(decided)} verdicts stand"
    return f"{stand} where at most {100 * LEVEL:.0f} % false ones are expected among them"


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
        f"**Toy scale, two CPU cores** (a quarter-width ResNet-50, {pretrain.steps} updates of {pretrain.batch} images "
        f"in pretraining, {transfer.iterations} iterations at {transfer.test_size} pixels in fine-tuning)"
    )
    rows, found = [], {"scratch": [], "whole-image": []}
    for (study, benchmark), words in FIRST.items():
        row = {"fine-tuned on": words, "random weights": "", "whole images": "", "SoCo": ""}
        for against, name in (("scratch", "random weights"), ("whole-image", "whole images")):
            asked = {"study": study, "of": "soco", "against": against, "benchmark": benchmark}
            for line in frame[(frame[[*asked]] == pd.Series(asked)).all(axis=1) & (frame["n"] > 1)].itertuples():
                found[against].append(line.verdict)
                row |= {name: f"{line.against_score:.2f}", "SoCo": row["SoCo"] or f"{line.of_score:.2f}"}
                interval = f"{line.change:+.2f} [{line.low:+.2f}, {line.high:+.2f}]"
                row[f"SoCo - {name}"] = f"{interval}, n = {line.n}, {line.verdict}"
        if row["SoCo"]:
            rows.append(row)
    if not rows:
        return f"{scale}: no run of the study `labels` is finished: `make reproduce-toy`.\n"

    def said(verdicts: list[str]) -> str:
        counts = pd.Series(verdicts).value_counts()
        words = " and ".join(f"{word} in {count}" for word, count in counts.items())
        return f"{words} of {len(verdicts)} settings" if verdicts else "not run"

    return (
        f"{scale}: that a detector learns better from SoCo's weights than from random ones is "
        f"**{said(found['scratch'])}**; that SoCo is better than pretraining on whole images, the paper's baseline, is "
        f"**{said(found['whole-image'])}**. Judged together with all other claims, {standing(frame)}.\n\n"
        f"{pages.markdown(pd.DataFrame(rows).fillna(''))}\n\n"
        "AP^bb, means over seeds; differences are paired over seeds, with the bootstrap's 95 % interval; a verdict "
        f"asks Student's as well. Of {len(frame)} comparisons that the paper makes, the small runs leave "
        f"{counted(frame)}: [the table](results/tables/claims.md).\n"
    )


def build(results: Path, profile: str = "toy", rows: dict[str, list[Row]] | None = None) -> tuple[pd.DataFrame, str]:
    """Write results/tables/claims.{csv,md} and headline.md from the records; returns the table and the page. rows: of
    studies, by name, where they are at hand.
    """
    found, rows = [], dict(rows or {})
    for claim, study in read():
        if study.name not in rows:
            rows[study.name] = rows_of(study, profile, results)
        found.append(find(claim, study, rows[study.name]))
    frame = table(found)
    said = (
        f"What small runs (scale '{profile}', the setting of notebooks/params and soco_lib/transfer/benchmarks.yaml) "
        "say of the paper's claims. Differences in points of AP, paired over seeds; the paper's numbers are of its own "
        "scale and only their sign is compared."
    )
    page = "\n\n".join([said, pages.markdown(shown(frame)), f"**Reading.** {reading(frame)}"]) + "\n"
    folder = Path(results) / "tables"
    with records.writing(folder):
        frame.to_csv(folder / "claims.csv", index=False)
        (folder / "claims.md").write_text(page)
        (folder / "headline.md").write_text(headline(frame))
    return frame, page
