"""Figures of notebook 10: scores against labels and iterations, what pretraining changes for each class and size; from
records.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from soco_lib.figures.studies import LINES
from soco_lib.runs import records
from soco_lib.tables.claims import bootstrap
from soco_lib.tables.study_rows import Row

VERDICTS = {"confirmed": "#009E73", "contradicted": "#D55E00", "undecided": "#888888"}
SIZES = {"APs": "small", "APm": "medium", "APl": "large"}


def _runs(row: Row) -> dict[int, object]:
    """Seed -> finished transfer."""
    return {
        seed: end.run
        for seed in row.cells
        if (end := row.outcome(seed)).kind == "transfer" and end.state.word == "done"
    }


def _alike(rows: list[Row]) -> list[Row]:
    """The rows of variants with finished runs, of each only the seeds that the first of them finished on the same
    benchmark: means are then of the same seeds.
    """
    ran = {row.variant.name for row in rows if _runs(row)}
    rows = [row for row in rows if row.variant.name in ran]
    base = {row.benchmark: {*_runs(row)} for row in rows if row.variant is rows[0].variant}
    return [
        dataclasses.replace(row, cells={seed: cell for seed, cell in row.cells.items() if seed in base[row.benchmark]})
        for row in rows
    ]


def _finish(ax, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.tick_params(labelsize=9)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def _whiskers(values: list[float]) -> tuple[float, float, float]:
    """Mean, and how far the bootstrap's interval reaches below and above it (0 for one value)."""
    mean, (low, high) = float(np.mean(values)), bootstrap(list(values))
    return mean, *(0.0 if np.isnan(side) else abs(side - mean) for side in (low, high))


def verdicts(frame: pd.DataFrame) -> Figure:
    """Every claim at a glance, a line each, of claims.table's frame: mean difference with the bootstrap's interval
    (thick) and Student's (thin, cut at the border), coloured by verdict; at the right the paper's difference. What was
    not run is left out.
    """
    ran = frame[frame["n"] > 0].reset_index(drop=True)
    figure, ax = plt.subplots(figsize=(10, 0.24 * len(ran) + 1), layout="constrained")
    colours = ran["verdict"].map(VERDICTS)
    for low, high, width in (("low_t", "high_t", 1), ("low", "high", 4)):
        ax.hlines(ran.index, ran[low], ran[high], colors=colours, lw=width)
    ax.scatter(ran["change"], ran.index, s=22, c=colours, edgecolors="white", zorder=3)
    edge = 1.1 * np.nanmax(np.abs(ran[["change", "low", "high"]]), initial=0.1)
    ax.set_xlim(-edge, edge)
    ax.axvline(0, color="0.3", lw=0.8)
    for i, study in enumerate(dict.fromkeys(ran["study"])):
        at = ran.index[ran["study"] == study]
        if i % 2:
            ax.axhspan(at[0] - 0.5, at[-1] + 0.5, color="0.95", zorder=0)
    ax.set_yticks(ran.index, ran["claim"], fontsize=8)
    ax.set_ylim(len(ran) - 0.5, -0.5)
    printed = ran["paper"].map(lambda paper: "" if pd.isna(paper) else f", paper {paper:+.1f}")
    beside = ax.secondary_yaxis("right")
    beside.set_yticks(ran.index, "n = " + ran["n"].astype(str) + printed, fontsize=8)
    beside.spines["right"].set_visible(False)
    beside.tick_params(length=0)
    _finish(ax, "difference of two arms that share their seeds, toy scale", "points of AP", "")
    ax.tick_params(axis="y", labelsize=8)
    found = [word for word in VERDICTS if (ran["verdict"] == word).any()]
    ax.legend(
        [Line2D([], [], color=VERDICTS[word], lw=4) for word in found],
        found,
        fontsize=9,
        frameon=False,
        loc="upper left",
    )
    return figure


