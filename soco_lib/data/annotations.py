"""Annotation files as they lie on disk, COCO's JSON and VOC's XML: for labelled sources and for transfers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from soco_lib import BookError, locate
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


def read_coco(file: Path, needed: tuple[str, ...] = ("images", "annotations", "categories")) -> dict:
    """The dictionary of a COCO annotation file. Raises BookError when it is missing, foreign, or lists no images."""
    require(file.is_file(), f"no annotation file {file}: give KIND:ANNOTATIONS.json[@IMAGE_FOLDER]")
    with parsing(file, "COCO annotation file", f"give an instances_*.json with {', '.join(needed)}"):
        content = json.loads(file.read_bytes())
        empty = [key for key in needed if not content[key] and key != "annotations"]
    require(not empty, f"{file} lists no {' and no '.join(empty)}")
    return content


def coco_root(file: Path, given: str | Path | None, key: str) -> Path:
    """The folder in which image `key` of a COCO file lies: `given`, else a usual place beside it. Raises BookError."""
    beside = (file.parent, file.parent / "images", file.parent.parent / "images", file.parent.parent)
    tried = (locate(given), file.parent / given) if given else beside
    for root in tried:
        if (root / key).is_file():
            return root.resolve()
    places = ", ".join(map(str, tried))
    raise BookError(f"{file}: no image {key!r} in {places}; name the folder, as coco:{file.name}@IMAGE_FOLDER")


@dataclass(frozen=True)
class VocObject:
    """One object of a VOC annotation."""

    name: str
    corners: tuple[float, ...]  # x1 y1 x2 y2 as the file has them: pixels counted from 1, the last one included
    difficult: int  # 1: hard to see, and left out of the score


def read_voc(root: Path, name: str) -> tuple[tuple[int, int] | None, list[VocObject]]:
    """Size (width, height) and objects of image `name` of the VOC set at `root`; None for a size that is not told.

    Raises BookError when the annotation is missing or malformed.
    """
    file = root / "Annotations" / f"{name}.xml"
    with parsing(file, "VOC annotation", f"complete Annotations, or take {name} out of the split"):
        tree = ElementTree.parse(file)
        size = [tree.findtext(f"size/{side}") for side in ("width", "height")]
        objects = [
            VocObject(
                item.findtext("name").strip(),
                tuple(float(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")),
                int(item.findtext("difficult") or 0),
            )
            for item in tree.iterfind("object")
        ]
        return (int(size[0]), int(size[1])) if all(size) else None, objects


def voc_classes(root: Path) -> tuple[str, ...]:
    """Every object name in `Annotations/`, sorted: of all splits, so that their labels agree. Raises BookError."""
    names = set()
    for file in (root / "Annotations").glob("*.xml"):
        with parsing(file, "VOC annotation", "repair or remove it"):
            names |= {name.text.strip() for name in ElementTree.parse(file).iterfind("object/name")}
    return tuple(sorted(names))


def voc_split(root: Path, split: str | None) -> tuple[Path, list[str]]:
    """The file of a split (None: trainval) and the image names in it. Raises BookError, with the known splits."""
    sets, split = root / "ImageSets" / "Main", split or "trainval"
    require(sets.is_dir(), f"no VOC layout at {root}: it needs JPEGImages, Annotations and ImageSets/Main")
    file = sets / f"{split}.txt"
    known = sorted(other.stem for other in sets.glob("*.txt") if "_" not in other.stem)
    require(file.is_file(), f"no split {split!r} in {sets} (known: {', '.join(known) or 'none'})")
    return file, [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
