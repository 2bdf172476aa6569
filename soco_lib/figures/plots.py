"""Images with boxes, curves of a run's log, histograms: drawn from what is given; nothing is computed here.

Boxes are (N, 4) x1 y1 x2 y2 in pixels of the image they are drawn on.
"""

from __future__ import annotations

import functools
import unicodedata
import warnings

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager, get_cachedir
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from soco_lib.views import ViewSample

#: One colour an object, the same in every view (Okabe-Ito, distinguishable without colour vision of red and green).
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2", "#FFFFFF")


#: Fonts with Chinese, Japanese and Korean letters, which matplotlib's own has not: those that are installed follow it.
CJK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "SimHei")
plt.rcParams["font.family"] = ["sans-serif", *({*CJK} & {font.name for font in font_manager.fontManager.ttflist})]


#: matplotlib's own words for a letter without a font, a warning a letter: `plain` says it once.
warnings.filterwarnings("ignore", r"Glyph .* missing from font")


@functools.cache
def _letters() -> set[int]:
    """What the fonts in use can draw."""
    files = [font_manager.findfont(font_manager.FontProperties(family=[name])) for name in plt.rcParams["font.family"]]
    return set().union(*(font_manager.get_font(file).get_charmap() for file in files))


@functools.cache
def _hint(kind: str) -> None:
    print(f"no font here has {kind} letters, which figures show as boxes: install one, such as fonts-noto-cjk, and "
          f"delete {get_cachedir()}")  # fmt: skip


def plain(text: str) -> str:
    """Text of the user's, such as a class's or a file's name, for matplotlib, which would set `$...$` as a formula.

    Letters that no font here has are told once a kind, such as CJK.
    """
    text = str(text)
    for letter in text:
        if ord(letter) not in _letters() and letter.isprintable():
            _hint(unicodedata.name(letter, "such").split()[0])
    return text.replace("$", r"\$")


def draw_boxes(ax, image: np.ndarray, boxes: np.ndarray, colours=None, labels=None, width: float = 2.0) -> None:
    """Show `image` on `ax` with its boxes; colours and labels one a box (default: cycling, none)."""
    ax.imshow(image)
    ax.set_xticks([])
    ax.set_yticks([])
    if colours is None:
        colours = [COLOURS[i % len(COLOURS)] for i in range(len(boxes))]
    # A box is two rectangles, black and on it a narrower one in its colour; one collection draws them fast.
    corners = [[(x1 - 0.5, y1 - 0.5), (x2 - 0.5, y1 - 0.5), (x2 - 0.5, y2 - 0.5), (x1 - 0.5, y2 - 0.5)]
               for x1, y1, x2, y2 in boxes for _ in range(2)]  # fmt: skip
    edges = [edge for colour in colours for edge in ("black", colour)]
    ax.add_collection(
        PolyCollection(corners, facecolors="none", edgecolors=edges, linewidths=[width + 1.2, width]), autolim=False
    )
    for (x1, y1, _, _), colour, label in zip(boxes, colours, map(str, labels if labels is not None else ())):
        style = dict(fontsize=7, color="black", va="top", bbox=dict(fc=colour, ec="none", pad=1))
        if label:
            ax.text(x1 + 1, y1 + 1, plain(label), **style)


