"""What is odd about picture files, from their headers and ends; decoded whole only on request.

Of a set that is trained or scored by labels every picture must be there, whole, and of the size that its annotations
state; of a set that is only looked at, what cannot be read is left out. A check is kept below the user's cache folder
(see archives.py) until an annotation file or a picture changes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from soco_lib import BookError
from soco_lib.data.decoding import (
    READER,
    decode,
    exif_orientation,
    kept_as_stored,
    seen_size,
    stored_size,
    without_waiting,
)
from soco_lib.data.kinds import KEEPS, KINDS, LEAVES_OUT, REFUSES, REPAIRS, Findings
from soco_lib.data.listings import OTHER_ENDING, cache_folder
from soco_lib.data.sources import ImageSource, open_source
from soco_lib.data.store import ProposalStore
from soco_lib.runs import locks, machine
from soco_lib.runs.files import replacing
from soco_lib.runs.folder import Run

FORMAT = 3
#: Pixels that OpenCV decodes at most.
LARGEST = 2**30
#: Bytes at a file's end in which a whole JPEG or PNG ends.
TAIL = 65536
#: Seconds between two lines of progress.
EVERY = 30.0
#: Errors by which there is no file of that name.
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
UNREAD = {
    "file-missing": "no such file, or no regular one: complete the folder",
    "file-unreadable": "a file that may not be read: allow it",
    "file-empty": "a file without content: copy it again",
    "file-no-image": "a file that is no picture: replace it",
    "file-truncated": "a file that is cut short: copy it again",
    "file-samples": "a picture of 32-bit or floating-point samples: save it with 8 or 16 bits",
    "file-huge": "a picture of more than 2^30 pixels: make it smaller",
    "file-damaged": "a picture that cannot be decoded: copy it again",
}
ABOUT = {
    **{kind: (REFUSES, what) for kind, what in UNREAD.items()},
    "size-swapped": (REFUSES, "width and height are swapped in few of many images: correct them in the annotations"),
    "size-other": (REFUSES, "a picture of another size than its annotations say: correct them"),
    "exif-turned": (REPAIRS, "EXIF says that the picture is turned or mirrored: seen so"),
    "exif-stored": (KEEPS, "EXIF says that the picture is turned, but its labels are for the stored pixels: seen so"),
    "xmp-turned": (
        KEEPS,
        "XMP alone says that a picture is turned, which browsers and OpenCV do not heed: seen as stored",
    ),
    "sixteen-bit": (REPAIRS, "16-bit samples: their upper 8 bits are seen"),
    "several-frames": (KEEPS, "several frames or pages: the first is seen"),
    "palette": (REPAIRS, "a palette: seen in its colours"),
    "cmyk": (REPAIRS, "CMYK: converted without a colour profile"),
    "alpha": (REPAIRS, "an alpha channel: dropped"),
    "one-bit": (REPAIRS, "one bit a pixel: 0 and 255"),
    "odd-name": (KEEPS, "a name with a backslash, a control character, or bytes that are no UTF-8"),
    "resource-fork": (LEAVES_OUT, "a Mac's resource fork (._NAME): no picture"),
    "other-ending": KINDS["other-ending"],
    "ds-store": (LEAVES_OUT, "a Mac's .DS_Store"),
}
_LENIENT = ABOUT | {kind: (LEAVES_OUT, what) for kind, what in UNREAD.items()}
_MODES = {
    "P": "palette",
    "PA": "palette",
    "CMYK": "cmyk",
    "YCCK": "cmyk",
    "RGBA": "alpha",
    "RGBa": "alpha",
    "LA": "alpha",
    "1": "one-bit",
}
_XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*[2-8]""")
#: Kind -> what a file's name has in it.
_PASSED_OVER = {
    "resource-fork": re.compile(r"^\._"),
    "ds-store": re.compile(r"^\.DS_Store"),
    "other-ending": OTHER_ENDING,
}
Stated = Callable[[], "tuple[int, int] | None"]


