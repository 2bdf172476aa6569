"""Two runs against each other: any two as text; two transfers by scores, classes and images as well (notebook 7).

    python -m soco_lib.transfer.compare results/scratch-coco results/soco-coco

Exit status 0: the notebook can follow; ALONE: the text is all that these two runs allow; 1: an error, told in one line.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import pandas as pd
from tabulate import tabulate

from soco_lib import ROOT, BookError, one_line_errors
from soco_lib.fields import differences, require
from soco_lib.runs import records
from soco_lib.runs.folder import Run
from soco_lib.runs.records import Record
from soco_lib.transfer import predictions
from soco_lib.transfer.errors import image_scores
from soco_lib.transfer.predictions import Predictions

ALONE = 3

#: Fields that two runs must share for their scores to be comparable.
SHARED = ("benchmark", "test")


@dataclass(frozen=True)
class Comparison:
    """Which two runs are compared."""

    run_a: str  # run folder, or its name under results
    run_b: str


def open_run(letter: str, given: str, results: str = "results") -> Run:
    """See records.named. Raises BookError."""
    require(given != "", f"{letter} names no run: give two, as make compare A=results/scratch B=results/soco")
    return records.named(letter, given, ROOT / results)


def open_pair(run_a: str, run_b: str, results: str = "results") -> tuple[Run, Run]:
    """The two runs. Raises BookError unless both are finished transfers of one benchmark on the same test data."""
    runs = []
    for letter, given in (("A", run_a), ("B", run_b)):
        run = open_run(letter, given, results)
        kind, state = run.record["kind"], records.state_of(run)
        require(kind == "transfer", f"{letter}={given} is a {kind} run: give two transfer runs")
        require(state.word == "done", f"{letter}={given} is not finished ({state.text}): finish it first")
        runs.append(run)
    a, b = (run.record["config"] for run in runs)
    said = "; ".join(f"{k}: {a.get(k)!r} in A, {b.get(k)!r} in B" for k in SHARED if a.get(k) != b.get(k))
    require(not said, f"A and B cannot be compared ({said}): give runs of one benchmark and test set")
    return runs[0], runs[1]


def settings(a: Run, b: Run) -> pd.DataFrame:
    """Fields of the two configurations that differ: index setting, columns A, B. Of two kinds, fields of both."""
    ours, theirs = a.record["config"], b.record["config"]
    found = differences(ours, theirs)
    if a.record["kind"] != b.record["kind"]:
        found = {name: pair for name, pair in found.items() if name in ours and name in theirs}
    return pd.DataFrame.from_dict(found, orient="index", columns=["A", "B"]).rename_axis("setting")


def scores(a: Run, b: Run) -> pd.DataFrame:
    """Average precisions of both in percent: index (task, metric), columns A, B, B - A."""
    frame = metrics(a, b)
    frame.index = pd.MultiIndex.from_tuples(
        [name.partition(".")[::2] for name in frame.index], names=["task", "metric"]
    )
    return frame.loc[[task for task in ("bbox", "segm") if task in a.metrics and task in b.metrics]]


def class_differences(a: Run, b: Run) -> dict[str, dict[str, float]]:
    """Task -> class -> AP of B minus AP of A, in points; NaN for a class without test objects."""
    ours, theirs = a.metrics, b.metrics
    tasks = [task for task in ("bbox", "segm") if task in ours and task in theirs]
    return {
        task: {name: theirs[task]["per_class"][name] - ap for name, ap in ours[task]["per_class"].items()}
        for task in tasks
    }


def most_different(a: Predictions, b: Predictions, n: int) -> dict[int, tuple]:
    """The n images whose best F1 differs most: image id -> what errors.image_scores says of A and of B."""
    first, second = (image_scores(seen.truth, seen.detections) for seen in (a, b))
    order = sorted(first, key=lambda image: -abs(second[image][0] - first[image][0]))
    return {image: (first[image], second[image]) for image in order[:n]}


def metrics(a: Run, b: Run) -> pd.DataFrame:
    """Every number that either run left but those of classes: index metric (bbox.AP50), columns A, B, B - A."""
    frame = pd.json_normalize([records.numbers(a), records.numbers(b)]).T.set_axis(["A", "B"], axis="columns")
    number = frame.map(lambda value: isinstance(value, (int, float)) and not isinstance(value, bool))
    frame = frame.where(number)[number.any(axis=1) & ~frame.index.str.contains(".per_class.", regex=False)].astype(
        float
    )
    return frame.assign(**{"B - A": frame["B"] - frame["A"]}).rename_axis("metric")


def _text(value, other) -> str:
    """A setting's value; of a long list what the other run's does not have."""
    if not isinstance(value, list) or len(value) < 3:
        return str(value)
    own = [item for item in value if item not in (other or [])]
    shared = f"and {len(value) - len(own)} that both have" * (len(own) < len(value))
    return "\n".join(map(str, [*own, *([shared] if shared else [])]))


def describe(a: Run, b: Run) -> str:
    """What two runs of any kind and state are and cost, in which settings they differ, and their metrics, as text."""
    show = lambda head, rows: tabulate(rows, head, "simple", disable_numparse=True, maxcolwidths=60)
    about = [{"kind": run.record["kind"], **records.cost(run)} for run in (a, b)]
    values = [(name, *("" if each[name] is None else each[name] for each in about)) for name in about[0]]
    lines = [show(["", "A", "B"], values)]
    changed, numbers = settings(a, b), metrics(a, b)
    shared = " (of those that both kinds have)" * (a.record["kind"] != b.record["kind"])
    lines.append(f"settings that differ{shared}: {len(changed) or 'none'}")
    if len(changed):
        lines.append(show(["setting", "A", "B"], [(n, _text(x, y), _text(y, x)) for n, x, y in changed.itertuples()]))
    if numbers.empty:
        return "\n\n".join([*lines, "neither run has metrics yet"])
    word = lambda number, sign="": "" if pd.isna(number) else f"{number:{sign}.6g}"
    rows = [(name, word(x), word(y), word(change, "+")) for name, x, y, change in numbers.itertuples()]
    return "\n\n".join([*lines, show(["metric", "A", "B", "B - A"], rows)])


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for letter in "AB":
        parser.add_argument(letter, help="a run folder, its name under the results, or the name of a tracked record")
    parser.add_argument("--results", default="results", help="where names are looked up (default: results)")
    given = parser.parse_args(arguments)
    pair = [open_run(letter, getattr(given, letter), given.results) for letter in "AB"]
    print(describe(*pair))
    try:
        for letter, run in zip("AB", open_pair(given.A, given.B, given.results)):
            require(not isinstance(run, Record), f"{letter} is a tracked record, which keeps no detections")
            predictions.read(run.folder)
    except BookError as error:
        print(f"\nno notebook of these two: {error}")
        return ALONE
    return 0


if __name__ == "__main__":
    sys.exit(main())
