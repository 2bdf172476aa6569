"""Checkpoints of a run: atomic, the last few kept, the newest sound one found again."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from soco_lib import BookError
from soco_lib.runs import processes
from soco_lib.runs.files import replacing, writable

#: Seconds in which a file that the first process reads must have reached the others' view of the file system.
PATIENCE = 60.0
FORMAT = "soco-book/1"


def paths(folder: Path) -> list[Path]:
    """Checkpoints of a run folder, oldest first."""
    return sorted((Path(folder) / "checkpoints").glob("step_*.pt"))


def of_step(folder: Path, step: int) -> Path:
    """Where the state after `step` updates lies."""
    return Path(folder) / "checkpoints" / f"step_{step:08d}.pt"


def save(folder: Path, step: int, config: dict, keep: int, **state) -> Path:
    """Write <folder>/checkpoints/step_<step>.pt (state after `step` updates) by write-then-rename; drop all but the
    last `keep`.
    """
    path = of_step(folder, step)
    with writable(path):
        path.parent.mkdir(exist_ok=True)
        for left in (*path.parent.glob("*.tmp"), *path.parent.glob(".*.tmp")):  # by a process that was killed
            left.unlink()
    with replacing(path, sync=True) as file:
        torch.save({"format": FORMAT, "step": step, "config": config, **state}, file)
    for old in paths(folder)[:-keep]:
        old.unlink()
    return path


def read(path: Path) -> dict:
    """A checkpoint's contents, tensors on the CPU. Raises BookError for a torn or foreign file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BookError(f"no checkpoint {path}") from None
    except Exception as error:  # torch.load's failures on a torn file share no narrower class
        raise BookError(f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0]})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BookError(f"{path} is not a checkpoint of this book (format {FORMAT})")
    return state


def newest(folder: Path, say=print) -> dict | None:
    """The newest sound checkpoint of a run; a broken one is passed over with a message for the one before it."""
    for path in reversed(paths(folder)):
        try:
            return read(path)
        except BookError as error:
            say(f"passing over a broken checkpoint: {error}")
    return None


def chosen(folder: Path, first: bool, say=print) -> dict | None:
    """The newest sound checkpoint in the eyes of the first process, in every process; a collective.

    A network file system may show processes different folders: if each chose for itself they would differ without a
    word. Raises BookError where the chosen file does not appear in time, or is another.
    """
    found = newest(folder, say) if first else None
    step = processes.from_first(found and found["step"])
    if first or step is None:
        return found
    path, until = of_step(folder, step), time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.2)
    return read(path)
