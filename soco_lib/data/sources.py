"""Where images come from: a folder tree, a list file, zip or tar archives, or a labelled set in COCO or VOC layout.

A source is an ordered set of keys (posix paths, relative to its root), and a key is what identifies an image wherever
one is named: in proposals, in training, in errors. Row i of a proposal store is `keys[i]`. Sources are picklable for
worker processes.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import posixpath
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from soco_lib import BookError, locate
from soco_lib.boxes import as_boxes
from soco_lib.data.annotations import (
    VocLabels,
    coco_root,
    examine_coco,
    examine_voc,
    parsing,
    read_voc,
    voc_classes,
    voc_picture,
    voc_split,
)
from soco_lib.data.archives import Archive, mapped_zip_images, tar_images, zip_images
from soco_lib.data.decoding import decode, decode_near, read_differently, without_waiting
from soco_lib.data.kinds import Findings, read_text, whole_number
from soco_lib.data.listings import fingerprint, folder_keys, in_order
from soco_lib.fields import require

KINDS = (
    "folder:PATH, list:FILE, coco:ANNOTATIONS.json[@IMAGE_FOLDER], voc:ROOT[@SPLIT], zip:FILE.zip, "
    "tar:FILE.tar (or a folder of them, or shards/{000..099}.tar), imagenet-zip:FOLDER[@SPLIT], or a bare path"
)


class UnreadableImage(BookError):
    """One image cannot be read or decoded; names its key and the reason. Callers count it and go on."""


class Unavailable(UnreadableImage):
    """An image that its disk does not give now, and may give at another time."""


#: In the text of an Unavailable, by which stores know such an image again.
MAY_PASS = "cannot be read from"
#: Errors of a path itself, which stay as long as it does.
_LASTING = (errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Images below a folder. Other layouts override how bytes and labels are found."""

    spec: str  # as the user gave it
    root: Path
    keys: Sequence[str] = field(repr=False)  # sorted, unique
    #: Names of the labels, () for images without any.
    classes = ()
    #: What is odd about the labels.
    findings = Findings()

    def __len__(self) -> int:
        return len(self.keys)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the keys, in order: two sources with the same one hold the same images by name."""
        return fingerprint(self.keys)

    def sample(self, count: int = 8) -> dict[str, str]:
        """Keys of `count` images, spread over all, with 16 hex digits of their bytes; those that cannot be read are
        left out. Two sources with the same names hold the same images when these agree.
        """
        found = {}
        for index in sorted({len(self) * i // count for i in range(count)}):
            with contextlib.suppress(UnreadableImage):
                found[self.keys[index]] = hashlib.sha256(self.read(index)).hexdigest()[:16]
        return found

    def read(self, index: int) -> bytes:
        """The encoded file of image `index`. Raises UnreadableImage."""
        try:
            with open(os.path.join(self.root, self.keys[index]), "rb", 0, opener=without_waiting) as file:
                return file.read()
        except OSError as error:
            raise self._unreadable(index, error) from None

    def _unreadable(self, index: int, error: Exception) -> UnreadableImage:
        """What to raise for an error in reading image `index`."""
        number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or error
        if number is None or number in _LASTING:
            return UnreadableImage(f"{self.keys[index]}: damaged in {self.root} ({reason})")
        return Unavailable(f"{self.keys[index]}: {MAY_PASS} {self.root} ({reason})")

    def load(self, index: int) -> np.ndarray:
        """Image `index` as (H, W, 3) uint8 RGB, by the rule in decoding.py. Raises UnreadableImage when it cannot be
        read or decoded, or is cut short.
        """
        return self._decoded(index, decode)

    def load_near(self, index: int, side: int) -> tuple[np.ndarray, tuple[int, int]]:
        """As `load`, but a JPEG much larger than `side` comes reduced; and the whole one's (width, height)."""
        return self._decoded(index, lambda data, stated: decode_near(data, side, stated))

    def read_differently(self, index: int) -> bool:
        """Whether the book's earlier reader may have seen another picture; False for what is no image."""
        try:
            return read_differently(self.read(index), functools.partial(self.stated, index))
        except BookError:
            return False

    def stated(self, index: int) -> tuple[int, int] | None:
        """(width, height) that the labels state for image `index`, None where none do: it tells whether they are for
        the stored pixels or for the picture as EXIF turns it, and so which of them is read.
        """
        return None

    def _decoded(self, index: int, by: Callable):
        try:
            return by(self.read(index), functools.partial(self.stated, index))
        except UnreadableImage:
            raise
        except BookError as error:
            raise UnreadableImage(f"{self.keys[index]}: {error}") from None

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Labelled objects of image `index`: boxes (N, 4) float32 in its pixels and labels (N,) int64 into `classes`.

        Crowd and "difficult" regions are left out. Raises BookError for images without labels.
        """
        raise BookError(f"{self.spec} carries no labels: give coco:ANNOTATIONS.json or voc:ROOT")


def open_source(spec: str) -> ImageSource:
    """The images that `spec` names (see KINDS). Of `list:` each line is a path relative to the file; SPLIT is train by
    default for the authors' `imagenet-zip:`, with SPLIT.zip and SPLIT_map.txt, and trainval for `voc:`; the kind of a
    bare path is seen from what lies there. Paths resolve by `soco_lib.locate`. Raises BookError for what is missing,
    empty or of an unknown kind.
    """
    spec = str(spec).strip()
    if len(bare := spec.rstrip("/")) < len(spec) and bare and not bare.endswith(":"):
        spec = bare  # x/ is x: in the store's record too
    kind, colon, rest = spec.partition(":")
    if colon and kind in _OPENERS:
        require(rest != "", f"images={spec!r} lacks a path (known: {KINDS})")
        return _OPENERS[kind](spec, rest)
    path = split_spec(spec)[0]
    there = spec != "" and path.exists()
    require(there, f"no images at {spec!r} (looked for {path}): give an existing path, as {KINDS}")
    kind = {".json": "coco", ".zip": "zip", ".tar": "tar", ".txt": "list"}.get(path.suffix.lower())
    if path.is_dir():
        kind = "voc" if (path / "JPEGImages").is_dir() and (path / "ImageSets").is_dir() else "folder"
    require(kind is not None, f"images={spec!r}: cannot tell what {path.name} is; say it, as {KINDS}")
    return _OPENERS[kind](spec, spec)


# --- without labels ---------------------------------------------------------------------------------------------------


def _open_folder(spec: str, path: str) -> ImageSource:
    root = locate(path)
    data = os.environ.get("SOCO_DATA", "not set")
    remedy = f"give IMAGES=folder:PATH, a path in the checkout or in SOCO_DATA ({data})"
    require(root.is_dir(), f"no image folder {root}: {remedy}")
    return ImageSource(spec, root, folder_keys(root))


def _open_list(spec: str, path: str) -> ImageSource:
    file = locate(path)
    require(file.is_file(), f"no list file {file}: give a text file with one image path a line")
    lines = (line.strip() for line in read_text(file).splitlines())
    keys = in_order([posixpath.normpath(line) for line in lines if line and line[0] != "#"], f"list {file}")
    there = os.path.isfile(file.parent / keys[0])
    require(there, f"{file}: no image {keys[0]!r} there; paths are relative to {file.parent}")
    return ImageSource(spec, file.parent, keys)


@dataclass(frozen=True, eq=False)
class ArchiveSource(ImageSource):
    """Images inside zip or tar files."""

    archive: Archive = field(repr=False)
    findings: Findings = field(repr=False)

    def read(self, index: int) -> bytes:
        """As ImageSource.read."""
        try:
            return self.archive.read(index)
        except (OSError, zlib.error, struct.error) as error:
            raise self._unreadable(index, error) from None


def _open_zip(spec: str, path: str) -> ImageSource:
    return ArchiveSource(spec, locate(path), *zip_images(locate(path)))


def _open_tar(spec: str, path: str) -> ImageSource:
    return ArchiveSource(spec, *tar_images(path))


def _open_imagenet_zip(spec: str, path: str) -> ImageSource:
    folder, split = split_spec(path)
    return ArchiveSource(spec, folder, *mapped_zip_images(folder, split or "train"))


# --- with labels ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CocoSource(ImageSource):
    """Images of a COCO annotation file. Boxes of image i are rows offsets[i]:offsets[i+1]."""

    classes: tuple[str, ...] = ()  # by ascending category id
    boxes: np.ndarray = field(default=None, repr=False)
    labels: np.ndarray = field(default=None, repr=False)
    offsets: np.ndarray = field(default=None, repr=False)
    sizes: np.ndarray = field(default=None, repr=False)  # (N, 2) int64: width, height as stated; 0 where they are not
    findings: Findings = field(default=None, repr=False)

    def stated(self, index: int) -> tuple[int, int] | None:
        """As ImageSource.stated."""
        width, height = map(int, self.sizes[index])
        return (width, height) if width > 0 and height > 0 else None

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """As ImageSource.annotations. Raises BookError too for labels that cannot be repaired."""
        self.findings.check()
        require(self.classes != (), f"{self.spec} carries no labels: its file names no categories")
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return self.boxes[rows].copy(), self.labels[rows].copy()


def _open_coco(spec: str, path: str) -> ImageSource:
    file, root = split_spec(path)
    data, findings = examine_coco(file, ("images",), root)
    findings.without_labels().check()
    with parsing(file, "COCO annotation file", "give an instances_*.json"):
        names = [posixpath.normpath(image["file_name"]) for image in data["images"]]
        sizes = {name: [whole_number(image.get(side)) or 0 for side in ("width", "height")]
                 for name, image in zip(names, data["images"])}  # fmt: skip
        if findings.refused or not data.get("categories"):  # its pictures are of use all the same
            data = {"images": data["images"]}
        categories = {c["id"]: c["name"] for c in sorted(data.get("categories", ()), key=lambda c: c["id"])}
        found: dict[str, list] = {name: [] for name in names}
        label = {identity: i for i, identity in enumerate(categories)}
        by_id = {image.get("id"): name for name, image in zip(names, data["images"])}
        for a in data.get("annotations", ()):
            x, y, w, h = a["bbox"]
            if not a.get("iscrowd", 0):
                found[by_id[a["image_id"]]].append((x, y, x + w, y + h, label[a["category_id"]]))
    keys = in_order(names, f"annotation file {file}")
    rows = [row for key in keys for row in found[key]]
    return CocoSource(
        spec, coco_root(file, root, keys), keys, tuple(categories.values()), as_boxes([row[:4] for row in rows]),
        np.array([row[4] for row in rows], np.int64), np.cumsum([0] + [len(found[key]) for key in keys]),
        np.array([sizes[key] for key in keys]), findings,
    )  # fmt: skip


class VocSource(ImageSource):
    """Images of one split of a VOC layout; an annotation is read when it is first asked for, and once."""

    _read = functools.cached_property(lambda self: {})  # image's name -> its labels

    def labels(self, index: int) -> VocLabels:
        """What the annotation of image `index` says; what is refused in it is left out."""
        name = Path(self.keys[index]).stem
        if name not in self._read:
            self._read[name] = read_voc(self.root, name)
        return self._read[name]

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """See annotations.voc_classes."""
        return voc_classes(self.root, self._read)

    @functools.cached_property
    def findings(self) -> Findings:
        """As ImageSource.findings."""
        return examine_voc(self.root, map(self.labels, range(len(self))))

    def stated(self, index: int) -> tuple[int, int] | None:
        """As ImageSource.stated; None too in the test split, which has no annotations."""
        return self.labels(index).size

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """As ImageSource.annotations. Raises BookError too for labels that cannot be repaired."""
        self.findings.check()
        label, labels = {name: i for i, name in enumerate(self.classes)}, self.labels(index)
        kept = [i for i, difficult in enumerate(labels.difficult) if difficult != 1]
        return as_boxes(labels.boxes[kept]), np.array([label[labels.names[i]] for i in kept], np.int64)


def _open_voc(spec: str, path: str) -> ImageSource:
    root, split = split_spec(path)
    file, names = voc_split(root, split)
    keys = [f"JPEGImages/{voc_picture(root, name)}" for name in names]
    return VocSource(spec, root, in_order(keys, f"split {file.stem} of {root}"))


_OPENERS = {
    "folder": _open_folder, "list": _open_list, "zip": _open_zip, "tar": _open_tar, "imagenet-zip": _open_imagenet_zip,
    "coco": _open_coco, "voc": _open_voc,
}  # fmt: skip


def split_spec(text: str) -> tuple[Path, str | None]:
    """PATH[@EXTRA] as (located path, extra); an existing path with an @ in it is a path."""
    if "@" not in text or locate(text).exists():
        return locate(text), None
    path, _, extra = text.rpartition("@")
    return locate(path), extra
