"""What notebook 8 shows of a study beside its table and figure: variants and their shapes, states, curves."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from soco_lib.encoder import Encoder
from soco_lib.figures.studies import LINES
from soco_lib.studies import plans
from soco_lib.studies.study import Study
from soco_lib.tables.study_rows import Row

#: Parameter prefixes and what they are called.
PARTS = {
    "backbone.bottom_up.": "ResNet",
    "backbone.fpn_": "FPN",
    "roi_heads.box_head.": "box head",
    "roi_heads.res5.": "res5",
}


def shown(frame: pd.DataFrame) -> Styler:
    """A table of words: no index, aligned to the left."""
    left = [{"selector": "th, td", "props": "text-align: left; vertical-align: top"}]
    return frame.style.hide(axis="index").set_table_styles(left)


def variants(study: Study, profile: str) -> pd.DataFrame:
    """What each variant is, in words, in fields that differ from the base's, and in the paper's name of the row."""
    base, rows = study.reference(profile), []
    for v in study.variants:
        cfg = study.pretrain(v, profile)
        rows.append((v.name, v.says, plans.fields(cfg, base) or "(the base)" if cfg else "random weights", v.row))
    return pd.DataFrame(rows, columns=["variant", "what", "differs in", "the paper's row"])


def shapes(study: Study, profile: str) -> pd.DataFrame:
    """What a variant pretrains and what an object becomes in it; nothing is computed but shapes (PyTorch's meta
    device).

    variants: those that are alike in it; parts: of the detector; pooled from: the maps that V1 gives, channels x height
    x width; object: how a box becomes a vector.
    """
    found: dict[tuple, list[str]] = {}
    for variant in (v for v in study.variants if not v.scratch):
        cfg = study.pretrain(variant, profile)
        with torch.device("meta"):
            encoder = Encoder(cfg).eval()
            maps = encoder.maps(torch.empty(1, 3, cfg.size, cfg.size))
        names = [name for name, _ in encoder.named_parameters()]
        parts = [part for prefix, part in PARTS.items() if any(name.startswith(prefix) for name in names)]
        parts = parts if "ResNet" in parts else ["ResNet", *parts]  # a C4 detector's backbone is the ResNet itself
        seen = ", ".join(f"{level} {'x'.join(map(str, maps[level].shape[1:]))}" for level in encoder.levels)
        pool = (
            "mean of the map"
            if encoder.pooler is None
            else "RoIAlign " + "x".join(map(str, encoder.pooler.output_size))
        )
        head = f", {parts[-1]}" if parts[-1] in ("box head", "res5") else ", mean" if encoder.pooler is not None else ""
        million = sum(p.numel() for p in encoder.parameters()) / 1e6
        found.setdefault((" + ".join(parts), f"{million:.2f} M", seen, f"{pool}{head} -> {encoder.dim}"), []).append(
            variant.name
        )
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
    variants = list(dict.fromkeys(row.variant.name for row in rows))
    logs = {
        (row.variant.name, run.name): (run.cfg.batch, run.run.rows())
        for row in rows
        for run in row.runs
        if run.kind == kind
    }
    shown = {}
    for name, (key, *_) in panels.items():
        points = {run: [(line["step"] * batch, line[key]) for line in log if line.get(key) is not None]
                  for run, (batch, log) in logs.items()}  # fmt: skip
        if len({x for course in points.values() for x, _ in course}) > 1:
            shown[name] = points
    if not shown:
        return None
    columns, lines = min(2, len(shown)), -(-len(shown) // 2)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.7 * columns, 2.7 * lines + 0.6), squeeze=False, layout="constrained"
    )
    for ax in axes.flat[len(shown) :]:
        ax.axis("off")
    drawn = {}
    for ax, (name, points) in zip(axes.flat, shown.items()):
        for (variant, _), course in points.items():
            colour = LINES[variants.index(variant) % len(LINES)]
            drawn[variant] = (
                ax.plot(*zip(*course), marker=".", ms=4, lw=1.2, color=colour)[0] if course else drawn.get(variant)
            )
        ax.set_title(name, fontsize=10, loc="left")
        ax.set_xlabel("images seen", fontsize=9)
        ax.tick_params(labelsize=9)
        ax.grid(alpha=0.3)
        if ax.dataLim.y0 >= 0:  # else noise would be drawn as a slope
            ax.set_ylim(0, 1.05 * ax.dataLim.y1 or 1)
    known = [name for name in variants if drawn.get(name)]
    figure.legend(
        [drawn[name] for name in known], known, loc="outside lower center", ncols=5, fontsize=9, frameon=False
    )
    figure.suptitle(title, fontsize=11)
    return figure