def panel_grid(count: int, columns: int, width: float, height: float, more: float = 0.0) -> tuple[Figure, np.ndarray]:
    """A figure and its `count` axes, `columns` a row, each of width x height inches; `more` inches for its title."""
    rows = -(-count // columns)
    size = width * columns, height * rows + more
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat[count:]:
        ax.axis("off")
    return figure, axes.flat[:count]


def image_grid(images: list[np.ndarray], boxes: list[np.ndarray], titles: list[str], columns: int = 4,
               marks: dict[int, dict] | None = None) -> Figure:  # fmt: skip
    """Images with boxes, `columns` a row, about 3 inches each; marks: place of an image -> colours, labels of its
    boxes, as `draw_boxes` takes them.
    """
    figure, axes = panel_grid(len(images), columns, 3, 2.6)
    for place, (ax, image, box, title) in enumerate(zip(axes, images, boxes, titles)):
        draw_boxes(ax, image, box, **(marks or {}).get(place, {}))
        ax.set_title(plain(title), fontsize=9)
    return figure


def views_figure(image: np.ndarray, chosen: np.ndarray, rows: list[list[ViewSample]], levels=None) -> Figure:
    """The image with its K proposals, and one row of views a draw; an object keeps its colour through all of them.

    rows: draws of `make_views`; levels: for each draw and view (K,) pyramid levels, written on the boxes when given.
    View panels are drawn to one scale, so that V3's smaller side is seen.
    """
    sides = [image.shape[1] * 224 / max(image.shape[:2])] + [v.image.shape[0] for v in rows[0]]
    size = 2.6 * sum(sides) / max(sides[1:]), 2.75 * len(rows)
    grid = {"squeeze": False, "width_ratios": [s / max(sides) for s in sides], "layout": "constrained"}
    figure, axes = plt.subplots(len(rows), len(sides), figsize=size, **grid)
    for r, views in enumerate(rows):
        draw_boxes(axes[r, 0], image, chosen, labels=[str(i + 1) for i in range(len(chosen))])
        axes[r, 0].set_title("image and its proposals" if r == 0 else "", fontsize=9)
        for c, view in enumerate(views):
            seen = np.flatnonzero(view.valid)
            marks = [f"{i + 1} P{int(levels[r][c][i])}" if levels is not None else str(i + 1) for i in seen]
            colours = [COLOURS[i % len(COLOURS)] for i in seen]
            draw_boxes(axes[r, c + 1], view.image, view.boxes[seen], colours, marks)
            title, lost = f"V{c + 1}  {view.image.shape[0]} px", len(view.valid) - len(seen)
            title += "  flipped" * bool(view.flip) + f"  {lost} dropped" * (lost > 0)
            axes[r, c + 1].set_title(title, fontsize=9)
    return figure


def _finish_panel(ax, title: str) -> None:
    """Title, grid and small type; quantities that are never negative start at 0, so that noise is not drawn as a slope,
    but for τ, which lives near 1, and where the title says that the axis is logarithmic.
    """
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("step", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
    if title.endswith("(log)"):
        ax.set_yscale("log")
    elif ax.dataLim.y0 >= 0 and not title.endswith("τ"):
        ax.set_ylim(0, 1.05 * ax.dataLim.y1 or 1)


def _filled(panels: dict[str, tuple[str, ...]], rows: list[dict]) -> dict[str, tuple[str, ...]]:
    """The panels that the rows have a number for; all where there is none yet."""
    seen = {key for row in rows for key, value in row.items() if value is not None}
    return {title: keys for title, keys in panels.items() if seen & {*keys}} or panels


def _lines(rows: list[dict], key: str) -> dict[str, list[tuple]]:
    """label -> (step, value) points of a key; one line an entry where the values are lists."""
    found = {}
    for row in rows:
        value = row.get(key)
        parts = dict(zip(LISTED[key], value)) if isinstance(value, list) else {key: value}
        for label, number in parts.items():
            if number is not None:
                found.setdefault(label, []).append((row["step"], number))
    return found


def curves(rows: list[dict], panels: dict[str, tuple[str, ...]], title: str, reference=()) -> Figure:
    """Log rows over steps, a panel an entry of `panels` (title -> keys), four a row; `reference` rows in gray behind.

    A panel without any number (masks of a detector that has none, AP before it is measured) is left out.
    """
    panels = _filled(panels, rows)
    figure, axes = panel_grid(len(panels), min(4, len(panels)), 3.4, 2.5, 0.2)
    for ax, (name, keys) in zip(axes, panels.items()):
        for key in keys:
            for points in _lines(reference, key).values():
                ax.plot(*zip(*points), color="0.75", lw=3)
            for label, points in _lines(rows, key).items():
                ax.plot(*zip(*points), **LINE, label=label)
        _finish_panel(ax, name)
        if len(ax.get_legend_handles_labels()[1]) > 1:
            ax.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def compare(runs: dict[str, list[dict]], panels: dict[str, tuple[str, ...]], title: str = "") -> Figure:
    """The first key of each panel for several runs in one figure; runs: name -> log rows."""
    panels = _filled(panels, [row for rows in runs.values() for row in rows])
    figure, axes = panel_grid(len(panels), len(panels), 3.4, 2.9)
    for ax, (name, keys) in zip(axes, panels.items()):
        for run, rows in runs.items():
            points = [(row["step"], row[keys[0]]) for row in rows if row.get(keys[0]) is not None]
            if points:
                ax.plot(*zip(*points), **LINE, label=run)
        _finish_panel(ax, name if len(keys) == 1 else f"{name}: {keys[0]}")
    axes[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


LINE = {"marker": ".", "ms": 3, "lw": 1.2}
#: Names of the entries of a list-valued key.
LISTED = {"pairs": tuple(f"V1–V{i}" for i in range(2, 11)), "trust": ("least", "greatest")}
HEALTH = {
    "loss": ("loss",),
    "spread of embeddings (1 = uniform)": ("spread",),
    "effective rank": ("effective_rank",),
    "loss of a pair of views": ("pairs",),
    "learning rate": ("lr",),
    "target momentum τ": ("tau",),
    "LARS trust ratios (log)": ("trust",),
    "images/s": ("images_per_s",),
}
DETECTION = {
    "total loss": ("loss",),
    "classes and boxes": ("loss_cls", "loss_box_reg", "loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"),
    "mask": ("loss_mask",),
    "AP (%) when measured": ("bbox_AP", "segm_AP"),
}


def histograms(values: dict[str, tuple[np.ndarray, tuple]]) -> Figure:
    """A histogram a panel; values: title -> (numbers, positions of gray lines)."""
    figure, axes = panel_grid(len(values), len(values), 3.4, 2.5)
    for ax, (title, (numbers, lines)) in zip(axes, values.items()):
        ax.hist(numbers, bins=40, color="#56B4E9")
        for x in lines:
            ax.axvline(x, color="0.4", ls="--")
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=8)
    return figure


def save(figure: Figure, path) -> None:
    """Write a figure where its run lives (PNG, 110 dots an inch); the notebook shows it as well."""
    figure.savefig(path, dpi=110)
