"""Annotation files as they lie on disk, COCO's JSON and VOC's XML: for labelled sources and for transfers."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from soco_lib import BookError, locate
from soco_lib.data.decoding import Stated, header_size, without_waiting
from soco_lib.data.doctor import sound
from soco_lib.data.kinds import Findings, number, parsed, read_text, whole_number
from soco_lib.data.listings import SUFFIXES
from soco_lib.data.outlines import SLACK
from soco_lib.fields import require


@contextlib.contextmanager
def parsing(file: Path, what: str, remedy: str) -> Iterator[None]:
    """Turn what goes wrong within, on content of another form, into a BookError: `file` is no `what`."""
    try:
        yield
    except BookError:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise BookError(f"{file} is no {what} ({type(error).__name__}: {error}): {remedy}") from None


ALL = ("images", "annotations", "categories")
#: Bytes in which a JPEG's header ends, mostly.
HEAD = 2**16
#: Images of a file that tell its folder, if the first is missing.
TRIED = 16


@contextlib.contextmanager
def _without_cycles() -> Iterator[None]:
    """Within, nobody looks for cycles among millions of fresh lists, which takes longer than making them."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def examine_coco(
    file: Path, needed: tuple[str, ...] = ALL, folder: str | None = None, prepare: Callable[[dict], None] | None = None
) -> tuple[dict, Findings]:
    """The dictionary of a COCO annotation file, repaired in memory (see doctor.py), and what was found in it.

    folder: of the images, for sizes that the file does not say; prepare: changes the dictionary before it is looked at.
    Raises BookError when the file is missing, foreign, or lists no images.
    """
    require(file.is_file(), f"no annotation file {file}: give KIND:ANNOTATIONS.json[@IMAGE_FOLDER]")
    found = Findings(str(file))
    with parsing(file, "COCO annotation file", f"give an instances_*.json with {', '.join(needed)}"), _without_cycles():
        content = parsed(file.read_bytes(), found)
        if content is None:
            found.add("not-coco", [] if found.refused else [""])
            return {}, found
        empty = [key for key in needed if not content[key] and key != "annotations"]
        if prepare:
            prepare(content)
    require(not empty, f"{file} lists no {' and no '.join(empty)}")

    @functools.cache
    def root() -> Path:
        return coco_root(file, folder, [image.get("file_name", "") for image in content["images"]])

    def size_of(name: str, said: tuple[int, int] | None) -> tuple[int, int] | None:
        try:
            return picture_size(root() / name, lambda: said)
        except BookError:
            if said:  # the pictures may be gone
                return None
            raise

    with _without_cycles():
        return sound(content, found, size_of)


def read_coco(file: Path, *how, **named) -> dict:
    """As `examine_coco`, the dictionary alone. Raises BookError too for what cannot be repaired."""
    content, found = examine_coco(file, *how, **named)
    found.check()
    return content


def picture_size(file: Path, stated: Stated = lambda: None) -> tuple[int, int] | None:
    """(width, height) of a picture as it is seen (see decoding.py), from its header; None where it cannot be read."""
    try:
        with open(file, "rb", opener=without_waiting) as stream:
            head = stream.read(HEAD)
            if head[:2] == b"\xff\xd8":
                with contextlib.suppress(OSError):  # its size lies further behind
                    return header_size(head, stated)
            return header_size(head + stream.read(), stated)
    except Exception:  # of a damaged file, by what is wrong in it
        return None


def coco_root(file: Path, given: str | Path | None, keys: Sequence[str]) -> Path:
    """The folder in which images of a COCO file lie: `given`, else a usual place beside it.

    It is where one of some of `keys` is, the first of them at best: that one may be missing. Raises BookError.
    """
    beside = (file.parent, file.parent / "images", file.parent.parent / "images", file.parent.parent)
    tried = (locate(given), file.parent / given) if given else beside
    for key in keys[:: -(-len(keys) // TRIED)]:
        for root in tried:
            if os.path.isfile(root / key):
                return root.resolve()
    places = ", ".join(dict.fromkeys(map(str, tried)))
    raise BookError(f"{file}: no image {keys[0]!r} in {places}; name the folder, as coco:{file.name}@IMAGE_FOLDER")


@dataclass(frozen=True)
class VocLabels:
    """What one VOC annotation says of its picture and of the N objects in it that can be used."""

    size: tuple[int, int] | None = None  # width, height; None where nothing tells
    names: tuple[str, ...] = ()
    boxes: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))  # (N, 4) float64 x1 y1 x2 y2, half-open, from 0
    difficult: tuple[int, ...] = ()  # 1: hard to see, and left out of the score
    odd: tuple[tuple[str, str], ...] = ()  # kind (see kinds.py) and where: "NAME.xml, object 2"


def read_voc(root: Path, name: str) -> VocLabels:
    """The annotation of image `name` of the VOC set at `root`, repaired. Raises nothing: see `odd` for what is refused.

    Where the picture is there and says that width and height are swapped or missing, the size is the picture's.
    """
    file = f"{name}.xml"
    try:
        tree = _tree(root / "Annotations" / file)
        require(tree.tag == "annotation", "another root")
    except OSError:
        return VocLabels(odd=(("voc-missing", file),))
    except (SyntaxError, ValueError, LookupError) as error:  # a LookupError by an encoding that nobody knows
        return VocLabels(odd=(("voc-entities" if "entities" in str(error) else "voc-malformed", file),))
    size, kind = _voc_size(root, name, tree)
    odd, objects = [(kind, file)] if kind else [], []
    items = tree.findall("object")
    if not items:
        odd.append(("voc-no-object", file))
    for i, item in enumerate(items, 1):
        word, hard = (item.findtext("name") or "").strip(), whole_number(item.findtext("difficult") or 0)
        box, kinds = _voc_box(item, size)
        kinds += ([] if hard in (0, 1) else ["voc-difficult"]) + ([] if word else ["voc-no-name"])
        odd += [(kind, f"{file}, object {i}") for kind in kinds]
        objects += [(sys.intern(word), box, hard)] if box else []
    names, boxes, difficult = zip(*objects) if objects else ((), (), ())
    return VocLabels(size, names, np.array(boxes, float).reshape(-1, 4), difficult, tuple(odd))


