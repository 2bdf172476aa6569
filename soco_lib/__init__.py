"""SoCo, "Aligning Pretraining for Detection via Object-Level Contrastive Learning" (NeurIPS 2021); see README.md."""

import functools
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

#: The checkout: notebooks, results and data are found from here, whatever the working directory.
ROOT = Path(__file__).resolve().parents[1]


def _have_home() -> None:
    """A user without an entry in passwd and without HOME, as containers have, gets a folder for the caches that
    libraries keep at home.
    """
    try:
        Path.home()
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"soco-home-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        ours = folder.stat().st_uid == os.getuid() and not folder.is_symlink()
        os.environ["HOME"] = str(folder) if ours else tempfile.mkdtemp(prefix="soco-home-")


_have_home()


class BookError(ValueError):
    """A mistake in what the user gave (a path, a name, a value): one line that names it and says the remedy."""


#: Where the text of an exception that a DataLoader's worker raised turns from its traceback to what was raised.
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*)(?:: (.*))?\Z", re.MULTILINE | re.DOTALL)


def told(kind: str, text: str) -> str:
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
    """`told` of an exception."""
    plain = error.args[0] if isinstance(error, KeyError) and error.args else error  # str(KeyError) is its key's repr
    return told("BookError" if isinstance(error, BookError) else type(error).__name__, str(plain))


def one_line_errors(main: Callable[..., int | None]) -> Callable[..., int]:
    """A command line's `main` that prints a BookError, or that it was interrupted, as one line on stderr and returns
    the exit status: that of `main`, 1, 130, or the error's own `status`.
    """

    @functools.wraps(main)
    def checked(arguments: list[str] | None = None) -> int:
        try:
            return main(arguments) or 0
        except BookError as error:
            status = getattr(error, "status", None)  # of one that was asked to stop
            print(error if status else f"error: {error}", file=sys.stderr)
            return status or 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return checked


def locate(path: str | os.PathLike) -> Path:
    """Resolve a user's path: absolute, else under the checkout if it exists there, else under `$SOCO_DATA` if there.

    Returns the path under the checkout when nothing exists, so that error messages name one definite place.
    """
    path = Path(path).expanduser()
    data = Path(os.environ.get("SOCO_DATA") or ROOT).expanduser().resolve()
    elsewhere = not path.is_absolute() and not (ROOT / path).exists() and (data / path).exists()
    return (data if elsewhere else ROOT) / path
