"""Long listings of images, found once and kept.

Walking the folders of 1.28 million images takes seconds on a disk of one's own and minutes on a shared one, an
archive's headers take longer. A long listing is therefore kept as an Arrow file below `$SOCO_CACHE` (default:
`$XDG_CACHE_HOME/soco`, else `~/.cache/soco`); processes map it, so it costs them next to no memory of their own. It is
made anew as soon as what it lists has changed: a folder by its and its subfolders' modification times, an archive by
size and modification time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from soco_lib import BookError
from soco_lib.fields import require
from soco_lib.runs.files import replacing

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")  # in any case
#: Of a name that is a picture's, but of a kind that is not looked for.
OTHER_ENDING = re.compile(r"(?i)\.(gif|jp2|jpe|jfif|avif|hei[cf]|jxl|svg|psd|exr|dng|cr2|nef)$")
#: Images from which on a listing is kept: a shorter one is made as fast as it would be checked and read.
KEEP_FROM = 10_000
#: Seconds that what is listed must have been left alone: within its clock's tick, a later change would not show.
SETTLED = 2.0
FORMAT = 3


def is_image(name: str) -> bool:
    """Whether a file name (no path) is an image's: by suffix; hidden files are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def in_order(names: Iterable[str], where: str) -> tuple[str, ...]:
    """`names` as keys: sorted and unique. Raises BookError when there is none, or one that is not text."""
    keys = tuple(sorted(set(names)))
    require(len(keys) > 0, f"no images in {where} (known suffixes: {' '.join(SUFFIXES)})")
    odd = next((key for key in keys if not key.isascii() and key.encode(errors="ignore").decode() != key), None)
    require(odd is None, f"the name {odd!r} in {where} is not UTF-8: rename that file")
    return keys


def fingerprint(keys: Sequence[str]) -> str:
    """16 hex digits over the keys, in order."""
    return keys.fingerprint if isinstance(keys, Keys) else hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]


class Keys(Sequence):
    """The keys of a kept listing: read from the file's pages on access, pickled as the file's name."""

    def __init__(self, file: Path, expected: str):
        try:
            table, facts = _mapped(file)
        except (OSError, ValueError, KeyError):
            table, facts = None, {}
        require(
            facts.get("fingerprint") == expected,
            f"the listing {file} was replaced while processes were starting: the images have changed, run again",
        )
        self.file, self.fingerprint, self._column = file, expected, table["key"].chunk(0)

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index):
        return tuple(self._column[index].to_pylist()) if isinstance(index, slice) else self._column[int(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), 65536):  # all of them at once would be a hundred megabytes of strings
            yield from self[first : first + 65536]

    def __reduce__(self):
        return Keys, (self.file, self.fingerprint)


def kept(
    name: str, holds: Callable[[dict], bool], make: Callable
) -> tuple[Sequence[str], Mapping[str, np.ndarray], dict]:
    """Keys, further columns and facts of the listing called `name`: the kept one while these still hold, else a new.

    make() returns keys, columns, facts of what is listed (JSON), and when that last changed (seconds since 1970).
    """
    file = cache_folder() / "listings" / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.arrow"
    with contextlib.suppress(OSError, ValueError, KeyError):  # none, of another version, or torn
        table, facts = _mapped(file)
        if facts["format"] == FORMAT and facts["name"] == name and holds(facts["of"]):
            return _listing(file, table, facts)
    start = time.time()
    keys, columns, of, changed = make()
    if len(keys) >= KEEP_FROM and changed < start - SETTLED:
        with contextlib.suppress(OSError, BookError):  # no room, or not allowed: only time is lost
            _write(file, keys, columns, {"format": FORMAT, "name": name, "fingerprint": fingerprint(keys), "of": of})
            return _listing(file, *_mapped(file))
    return keys, columns, of


def cache_folder() -> Path:
    """Where listings are kept (see above)."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("SOCO_CACHE") or Path(base) / "soco").expanduser().resolve()


def _listing(file: Path, table, facts: dict) -> tuple[Keys, dict[str, np.ndarray], dict]:
    views = {name: table[name].chunk(0).to_numpy() for name in table.column_names if name != "key"}  # of the file
    return Keys(file, facts["fingerprint"]), views, facts["of"]


def _mapped(file: Path):
    """(Arrow table over the file's pages, facts about it)."""
    import pyarrow.ipc  # only where a listing is long

    table = pyarrow.ipc.open_file(pyarrow.memory_map(str(file))).read_all()
    return table, json.loads((table.schema.metadata or {})[b"soco"])


def _write(file: Path, keys: Sequence[str], columns: Mapping[str, np.ndarray], facts: dict) -> None:
    import pyarrow.ipc

    arrays = {"key": pyarrow.array(keys, pyarrow.large_string()), **{k: pyarrow.array(v) for k, v in columns.items()}}
    table = pyarrow.table(arrays).replace_schema_metadata({"soco": json.dumps(facts)})
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def folder_keys(root: Path) -> Sequence[str]:
    """Keys of the images below `root`: posix paths relative to it, sorted. Hidden folders are left out, links followed.

    Raises BookError when there is none, or a folder that cannot be read.
    """

    def holds(of: dict) -> bool:
        return all(os.stat(os.path.join(root, inner)).st_mtime_ns == then for inner, then in of["folders"])

    def make():
        names, folders = _walk(root)
        return in_order(names, f"folder {root}"), {}, {"folders": folders}, max(then for _, then in folders) / 1e9

    return kept(f"folder {root}", holds, make)[0]


def _walk(root: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Image paths below `root`, and every folder with its modification time in ns as it was before it was read.

    Class folders are often links, and followed; not one that loops, to itself or to a folder on the way to it.
    """
    names, folders, todo = [], [], [("", (os.path.realpath(root),))]
    while todo:
        inner, way = todo.pop()  # way: real folders from which links were followed, and at last this one
        folder = os.path.join(root, inner)
        try:
            folders.append((inner, os.stat(folder).st_mtime_ns))
            with os.scandir(folder) as entries:
                for entry in entries:
                    further = _way(entry, way)
                    if is_image(entry.name) and not further and (entry.is_symlink() or entry.is_file()):
                        names.append(inner + entry.name)
                    elif further and not entry.name.startswith("."):
                        todo.append((f"{inner}{entry.name}/", further))
        except OSError as error:
            raise BookError(f"folder {folder} cannot be read ({error.strerror}): allow it or leave it out") from None
    return names, folders


def _way(entry: os.DirEntry, way: tuple[str, ...]) -> tuple[str, ...]:
    """The `way` through an entry, () where it is no folder to look into."""
    try:
        if not entry.is_dir():
            return ()
        if not entry.is_symlink():
            return *way[:-1], os.path.join(way[-1], entry.name)
        real = os.path.realpath(entry.path)
        loops = any((step + os.sep).startswith(real + os.sep) for step in way)
        return () if loops else (*way, real)
    except OSError:
        return ()
