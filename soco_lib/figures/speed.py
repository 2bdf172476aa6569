"""Figures of benchmarks' records (results/bench/*.json): where the time goes, what is gained, what growth costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from soco_lib.figures.plots import panel_grid, save
from soco_lib.runs.folder import read_json

#: Ours, the plain formulation, and further ways.
WAYS = ("#0072B2", "#999999", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
#: A table of a record is drawn as stages when it has this column; the others are numbers, one a way.
STAGE = "stage"


def records(folder: Path) -> dict[str, dict]:
    """The benchmarks' records in a folder by name; {} where there are none. Raises BookError for a torn one."""
    return {file.stem: read_json(file) for file in sorted(folder.glob("*.json"))}


def goals(found: dict[str, dict]) -> pd.DataFrame:
    """A row a goal of all records: benchmark, goal, limit, measured, reached."""
    sign = lambda goal: "≥" if goal["at_least"] else "≤"
    met = lambda goal: (goal["value"] >= goal["limit"]) if goal["at_least"] else (goal["value"] <= goal["limit"])
    rows = [
        (name, goal["what"], f"{sign(goal)} {goal['limit']:g} {goal['unit']}", f"{goal['value']:.3g}", met(goal))
        for name, record in found.items()
        for goal in record["goals"]
    ]
    frame = pd.DataFrame(rows, columns=["benchmark", "goal", "limit", "here", "reached"])
    return frame.assign(reached=frame["reached"].map({True: "yes", False: "no"}))


def gains(found: dict[str, dict]) -> Figure:
    """A bar a measured quantity that has a plain way beside it: how many times better ours is; no growth curves."""
    rows = [
        (f"{name}: {row['what']} ({row['way']})", row["ratio"])
        for name, record in found.items()
        for row in record["rows"]
        if row["ratio"] is not None and not row["over"]
    ]
    figure, ax = plt.subplots(figsize=(8, 0.8 + 0.26 * len(rows)), layout="constrained")
    bars = ax.barh([name for name, _ in rows][::-1], [ratio for _, ratio in rows][::-1], color=WAYS[0])
    ax.bar_label(bars, fmt="%.3g", fontsize=8, padding=2)
    ax.axvline(1, color="0.4", lw=1)
    ax.set_xscale("log")
    ax.margins(x=0.1)
    ax.set_xlabel("times better than plain (log)", fontsize=9)
    ax.tick_params(labelsize=8)
    return figure


def show(found: dict[str, dict], name: str, draw: Callable[[dict], Figure | None], folder: Path) -> dict:
    """Draw one benchmark's figure, if there is one, to `folder`; returns its tables, title -> rows, but for stages."""
    if name not in found:
        print(f"no record of bench-{name}: make bench-{name} makes it")
        return {}
    figure = draw(found[name])
    if figure is not None:
        figure.suptitle(f"{name}: {found[name]['title']}", fontsize=10)
        save(figure, folder / f"{name}-{draw.__name__}.png")
    return {title: rows for title, rows in found[name]["tables"].items() if rows and STAGE not in rows[0]}


def stages(record: dict) -> Figure | None:
    """One bar a stage and way, from the record's tables with a column `stage`; None where there is no such table."""
    tables = {title: pd.DataFrame(rows) for title, rows in record["tables"].items() if rows and STAGE in rows[0]}
    if not tables:
        return None
    tables = {title: frame.set_index(STAGE) for title, frame in tables.items()}
    lines = [len(frame) * max(1, frame.shape[1]) for frame in tables.values()]
    size = 8, 0.9 * len(tables) + 0.22 * sum(lines)
    how = {"figsize": size, "squeeze": False, "height_ratios": lines, "layout": "constrained"}
    figure, axes = plt.subplots(len(tables), 1, **how)
    for ax, (title, frame) in zip(axes.flat, tables.items()):
        frame = frame.select_dtypes("number")
        several, colours = frame.shape[1] > 1, WAYS[: frame.shape[1]][::-1]
        frame.iloc[::-1, ::-1].plot.barh(ax=ax, width=0.8, color=colours, legend=several)
        for bars in ax.containers:
            ax.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
        ax.set_title(title, fontsize=10)
        ax.set_ylabel("")
        ax.margins(x=0.08)
        if several:
            handles, names = ax.get_legend_handles_labels()
            ax.legend(handles[::-1], names[::-1], fontsize=8)
    return figure


