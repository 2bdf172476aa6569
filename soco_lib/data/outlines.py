"""What is odd about objects' masks and boxes, and its repair (see doctor.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from soco_lib.data.kinds import Findings, number

#: Pixels by which a box may reach over its picture's edge: converters round.
SLACK = 1.0
#: Sum of a polygon's numbers from which on they are not pixels, and overflow where masks are drawn.
FAR = 2**31
#: Pixels of a side below which a box has no area: in float32, far from the origin, nothing is left of it.
TINY = 1e-3
#: Objects whose masks are compared with their boxes, all of a small set.
ASKED = 1024
#: Fewest boxes, and share of them that must reach over the edge, for all to be taken for corners.
CORNERS_FROM, CORNERS_SHARE = 8, 0.1


def annotation_name(annotation: dict) -> str:
    """As examples have it."""
    return f"annotation {annotation.get('id')}"


# --- masks ------------------------------------------------------------------------------------------------------------


def _good_polygons(mask) -> bool:
    """Lists of three points or more of pixels; the sum tells NaN and words alike, at little cost."""
    try:
        return all(type(p) is list and len(p) >= 6 and not len(p) % 2 and abs(sum(p)) < FAR for p in mask)
    except TypeError:
        return False


def _extended(mask: list[list], height: int, width: int) -> bool:
    """Whether a polygon has an extent inside its picture: nothing is drawn of one that has none."""
    inside = lambda values, edge: min(max(values), edge) > max(min(values), 0)
    return any(inside(p[::2], width) and inside(p[1::2], height) for p in mask)


def mend_masks(content: dict, found: Findings) -> None:
    """Polygons and RLE of all annotations, against the sizes of their images."""
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    lost, any_mask = [], False
    for a in content["annotations"]:
        mask = a.get("segmentation")
        if not mask:
            continue
        any_mask, kind = True, ""
        if type(mask) is dict:
            kind = _rle(mask, sizes[a["image_id"]])
        elif type(mask) is not list or any(type(part) is dict and "counts" in part for part in mask):
            kind, a["segmentation"] = "mask-form", []
        else:
            if not _good_polygons(mask):
                mask = _polygons(mask, lambda kind: found.add(kind, [annotation_name(a)]))  # noqa: B023 - used at once
                a["segmentation"] = mask
            if not _extended(mask, *sizes[a["image_id"]]) and not a.get("iscrowd"):
                lost.append(id(a))
                kind = "polygon-none"
        found.add(kind, [annotation_name(a)] if kind else [])
    if lost:
        gone = {*lost}
        content["annotations"] = [a for a in content["annotations"] if id(a) not in gone]
    if any_mask:
        polygons = [
            (a, p) for a in content["annotations"] if type(a.get("segmentation")) is list for p in a["segmentation"]
        ]
        if polygons and all(max(p) <= 1 and min(p) >= 0 for _, p in polygons):
            found.add("polygon-fractions", [annotation_name(a) for a, _ in polygons])
            for a, p in polygons:
                p[:] = [v * sizes[a["image_id"]][1 - i % 2] for i, v in enumerate(p)]


def _rle(mask: dict, size: list[int]) -> str:
    """What is wrong with a run-length encoding, "" for nothing."""
    if type(mask.get("counts")) not in (list, str) or not mask["counts"] or type(mask.get("size")) is not list:
        return "mask-form"
    if mask["size"] != size:
        return "rle-size"
    mask["size"] = size  # whole numbers, where they may be written as 72.0
    counts = mask["counts"]
    if type(counts) is str:
        return "" if _runs(counts) == size[0] * size[1] else "rle-counts"
    filled = all(type(c) is int and c >= 0 for c in counts) and sum(counts) == size[0] * size[1]
    return "" if filled else "rle-counts"


def _runs(text: str) -> int:
    """Pixels that a compressed encoding covers, -1 for a malformed one: numbers in base 32, from the low digit on, and
    from the third on as a difference to the last but one.
    """
    runs, value, shift = [], 0, 0
    for digit in text.encode():
        digit -= 48
        if not 0 <= digit < 64:
            return -1
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (1 << shift) if digit & 16 else 0
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            if runs[-1] < 0:
                return -1
            value = shift = 0
    return sum(runs) if not shift else -1


def _polygons(mask: list, say: Callable[[str], None]) -> list[list]:
    """Polygons out of what is meant as some."""
    plain = lambda value: isinstance(value, (int, float, str)) and not isinstance(value, bool)
    point = lambda value: (
        isinstance(value, dict) or (isinstance(value, list) and len(value) == 2 and all(map(plain, value)))
    )
    if all(map(plain, mask)):
        say("polygon-flat")
        mask = [mask]
    elif len(mask) > 2 and all(map(point, mask)):
        mask = [mask]
    parts, pointed = [], False
    for part in mask:
        if isinstance(part, list) and part and all(map(point, part)):
            pointed = True
            part = [v for p in part for v in ((p.get("x"), p.get("y")) if isinstance(p, dict) else p)]
        parts.append(part if isinstance(part, list) else [])
    if pointed:
        say("polygon-points")
    if any(isinstance(v, str) for part in parts for v in part):
        say("polygon-text")
        parts = [[number(v) if isinstance(v, str) else v for v in part] for part in parts]
    good = [part for part in parts if _good_polygons([part])]
    if good and len(good) < len(parts):
        say("polygon-part")
    return good


# --- boxes ------------------------------------------------------------------------------------------------------------


def mend_boxes(content: dict, found: Findings) -> None:
    """x, y, width, height of each annotation, all at once as columns."""
    annotations = content["annotations"]
    if not annotations:
        return
    found_length = [a for a in annotations if type(a.get("bbox")) is list and len(a["bbox"]) not in (0, 4)]
    found.add("box-length", [f"{annotation_name(a)}, {len(a['bbox'])} numbers" for a in found_length])
    if found_length:
        return
    boxes, changed = _as_numbers(annotations, found)
    finite = np.isfinite(boxes).all(1)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    edge = np.array([sizes[a["image_id"]] for a in annotations], float)
    names = lambda rows: [annotation_name(annotations[i]) for i in np.flatnonzero(rows)]

    whole = boxes[finite]
    if len(whole) and whole.max() <= 1.001 and whole.min() > -0.5 and (edge > 2).all():
        if (whole[:, :2] + whole[:, 2:]).max() > 1.001:
            found.add("box-centres", names(finite))
            return
        found.add("box-fractions", names(finite))
        boxes, changed = boxes * np.tile(edge, 2), changed | finite
    over = finite & (boxes[:, :2] + boxes[:, 2:] > edge + SLACK).any(1)
    fits = (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes[:, 2:] <= edge + SLACK).all(1) & (boxes[:, :2] >= 0).all(1)
    count = int(finite.sum())
    if count >= CORNERS_FROM and over.sum() >= CORNERS_SHARE * count and fits[finite].all():
        found.add("box-corners", names(finite))
        boxes, changed = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1), changed | finite
    turned = finite & (boxes[:, 2:] < 0).any(1)
    found.add("box-turned", names(turned))
    corner = np.minimum(boxes[:, :2], boxes[:, :2] + boxes[:, 2:])
    boxes = np.where(turned[:, None], np.concatenate([corner, np.abs(boxes[:, 2:])], 1), boxes)
    empty = finite & (boxes[:, 2:] < TINY).any(1)
    end = boxes[:, :2] + boxes[:, 2:]
    outside = finite & ~empty & ((boxes[:, :2] >= edge).any(1) | (end <= 0).any(1))
    over = finite & ~empty & ~outside & ((end > edge + SLACK).any(1) | (boxes[:, :2] < -SLACK).any(1))
    for kind, rows in (("box-empty", empty), ("box-outside", outside), ("box-over-edge", over)):
        found.add(kind, names(rows))
    start = np.clip(boxes[:, :2], 0, edge)
    boxes = np.where(over[:, None], np.concatenate([start, np.clip(end, 0, edge) - start], 1), boxes)
    for i in np.flatnonzero((changed | turned | over) & finite):
        annotations[i]["bbox"] = boxes[i].tolist()
    kept = finite & ~empty & ~outside
    found.add("mask-beside", [annotation_name(annotations[i]) for i in _beside(annotations, boxes, kept)])
    if not kept.all():
        content["annotations"] = [a for a, keep in zip(annotations, kept) if keep]


def _beside(annotations: list[dict], boxes: np.ndarray, kept: np.ndarray) -> list[int]:
    """Rows whose polygons lie wholly outside their box: of all, if there are such among some."""

    def apart(i: int) -> bool:
        mask = annotations[i].get("segmentation")
        if type(mask) is not list or not mask:
            return False
        ends = [
            (min(map(min, part)), max(map(max, part))) for part in ([p[::2] for p in mask], [p[1::2] for p in mask])
        ]
        return any(last < at - SLACK or first > at + side + SLACK
                   for (first, last), at, side in zip(ends, boxes[i, :2], boxes[i, 2:]))  # fmt: skip

    rows = np.flatnonzero(kept)
    return [i for i in rows if apart(i)] if any(map(apart, rows[:: -(-len(rows) // ASKED) or 1])) else []


def _as_numbers(annotations: list[dict], found: Findings) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4), NaN where there is none, and which rows were not stored as four numbers."""
    try:
        boxes = np.array([a["bbox"] for a in annotations])
        if boxes.shape == (len(annotations), 4) and boxes.dtype.kind in "iuf":
            boxes = boxes.astype(float)
            odd = np.flatnonzero(~np.isfinite(boxes).all(1))
            found.add("box-not-finite", [annotation_name(annotations[i]) for i in odd])
            return boxes, np.zeros(len(boxes), bool)
    except (KeyError, ValueError, TypeError, OverflowError):
        pass
    boxes, changed = np.full((len(annotations), 4), np.nan), np.zeros(len(annotations), bool)
    for i, a in enumerate(annotations):
        box, mask = a.get("bbox"), a.get("segmentation")
        if isinstance(box, list) and box:
            boxes[i] = [number(v) for v in box]
            changed[i] = any(isinstance(v, str) for v in box)
            finite = np.isfinite(boxes[i]).all()
            if changed[i] or not finite:
                found.add("box-text" if finite else "box-not-finite", [annotation_name(a)])
        elif isinstance(mask, list) and mask:
            points = np.concatenate([np.reshape(p, (-1, 2)) for p in mask])
            boxes[i], changed[i] = [*points.min(0), *np.ptp(points, 0)], True
            found.add("box-from-mask", [annotation_name(a)])
        else:
            found.add("box-missing", [annotation_name(a)])
    return boxes, changed
