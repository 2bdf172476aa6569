"""Two transfer runs against each other: settings, scores, classes, images (notebook 7)."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from soco_lib import ROOT, locate
from soco_lib.config import differences, require
from soco_lib.errors import image_scores
from soco_lib.predictions import Predictions
from soco_lib.results import Run

#: Fields that two runs must share for their scores to be comparable.
SHARED = ("benchmark", "test")


@dataclass(frozen=True)
class Comparison:
    """Which two runs are compared."""

    run_a: str  # run folder, or its name under results
    run_b: str


def open_pair(run_a: str, run_b: str, results: str = "results") -> tuple[Run, Run]:
    """The two runs. Raises BookError unless both are finished transfers of one benchmark on the same test data."""
    runs = []
    for name, given in (("A", run_a), ("B", run_b)):
        require(given != "", f"{name} names no run: give two transfer runs, as make compare A=results/scratch B=results/soco")
        folder = locate(given)
        folder = folder if (folder / "run.json").is_file() else ROOT / results / given
        require((folder / "run.json").is_file(), f"{name}={given} is no run folder: give results/NAME of a transfer")
        run = Run.read(folder)
        require(run.record["kind"] == "transfer", f"{name}={given} is a {run.record['kind']} run: give two transfer runs")
        require(run.done, f"{name}={given} is not finished (status: {run.record['status']}): finish it first")
        runs.append(run)
    a, b = (run.record["config"] for run in runs)
    different = [f"{k}: {a.get(k)!r} in A, {b.get(k)!r} in B" for k in SHARED if a.get(k) != b.get(k)]
    require(not different, f"A and B cannot be compared ({'; '.join(different)}): give runs of one benchmark and test set")
    return runs[0], runs[1]


def settings(a: Run, b: Run) -> pd.DataFrame:
    """Fields of the two configurations that differ: index field, columns A and B."""
    found = differences(a.record["config"], b.record["config"])
    return pd.DataFrame.from_dict(found, orient="index", columns=["A", "B"]).rename_axis("setting")


def scores(a: Run, b: Run) -> pd.DataFrame:
    """Average precisions of both in percent: index (task, metric), columns A, B, B - A."""
    ours, theirs = a.metrics, b.metrics
    rows = {
        (task, metric): (ours[task][metric], theirs[task].get(metric))
        for task in ("bbox", "segm")
        for metric in ours.get(task, {})
        if metric != "per_class" and task in theirs
    }
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["A", "B"], dtype=float)
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["task", "metric"])
    return frame.assign(**{"B - A": frame["B"] - frame["A"]})


def class_differences(a: Run, b: Run) -> dict[str, dict[str, float]]:
    """Task -> class -> AP of B minus AP of A, in points; NaN for a class without test objects."""
    ours, theirs = a.metrics, b.metrics
    tasks = [task for task in ("bbox", "segm") if task in ours and task in theirs]
    return {task: {name: theirs[task]["per_class"][name] - ap for name, ap in ours[task]["per_class"].items()} for task in tasks}


def most_different(a: Predictions, b: Predictions, n: int) -> dict[int, tuple]:
    """The n images whose best F1 differs most: image id -> what errors.image_scores says of A and of B."""
    first, second = (image_scores(seen.truth, seen.detections) for seen in (a, b))
    order = sorted(first, key=lambda image: -abs(second[image][0] - first[image][0]))
    return {image: (first[image], second[image]) for image in order[:n]}
