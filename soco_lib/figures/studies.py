"""A study's figure, and what notebook 8 shows beside it: variants and their shapes, states, curves; from records alone,
the same bytes each time.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from soco_lib.figures.plots import COLOURS
from soco_lib.runs import records
from soco_lib.studies import plans
from soco_lib.studies.study import Study
from soco_lib.tables import growth
from soco_lib.tables.study_rows import Row

#: Colours of lines: COLOURS without its white and yellow, then dark ones, since the largest studies have seven
#: variants.
LINES = (*[colour for colour in COLOURS if colour not in ("#FFFFFF", "#F0E442")], "#000000", "#8C6D31")
MARKS = "osD^vP"
#: Parameter prefixes of a detector's parts and what they are called.
PARTS = {
    "backbone.bottom_up.": "ResNet",
    "backbone.fpn_": "FPN",
    "roi_heads.box_head.": "box head",
    "roi_heads.res5.": "res5",
}


def finish(ax, title: str, x: str = "", y: str = "", grid: str = "both") -> None:
    """A panel's title, labels and frame, as all figures of tables have them."""
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.tick_params(labelsize=9)
    ax.grid(axis=grid, alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def draw(study: Study, rows: list[Row], frame: pd.DataFrame, profile: str) -> Figure:
    """A row of three panels a benchmark (two where the paper prints nothing), each with a scale of its own, the base in
    bold; frame: study_table.table's.

    Ours: a dot a seed, their mean and standard deviation. Ours minus the base: paired over seeds, with the 95 %
    interval where there are two. The paper's: as printed, "NaN" where it diverged. A variant without a number has its
    place and no mark.
    """
    if len(grown := growth.scores(rows)):
        return draw_growth(grown, profile)
    names, found = [v.name for v in study.variants], list(frame.groupby("benchmark", sort=False))
    figure = Figure(figsize=(max(10.5, 1.6 * len(names)), 3.5 * len(found) + 0.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    printed = bool(frame["paper"].fillna("").astype(bool).any())  # else the paper has no panel
    panels = figure.subplots(len(found), 2 + printed, squeeze=False)
    for (ours, change, *paper), (benchmark, lines) in zip(panels, found):
        metrics = [metric for metric in study.metrics if metric in set(lines["metric"])]
        for i, metric in enumerate(metrics):
            part = lines[lines["metric"] == metric].set_index("variant").reindex(names)
            places = [x + 0.5 * (i + 0.5) / len(metrics) - 0.25 for x in range(len(names))]
            style = dict(color=LINES[i], marker=MARKS[i % len(MARKS)], ms=5, ls="none", label=metric)
            ours.errorbar(places, part["value"].astype(float), part["sd"].astype(float), capsize=3, **style)
            for row in (row for row in rows if row.benchmark == benchmark):
                scores = list(row.scores(metric).values())
                x = [places[names.index(row.variant.name)]] * len(scores)
                ours.plot(x, scores, ".", ms=4, color="0.25", alpha=0.7)
            middle, low, high = (part[name].astype(float) for name in ("change", "low", "high"))
            change.errorbar(places, middle, [middle - low, high - middle], capsize=3, **style)
            for theirs in paper:
                theirs.plot(places, [float(text) if text else math.nan for text in part["paper"].fillna("")], **style)
                for x, text in enumerate(part["paper"] if i == 0 else ()):
                    if text == "NaN":
                        place = dict(transform=theirs.get_xaxis_transform(), ha="center")
                        theirs.text(x, 0.03, "NaN", fontsize=9, color="0.4", **place)
        change.axhline(0, color="0.4", lw=0.8)
        least, most = (int(end) for end in lines.loc[lines["n"] > 0, "n"].agg(["min", "max"]).fillna(0))
        seeds = f"{least} to {most} seeds" if least < most else f"{most} seed{'s' * (most != 1)}"
        several = " and 95 % interval" if (lines["change_n"] > 1).any() else ""
        above = f"{benchmark}\n" * (len(found) > 1)
        finish(ours, f"ours, scale '{profile}', {seeds}", "", f"{above}AP (%)", "y")
        finish(change, f"ours minus {study.baseline}{several}", "", "points of AP", "y")
        for theirs in paper:
            finish(theirs, f"the paper, Table {study.tables}", "", "AP (%)", "y")
        for ax in (ours, change, *paper):
            ax.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor", fontsize=9)
            ax.get_xticklabels()[names.index(study.baseline)].set_fontweight("bold")
            ax.set_xlim(-0.5, len(names) - 0.5)
    handles = panels[0][-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    return figure


def draw_growth(scores: pd.DataFrame, profile: str) -> Figure:
    """A panel a score over images seen (growth.scores): a dot a seed, a line an arm through its means; random weights
    as a level.
    """
    found = list(scores.groupby("score", sort=False))
    figure = Figure(figsize=(5.2 * min(2, len(found)), 3.4 * -(-len(found) // 2) + 0.5), layout="constrained")
    panels = iter(figure.subplots(-(-len(found) // 2), min(2, len(found)), squeeze=False).flat)
    lengths = sorted({*scores["images"]} - {0})
    arms = [arm for arm in dict.fromkeys(scores["arm"]) if arm]
    for (score, lines), ax in zip(found, panels):
        for colour, mark, arm in zip(LINES, MARKS, arms):
            of_arm = lines[lines["arm"] == arm]
            ax.plot(of_arm["images"], of_arm["value"], ".", ms=4, color=colour, alpha=0.6)
            means = of_arm.groupby("images")["value"].mean()
            ax.plot(means.index, means, marker=mark, ms=5, lw=1.3, color=colour, label=arm)
        if len(level := lines.loc[lines["arm"] == "", "value"]):
            ax.axhline(level.mean(), color="0.4", lw=1, ls="--", label="random weights")
        ax.set_xscale("log", base=2)
        ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
        ax.minorticks_off()
        finish(ax, score, "images seen", "percent")
    for ax in panels:
        ax.axis("off")
    handles = {label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    figure.suptitle(f"scale '{profile}'", fontsize=10)
    return figure


def write(path: Path, study: Study, rows: list[Row], frame: pd.DataFrame, profile: str) -> None:
    """As SVG, whatever settings of matplotlib are in force; text stays text, so that it is small and can be searched.
    Raises BookError for a folder that cannot be written.
    """
    with matplotlib.rc_context(), records.writing(path.parent):
        matplotlib.rcdefaults()
        matplotlib.rcParams |= {"svg.hashsalt": "soco", "svg.fonttype": "none"}
        draw(study, rows, frame, profile).savefig(path, format="svg", metadata={"Date": None, "Creator": None})


# --- notebook 8 -------------------------------------------------------------------------------------------------------


def shown(frame: pd.DataFrame) -> Styler:
    """A table of words: no index, aligned to the left."""
    left = [{"selector": "th, td", "props": "text-align: left; vertical-align: top"}]
    styled = frame.style.hide(axis="index").set_table_styles(left)
    return styled.format(escape="html").format_index(escape="html", axis="columns")


def variants(study: Study, profile: str) -> pd.DataFrame:
    """What each variant is, in words, in fields that differ from the base's, and in the paper's name of the row."""
    base, rows = study.reference(profile), []
    for v in study.variants:
        cfg = study.pretrain(v, profile)
        rows.append(
            (v.name, v.says, plans.fields(cfg, base) or "(the base)" if cfg else v.init or "random weights", v.row)
        )
    return pd.DataFrame(rows, columns=["variant", "what", "differs in", "the paper's row"])


def shapes(study: Study, profile: str) -> pd.DataFrame:
    """What a variant pretrains and what an object becomes in it; nothing is computed but shapes (PyTorch's meta
    device).

    variants: those that are alike in it; parts: of the detector; pooled from: the maps that V1 gives, channels x height
    x width; object: how a box becomes a vector.
    """
    import torch  # here, because a study's figure needs no network

    from soco_lib.encoder import Encoder

    found: dict[tuple, list[str]] = {}
    for variant in study.variants:
        if (cfg := study.pretrain(variant, profile)) is None:
            continue
        with torch.device("meta"):
            encoder = Encoder(cfg).eval()
            maps = encoder.maps(torch.empty(1, 3, cfg.size, cfg.size))
        names = [name for name, _ in encoder.named_parameters()]
        parts = [part for prefix, part in PARTS.items() if any(name.startswith(prefix) for name in names)]
        parts = parts if "ResNet" in parts else ["ResNet", *parts]  # a C4 detector's backbone is the ResNet itself
        seen = ", ".join(f"{level} {'x'.join(map(str, maps[level].shape[1:]))}" for level in encoder.levels)
        pool, head = "mean of the map", ""
        if encoder.pooler is not None:
            pool = f"RoIAlign {'x'.join(map(str, encoder.pooler.output_size))}"
            head = ", mean"
        head = f", {parts[-1]}" if parts[-1] in ("box head", "res5") else head
        million = sum(p.numel() for p in encoder.parameters()) / 1e6
        row = (" + ".join(parts), f"{million:.2f} M", seen, f"{pool}{head} -> {encoder.dim}")
        found.setdefault(row, []).append(variant.name)
    named = [("all" if len(names) == len(study.variants) else ", ".join(names), *row) for row, names in found.items()]
    return pd.DataFrame(named, columns=["variants", "parts", "parameters", "pooled from", "object"])


def states(rows: list[Row]) -> pd.DataFrame:
    """State of every run, a row a variant and benchmark."""
    found = [(row.variant.name, row.benchmark, row.state or "missing") for row in rows]
    return pd.DataFrame(found, columns=["variant", "benchmark", "runs"])


def curves(rows: list[Row], kind: str, panels: dict[str, tuple[str, ...]], title: str) -> Figure | None:
    """Log rows of all pretrainings or transfers (kind) over images seen, the first key of each panel, one colour a
    variant, a line a seed, two panels a row. A panel whose points have no course (AP that is measured once) is left
    out; None where none is left.
    """
    colours = dict(zip(dict.fromkeys(row.variant.name for row in rows), LINES))
    runs = {(row.variant.name, run.name): run for row in rows for run in row.runs if run.kind == kind}
    shown = {}
    for name, (key, *_) in panels.items():
        courses = [(variant, [(line["step"] * run.cfg.batch, line[key]) for line in run.run.rows()
                              if line.get(key) is not None]) for (variant, _), run in runs.items()]  # fmt: skip
        if len({x for _, course in courses for x, _ in course}) > 1:
            shown[name] = courses
    if not shown:
        return None
    columns, lines = min(2, len(shown)), -(-len(shown) // 2)
    size = (4.7 * columns, 2.7 * lines + 0.6)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat[len(shown) :]:
        ax.axis("off")
    drawn = {}
    for ax, (name, courses) in zip(axes.flat, shown.items()):
        for variant, course in courses:
            if course:
                drawn[variant] = ax.plot(*zip(*course), marker=".", ms=4, lw=1.2, color=colours[variant])[0]
        finish(ax, name, "images seen")
        if ax.dataLim.y0 >= 0:  # else noise would be drawn as a slope
            ax.set_ylim(0, 1.05 * ax.dataLim.y1 or 1)
    known = [name for name in colours if name in drawn]
    handles = [drawn[name] for name in known]
    figure.legend(handles, known, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure
