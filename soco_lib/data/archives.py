"""Images inside zip and tar files.

An image in an archive is one positioned read, in any order, by any number of processes. The archive's own directory
(zip) or its headers (tar) are read once, for where each image lies. Checksums are not verified: as with files in a
folder, it is the decoder that notices damage.
"""

from __future__ import annotations

import errno
import functools
import os
import posixpath
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soco_lib import BookError, locate
from soco_lib.data.kinds import Findings
from soco_lib.data.listings import OTHER_ENDING, in_order, is_image, kept
from soco_lib.fields import require

#: How a member lies in its file: its bytes alone, or behind a zip's local header, as they are or deflated.
BARE, STORED, DEFLATED = 0, 1, 2
#: In its place of a member that is left out: its kind (see kinds.py).
LEFT_OUT = {-1: "member-link", -2: "other-ending"}
LINK, ENDING = LEFT_OUT
#: Bytes read along for a zip's local header; a longer one costs a second read.
HEADER = 512
#: Of an image: its key, number of its file, where it begins there, its bytes there, how it lies.
Row = tuple[str, int, int, int, int]
COLUMNS = {"file": np.int32, "offset": np.int64, "size": np.int64, "form": np.int8}
#: A file with its size and modification time in ns.
Stamp = tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class Archive:
    """Where images lie in some files: image i in `files[file[i]]`, `size[i]` bytes from `offset[i]` on."""

    files: tuple[Stamp, ...]
    file: np.ndarray  # (N,) int32
    offset: np.ndarray  # (N,) int64
    size: np.ndarray  # (N,) int64
    form: np.ndarray  # (N,) int8

    def read(self, index: int) -> bytes:
        """The bytes of image `index`. Raises OSError, or zlib.error when they are damaged."""
        # Kept here: two threads may open it, and one lets go of its own.
        opened = _opened(*self.files[self.file[index]])
        file = opened.number
        offset, size, form = int(self.offset[index]), int(self.size[index]), self.form[index]
        if form == BARE:
            data = os.pread(file, size, offset)
        else:
            data = os.pread(file, HEADER + size, offset)
            begin = 30 + sum(struct.unpack("<HH", data[26:30]))  # behind the fixed part, the name and the extra field
            data = data[begin : begin + size] if begin <= HEADER else os.pread(file, size, offset + begin)
        if len(data) < size:
            raise OSError("the archive ends within it")
        return zlib.decompress(data, -zlib.MAX_WBITS) if form == DEFLATED else data


@dataclass
class _Opened:
    """A file descriptor. Positioned reads do not move it, so processes may share it after a fork."""

    number: int

    def __del__(self):
        os.close(self.number)


@functools.lru_cache(maxsize=128)  # below the usual limit of 1024 open files; data sets have up to thousands of shards
def _opened(*stamp) -> _Opened:
    opened = _Opened(os.open(stamp[0], os.O_RDONLY | os.O_CLOEXEC))
    if _stamp(opened.number, stamp[0]) != stamp:
        raise OSError(errno.ESTALE, "the file has changed since its images were listed: start again")
    return opened


def _stamp(file: int | Path, name: str | Path) -> Stamp:
    status = os.stat(file)
    return str(name), status.st_size, status.st_mtime_ns


def _listed(
    name: str, files: list[Path], rows: Callable[[], Iterable[Row]], beside: Sequence[Path] = (), samples: bool = False
) -> tuple[Sequence[str], Archive, Findings]:
    """The images in `files`: kept, or from `rows`; and which are left out.

    beside: other files that `rows` reads; samples: whether files of one name up to its first dot belong together.
    """
    stamps = [_stamp(file, file) for file in (*files, *beside)]

    def make():
        # Of two members with one name the later one counts, as when they are unpacked.
        found, earlier, left_out = {}, [], Findings()
        for key, *where in rows():
            if where[-1] in LEFT_OUT:
                left_out.add(LEFT_OUT[where[-1]], [key])
                continue
            if key in found:
                earlier.append(key)
            found[key] = where
        left_out.add("member-twice", earlier)
        left_out.add("two-pictures", masks := sorted(further(found) if samples else ()))
        for key in masks:
            del found[key]
        keys = in_order(found, name)
        columns = {column: np.array([found[key][i] for key in keys], kind)
                   for i, (column, kind) in enumerate(COLUMNS.items())}  # fmt: skip
        of = {"files": stamps, "counts": left_out.counts, "examples": left_out.examples}
        return keys, columns, of, max(changed for *_, changed in stamps) / 1e9

    keys, columns, of = kept(name, lambda of: [tuple(stamp) for stamp in of["files"]] == stamps, make)
    found = Findings(str(files[0] if len(files) == 1 else files[0].parent), of["counts"], of["examples"])
    return keys, Archive(tuple(stamps[: len(files)]), **columns), found


