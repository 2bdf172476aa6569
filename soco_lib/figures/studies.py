"""A study's figure: our scores, their differences to the base, the paper's scores; from records alone, the same bytes
each time.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from soco_lib.figures.plots import COLOURS
from soco_lib.studies.study import Study
from soco_lib.tables.study_rows import Row

#: Colours of lines: COLOURS without its white and yellow, then dark ones, since the largest studies have seven
#: variants.
LINES = (*[colour for colour in COLOURS if colour not in ("#FFFFFF", "#F0E442")], "#000000", "#8C6D31")
MARKS = "osD^vP"


def _finish(ax, title: str, unit: str, names: list[str], base: str) -> None:
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor", fontsize=9)
    ax.get_xticklabels()[names.index(base)].set_fontweight("bold")
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylabel(unit, fontsize=9)
    ax.tick_params(labelsize=9)
    ax.grid(axis="y", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def draw(study: Study, rows: list[Row], frame: pd.DataFrame, profile: str) -> Figure:
    """A row of three panels a benchmark, each with a scale of its own, the base in bold; frame: study_table.table's.

    Ours: a dot a seed, their mean and standard deviation. Ours minus the base: paired over seeds, with the 95 %
    interval where there are two. The paper's: as printed, "NaN" where it diverged. A variant without a number has its
    place and no mark.
    """
    names, found = [v.name for v in study.variants], list(frame.groupby("benchmark", sort=False))
    figure = Figure(figsize=(max(10.5, 1.6 * len(names)), 3.5 * len(found) + 0.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    panels = figure.subplots(len(found), 3, squeeze=False)
    for (ours, change, theirs), (benchmark, lines) in zip(panels, found):
        metrics = [metric for metric in study.metrics if metric in set(lines["metric"])]
        for i, metric in enumerate(metrics):
            part = lines[lines["metric"] == metric].set_index("variant").reindex(names)
            places = [x + 0.5 * (i + 0.5) / len(metrics) - 0.25 for x in range(len(names))]
            style = dict(color=LINES[i], marker=MARKS[i % len(MARKS)], ms=5, ls="none", label=metric)
            ours.errorbar(places, part["value"].astype(float), part["sd"].astype(float), capsize=3, **style)
            for row in (row for row in rows if row.benchmark == benchmark):
                scores = list(row.scores(metric).values())
                ours.plot(
                    [places[names.index(row.variant.name)]] * len(scores), scores, ".", ms=4, color="0.25", alpha=0.7
                )
            middle, low, high = (part[name].astype(float) for name in ("change", "low", "high"))
            change.errorbar(places, middle, [middle - low, high - middle], capsize=3, **style)
            theirs.plot(places, [float(text) if text else math.nan for text in part["paper"].fillna("")], **style)
            for x, text in enumerate(part["paper"]):
                if text == "NaN" and not i:
                    theirs.text(
                        x, 0.03, "NaN", transform=theirs.get_xaxis_transform(), ha="center", fontsize=9, color="0.4"
                    )
        change.axhline(0, color="0.4", lw=0.8)
        least, most = (int(end) for end in lines.loc[lines["n"] > 0, "n"].agg(["min", "max"]).fillna(0))
        seeds = f"{least} to {most} seeds" if least < most else f"{most} seed{'s' * (most != 1)}"
        _finish(ours, f"ours, scale '{profile}', {seeds}", "AP (%)", names, study.baseline)
        several = " and 95 % interval" if (lines["change_n"] > 1).any() else ""
        _finish(change, f"ours minus {study.baseline}{several}", "points of AP", names, study.baseline)
        _finish(theirs, f"the paper, Table {study.tables}", "AP (%)", names, study.baseline)
        if len(found) > 1:
            ours.set_ylabel(f"{benchmark}\nAP (%)", fontsize=9)
    figure.legend(
        *panels[0][2].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9, frameon=False
    )
    return figure


def write(path: Path, study: Study, rows: list[Row], frame: pd.DataFrame, profile: str) -> None:
    """As SVG, whatever settings of matplotlib are in force; text stays text, so that it is small and can be searched."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams |= {"svg.hashsalt": "soco", "svg.fonttype": "none"}
        draw(study, rows, frame, profile).savefig(path, format="svg", metadata={"Date": None, "Creator": None})
