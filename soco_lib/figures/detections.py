"""What a detector does: its predictions beside the ground truth, bars of its classes and of its kinds of error."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from pycocotools import mask as rle

from soco_lib.fields import require
from soco_lib.figures.plots import COLOURS, draw_boxes, panel_grid, plain
from soco_lib.transfer.errors import KINDS, ErrorKinds, mistakes
from soco_lib.transfer.predictions import Predictions, read

#: Pixels of an image's longer side on a contact sheet, at most: photographs would take gigabytes.
SIDE = 640


def decode_mask(segmentation, height: int, width: int) -> np.ndarray | None:
    """Polygons or run-length code of COCO as (H, W) bool; None for no mask."""
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        segmentation = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, height, width)
    return rle.decode(segmentation).astype(bool)


def _overlay(image: np.ndarray, masks: list, colours: list[str], alpha: float = 0.45) -> np.ndarray:
    """`image` (H, W, 3) uint8 with each mask tinted in its colour."""
    blended = image.astype(np.float32)
    for mask, colour in zip(masks, colours):
        if mask is not None:
            tint = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
            blended[mask] = (1 - alpha) * blended[mask] + alpha * tint
    return blended.round().astype(np.uint8)


def _panel(ax, image: np.ndarray, objects: list[dict], classes: dict[int, str], title: str) -> None:
    """Objects on their image; a class has one colour in every panel."""
    order = {identity: i for i, identity in enumerate(sorted(classes))}
    colours = [COLOURS[order[o["category_id"]] % len(COLOURS)] for o in objects]
    masks = [decode_mask(o.get("segmentation"), *image.shape[:2]) for o in objects]
    boxes = np.array([o["bbox"] for o in objects], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    more = lambda o: (f" {o['score']:.2f}" if "score" in o else "") + (f" {o['kind']}" if "kind" in o else "")
    labels = [classes[o["category_id"]] + more(o) for o in objects]
    draw_boxes(ax, _overlay(image, masks, colours), boxes, colours, labels, width=1.2)
    ax.set_title(plain(title), fontsize=9)


def draw_predictions(folder: str | Path, n: int = 4, seed: int = 0, score: float = 0.3, most: int = 10) -> Figure:
    """n test images drawn by `seed`, ground truth left of the (at most `most`) predictions scored `score` or more.

    Where an image has none so sure, its best one is shown. Raises BookError when the run has no saved predictions or
    its test data is gone.
    """
    seen = read(folder)
    truth, classes = seen.objects(), seen.classes
    labelled = [image for image in seen.truth["images"] if truth[image["id"]]] or seen.truth["images"]
    n = min(n, len(labelled))
    require(n >= 1, "show at least one image")
    chosen = [labelled[i] for i in sorted(np.random.default_rng(seed).choice(len(labelled), n, replace=False))]
    columns = min(2, n)  # pairs a row
    figure, axes = panel_grid(2 * n, 2 * columns, 3.2, 2.6)
    for image, left, right in zip(chosen, axes[::2], axes[1::2]):
        pixels, kept = seen.pixels(image), seen.of_image(image["id"], score, most)
        _panel(left, pixels, truth[image["id"]], classes, "ground truth")
        _panel(right, pixels, kept, classes, counted(len(kept), "prediction"))
    figure.suptitle(plain(seen.label), fontsize=10)
    return figure


def draw_both(a: Predictions, b: Predictions, scores: dict[int, tuple], names: tuple[str, ...] = ()) -> Figure:
    """One image a row: ground truth, predictions of `a`, of `b`, each at its own best threshold.

    scores: see compare.most_different; rows are in its order. names: of both; (): their runs'. Raises BookError when an
    image is gone.
    """
    require(len(scores) >= 1, "show at least one image")
    truth, classes = a.objects(), a.classes
    images = {image["id"]: image for image in a.truth["images"]}
    figure, axes = panel_grid(3 * len(scores), 3, 3.2, 2.6)
    for (image, both), row in zip(scores.items(), axes.reshape(-1, 3)):
        pixels = a.pixels(images[image])
        _panel(row[0], pixels, truth[image], classes, f"ground truth: {len(truth[image])} objects")
        called = names or (f"A: {a.run.name}", f"B: {b.run.name}")
        for ax, seen, name, (f1, threshold) in zip(row[1:], (a, b), called, both):
            found = seen.of_image(image, threshold, most=30)
            _panel(ax, pixels, found, classes, f"{name}, F1 {f1:.2f}")
    return figure


def draw_image(runs: list[Predictions], image: dict, score: float, category: int | None = None, errors: bool = False,
               most: int = 30) -> Figure:  # fmt: skip
    """One test image (its entry in `truth`): the ground truth, if there is one, and each run's detections beside it.

    Of detections scored `score` or more the `most` surest are drawn; category: of this class alone; errors: only wrong
    detections, judged at that score, and missed objects, each with its kind. Raises BookError when the image is gone.
    """
    first = runs[0]
    mine = lambda items: [o for o in items if o["image_id"] == image["id"] and category in (None, o["category_id"])]
    labelled, pixels = bool(first.truth["annotations"]), first.pixels(image)
    figure, axes = panel_grid(labelled + len(runs), labelled + len(runs), 4.2, 3.6)
    if labelled:
        objects = [o for o in mine(first.truth["annotations"]) if not o.get("iscrowd")]
        _panel(axes[0], pixels, objects, first.classes, f"ground truth: {counted(len(objects), 'object')}")
    for ax, seen in zip(axes[labelled:], runs):
        shown = [d for d in seen.detections if d["image_id"] == image["id"] and d["score"] >= score]
        if errors:
            wrong, missed = map(mine, mistakes(first.truth, shown, image["id"]))
            shown, title = wrong[:most] + missed, f"{counted(len(wrong), 'wrong detection')}, {len(missed)} missed"
        else:
            shown, title = mine(shown)[:most], counted(len(mine(shown)), "detection")
        _panel(ax, pixels, shown, first.classes, f"{seen.run.name}: {title}")
    return figure


def counted(number: int, noun: str) -> str:
    """Such as "1 object" or "2 objects"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def class_bars(values: dict[str, dict[str, float]], title: str, label: str, most: int = 40) -> Figure:
    """One horizontal bar a class, best first; values: task -> class -> number, the first task as bars, others as dots.

    With more than `most` classes the best and the worst halves of that number are shown. Classes without a number (no
    test object) are left out and counted.
    """
    (task, numbers), *others = values.items()
    known = sorted((name for name, value in numbers.items() if not math.isnan(value)), key=lambda name: -numbers[name])
    shown = known if len(known) <= most else known[: most // 2] + known[-(most // 2) :]
    figure, ax = plt.subplots(figsize=(7, 1.2 + 0.19 * max(len(shown), 4)), layout="constrained")
    ax.barh(range(len(shown)), [numbers[name] for name in shown], color=COLOURS[1], label=task)
    for (other, points), mark in zip(others, "od"):
        there = [points.get(name, math.nan) for name in shown]
        ax.plot(there, range(len(shown)), mark, ms=4, color=COLOURS[4], label=other)
    ax.set_yticks(range(len(shown)), [plain(name) for name in shown], fontsize=8)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.tick_params(axis="x", labelsize=8)
    ax.axvline(0, color="0.3", lw=0.8)
    ax.grid(axis="x", alpha=0.3)
    if len(shown) < len(known):
        ax.axhline(most // 2 - 0.5, color="0.3", ls=":")
    notes = [f"{len(known) - len(shown)} classes in between (dotted line) not shown"] if len(shown) < len(known) else []
    notes += [f"{len(numbers) - len(known)} without test objects"] if len(known) < len(numbers) else []
    ax.set_xlabel("; ".join([label, *notes]), fontsize=8)
    if others:
        ax.legend(fontsize=8)
    figure.suptitle(plain(title), fontsize=10)
    return figure


def error_bars(kinds: dict[str, ErrorKinds], title: str) -> Figure:
    """How often each kind of error occurs, and what repairing it alone would add to AP50; kinds: run -> its errors."""
    size = 9, 1.3 + 0.2 * len(KINDS) * (1 + len(kinds))
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    height = 0.8 / len(kinds)
    rows = np.arange(len(KINDS))
    for i, (name, found) in enumerate(kinds.items()):
        for ax, numbers, form in zip(axes, (found.counts, found.gains), ("{:.0f}", "{:.1f}")):
            values, shift = [numbers[kind] for kind in KINDS], (i - (len(kinds) - 1) / 2) * height
            bars = ax.barh(rows + shift, values, height, color=COLOURS[1 + 3 * i], label=name)
            ax.bar_label(bars, [form.format(value) for value in values], padding=2, fontsize=8)
    axes[0].set_yticks(rows, KINDS, fontsize=9)
    axes[0].invert_yaxis()
    for ax, name in zip(axes, ("errors", "AP50 gained if repaired alone (points)")):
        ax.set_title(name, fontsize=9)
        ax.margins(x=0.15)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", alpha=0.3)
    if len(kinds) > 1:
        axes[1].legend(fontsize=8)
    figure.suptitle(plain(title), fontsize=10)
    return figure


def contact_sheet(seen: Predictions, n: int = 24, seed: int = 0, most: int = 20, columns: int = 4) -> Figure:
    """n images without a ground truth, each with its (at most `most`) surest detections, masks where it has them.

    Images are drawn by `seed`, first among those with a detection; the title says how many have one.
    """
    hit = {detection["image_id"] for detection in seen.detections}
    images = [seen.truth["images"][i] for i in np.random.default_rng(seed).permutation(len(seen.truth["images"]))]
    chosen = sorted(images, key=lambda image: image["id"] not in hit)[:n]
    require(bool(chosen), "show at least one image")
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 2.6 * rows), squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for ax, image in zip(axes.flat, chosen):
        kept = seen.of_image(image["id"], 0.0, most)
        _panel(ax, seen.pixels(image), kept, seen.classes, Path(image["file_name"]).name[:36])
        shown, scale = ax.images[0], SIDE / max(image["height"], image["width"])
        if scale < 1:  # boxes keep their coordinates
            shown.set_data(cv2.resize(shown.get_array(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    counted = f"{len(chosen)} of {len(images)} images, {len(hit)} with a detection"
    figure.suptitle(f"{plain(seen.label)}; {counted}", fontsize=10)
    return figure