def further(names: Iterable[str]) -> set[str]:
    """Names of the pictures beside a photograph in WebDataset's samples, whose files' names agree up to the first dot.

    The photograph is the one with a plain ending, a JPEG or WebP where there are several such; a sample without any is
    none, but pictures with dots in their names.
    """
    plain, many, alike = {}, [], {}
    for name in names:
        folder, base = posixpath.split(name)
        stem, _, ending = base.partition(".")
        sample = posixpath.join(folder, stem)
        if "." in ending:
            many.append((sample, name))
        elif plain.setdefault(sample, name) != name:
            alike.setdefault(sample, [plain[sample]]).append(name)
    left_out = {name for sample, name in many if sample in plain}
    for several in alike.values():
        photographs = [name for name in several if name.lower().endswith((".jpg", ".jpeg", ".webp"))]
        left_out |= {*several} - {*photographs} if len(photographs) == 1 else set()
    return left_out


def zip_images(file: Path) -> tuple[Sequence[str], Archive, Findings]:
    """The images of a zip file, by their paths in it. Raises BookError."""
    require(file.is_file(), f"no zip file {file}: give the archive that holds the images")
    return _listed(f"archive {file}", [file], lambda: _zip_rows(file))


def _zip_rows(file: Path) -> Iterator[Row]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except OSError as error:
        raise BookError(f"{file} cannot be read ({error.strerror}): allow it, or copy it again") from None
    except Exception:  # what a torn directory raises depends on its first wrong byte
        raise BookError(f"{file} is not a complete zip archive: copy it again") from None
    for member in members:
        name = posixpath.normpath(member.filename)
        if member.is_dir() or name.startswith("__MACOSX"):
            continue
        if not is_image(posixpath.basename(name)):
            if OTHER_ENDING.search(name):
                yield name, 0, 0, 0, ENDING
            continue
        require(not member.flag_bits & 1, f"{file}: {name} is encrypted: pack the images again without a password")
        form = {zipfile.ZIP_STORED: STORED, zipfile.ZIP_DEFLATED: DEFLATED}.get(member.compress_type)
        method = f"packed by method {member.compress_type}"
        require(form is not None, f"{file}: {name} is {method}: pack the images again with `zip -0`")
        yield name, 0, member.header_offset, member.compress_size, form


def mapped_zip_images(folder: Path, split: str) -> tuple[Sequence[str], Archive, Findings]:
    """The images of the authors' ImageNet-Zip: <split>.zip as <split>_map.txt names them, a line "path<TAB>class
    number" each.

    Raises BookError for a malformed line and for images that the map names and the zip lacks.
    """
    file, table = folder / f"{split}.zip", folder / f"{split}_map.txt"
    known = ", ".join(sorted(f.name.removesuffix("_map.txt") for f in folder.glob("*_map.txt"))) or "none"
    for path in (file, table):
        needs = f"it should hold SPLIT.zip and SPLIT_map.txt (splits there: {known})"
        require(path.is_file(), f"no {path.name} in {folder}: {needs}")

    def rows() -> Iterator[Row]:
        there = {row[0]: row for row in _zip_rows(file)}
        named = _map_names(table, file.name)
        lost = [name for name in named if name not in there]
        count, first = f"{len(lost)} of {len(named)}", lost and lost[0]
        require(not lost, f"{file} lacks {count} images that {table.name} names, first {first!r}: copy both again")
        return (there[name] for name in named)

    return _listed(f"archive {file} by {table.name}", [file], rows, [table])


