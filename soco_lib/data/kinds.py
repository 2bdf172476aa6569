"""Kinds of oddities of a data set, and what becomes of each: repaired in memory, left out, refused, or kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from soco_lib import BookError
from soco_lib.fields import require

REPAIRS, LEAVES_OUT, REFUSES, KEEPS = "repairs in memory", "leaves out", "refuses", "keeps"
SEVERITY = {REFUSES: "error", LEAVES_OUT: "warning", REPAIRS: "note", KEEPS: "note"}
#: Of objects that are left out: a test's score without them is not the one that COCO's tools give the file as it is.
MISSED = ": neither learnt nor scored, where pycocotools would count each as missed"
#: kind -> (what the book does about it, what it is, and for what is refused: how to mend it)
KINDS: dict[str, tuple[str, str]] = {
    # the file
    "byte-order-mark": (REPAIRS, "the file begins with a byte order mark"),
    "utf-16": (REPAIRS, "the file is UTF-16 and not UTF-8"),
    "other-encoding": (REPAIRS, "the file is no UTF-8, and read as Latin-1"),
    "malformed": (REFUSES, "no JSON that can be read: write the file again"),
    "nested": (REFUSES, "lists in lists without end: write the file again"),
    "not-coco": (REFUSES, "no lists of images, annotations and categories: give an instances_*.json"),
    "empty": (KEEPS, "no annotation at all"),
    "crowd-only": (KEEPS, "every annotation is a crowd region"),
    "difficult-only": (KEEPS, "every object is marked as difficult"),
    # images
    "image-id": (REFUSES, "images without an id, or with one that is no whole number: number them"),
    "image-id-text": (REPAIRS, "ids of images are text"),
    "image-twice": (LEAVES_OUT, "an image is listed again, word for word"),
    "image-id-twice": (REFUSES, "two images have one id: give each its own"),
    "file-name": (REFUSES, "images without a file_name: name the file of each"),
    "file-name-twice": (REFUSES, "two images are one file: merge their entries and annotations"),
    "backslash": (REPAIRS, "file names with backslashes"),
    "size-text": (REPAIRS, "width and height are text, or numbers with a fraction of zero"),
    "size-missing": (REPAIRS, "no width and height: taken from the picture"),
    "size-swapped": (REPAIRS, "width and height are swapped: as the picture has them"),
    "size-unknown": (REFUSES, "no width and height, and no picture that tells them: complete the folder"),
    # categories
    "category-id": (REFUSES, "categories without a whole-number id and a name: complete them"),
    "category-id-text": (REPAIRS, "ids of categories are text"),
    "category-id-twice": (REFUSES, "two categories have one id: give each its own"),
    "category-name-twice": (REFUSES, "two categories have one name: rename or merge them"),
    "category-unknown": (REFUSES, "annotations of a category that is not listed: add it, or remove them"),
    "category-list-text": (REPAIRS, "LVIS's lists of absent or incomplete categories hold text, or are null: empty"),
    "category-list": (REFUSES, "LVIS's lists name categories that are not listed, or are no lists: correct them"),
    # annotations
    "no-annotation": (REFUSES, "entries that are no annotations: remove them"),
    "id-zero": (REPAIRS, "an annotation has id 0, which pycocotools takes for no match: all are numbered anew"),
    "id-missing": (REPAIRS, "annotations without an id, or with one that is no whole number: all are numbered anew"),
    "id-twice": (REPAIRS, "annotations share an id: all are numbered anew"),
    "no-image": (LEAVES_OUT, "annotations of an image that is not listed"),
    "iscrowd-null": (REPAIRS, "iscrowd is null or missing, which pycocotools stops at: no crowd"),
    "iscrowd-text": (REPAIRS, "iscrowd is text or true and false"),
    "iscrowd": (REFUSES, "iscrowd is neither 0 nor 1: correct it"),
    "ignore": (REPAIRS, "ignore is set: a crowd region, neither learnt nor scored"),
    "ignore-null": (REPAIRS, "ignore is null or text: not ignored"),
    "area-text": (REPAIRS, "area is text"),
    "area-missing": (REPAIRS, "area is missing, no number or negative: taken from the box"),
    # boxes
    "box-text": (REPAIRS, "boxes are text"),
    "box-length": (REFUSES, "boxes of other than four numbers: give x, y, width, height"),
    "box-from-mask": (REPAIRS, "no box: taken around the polygons"),
    "box-missing": (LEAVES_OUT, "no box, and no polygon to take one from"),
    "box-not-finite": (LEAVES_OUT, f"boxes with NaN, infinity or words in them{MISSED}"),
    "box-fractions": (REPAIRS, "boxes in 0 ... 1: taken as shares of the picture's width and height"),
    "box-centres": (REFUSES, "boxes in 0 ... 1 that only fit as centre and size: convert them to x, y, width, height"),
    "box-corners": (REPAIRS, "boxes reach over the edge, and all fit as corners x1, y1, x2, y2: taken as those"),
    "box-turned": (REPAIRS, "boxes of negative width or height: turned"),
    "box-empty": (LEAVES_OUT, f"boxes without area{MISSED}"),
    "box-outside": (LEAVES_OUT, f"boxes wholly outside the picture{MISSED}"),
    "box-over-edge": (REPAIRS, "boxes reach over the edge by more than a pixel: clipped"),
    # masks
    "polygon-flat": (REPAIRS, "a polygon that is not in a list"),
    "polygon-points": (REPAIRS, "polygons as points, lists of x and y or {x: ..., y: ...}"),
    "polygon-text": (REPAIRS, "polygons hold text"),
    "polygon-fractions": (REPAIRS, "polygons in 0 ... 1: taken as shares of the picture's width and height"),
    "polygon-part": (REPAIRS, "parts of masks of fewer than three points, or odd or no numbers: without these parts"),
    "polygon-none": (LEAVES_OUT, f"objects whose mask holds no polygon with an extent in the picture{MISSED}"),
    "mask-beside": (KEEPS, "polygons wholly outside their box, as where one of both was scaled: learnt as they are"),
    "mask-form": (REFUSES, "masks that are neither polygons nor RLE with size and counts: correct or remove them"),
    "rle-size": (REFUSES, "RLE masks of another size than their picture: encode them at [height, width]"),
    "rle-counts": (REFUSES, "RLE masks whose counts are no whole numbers or do not fill their size: encode them again"),
    # VOC
    "voc-malformed": (
        REFUSES,
        "annotations that are no XML of an <annotation>: complete them, or take them out of the split",
    ),
    "voc-entities": (REFUSES, "XML with a document type or entities, which are never resolved: remove those"),
    "voc-missing": (REFUSES, "images of the split without annotation: complete Annotations"),
    "voc-no-name": (REFUSES, "objects without a name: name or remove them"),
    "voc-no-box": (REFUSES, "objects without one box of four numbers: complete or remove them"),
    "voc-difficult": (REFUSES, "difficult is neither 0 nor 1: correct it"),
    "voc-float-box": (KEEPS, "corners with fractions: learnt as they are"),
    "voc-empty-box": (KEEPS, "boxes without area: not learnt from, but scored"),
    "voc-no-object": (KEEPS, "annotations without an object"),
    # archives
    "two-pictures": (LEAVES_OUT, "further pictures of a WebDataset sample, masks mostly, beside its photograph"),
    "member-link": (
        LEAVES_OUT,
        "a tar's links, sparse files or devices, whose content is not there in one piece: "
        "pack them with --dereference --hard-dereference and without --sparse",
    ),
    "other-ending": (LEAVES_OUT, "pictures with an ending that is not looked for: convert them to JPEG or PNG"),
    "member-twice": (LEAVES_OUT, "an archive's earlier members of a name that comes again"),
}
#: Of what is refused, what matters too where only pictures are used.
FOR_PICTURES = {"malformed", "nested", "not-coco", "file-name"}
#: Kinds of a set, all of it, that is of no use for its role.
USELESS = {"train": {"empty", "crowd-only"}, "test": {"empty", "crowd-only", "difficult-only"}}


@dataclass
class Findings:
    """Kinds of oddities of one set in the order of their discovery: how many, and the first, e.g. "annotation 7"."""

    file: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list] = field(default_factory=dict)  # the first few
    about: dict[str, tuple[str, str]] = field(default_factory=lambda: KINDS)

    def add(self, kind: str, examples: Iterable, count: int | None = None) -> None:
        """Nothing where there are no examples."""
        examples = [*examples]
        if examples:
            self.counts[kind] = self.counts.get(kind, 0) + (len(examples) if count is None else count)
            words = [str(e) for e in examples[: 4 - len(self.examples.get(kind, ()))]]
            writable = [word.encode(errors="backslashreplace").decode() for word in words]  # half a character is not
            self.examples.setdefault(kind, []).extend(writable)

    def without_labels(self) -> Findings:
        """As this, where only pictures are used: odd labels are no reason to refuse them then."""
        unused = {k: (KEEPS, f"{what} (only where labels are used)") for k, (verdict, what) in self.about.items()
                  if verdict == REFUSES and k not in FOR_PICTURES}  # fmt: skip
        return replace(self, about=self.about | unused)

    def for_role(self, role: str) -> Findings:
        """As this, of a whole `train` or `test` set: one in which nothing can be learnt or scored is refused."""
        remedy = f"give a {role} set with objects, {role.upper()}="
        useless = {k: (REFUSES, f"{self.about[k][1]}: {remedy}") for k in USELESS.get(role, ()) if k in self.counts}
        return replace(self, about=self.about | useless)

    def verdict(self, kind: str) -> str:
        """One of REPAIRS, LEAVES_OUT, REFUSES, KEEPS."""
        return self.about[kind][0]

    @property
    def refused(self) -> list[str]:
        """The kinds that no run takes."""
        return [kind for kind in self.counts if self.verdict(kind) == REFUSES]

    def sentence(self, kind: str) -> str:
        """What is found, as one line."""
        first = f", first {self.examples[kind][0]}" if self.examples[kind][0] else ""
        return f"{self.file}: {self.about[kind][1]} ({self.counts[kind]}{first})"

    def record(self) -> dict:
        """For run.json: kind -> how many, and what became of them."""
        return {kind: {"count": count, "verdict": self.verdict(kind)} for kind, count in self.counts.items()}

    def check(self) -> None:
        """Raise BookError with the first kind that is refused."""
        for kind in self.refused[:1]:
            others = f"; refused too: {', '.join(self.refused[1:])}" if self.refused[1:] else ""
            raise BookError(self.sentence(kind) + others)


def decoded(data: bytes, found: Findings) -> str:
    """Text of a file in UTF-8, with a byte order mark too, in UTF-16 or, if it is neither, in Latin-1."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        found.add("utf-16", [""])
        return data.decode("utf-16", errors="replace")
    if data[:3] == b"\xef\xbb\xbf":
        found.add("byte-order-mark", [""])
        data = data[3:]
    try:
        return data.decode()
    except UnicodeDecodeError:
        found.add("other-encoding", [""])
        return data.decode("latin-1")


