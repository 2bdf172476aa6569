"""Who works in a folder: locks on files, which the system frees when a process dies, on another machine as well."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import IO

from soco_lib import BookError


def lockable(path: Path) -> IO:
    """The file at `path`, made if missing, to take locks on.

    Open for reading and writing: NFS makes fcntl's locks of these, and a shared one of those needs a file open for
    reading, an exclusive one a file open for writing.
    """
    return open(path, "a+")


def take(file: IO, *, shared: bool = False, wait: bool = False) -> bool:
    """Take the lock on an open file, or change the one that it holds; the file's end gives it up.

    False while another holds one that excludes it (never when told to `wait`), and when one on another machine has
    removed the file. Raises BookError where the file system takes no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.ESTALE:
            return False
        # ENOSYS, EOPNOTSUPP, ENOLCK or EBADF, as the file system has it
        raise BookError(
            f"{Path(file.name).absolute().parent} takes no file locks ({error.strerror}): use a folder on a local disk or on a "
            "mount with locks (Lustre with -o flock, NFS with its lock service)"
        ) from None
    return True


def free(file: IO) -> None:
    """Give up the lock, and keep the file open."""
    fcntl.flock(file, fcntl.LOCK_UN)
