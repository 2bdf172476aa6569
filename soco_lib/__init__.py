"""SoCo, "Aligning Pretraining for Detection via Object-Level Contrastive Learning" (NeurIPS 2021); see README.md."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

from soco_lib.runs.machine import begin_command, have_home, import_quietly

#: The checkout: notebooks, results and data are found from here, whatever the working directory.
ROOT = Path(__file__).resolve().parents[1]
have_home()
import_quietly()


class BookError(ValueError):
    """A mistake in what the user gave (a path, a name, a value): one line that names it and says the remedy."""


def one_line_errors(main: Callable[..., int | None]) -> Callable[..., int]:
    """A command line's `main`: a BookError, an interrupt or a file that may not be written is one line on stderr, and
    the exit status that of `main`, 1, 130, or the error's own `status`.
    """

    @functools.wraps(main)
    def checked(arguments: list[str] | None = None) -> int:
        begin_command()
        try:
            return main(arguments) or 0
        except (Exception, KeyboardInterrupt) as error:
            from soco_lib.runs.reasons import exit_status

            return exit_status(error)

    return checked


def locate(path: str | os.PathLike) -> Path:
    """Resolve a user's path: absolute, else under the checkout if it exists there, else under `$SOCO_DATA` if there.

    Returns the path under the checkout when nothing exists, so that error messages name one definite place.
    """
    path = Path(os.path.expanduser(path))  # which leaves ~nobody as it is
    data = Path(os.path.expanduser(os.environ.get("SOCO_DATA") or ROOT)).resolve()
    elsewhere = not path.is_absolute() and not (ROOT / path).exists() and (data / path).exists()
    return (data if elsewhere else ROOT) / path
