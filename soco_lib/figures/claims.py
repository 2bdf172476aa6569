"""Figures of notebook 10, from records: verdicts, scores by labels and iterations, changes by class and size."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from soco_lib.figures.studies import LINES, finish
from soco_lib.runs import records
from soco_lib.tables.stats import LEVEL, bootstrap, paired
from soco_lib.tables.study_rows import Row

VERDICTS = {"confirmed": "#009E73", "contradicted": "#D55E00", "undecided": "#888888"}
SIZES = {"APs": "small", "APm": "medium", "APl": "large"}


def _alike(rows: list[Row]) -> list[Row]:
    """The rows of variants with finished runs, of each only the seeds that the first of them finished on the same
    benchmark: means are then of the same seeds.
    """
    ran = {row.variant.name for row in rows if row.finished}
    rows = [row for row in rows if row.variant.name in ran]
    base = {row.benchmark: {*row.finished} for row in rows if row.variant is rows[0].variant}
    shared = lambda row: {seed: cell for seed, cell in row.cells.items() if seed in base[row.benchmark]}
    return [dataclasses.replace(row, cells=shared(row)) for row in rows]


def _whiskers(values: list[float]) -> tuple[float, float, float]:
    """Mean, and how far the bootstrap's interval reaches below and above it (0 for one value)."""
    mean, (low, high) = float(np.mean(values)), bootstrap(list(values))
    return mean, *(0.0 if np.isnan(side) else abs(side - mean) for side in (low, high))


def verdicts(frame: pd.DataFrame) -> Figure:
    """Every claim at a glance, a line each, of claims.table's frame: mean difference with the bootstrap's interval
    (thick) and Student's (thin, cut at the border), coloured by verdict, filled where it stands among all claims (q);
    at the right the paper's difference. What was not run is left out.
    """
    ran = frame[frame["n"] > 0].reset_index(drop=True)
    figure, ax = plt.subplots(figsize=(10, 0.24 * len(ran) + 1), layout="constrained")
    colours = ran["verdict"].map(VERDICTS)
    for low, high, width in (("low_t", "high_t", 1), ("low", "high", 4)):
        ax.hlines(ran.index, ran[low], ran[high], colors=colours, lw=width)
    filled = colours.where(ran["q"] <= LEVEL, "white")
    ax.scatter(ran["change"], ran.index, s=26, c=filled, edgecolors=colours, zorder=3)
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
    finish(ax, "difference of two arms that share their seeds, toy scale", "points of AP", "")
    ax.tick_params(axis="y", labelsize=8)
    found = [word for word in VERDICTS if (ran["verdict"] == word).any()]
    handles = [Line2D([], [], color=VERDICTS[word], lw=4) for word in found]
    handles += [Line2D([], [], color="0.3", marker="o", lw=0)]
    ax.legend(handles, [*found, f"filled: q ≤ {LEVEL:g}"], fontsize=9, frameon=False, loc="upper left")
    return figure


def labels(rows: list[Row], metric: str = "AP_bb", scale: str = "toy") -> Figure:
    """Left: score against labelled images, a line a variant, a small dot a seed that the first variant has too
    (_alike). Right: the difference to it, paired over seeds. Whiskers are 95 % bootstrap intervals of the mean.
    """
    rows = _alike(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    names = list(dict.fromkeys(row.variant.name for row in rows))
    points: dict[str, dict[int, dict[int, float]]] = {name: {} for name in names}  # labelled images -> seed -> score
    for row in rows:
        scores = row.scores(metric)
        for seed, end in row.finished.items():
            images = records.numbers(end.run)["train_images"]
            points[row.variant.name].setdefault(images, {})[seed] = scores[seed]
    base = points[names[0]]
    for i, name in enumerate(names):
        scores, shift = dict(sorted(points[name].items())), 1 + 0.07 * (i - (len(names) - 1) / 2)
        differences = {n: paired(each, base[n]).values for n, each in scores.items()}
        for ax, shown in ((left, scores), (right, differences))[: 2 if i else 1]:
            if not shown:  # a variant without finished runs
                continue
            x, middle = np.array([*shown]) * shift, np.array([_whiskers([*each.values()]) for each in shown.values()])
            style = dict(color=LINES[i], marker="o", ms=5, capsize=3, label=name if ax is left else None)
            ax.errorbar(x, middle[:, 0], middle[:, 1:].T, **style)
            for at, each in zip(x, shown.values()):
                ax.plot([at * 1.02] * len(each), [*each.values()], ".", ms=4, color=LINES[i], alpha=0.5, zorder=0)
    ticks = sorted({n for each in points.values() for n in each})
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
        ax.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
    right.axhline(0, color="0.4", lw=0.8)
    finish(left, f"{scale} scale", "labelled images", f"{metric} (%)")
    finish(right, f"minus {names[0]}, same seeds", "labelled images", "points of AP")
    left.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=len(names), fontsize=9, frameon=False)
    return figure