def growth(record: dict) -> Figure | None:
    """A panel a variable and quantity: median against the variable, a line a way, bars from lowest to highest; None
    where nothing was varied.
    """
    frame = pd.DataFrame([row | {"median": statistics.median(row["values"])} for row in record["rows"] if row["over"]])
    if frame.empty:
        return None
    panels = dict(iter(frame.groupby(["over", "what", "unit"], sort=False)))
    figure, axes = panel_grid(len(panels), min(3, len(panels)), 3.6, 2.7)
    for ax, ((over, what, unit), panel) in zip(axes, panels.items()):
        for (way, rows), colour in zip(panel.groupby("way", sort=False), WAYS):
            rows = rows.sort_values("at")
            middle = rows["median"]
            spread = [middle - rows["values"].map(min), rows["values"].map(max) - middle]
            ax.errorbar(rows["at"], middle, spread, marker="o", ms=4, lw=1.5, capsize=2, color=colour, label=way)
        wide = lambda values: values.min() > 0 and values.max() > 30 * values.min()
        if wide(panel["at"]):
            ax.set_xscale("log")
        if wide(panel["median"]):
            ax.set_yscale("log")
        else:
            ax.set_ylim(0, None)
        ax.set_title(what, fontsize=9)
        ax.set_xlabel(over, fontsize=8)
        ax.set_ylabel(unit, fontsize=8)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    return figure


def _settings(record: dict) -> pd.DataFrame | None:
    """The sweep of bench-proposals, where it was measured on labelled images."""
    needed = {"recall", "s an image", "default"}
    found = [pd.DataFrame(rows) for rows in record["tables"].values() if rows and needed <= {*rows[0]}]
    return found[0] if found else None


def tradeoff(record: dict) -> Figure | None:
    """Recall, mean best overlap and precision of each setting of selective search against its seconds; None where no
    image had labels.

    Colour: mode; marker: base k; the number beside a point: searched side; hollow: fewer images than the others.
    """
    frame = _settings(record)
    if frame is None:
        return None
    limits = {goal["what"].split()[0]: goal["limit"] for goal in record["goals"]}
    panels = {"recall": limits.get("recall@0.5"), "mean best IoU": limits.get("mean"), "precision": None}
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.8), layout="constrained")
    for ax, (score, limit) in zip(axes, panels.items()):
        for (mode, group), colour in zip(frame.groupby("mode", sort=False), WAYS[:1] + WAYS[2:]):
            for (base_k, points), marker in zip(group.groupby("base k"), "os^v"):
                full = points["images"] == frame["images"].max()
                style = {"s": 22, "marker": marker, "ec": colour, "label": f"{mode}, base k {base_k}"}
                fill = [colour if whole else "none" for whole in full]
                ax.scatter(points["s an image"], points[score], c=fill, **style)
            for _, point in group[
                group["base k"].eq(frame["base k"].median()) | (group["base k"].nunique() == 1)
            ].iterrows():
                place = (point["s an image"], point[score])
                ax.annotate(point["side"], place, (3, 3), textcoords="offset points", fontsize=7, color=colour)
        default = frame[frame["default"] == "yes"]
        ax.scatter(default["s an image"], default[score], s=130, fc="none", ec="black", lw=1.5, label="default")
        ax.axvline(limits["search"], color="0.6", lw=1, ls="--")
        if limit is not None:
            ax.axhline(limit, color="0.6", lw=1, ls="--")
        ax.set_xscale("log")
        ax.set_xlabel("seconds an image and core (log)", fontsize=9)
        ax.set_title(score, fontsize=10)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7)
    return figure


def choice(record: dict) -> str:
    """One sentence on the sweep of bench-proposals: where the default stands among settings that reach all goals."""
    frame = _settings(record)
    if frame is None:
        return "That record is of images without labels: it tells seconds, not quality."
    limits = {goal["what"].split()[0]: goal["limit"] for goal in record["goals"]}
    good = frame[frame["recall"].ge(limits["recall@0.5"]) & frame["mean best IoU"].ge(limits["mean"])]
    good = good[good["images"].eq(frame["images"].max()) & good["s an image"].le(limits["search"])]
    good, default = good.sort_values("s an image"), frame[frame["default"] == "yes"].iloc[0]
    scores = ("recall", "mean best IoU", "precision")

    def said(row: pd.Series) -> str:
        measured = [f"{row['s an image']:.3f} s", *(f"{score} {row[score]:.3f}" for score in scores)]
        return f"{row['mode']} at {row['side']} px, base k {row['base k']}: {', '.join(measured)}"

    text = f"{len(good)} of {len(frame)} settings reach all goals on all images; the default, {said(default)}"
    if len(good):
        first = good.iloc[0]
        text += "; it is the fastest of them" if first.name == default.name else f"; fastest, {said(first)}"
    return text + "."