def parsed(data: bytes, found: Findings):
    """Content of a JSON file; None, with a refusal in `found`, where it cannot be read."""
    try:
        return json.loads(decoded(data, found))
    except RecursionError:
        found.add("nested", [""])
    except ValueError as error:
        found.add("malformed", [error])
    return None


def repaired(findings: Findings) -> bool:
    """Whether the readers' dictionary differs from the file."""
    return any(findings.verdict(kind) in (REPAIRS, LEAVES_OUT) for kind in findings.counts)


def read_text(file: Path) -> str:
    """Text of a split or list file, whatever wrote it (see `decoded`). Raises BookError for no text."""
    text = decoded(file.read_bytes(), Findings())
    require("\0" not in text, f"{file} is no text in UTF-8, UTF-16 or Latin-1: save it in UTF-8")
    return text


def whole_number(value) -> int | None:
    """A whole number out of a number or text; None for anything else."""
    try:
        return (
            int(value) if type(value) is int or isinstance(value, str) and value.strip().isdecimal() else _whole(value)
        )
    except (TypeError, ValueError, OverflowError):
        return None


def _whole(value) -> int | None:
    return int(float(value)) if float(value).is_integer() and not isinstance(value, bool) else None


def number(value) -> float:
    """A number or a text of one as float; NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
