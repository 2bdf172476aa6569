"""What notebook 8 shows of a study beside its table: variants and their shapes, states, curves, ours beside the paper's."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from soco_lib import plans
from soco_lib.encoder import Encoder
from soco_lib.plots import COLOURS
from soco_lib.studies import Study
from soco_lib.study_records import Row

#: Parameter prefixes and what they are called.
PARTS = {"backbone.bottom_up.": "ResNet", "backbone.fpn_": "FPN", "roi_heads.box_head.": "box head", "roi_heads.res5.": "res5"}
#: Colours of lines: COLOURS without its white, then dark ones, since the largest studies have seven variants.
LINES = (*[colour for colour in COLOURS if colour not in ("#FFFFFF", "#F0E442")], "#000000", "#8C6D31")


def variants(study: Study, profile: str) -> pd.DataFrame:
    """What each variant is, in words and in fields."""
    base = study.pretrain(study.variant(study.baseline), profile)
    rows = [(v.name, v.says, plans.fields(study.pretrain(v, profile), base) or "(the base)") for v in study.variants]
    return pd.DataFrame(rows, columns=["variant", "what", "differs in"]).set_index("variant")


def shapes(study: Study, profile: str) -> pd.DataFrame:
    """What each variant pretrains and what an object becomes in it; nothing is computed but shapes (PyTorch's meta device).

    parts: of the detector; pooled from: the maps that V1 gives, channels x height x width; object: how a box becomes a vector.
    """
    rows = []
    for variant in study.variants:
        cfg = study.pretrain(variant, profile)
        with torch.device("meta"):
            encoder = Encoder(cfg).eval()
            maps = encoder.maps(torch.empty(1, 3, cfg.size, cfg.size))
        names = [name for name, _ in encoder.named_parameters()]
        parts = [part for prefix, part in PARTS.items() if any(name.startswith(prefix) for name in names)]
        parts = parts if "ResNet" in parts else ["ResNet", *parts]  # a C4 detector's backbone is the ResNet itself
        seen = ", ".join(f"{level} {'x'.join(map(str, maps[level].shape[1:]))}" for level in encoder.levels)
        pool = "mean of the map" if encoder.pooler is None else "RoIAlign " + "x".join(map(str, encoder.pooler.output_size))
        head = f", {parts[-1]}" if parts[-1] in ("box head", "res5") else ", mean" if encoder.pooler is not None else ""
        million = sum(p.numel() for p in encoder.parameters()) / 1e6
        rows.append((variant.name, " + ".join(parts), f"{million:.2f} M", seen, f"{pool}{head} -> {encoder.dim}"))
    return pd.DataFrame(rows, columns=["variant", "parts", "parameters", "pooled from", "object"]).set_index("variant")


def states(rows: list[Row]) -> pd.DataFrame:
    """State of every run, a row a variant and benchmark."""
    found = [(row.variant.name, row.benchmark, row.state or "missing") for row in rows]
    return pd.DataFrame(found, columns=["variant", "benchmark", "runs"]).set_index("variant")


def curves(rows: list[Row], kind: str, panels: dict[str, tuple[str, ...]], title: str) -> Figure | None:
    """Log rows of all pretrainings or transfers (kind) over images seen, the first key of each panel, one colour a variant, a line
    a seed. None where no run has logged anything.
    """
    variants = list(dict.fromkeys(row.variant.name for row in rows))
    logs = {(row.variant.name, run.name): (run.cfg.batch, run.run.rows()) for row in rows for run in row.runs if run.kind == kind}
    shown = {name: keys[0] for name, keys in panels.items() if any(keys[0] in line for _, log in logs.values() for line in log)}
    if not shown:
        return None
    figure, axes = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 3.1), squeeze=False, layout="constrained")
    for ax, (name, key) in zip(axes.flat, shown.items()):
        labelled = set()
        for (variant, _), (batch, log) in logs.items():
            points = [(line["step"] * batch, line[key]) for line in log if line.get(key) is not None]
            if points:
                colour = LINES[variants.index(variant) % len(LINES)]
                ax.plot(*zip(*points), marker=".", ms=3, lw=1.1, color=colour, label=None if variant in labelled else variant)
                labelled.add(variant)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("images seen", fontsize=8)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3)
        if ax.dataLim.y0 >= 0:  # else noise would be drawn as a slope
            ax.set_ylim(0, 1.05 * ax.dataLim.y1 or 1)
    axes.flat[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def beside_paper(study: Study, rows: list[Row], frame: pd.DataFrame, profile: str) -> Figure:
    """Ours (mean, standard deviation, a dot a seed) and the paper's values on panels of their own scale, for each benchmark.

    frame: study_tables.table's. A variant without a number has its place and no mark; NaN is written where the paper prints it.
    """
    names, found = [v.name for v in study.variants], list(frame.groupby("benchmark", sort=False))
    figure, axes = plt.subplots(len(found), 2, figsize=(9, 3.4 * len(found)), squeeze=False, layout="constrained")
    for (ours, theirs), (benchmark, lines) in zip(axes, found):
        for colour, metric in zip(LINES, study.metrics):
            part = lines[lines["metric"] == metric].set_index("variant").reindex(names)
            style = dict(color=colour, marker="o", ms=5, ls="none", label=metric)
            ours.errorbar(range(len(names)), part["value"].astype(float), part["sd"].astype(float), capsize=3, **style)
            for row in (row for row in rows if row.benchmark == benchmark):
                scores = list(row.scores(metric).values())
                ours.plot([names.index(row.variant.name)] * len(scores), scores, ".", ms=4, color=colour, alpha=0.6)
            numbers = [float(text) if text else math.nan for text in part["paper"].fillna("")]
            theirs.plot(range(len(names)), numbers, **style)
            for i, text in enumerate(part["paper"]):
                if text == "NaN":
                    theirs.text(i, 0.5, "NaN", transform=theirs.get_xaxis_transform(), ha="center", fontsize=8, color="0.4")
        for ax, title in ((ours, f"ours, scale '{profile}'"), (theirs, f"the paper, Table {study.tables}")):
            ax.set_title(f"{benchmark}: {title}", fontsize=9)
            ax.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
            ax.set_xlim(-0.5, len(names) - 0.5)
            ax.set_ylabel("AP (%)", fontsize=8)
            ax.tick_params(labelsize=8)
            ax.grid(alpha=0.3)
        theirs.legend(fontsize=7)
    return figure