def iterations(of_study: dict[str, list[Row]]) -> Figure:
    """AP of boxes against iterations of fine-tuning, a panel a study and benchmark with finished runs, a thin line a
    seed that the first variant has too, a thick one their mean; of_study: study's name -> its rows.
    """
    of_study = {study: _alike(rows) for study, rows in of_study.items()}
    panels = dict.fromkeys((study, row.benchmark) for study, rows in of_study.items() for row in rows if row.finished)
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False, layout="constrained")
    for ax, (study, benchmark) in zip(axes[0], panels):
        labelled = "no"
        names = dict.fromkeys(row.variant.name for row in of_study[study])
        row_of = {row.variant.name: row for row in of_study[study] if row.benchmark == benchmark}
        for colour, name in zip(LINES, names):
            courses: dict[int, list[float]] = defaultdict(list)
            for end in row_of[name].finished.values():
                labelled = records.numbers(end.run)["train_images"]
                course = {line["step"]: line["bbox_AP"] for line in end.run.rows() if "bbox_AP" in line}
                ax.plot([*course], [*course.values()], lw=0.7, alpha=0.4, color=colour)
                for step, score in course.items():
                    courses[step].append(score)
            if courses:
                means = [np.mean(courses[step]) for step in sorted(courses)]
                ax.plot(sorted(courses), means, marker="o", ms=4, lw=2, color=colour, label=name)
        finish(ax, f"{study}: {labelled} labelled images", "iterations of fine-tuning", "AP_bb (%), toy scale")
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=9, frameon=False)
    return figure


def changes(rows: list[Row], of: str, against: str, benchmark: str) -> pd.DataFrame:
    """Differences of box AP by class and by size, paired over seeds: name, change, low, high (95 % bootstrap), n."""
    row_of = {row.variant.name: row.finished for row in rows if row.benchmark == benchmark}
    sides = [{}, {}]  # what is scored -> seed -> AP
    for side, variant in zip(sides, (of, against)):
        for seed, end in row_of.get(variant, {}).items():
            box = records.numbers(end.run)["bbox"]
            sizes = {f"{word} objects": box[key] for key, word in SIZES.items() if key in box}
            for name, score in (sizes | box["per_class"]).items():
                side.setdefault(name, {})[seed] = score
    lines = []
    for name in sides[0]:
        found = paired(sides[0][name], sides[1].get(name, {}))
        values = [value for value in found.values.values() if not np.isnan(value)]
        if values:
            lines.append((name, np.mean(values), *bootstrap(values), len(values)))
    return pd.DataFrame(lines, columns=["name", "change", "low", "high", "n"])


def draw_changes(frame: pd.DataFrame, title: str) -> Figure:
    """A bar a class and size, classes by their change; whiskers are 95 % bootstrap intervals."""
    sized = frame["name"].str.endswith(" objects")
    ordered = pd.concat([frame[~sized].sort_values("change"), frame[sized][::-1]])
    figure, ax = plt.subplots(figsize=(7, 0.3 * len(ordered) + 1.2), layout="constrained")
    reach = np.nan_to_num([ordered["change"] - ordered["low"], ordered["high"] - ordered["change"]]).clip(0)
    ax.barh(ordered["name"], ordered["change"], xerr=reach, capsize=2, height=0.7,
            color=["#0072B2" if change > 0 else "#D55E00" for change in ordered["change"]])  # fmt: skip
    ax.axvline(0, color="0.3", lw=0.8)
    finish(ax, title, "points of box AP, paired over seeds", "")
    return figure
