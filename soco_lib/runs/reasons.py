"""What an error says to the reader of one line, whatever library or process raised it."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator

from soco_lib import BookError
from soco_lib.runs import files

#: Where the text of an exception that a DataLoader's worker raised turns from its traceback to what was raised.
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*)(?:: (.*))?\Z", re.MULTILINE | re.DOTALL)


def reason(kind: str, text: str) -> str:
    """An exception of the type `kind` for its reader, in one line and never empty: what a BookError says, of any other
    its type and the first line of `text`. One from another process, whose traceback `text` holds, as it was raised.
    """
    _, traceback, raised = text.rpartition("Traceback (most recent call last):\n")
    if traceback and (found := _RAISED.search(raised.rstrip())):
        mine = kind == "BookError" or found[1].endswith("BookError")
        kind, text = "BookError" if mine else found[1], found[2] or ""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if kind == "BookError" and lines:
        return " ".join(lines)
    return ": ".join([kind, *lines[:1]])


def one_line(error: BaseException) -> str:
    """`reason` of an exception."""
    plain = error.args[0] if isinstance(error, KeyError) and error.args else error  # str(KeyError) is its key's repr
    return reason("BookError" if isinstance(error, BookError) else type(error).__name__, str(plain))


@contextlib.contextmanager
def building(cfg) -> Iterator[None]:
    """Within, where a network is built, what Detectron2 raises of the user's `overrides` is one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BookError) or not cfg.overrides:
            raise
        said = f"detector={cfg.detector!r} cannot be built with overrides {', '.join(cfg.overrides)}"
        raise BookError(f"{said} ({one_line(error)}): look at their values") from None


def exit_status(error: BaseException) -> int:
    """Print what ended a command as one line, and return its exit status; an error that is no user's is raised again.

    1, 130 after Ctrl-C, or the error's own `status`, as of one that was asked to stop.
    """
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    told = error if isinstance(error, BookError) else files.unwritable(error, getattr(error, "filename", None) or "")
    if told is None:
        raise error
    status = getattr(told, "status", None)
    print(told if status else f"error: {told}", file=sys.stderr)
    return status or 1
