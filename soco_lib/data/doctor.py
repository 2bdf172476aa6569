"""What is odd about a COCO or LVIS dictionary, and its repair.

`sound` is applied by the readers of annotation files, so that training, evaluation, probe and figures see one and the
same repaired set; a sound set stays as it is, object for object. What becomes of each kind says kinds.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import numpy as np

from soco_lib.data.kinds import Findings, number, whole_number

#: Pixels by which a box may reach over its picture's edge: converters round.
SLACK = 1.0
#: Pictures whose size is asked of a set in which nothing says that width and height are swapped: all of a small one.
ASKED = 1024
#: Fewest boxes, and share of them that must reach over the edge, for all to be taken for corners.
CORNERS_FROM, CORNERS_SHARE = 8, 0.1


Size = tuple[int, int]  # width, height
SizeOf = Callable[[str, "Size | None"], "Size | None"]


def sound(content: dict, found: Findings | None = None, size_of: SizeOf = lambda *_: None):
    """A COCO or LVIS dictionary, repaired in place, and what was found in it.

    size_of: (width, height) of the picture called so, by labels for the size that is said with it (see decoding.py),
    None where it cannot be read. What is refused stays in it: `Findings.check` raises.
    """
    found = found if found is not None else Findings()
    lists = [content.get(key, []) for key in ("images", "categories")] if isinstance(content, dict) else [None]
    if not all(isinstance(part, list) and all(type(e) is dict for e in part) for part in lists):
        found.add("not-coco", [""])
        return content, found
    _images(content, found)
    _categories(content, found)
    annotations = content.get("annotations", [])
    bad = [i for i, a in enumerate(annotations) if type(a) is not dict] if isinstance(annotations, list) else [0]
    found.add("no-annotation", [f"entry {i}" for i in bad])
    if "annotations" in content and not found.refused:
        _sizes(content["images"] if annotations else (), found, size_of)
        for rule in () if found.refused else (_links, _ids, _crowds, _swapped(size_of), _masks, _boxes, _areas):
            rule(content, found)
        if not content["annotations"]:
            found.add("empty", [""])
        elif all(a.get("iscrowd") for a in content["annotations"]):
            found.add("crowd-only", [""], len(content["annotations"]))
    return content, found


def _name(annotation: dict) -> str:
    return f"annotation {annotation.get('id')}"


def _image(image: dict) -> str:
    return f"image {image.get('id')}"


# --- images and categories --------------------------------------------------------------------------------------------


def _renumber(entries: list[dict], key: str, text: str, bad: str, found: Findings) -> None:
    """Ids that are text become numbers."""
    odd = [entry for entry in entries if type(entry.get(key)) is not int]
    wrong = [entry for entry in odd if whole_number(entry.get(key)) is None]
    found.add(bad, [f"{key} {entry.get(key)!r}" for entry in wrong])
    found.add(text, [f"{key} {entry[key]!r}" for entry in odd if whole_number(entry.get(key)) is not None])
    for entry in odd if not wrong else ():
        entry[key] = whole_number(entry[key])


def _twice(values: Sequence) -> list:
    """Values that were there before, each time."""
    if len(set(values)) == len(values):
        return []
    seen: set = set()
    return [value for value in values if value in seen or seen.add(value)]


def _images(content: dict, found: Findings) -> None:
    images = content.get("images", [])
    if not all(type(image.get("id")) is int for image in images):
        _renumber(images, "id", "image-id-text", "image-id", found)
    nameless = [
        i for i in images if "coco_url" not in i and not (isinstance(i.get("file_name"), str) and i["file_name"])
    ]
    found.add("file-name", map(_image, nameless))
    if found.refused:
        return
    slashed = [image for image in images if "\\" in image.get("file_name", "")]
    found.add("backslash", [image["file_name"] for image in slashed])
    for image in slashed:
        image["file_name"] = image["file_name"].replace("\\", "/")
    if _twice([image["id"] for image in images]):
        by_id: dict[int, dict] = {}
        again = [image for image in images if by_id.setdefault(image["id"], image) is not image]
        found.add("image-id-twice", [f"image {i['id']}" for i in again if i != by_id[i["id"]]])
        found.add("image-twice", [f"image {i['id']}" for i in again if i == by_id[i["id"]]])
        content["images"] = images = [*by_id.values()]
    found.add("file-name-twice", _twice([image["file_name"] for image in images if "file_name" in image]))


def _sizes(images: Sequence[dict], found: Findings, size_of: SizeOf) -> None:
    told = lambda image: (image.get("width"), image.get("height"))
    for image in images:
        w, h = told(image)
        if type(w) is int and type(h) is int and w > 0 and h > 0:
            continue
        w, h = (whole_number(side) or 0 for side in told(image))
        kind = "size-text" if w > 0 and h > 0 else "size-missing"
        if kind == "size-missing":
            w, h = size_of(image.get("file_name", ""), None) or (0, 0)
        found.add(kind if w else "size-unknown", [_image(image)])
        if w:
            image["width"], image["height"] = w, h


def _swapped(size_of: SizeOf) -> Callable[[dict, Findings], None]:
    """The rule for width and height that are swapped. Pictures are asked whose objects reach over the size that is said
    for them, and some of the others; all of them once one is swapped.
    """

    def rule(content: dict, found: Findings) -> None:
        images = [i for i in content["images"] if i["width"] != i["height"] and "file_name" in i]
        over, turned = _over({image["id"]: (image["width"], image["height"]) for image in images}, content)
        every = -(-len(images) // ASKED)

        def swapped(image: dict) -> bool:
            said = image["width"], image["height"]  # of a picture that EXIF turns, its objects know better
            return size_of(image["file_name"], None if image["id"] in turned else said) == said[::-1]

        asked = [image for n, image in enumerate(images) if n % every == 0 or image["id"] in over]
        wrong = [image for image in asked if swapped(image)]
        if wrong and len(asked) < len(images):
            wrong = [image for image in images if swapped(image)]
        found.add("size-swapped", map(_image, wrong))
        for image in wrong:
            image["width"], image["height"] = image["height"], image["width"]

    return rule


def _over(sizes: dict[int, Size], content: dict) -> tuple[set[int], set[int]]:
    """Ids of the images with an object that reaches over their size, and of those whose objects all fit if it is
    swapped. The latter are none where all boxes may be corners.
    """
    over, unfit, corners = set(), set(), True
    for a in content["annotations"]:
        if (size := sizes.get(a["image_id"])) is None:
            continue
        w, h = size
        mask = a.get("segmentation")
        if type(mask) is dict and mask.get("size") == [w, h]:
            over.add(a["image_id"])
        try:
            x, y, right, low = a["bbox"]
            corners = corners and x < right <= w + SLACK and y < low <= h + SLACK
            right, low = x + right, y + low
            if right > w + SLACK or low > h + SLACK:
                over.add(a["image_id"])
                if right > h + SLACK or low > w + SLACK:
                    unfit.add(a["image_id"])
        except (KeyError, TypeError, ValueError):  # no box of numbers
            continue
    return over, set() if corners else over - unfit


def _categories(content: dict, found: Findings) -> None:
    categories = content.get("categories", [])
    found.add(
        "category-id", [f"id {c.get('id')}" for c in categories if not isinstance(c.get("name"), str) or not c["name"]]
    )
    _renumber(categories, "id", "category-id-text", "category-id", found)
    again = _twice([json.dumps(c, sort_keys=True) for c in categories])
    found.add("category-id-twice", [f"id {i}" for i in _twice([c.get("id") for c in categories])])
    found.add("category-name-twice", _twice([c.get("name") for c in categories]) if not again else ())
    known = {c.get("id") for c in categories}
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        for image in content.get("images", ()):
            if (listed := image.get(key)) is None or (type(listed) is list and known.issuperset(listed)):
                continue
            entries = json.loads(listed) if isinstance(listed, str) and listed[:1] == "[" else listed
            ids = [whole_number(i) for i in entries] if isinstance(entries, list) else [None]
            fits = known.issuperset(ids)
            found.add("category-list-text" if fits else "category-list", [f"{key} of image {image.get('id')}"])
            image[key] = ids if fits else listed


# --- annotations ------------------------------------------------------------------------------------------------------


def _links(content: dict, found: Findings) -> None:
    """Ids of images and categories that annotations name."""
    annotations, images = content["annotations"], {image["id"] for image in content["images"]}
    known = {category["id"] for category in content.get("categories", ())}
    for key, text in (("image_id", "image-id-text"), ("category_id", "category-id-text")):
        if {type(a.get(key)) for a in annotations} == {int}:
            continue
        odd = [a for a in annotations if type(a.get(key)) is not int and whole_number(a.get(key)) is not None]
        found.add(text, map(_name, odd))
        for a in odd:
            a[key] = whole_number(a[key])
    lost = [a for a in annotations if type(a.get("image_id")) is not int or a["image_id"] not in images]
    found.add("no-image", map(_name, lost))
    if lost:
        gone = {*map(id, lost)}
        content["annotations"] = annotations = [a for a in annotations if id(a) not in gone]
    if content.get("categories"):
        found.add("category-unknown", [f"{_name(a)}, category {a.get('category_id')!r}" for a in annotations
                  if type(a.get("category_id")) is not int or a["category_id"] not in known])  # fmt: skip


def _ids(content: dict, found: Findings) -> None:
    annotations = content["annotations"]
    ids = [a.get("id") for a in annotations]
    if {*map(type, ids)} <= {int} and len(once := {*ids}) == len(ids) and 0 not in once:
        return
    bad = {
        "id-missing": [i for i in ids if type(i) is not int],
        "id-zero": [i for i in ids if type(i) is int and i == 0],
    }
    bad["id-twice"] = [f"annotation {i}" for i in _twice([i for i in ids if type(i) is int])]
    for kind, which in bad.items():
        found.add(kind, which if kind == "id-twice" else [f"id {i!r}" for i in which])
    if any(bad.values()):
        for number, a in enumerate(annotations, 1):
            a["id"] = number


def _crowds(content: dict, found: Findings) -> None:
    for a in content["annotations"]:
        crowd, ignored = a.get("iscrowd", 0), a.get("ignore", 0)
        if type(crowd) is not int or crowd not in (0, 1):
            kind, value = "iscrowd-null" if crowd is None else "iscrowd-text", whole_number(crowd)
            value = 0 if crowd is None else int(crowd) if isinstance(crowd, bool) else value
            words = {"true": 1, "false": 0}
            value = words.get(crowd.lower(), value) if isinstance(crowd, str) else value
            found.add(kind if value in (0, 1) else "iscrowd", [_name(a)])
            a["iscrowd"] = value
        if type(ignored) is not int or ignored != 0:
            told = whole_number(int(ignored) if isinstance(ignored, bool) else ignored) or 0
            found.add("ignore" if told else "ignore-null", [_name(a)])
            a["iscrowd"] = 1 if told else a.get("iscrowd", 0)
            a["ignore"] = 0  # Detectron2 takes no other


def _areas(content: dict, found: Findings) -> None:
    for a in content["annotations"]:
        area = a.get("area")
        if (type(area) is float or type(area) is int) and area >= 0 and area != math.inf:
            continue
        told = number(area) if isinstance(area, str) else math.nan
        found.add("area-text" if told >= 0 else "area-missing", [_name(a)])
        a["area"] = told if told >= 0 else a["bbox"][2] * a["bbox"][3]


# --- masks ------------------------------------------------------------------------------------------------------------


def _good_polygons(mask) -> bool:
    """Lists of three points or more of finite numbers; the sum tells NaN and words alike, at little cost."""
    try:
        return all(type(p) is list and len(p) >= 6 and not len(p) % 2 and math.isfinite(sum(p)) for p in mask)
    except (TypeError, OverflowError):
        return False


def _masks(content: dict, found: Findings) -> None:
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    lost, any_mask = [], False
    for a in content["annotations"]:
        mask = a.get("segmentation")
        if not mask:
            continue
        any_mask = True
        if type(mask) is dict:
            kind = _rle(mask, sizes[a["image_id"]])
            if kind:
                found.add(kind, [_name(a)])
        elif type(mask) is not list:
            found.add("mask-form", [_name(a)])
        elif not _good_polygons(mask):
            a["segmentation"] = _polygons(mask, lambda kind: found.add(kind, [_name(a)]))  # noqa: B023 - used at once
            if not a["segmentation"] and not a.get("iscrowd"):
                lost.append(id(a))
                found.add("polygon-none", [_name(a)])
    if lost:
        gone = {*lost}
        content["annotations"] = [a for a in content["annotations"] if id(a) not in gone]
    if any_mask:
        polygons = [
            (a, p) for a in content["annotations"] if type(a.get("segmentation")) is list for p in a["segmentation"]
        ]
        if polygons and all(max(p) <= 1 and min(p) >= 0 for _, p in polygons):
            found.add("polygon-fractions", [_name(a) for a, _ in polygons])
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


def _boxes(content: dict, found: Findings) -> None:
    """x, y, width, height of each annotation, all at once as columns."""
    annotations = content["annotations"]
    if not annotations:
        return
    found_length = [a for a in annotations if type(a.get("bbox")) is list and len(a["bbox"]) not in (0, 4)]
    found.add("box-length", [f"{_name(a)}, {len(a['bbox'])} numbers" for a in found_length])
    if found_length:
        return
    boxes, changed = _as_numbers(annotations, found)
    finite = np.isfinite(boxes).all(1)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    edge = np.array([sizes[a["image_id"]] for a in annotations], float)
    names = lambda rows: [_name(annotations[i]) for i in np.flatnonzero(rows)]

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
    empty = finite & (boxes[:, 2:] == 0).any(1)
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
    if not kept.all():
        content["annotations"] = [a for a, keep in zip(annotations, kept) if keep]


def _as_numbers(annotations: list[dict], found: Findings) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4), NaN where there is none, and which rows were not stored as four numbers."""
    try:
        boxes = np.array([a["bbox"] for a in annotations])
        if boxes.shape == (len(annotations), 4) and boxes.dtype.kind in "iuf":
            boxes = boxes.astype(float)
            found.add("box-not-finite", [_name(annotations[i]) for i in np.flatnonzero(~np.isfinite(boxes).all(1))])
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
                found.add("box-text" if finite else "box-not-finite", [_name(a)])
        elif isinstance(mask, list) and mask:
            points = np.concatenate([np.reshape(p, (-1, 2)) for p in mask])
            boxes[i], changed[i] = [*points.min(0), *np.ptp(points, 0)], True
            found.add("box-from-mask", [_name(a)])
        else:
            found.add("box-missing", [_name(a)])
    return boxes, changed
