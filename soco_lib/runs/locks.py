"""Locks on files, which the system releases when a process dies, on another machine as well."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from soco_lib import BookError


def lockable(path: Path) -> IO:
    """The file at `path`, made if missing, to take locks on.

    Open for reading and writing, because NFS maps flock to fcntl's locks: a shared one needs a file open for reading,
    an exclusive one a file open for writing.
    """
    return open(path, "a+")


def take(file: IO, *, shared: bool = False, wait: bool = False) -> bool:
    """Take the lock on an open file, or change the one that it holds; closing the file releases it.

    False while another process holds a lock that excludes it (never with `wait`), and when a process on another machine
    has removed the file. Raises BookError where the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.ESTALE:
            return False
        # ENOSYS, EOPNOTSUPP, ENOLCK or EBADF, depending on the file system
        raise BookError(
            f"{Path(file.name).absolute().parent} takes no file locks ({error.strerror}): use a folder on a local disk "
            "or on a mount with locks (Lustre with -o flock, NFS with its lock service)"
        ) from None
    return True


def free(file: IO) -> None:
    """Release the lock and keep the file open."""
    fcntl.flock(file, fcntl.LOCK_UN)


def is_taken(path: Path) -> bool:
    """Whether a process holds the lock at `path`."""
    with lockable(path) as file:
        return not take(file)


@contextlib.contextmanager
def exclusive(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock at `path`, whose file then holds this process's number; `what` names the work in messages.

    wait: until another process has released it, else that is a BookError which names the process. Raises BookError
    also for a folder that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lockable(path)
    except OSError as error:
        raise BookError(f"cannot write the folder {path.parent}: {error.strerror}") from None
    with file:
        if not take(file, wait=wait):
            file.seek(0)
            raise BookError(f"{what} is being run by process {file.read().strip() or '?'}: wait for it or stop it")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