@dataclass(frozen=True)
class Pictures:
    """Pictures to look at: of each its name, its file (None: inside an archive, given by `read`) and stated size."""

    root: Path
    names: Sequence[str]
    path: Callable[[int], Path | None]
    read: Callable[[int], bytes]
    stated: Callable[[int], tuple[int, int] | None]

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.root)

    @classmethod
    def of(cls, source: ImageSource) -> Pictures:
        """Those of a source."""
        archive = getattr(source, "archive", None)
        path = lambda i: None if archive else source.root / source.keys[i]
        return cls(source.root, source.keys, path, source.read, source.stated)

    @classmethod
    def below(cls, root: Path, sizes: dict[str, tuple[int, int] | None]) -> Pictures:
        """Those in a folder, by name, with their stated sizes."""
        names = [*sizes]
        path = lambda i: root / names[i]

        def read(i: int) -> bytes:
            with open(path(i), "rb", opener=without_waiting) as file:
                return file.read()

        return cls(root, names, path, read, lambda i: sizes[names[i]])


def look(picture: Pictures, i: int, deep: bool = False) -> list[str]:
    """Kinds that picture `i` is of."""
    name, path, stated = picture.names[i], picture.path(i), lambda: picture.stated(i)
    odd = "\\" in name or any(ord(c) < 32 or 0xDC80 <= ord(c) <= 0xDCFF for c in name)
    kinds = ["odd-name"] if odd else []
    try:
        with io.BytesIO(picture.read(i)) if path is None else open(path, "rb", opener=without_waiting) as file:
            return kinds + _of_file(file, stated, deep)
    except BookError:  # of an archive's member
        return [*kinds, "file-damaged"]
    except (OSError, ValueError) as error:  # a ValueError by a name with a zero byte
        number = getattr(error, "errno", errno.ENOENT)
        return [*kinds, "file-missing" if number in NO_FILE else "file-unreadable"]


def _of_file(file, stated: Stated, deep: bool) -> list[str]:
    size = file.seek(0, os.SEEK_END)
    if not size:
        return ["file-empty"]
    file.seek(max(0, size - TAIL))
    tail = file.read()
    file.seek(0)
    try:
        with Image.open(file) as image:
            form, mode, bits, frames = image.format, image.mode, _bits(image), getattr(image, "is_animated", False)
            # Pillow decodes a PNG whole to look for EXIF behind its pixels
            plain = form == "PNG" and "exif" not in image.info and b"eXIf" not in tail
            orientation = 1 if plain else _orientation(image)
            shape, xmp = stored_size(image, orientation), image.info.get("xmp") or b""
    except Exception:  # by what is wrong in the file
        return ["file-no-image"]
    kinds = [_MODES[mode]] if mode in _MODES else []
    if bits > 16:
        return [*kinds, "file-samples"]
    if bits == 16 or (form == "PNG" and _png_depth(file) == 16):
        kinds.append("sixteen-bit")
    if frames and form != "MPO":  # whose further ones are previews
        kinds.append("several-frames")
    if shape[0] * shape[1] > LARGEST:
        return [*kinds, "file-huge"]
    if orientation > 1:
        kinds.append("exif-stored" if kept_as_stored(shape, orientation, stated) else "exif-turned")
    elif isinstance(xmp, bytes) and _XMP.search(xmp):
        kinds.append("xmp-turned")
    said, seen = stated(), seen_size(shape, orientation, stated)
    if said is not None and said != seen:
        kinds.append("size-swapped" if said == seen[::-1] else "size-other")
    if not _whole(file, form, tail):
        return [*kinds, "file-truncated"]
    if deep:
        file.seek(0)
        try:
            decode(file.read(), stated)
        except BookError:
            kinds.append("file-damaged")
    return kinds


def _orientation(image: Image.Image) -> int:
    try:
        return exif_orientation(image)
    except Exception:  # of a damaged EXIF block, by what is wrong in it
        return 1


