"""Annotation files as they lie on disk, COCO's JSON and VOC's XML: for labelled sources and for transfers."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from soco_lib import BookError, locate
from soco_lib.data.decoding import Stated, header_size, without_waiting
from soco_lib.data.doctor import sound
from soco_lib.data.kinds import Findings, parsed, read_text, whole_number
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
            if (root / key).is_file():
                return root.resolve()
    places = ", ".join(dict.fromkeys(map(str, tried)))
    raise BookError(f"{file}: no image {keys[0]!r} in {places}; name the folder, as coco:{file.name}@IMAGE_FOLDER")


@dataclass(frozen=True)
class VocObject:
    """One object of a VOC annotation."""

    name: str
    corners: tuple[float, ...]  # x1 y1 x2 y2 as the file has them: pixels counted from 1, the last one included
    difficult: int  # 1: hard to see, and left out of the score


def read_voc(root: Path, name: str) -> tuple[tuple[int, int] | None, list[VocObject]]:
    """Size (width, height) and objects of image `name` of the VOC set at `root`; None for a size that is not told.

    Where its picture is there and says that width and height are swapped or missing, the size is the picture's.

    Raises BookError when the annotation is missing or malformed.
    """
    file = root / "Annotations" / f"{name}.xml"
    with parsing(file, "VOC annotation", f"complete Annotations, or take {name} out of the split"):
        tree = _tree(file)
        size = _voc_size(root, name, tree)[0]
        objects = [
            VocObject(
                item.findtext("name").strip(),
                tuple(float(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")),
                whole_number(item.findtext("difficult") or 0),
            )
            for item in tree.iterfind("object")
        ]
        return size, objects


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
    data = file.read_bytes()
    if b"<!" in data.replace(b"<!--", b"").replace(b"<![CDATA[", b"") or b"<\0!\0" in data or b"\0<\0!" in data:
        raise SyntaxError("it has a document type or entities, which are never resolved: remove those")
    return ElementTree.fromstring(data)


def voc_classes(root: Path) -> tuple[str, ...]:
    """Every object name in `Annotations/`, sorted: of all splits, so that their labels agree. Raises BookError."""
    names = set()
    for file in (root / "Annotations").glob("[!.]*.xml"):  # not a Mac's ._NAME.xml
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
    return file, [line.split()[0] for line in read_text(file).splitlines() if line.strip()]


def voc_picture(root: Path, name: str) -> str:
    """File name of image `name` in `JPEGImages`: a JPEG's where there is one, or where there is none at all."""
    folder = root / "JPEGImages"
    endings = (".jpg", ".jpeg", ".JPG", ".JPEG", ".png", ".PNG")
    return next((name + end for end in endings if (folder / (name + end)).is_file()), f"{name}.jpg")


def examine_voc(root: Path, names: Sequence[str]) -> Findings:
    """What is odd about the annotations of these images of the VOC set at `root`; nothing is changed."""
    found, every = Findings(str(root / "Annotations")), []
    for name in names:
        file = f"{name}.xml"
        try:
            tree = _tree(root / "Annotations" / file)
        except OSError:
            found.add("voc-missing", [file])
            continue
        except (SyntaxError, ValueError) as error:
            found.add("voc-entities" if "entities" in str(error) else "voc-malformed", [file])
            continue
        if kind := _voc_size(root, name, tree)[1]:
            found.add(kind, [file])
        objects = tree.findall("object")
        found.add("voc-no-object", [] if objects else [file])
        for number, item in enumerate(objects, 1):
            where = f"{file}, object {number}"
            every.append(whole_number(item.findtext("difficult") or 0))
            found.add("voc-difficult", [where] if every[-1] is None else [])
            found.add("voc-no-name", [] if (item.findtext("name") or "").strip() else [where])
            try:
                box = [float(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
            except (TypeError, ValueError):
                box = [math.nan]
            if not all(map(math.isfinite, box)):
                found.add("voc-no-box", [where])
                continue
            found.add("voc-float-box", [] if all(map(float.is_integer, box)) else [where])
            found.add("voc-empty-box", [where] if box[2] < box[0] or box[3] < box[1] else [])
    if not found.refused:
        found.add("empty", [] if every else [""])
        found.add("difficult-only", [""] if {*every} == {1} else [], len(every))
    return found
