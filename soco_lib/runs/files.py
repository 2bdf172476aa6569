"""Files that are there whole or not at all, and one sentence where the disk is full or may not be written."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from soco_lib import BookError

#: What a disk says that takes no more, or takes nothing from us -> what to do.
_ROOM, _ALLOW = "make room there and run again", "allow writing there, or choose another folder"
_MOVE = "move what stands in its place, or choose another folder"
REMEDIES = {errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: _ROOM, errno.EROFS: _ALLOW, errno.EACCES: _ALLOW,
            errno.EPERM: _ALLOW, errno.EIO: "look at that disk, then run again",
            errno.EEXIST: _MOVE, errno.ENOTDIR: _MOVE, errno.EISDIR: _MOVE, errno.ENAMETOOLONG: "choose a shorter name",
            errno.ELOOP: "mend that link", errno.ENOENT: "make its folder first, or choose another"}  # fmt: skip
#: Of these, the disk's own: they are meant wherever they lie beneath an error.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}


def unwritable(error: BaseException, path: Path | str = "") -> BookError | None:
    """What to tell of an error whose cause is that a file could not be written; None for any other one.

    path: what was written; without it only a full or read-only disk is meant, since other errors may be a reader's.
    torch.save's own errors hide the disk's, which is in their context.
    """
    known = REMEDIES.keys() if path else _DISK - {errno.EFBIG, errno.EIO}
    while error is not None and not (isinstance(error, OSError) and error.errno in known):
        error, known = None if isinstance(error, BookError) else error.__cause__ or error.__context__, known & _DISK
    if error is None:
        return None
    path, remedy = path or error.filename or "a file", REMEDIES[error.errno]
    verb = "write" if error.errno in _DISK or remedy == _ALLOW else "use"
    closed = os.path.exists(os.path.dirname(path)) and not os.access(os.path.dirname(path), os.X_OK)
    if remedy == _ALLOW and (closed or os.path.exists(path)) and not os.access(path, os.R_OK):
        verb, remedy = "read", "allow reading it"
    return BookError(f"cannot {verb} {path} ({error.strerror}): {remedy}")


def require_intact(path: Path) -> None:
    """Raise BookError where the bytes of a zip file, such as torch.save's, are not those that were written.

    torch.load does not compare the checksums that torch.save writes: one wrong bit would be a wrong weight. So too for
    a pipe or a folder of that name.
    """
    if path.exists() and not path.is_file():
        raise BookError(f"{path} is no regular file: copy or download it again, or take another")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            try:
                wrong = archive.testzip()
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                wrong = str(error)
        if wrong:
            raise BookError(f"{path} is damaged (checksum of {wrong}): copy or download it again, or take another")


@contextlib.contextmanager
def writable(path: Path | str) -> Iterator[None]:
    """Within, a disk that is full or may not be written raises BookError that names `path` and the remedy."""
    try:
        yield
    except Exception as error:
        if told := unwritable(error, path):
            raise told from None
        raise


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO]:
    """A file to write that takes the name `path` at the block's end: a reader sees the old file or the new one.

    It is on the disk before it has the name. A writer that fails leaves nothing behind. Raises BookError as `writable`.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with writable(path):
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or never made
            temporary.unlink()