def _bits(image: Image.Image) -> int:
    """Bits of an opened picture's samples; 8 for fewer, and for a PNG in colour."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,)))
    return {"I": 16, "F": 32}.get(image.mode[:1], 8)


def _png_depth(file) -> int:
    file.seek(24)
    return file.read(1)[0]


def _whole(file, form: str, tail: bytes) -> bool:
    """Whether a JPEG or PNG has its end, in its last bytes mostly."""
    end = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(form, b"")
    if end in tail:
        return True
    file.seek(0)
    return end in file.read()


def passed_over(folder: Path, used: Sequence[str] = ()) -> Findings:
    """A Mac's files, and pictures that a folder's listing does not take, by name, in a folder and those below it.

    used: names of the pictures that are.
    """
    found = Findings(str(folder), about=ABOUT)
    for inner, _, names in os.walk(folder):
        where = os.path.relpath(inner, folder)
        for name in sorted(names):
            kind = next((kind for kind, form in _PASSED_OVER.items() if form.search(name)), None)
            path = os.path.normpath(os.path.join(where, name))
            found.add(kind, [path] if kind and path not in used else [])
    return found


def examine(
    pictures: Pictures, strict: bool, deep: bool = False, labels: Path | None = None, say: Callable = lambda line: None
) -> Findings:
    """What is odd about a set's pictures, from the cache if nothing has changed since.

    strict: whether a picture that cannot be read is refused, else left out; deep: decode each whole; labels: the
    annotation file, whose content counts as well; say: gets a line of progress every half minute.
    """
    about = ABOUT if strict else _LENIENT
    file = cache_folder() / "checks" / f"{_fingerprint(pictures, labels, [FORMAT, READER, strict, deep])}.json"
    with contextlib.ExitStack() as alone:
        with contextlib.suppress(OSError, BookError):  # no folder, or no locks: each process looks for itself
            file.parent.mkdir(parents=True, exist_ok=True)
            locks.take(alone.enter_context(locks.lockable(file.with_suffix(".lock"))), wait=True)
        return _examine(pictures, Findings(pictures.where, about=about), deep, file, say)


def _examine(pictures: Pictures, found: Findings, deep: bool, file: Path, say: Callable) -> Findings:
    """As `examine`; kept in `file`."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(file.read_text())
        return Findings(pictures.where, kept["counts"], kept["examples"], found.about)
    count, last = len(pictures.names), time.monotonic()
    with ThreadPoolExecutor(2 * machine.cores()) as pool:
        for i, kinds in enumerate(pool.map(lambda i: look(pictures, i, deep), range(count))):
            for kind in kinds:
                found.add(kind, [pictures.names[i]])
            if time.monotonic() - last > EVERY:
                last = time.monotonic()
                say(f"{pictures.where}: looked at {i + 1} of {count} pictures")
    with contextlib.suppress(OSError, BookError), replacing(file) as part:  # no room, or not allowed: only time is lost
        part.write(json.dumps({k: v for k, v in asdict(found).items() if k in ("counts", "examples")}))
    return found


def examine_source(source: ImageSource, labels: bool = True, say: Callable = print) -> dict:
    """For the record: what is odd about a source's labels, where they are used, and about its pictures, of which those
    that cannot be read are left out.

    Raises BookError for what is refused.
    """
    record = {}
    for look_at in (lambda: source.findings, lambda: examine(Pictures.of(source), strict=False, say=say)):
        found = look_at() if labels else look_at().without_labels()
        found.check()
        record |= found.record()
    return record


def record_oddities(run: Run, source: ImageSource, store: ProposalStore | None, probe: str) -> None:
    """Record in a pretraining's run what is odd about its images and its probe's (a spec, or ""); what cannot be read
    is left out and counted. Raises BookError for what is refused.

    Who built the store has read every image, and kept which it could not: they are not looked at again.
    """
    if store is None:
        images = examine_source(source, labels=False)
    else:
        lost = int((~store.readable).sum())
        images = source.findings.without_labels().record()
        images |= {"unreadable": {"count": lost, "verdict": LEAVES_OUT}} if lost else {}
    run.record["data"] = {"images": images}
    if probe:
        run.record["data"]["probe"] = examine_source(open_source(probe))
    run.write()


def _fingerprint(pictures: Pictures, labels: Path | None, how: list) -> str:
    """Of names, sizes and times of all files, and the annotation file's content."""
    made = hashlib.sha256(json.dumps([pictures.where, *how]).encode())
    if labels is not None and labels.is_file():
        with open(labels, "rb") as file:
            made.update(hashlib.file_digest(file, "sha256").digest())
    archive = getattr(getattr(pictures.read, "__self__", None), "archive", None)
    if archive:
        made.update(json.dumps(archive.files).encode())
    for i, name in enumerate(pictures.names):
        path = pictures.path(i)
        try:
            status = os.stat(path) if path is not None else None
            stamp = (status.st_size, status.st_mtime_ns) if status else ()
        except (OSError, ValueError):
            stamp = (-1,)
        made.update(f"{name}{stamp}{pictures.stated(i) if labels is None else ''}".encode(errors="replace"))
    return made.hexdigest()[:32]