def labels(rows: list[Row], metric: str = "AP_bb") -> Figure:
    """Left: score against labelled images, a line a variant, a small dot a seed that the first variant has too
    (_alike). Right: the difference to it, paired over seeds. Whiskers are 95 % bootstrap intervals of the mean.
    """
    rows = _alike(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    names = list(dict.fromkeys(row.variant.name for row in rows))
    points: dict[str, dict[int, dict[int, float]]] = defaultdict(dict)  # variant -> labelled images -> seed -> score
    for row in rows:
        for seed, run in _runs(row).items():
            images = records.numbers(run)["train_images"]
            points[row.variant.name].setdefault(images, {})[seed] = row.scores(metric)[seed]
    for i, name in enumerate(names):
        scores, base, shift = (
            dict(sorted(points[name].items())),
            points[names[0]],
            1 + 0.07 * (i - (len(names) - 1) / 2),
        )
        differences = {n: {seed: score - base[n][seed] for seed, score in each.items()} for n, each in scores.items()}
        for ax, shown in ((left, scores), (right, differences if i else {})):
            if not shown:
                continue
            x, middle = np.array([*shown]) * shift, np.array([_whiskers([*each.values()]) for each in shown.values()])
            ax.errorbar(
                x,
                middle[:, 0],
                middle[:, 1:].T,
                color=LINES[i],
                marker="o",
                ms=5,
                capsize=3,
                label=name if ax is left else None,
            )
            for at, each in zip(x, shown.values()):
                ax.plot([at * 1.02] * len(each), [*each.values()], ".", ms=4, color=LINES[i], alpha=0.5, zorder=0)
    ticks = sorted({n for each in points.values() for n in each})
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
        ax.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
    right.axhline(0, color="0.4", lw=0.8)
    _finish(left, "toy scale", "labelled images", f"{metric} (%)")
    _finish(right, f"minus {names[0]}, same seeds", "labelled images", "points of AP")
    left.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=len(names), fontsize=9, frameon=False)
    return figure


def iterations(of_study: dict[str, list[Row]]) -> Figure:
    """AP of boxes against iterations of fine-tuning, a panel a study and benchmark with finished runs, a thin line a
    seed that the first variant has too, a thick one their mean; of_study: study's name -> its rows.
    """
    of_study = {study: _alike(rows) for study, rows in of_study.items()}
    panels = [
        (study, name)
        for study, rows in of_study.items()
        for name in dict.fromkeys(row.benchmark for row in rows if _runs(row))
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False, layout="constrained")
    for ax, (study, benchmark) in zip(axes[0], panels):
        labelled = "no"
        for i, name in enumerate(dict.fromkeys(row.variant.name for row in of_study[study])):
            courses: dict[int, list[float]] = defaultdict(list)
            for row in (row for row in of_study[study] if (row.benchmark, row.variant.name) == (benchmark, name)):
                for run in _runs(row).values():
                    labelled = records.numbers(run)["train_images"]
                    course = {line["step"]: line["bbox_AP"] for line in run.rows() if "bbox_AP" in line}
                    ax.plot([*course], [*course.values()], lw=0.7, alpha=0.4, color=LINES[i])
                    for step, score in course.items():
                        courses[step].append(score)
            if courses:
                steps = sorted(courses)
                ax.plot(
                    steps,
                    [np.mean(courses[step]) for step in steps],
                    marker="o",
                    ms=4,
                    lw=2,
                    color=LINES[i],
                    label=name,
                )
        _finish(ax, f"{study}: {labelled} labelled images", "iterations of fine-tuning", "AP_bb (%), toy scale")
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=9, frameon=False)
    return figure


def changes(rows: list[Row], of: str, against: str, benchmark: str) -> pd.DataFrame:
    """Differences of box AP by class and by size, paired over seeds: name, change, low, high (95 % bootstrap), n."""
    sides = [
        _runs(row) for name in (of, against) for row in rows if (row.variant.name, row.benchmark) == (name, benchmark)
    ]
    if len(sides) < 2:
        return pd.DataFrame(columns=["name", "change", "low", "high", "n"])
    found: dict[str, list[float]] = defaultdict(list)
    for seed in sorted({*sides[0]} & {*sides[1]}):
        ours, theirs = (records.numbers(side[seed])["bbox"] for side in sides)
        for key, word in SIZES.items():
            found[f"{word} objects"].append(ours[key] - theirs[key])
        for name, score in ours["per_class"].items():
            found[name].append(score - theirs["per_class"][name])
    lines = []
    for name, values in found.items():
        values = [value for value in values if not np.isnan(value)]
        if values:
            low, high = bootstrap(values)
            lines.append({"name": name, "change": np.mean(values), "low": low, "high": high, "n": len(values)})
    return pd.DataFrame(lines)


def draw_changes(frame: pd.DataFrame, title: str) -> Figure:
    """A bar a class and size, classes by their change; whiskers are 95 % bootstrap intervals."""
    sized = frame["name"].str.endswith(" objects")
    ordered = pd.concat([frame[~sized].sort_values("change"), frame[sized][::-1]])
    figure, ax = plt.subplots(figsize=(7, 0.3 * len(ordered) + 1.2), layout="constrained")
    reach = np.nan_to_num([ordered["change"] - ordered["low"], ordered["high"] - ordered["change"]]).clip(0)
    ax.barh(ordered["name"], ordered["change"], xerr=reach, capsize=2, height=0.7,
            color=["#0072B2" if change > 0 else "#D55E00" for change in ordered["change"]])  # fmt: skip
    ax.axvline(0, color="0.3", lw=0.8)
    _finish(ax, title, "points of box AP, paired over seeds", "")
    return figure
