"""What is odd about a COCO or LVIS dictionary, and its repair.

`sound` is applied by the readers of annotation files, so that training, evaluation, probe and figures see one and the
same repaired set; a sound set stays as it is, object for object. What becomes of each kind says kinds.py.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Callable, Sequence

from soco_lib.data.kinds import Findings, number, whole_number
from soco_lib.data.outlines import SLACK, annotation_name, mend_boxes, mend_masks

#: Pictures whose size is asked of a set in which nothing says that width and height are swapped: all of a small one.
ASKED = 1024


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
        for rule in () if found.refused else (_links, _ids, _crowds, _swapped(size_of), mend_masks, mend_boxes, _areas):
            rule(content, found)
        if not content["annotations"]:
            found.add("empty", [""])
        elif all(a.get("iscrowd") for a in content["annotations"]):
            found.add("crowd-only", [""], len(content["annotations"]))
    return content, found


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
    found.add("file-name-twice", _twice([posixpath.normpath(i["file_name"]) for i in images if "file_name" in i]))


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
            if key in image and (ids := _category_list(image[key], known)) != image[key]:
                found.add("category-list" if ids is None else "category-list-text", [f"{key} of {_image(image)}"])
                image[key] = image[key] if ids is None else ids


def _category_list(listed, known: set[int]) -> list[int] | None:
    """One of LVIS's lists of categories, out of text or null too; None for what is none."""
    try:
        entries = json.loads(listed) if isinstance(listed, str) else [] if listed is None else listed
        ids = [whole_number(i) for i in entries] if isinstance(entries, list) else [None]
    except ValueError:
        return None
    return ids if known.issuperset(ids) else None


# --- annotations ------------------------------------------------------------------------------------------------------


def _links(content: dict, found: Findings) -> None:
    """Ids of images and categories that annotations name."""
    annotations, images = content["annotations"], {image["id"] for image in content["images"]}
    known = {category["id"] for category in content.get("categories", ())}
    for key, text in (("image_id", "image-id-text"), ("category_id", "category-id-text")):
        if {type(a.get(key)) for a in annotations} == {int}:
            continue
        odd = [a for a in annotations if type(a.get(key)) is not int and whole_number(a.get(key)) is not None]
        found.add(text, map(annotation_name, odd))
        for a in odd:
            a[key] = whole_number(a[key])
    lost = [a for a in annotations if type(a.get("image_id")) is not int or a["image_id"] not in images]
    found.add("no-image", map(annotation_name, lost))
    if lost:
        gone = {*map(id, lost)}
        content["annotations"] = annotations = [a for a in annotations if id(a) not in gone]
    if content.get("categories"):
        found.add("category-unknown", [f"{annotation_name(a)}, category {a.get('category_id')!r}" for a in annotations
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
    lvis = any("_category_ids" in key for image in content["images"][:1] for key in image)  # it knows no crowds
    for a in content["annotations"]:
        crowd, ignored = a.get("iscrowd", 0 if lvis else None), a.get("ignore", 0)
        if type(crowd) is not int or crowd not in (0, 1):
            kind, value = "iscrowd-null" if crowd is None else "iscrowd-text", whole_number(crowd)
            value = 0 if crowd is None else int(crowd) if isinstance(crowd, bool) else value
            words = {"true": 1, "false": 0}
            value = words.get(crowd.lower(), value) if isinstance(crowd, str) else value
            found.add(kind if value in (0, 1) else "iscrowd", [annotation_name(a)])
            a["iscrowd"] = value
        if type(ignored) is not int or ignored != 0:
            told = whole_number(int(ignored) if isinstance(ignored, bool) else ignored) or 0
            found.add("ignore" if told else "ignore-null", [annotation_name(a)])
            a["iscrowd"] = 1 if told else a.get("iscrowd", 0)
            a["ignore"] = 0  # Detectron2 takes no other


def _areas(content: dict, found: Findings) -> None:
    for a in content["annotations"]:
        area = a.get("area")
        if (type(area) is float or type(area) is int) and area >= 0 and area != math.inf:
            continue
        told = number(area) if isinstance(area, str) else math.nan
        found.add("area-text" if told >= 0 else "area-missing", [annotation_name(a)])
        a["area"] = told if told >= 0 else a["bbox"][2] * a["bbox"][3]