def _voc_box(item: ElementTree.Element, size: tuple[int, int] | None) -> tuple[tuple[float, ...], list[str]]:
    """An object's box as VocLabels has it, () where there is none to be used, and the kinds that it is of."""
    corners = [number(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
    if not all(map(math.isfinite, corners)) or len(item.findall("bndbox")) > 1:
        return (), ["voc-no-box"]
    whole, (w, h) = all(map(float.is_integer, corners)), size or (math.inf, math.inf)
    if size and not whole and 0 <= min(corners) and max(corners) <= 1.001:
        corners, first, kinds = [v * side for v, side in zip(corners, (w, h, w, h))], 0, ["box-fractions"]
    else:
        first, kinds = 1, [] if whole else ["voc-float-box"]  # theirs count from 1, the last pixel included
    x1, y1, x2, y2 = corners[0] - first, corners[1] - first, *corners[2:]
    if x2 < x1 or y2 < y1:
        kinds.append("box-turned")
        (x1, x2), (y1, y2) = ((b - first, a + first) if b < a else (a, b) for a, b in ((x1, x2), (y1, y2)))
    if x1 == x2 or y1 == y2:
        kinds.append("voc-empty-box")
    elif x1 >= w or y1 >= h or x2 <= 0 or y2 <= 0:
        return (), [*kinds, "box-outside"]
    elif min(x1, y1) < -SLACK or x2 > w + SLACK or y2 > h + SLACK:
        kinds.append("box-over-edge")
        x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, w), min(y2, h)
    return (x1, y1, x2, y2), kinds


def _voc_size(root: Path, name: str, tree: ElementTree.Element) -> tuple[tuple[int, int] | None, str]:
    """(width, height) that an annotation states, repaired by the picture, and of which kind that is, "" for none."""
    width, height = (whole_number(tree.findtext(f"size/{side}")) or 0 for side in ("width", "height"))
    said = (width, height) if width > 0 and height > 0 else None
    if said and width == height:
        return said, ""
    seen = picture_size(root / "JPEGImages" / voc_picture(root, name), lambda: said)
    if not said:
        return seen, "size-missing" if seen else "size-unknown"
    return (seen, "size-swapped") if seen == said[::-1] else (said, "")


def _tree(file: Path) -> ElementTree.Element:
    """Parsed XML without entities, which may name other files or grow without end. Raises OSError, SyntaxError."""
    with open(file, "rb", opener=without_waiting) as stream:
        data = stream.read()
    if b"<!" in data.replace(b"<!--", b"").replace(b"<![CDATA[", b"") or b"<\0!\0" in data or b"\0<\0!" in data:
        raise SyntaxError("it has a document type or entities, which are never resolved: remove those")
    return ElementTree.fromstring(data)


def voc_classes(root: Path, known: dict[str, VocLabels]) -> tuple[str, ...]:
    """Every object name in `Annotations/`, sorted: of all splits, so that their labels agree; `known`: those that are
    read already, by their images' names. Raises BookError.
    """
    names = {name for labels in known.values() for name in labels.names}
    for file in (root / "Annotations").glob("[!.]*.xml"):  # not a Mac's ._NAME.xml
        if file.stem not in known:
            with parsing(file, "VOC annotation", "repair or remove it"):
                names |= {name.text.strip() for name in _tree(file).iterfind("object/name")}
    return tuple(sorted(names))


def voc_split(root: Path, split: str | None) -> tuple[Path, list[str]]:
    """The file of a split (None: trainval) and the image names in it. Raises BookError, with the known splits."""
    sets, split = root / "ImageSets" / "Main", split or "trainval"
    require(sets.is_dir(), f"no VOC layout at {root}: it needs JPEGImages, Annotations and ImageSets/Main")
    file = sets / f"{split}.txt"
    known = sorted(other.stem for other in sets.glob("[!.]*.txt") if "_" not in other.stem)
    require(file.is_file(), f"no split {split!r} in {sets} (known: {', '.join(known) or 'none'})")
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    flagged = [re.fullmatch(r"(.*\S)\s+(-1|0|1)", line) for line in lines]  # as in a class's split
    return file, [found[1] for found in flagged] if all(flagged) else lines


def voc_picture(root: Path, name: str) -> str:
    """File name of image `name` in `JPEGImages`: a JPEG's where there is one, or where there is none at all."""
    folder = root / "JPEGImages"
    endings = [form(ending) for ending in SUFFIXES for form in (str.lower, str.upper)]
    return next((name + end for end in endings if os.path.isfile(folder / (name + end))), f"{name}.jpg")


def examine_voc(root: Path, every: Iterable[VocLabels]) -> Findings:
    """What is odd about these annotations of the VOC set at `root`."""
    found, objects, hard = Findings(str(root / "Annotations")), 0, 0
    for labels in every:
        for kind, where in labels.odd:
            found.add(kind, [where])
        objects, hard = objects + len(labels.names), hard + labels.difficult.count(1)
    if not found.refused:
        found.add("empty", [] if objects else [""])
        found.add("difficult-only", [""] if 0 < objects == hard else [], hard)
    return found