def _map_names(table: Path, archive: str) -> list[str]:
    names = []
    for number, line in enumerate(table.read_text(errors="replace").splitlines(), 1):
        words = line.rsplit(None, 1)
        if not words:
            continue
        good = len(words) == 2 and words[1].isdigit()
        require(good, f"{table}, line {number}: {line[:60]!r} is not an image's path, a tab and its class number")
        names.append(posixpath.normpath(words[0].strip().removeprefix(f"{archive}@").lstrip("/")))
    return names


def tar_images(text: str) -> tuple[Path, Sequence[str], Archive, Findings]:
    """(where, keys, archive, what is left out) of the images in one tar file, in all of a folder, or in those of a
    pattern such as shards/{000..099}.tar: uncompressed, WebDataset's shards among them (see `further`). Keys are the
    paths in the tar; of several files, below the file's name without its suffix. A tar within a tar, as in ImageNet's
    training archive, counts as a folder too.

    Raises BookError for what is missing, compressed or cut short.
    """
    files = _tar_files(text)
    root = Path(os.path.commonpath([file.parent for file in files])) if len(files) > 1 else files[0]

    def rows() -> Iterator[Row]:
        for number, file in enumerate(files):
            inner = f"{file.relative_to(root).as_posix().removesuffix('.tar')}/" if len(files) > 1 else ""
            yield from ((inner + name, number, *where) for name, *where in _tar_members(file))

    return root, *_listed(f"archive {locate(text)}", files, rows, samples=True)


def _tar_files(text: str) -> list[Path]:
    where = locate(text)
    if where.is_dir():
        files = sorted(where.glob("*.tar"))
        require(bool(files), f"no .tar in {where}: give a tar file, a folder of them, or a pattern as {{000..099}}.tar")
        return files
    files = [where] if where.exists() else [locate(name) for name in _expanded(text)]
    require(bool(files), f"tar:{text} names no file: a range goes upwards, as {{000..099}}")
    lost = [file for file in files if not file.is_file()]
    count = f"{len(lost)} of {len(files)} shards missing, first " if len(files) > 1 else "no tar file "
    require(not lost, f"{count}{lost and lost[0]}: copy it there or correct tar:{text}")
    return files


def _expanded(pattern: str) -> list[str]:
    """A pattern with {000..099} or {a,b} in it as the names it stands for."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    words = [f"{n:0{len(span[1])}d}" for n in range(int(span[1]), int(span[2]) + 1)] if span else found[1].split(",")
    return [name for word in words for name in _expanded(pattern[: found.start()] + word + pattern[found.end() :])]


def _tar_members(file: Path) -> Iterator[tuple[str, int, int, int]]:
    """Name, offset, size and form of each image in a tar file."""
    with open(file, "rb", buffering=0) as stream:
        squeezed = stream.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
        require(not squeezed, f"{file} is compressed, so images cannot be read out of order: unpack it to a plain .tar")
        yield from _tar_walk(file, stream, 0, "")


def _tar_walk(file: Path, stream, begin: int, inner: str) -> Iterator[tuple[str, int, int, int]]:
    last = None
    try:
        stream.seek(begin)
        archive = tarfile.open(fileobj=stream, mode="r:")
        while (member := archive.next()) is not None:
            archive.members.clear()  # it would keep a kilobyte a member
            last, name = member, posixpath.normpath(member.name)
            if member.isdir():
                continue
            if is_image(posixpath.basename(name)):
                whole = member.isreg() and not member.issparse()
                yield inner + name, member.offset_data, member.size, BARE if whole else LINK
            elif OTHER_ENDING.search(name):
                yield inner + name, 0, 0, ENDING
            elif member.isreg() and name.endswith(".tar"):
                yield from _tar_walk(file, stream, member.offset_data, f"{inner}{name.removesuffix('.tar')}/")
        whole = os.pread(stream.fileno(), tarfile.BLOCKSIZE, archive.offset) == bytes(tarfile.BLOCKSIZE)
        further = whole and not begin and os.pread(stream.fileno(), 4 * tarfile.RECORDSIZE, archive.offset).strip(b"\0")
        require(not further, f"{file} goes on behind its end, as archives that were joined: give each as its own file")
    except tarfile.ReadError:
        whole = False
    after = f" after {last.name}" if last else ""
    require(whole, f"{file} is no tar archive, or is damaged or cut short{after}: copy it again")
