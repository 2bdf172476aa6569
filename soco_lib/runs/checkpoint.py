"""Checkpoints of a run: written whole, the last few kept, the newest sound one found again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from soco_lib import BookError
from soco_lib.runs import processes
from soco_lib.runs.files import replacing, require_intact, writable

#: Seconds until the other processes must see a file that the first one reads, on a network file system.
PATIENCE = 60.0
FORMAT = "soco-book/1"


def paths(folder: Path) -> list[Path]:
    """Checkpoints of a run folder, oldest first."""
    return sorted((Path(folder) / "checkpoints").glob("step_*.pt"))


def of_step(folder: Path, step: int) -> Path:
    """Where the state after `step` updates lies."""
    return Path(folder) / "checkpoints" / f"step_{step:08d}.pt"


def save(folder: Path, step: int, config: dict, keep: int, **state) -> Path:
    """Write <folder>/checkpoints/step_<step>.pt, the state after `step` updates; delete all but the last `keep`."""
    path = of_step(folder, step)
    with writable(path):
        path.parent.mkdir(exist_ok=True)
        for left in path.parent.glob("*.tmp"):  # by a process that was killed
            left.unlink()
    with replacing(path, "wb") as file:
        torch.save({"format": FORMAT, "step": step, "config": config, **state}, file)
    for old in paths(folder)[:-keep]:
        old.unlink()
    return path


def read(path: Path) -> dict:
    """A checkpoint's contents, tensors on the CPU. Raises BookError for a torn or foreign file."""
    try:
        require_intact(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BookError(f"no checkpoint {path}") from None
    except BookError:
        raise
    except Exception as error:  # torch.load's failures on a torn file share no narrower class
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise BookError(f"{path} cannot be read as a checkpoint ({reason}): copy it again, or take another") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BookError(f"{path} is not a checkpoint of this book (format {FORMAT})")
    check_parts(state, path)
    if isinstance(state.get("model"), Mapping):
        check_numbers(state["model"], path)
    return state


def check_parts(state: Mapping, path: Path, needed: Mapping[str, type] = {"step": int, "config": Mapping}) -> None:
    """Raise BookError naming the parts that a checkpoint of this book lacks."""
    lacking = [name for name, kind in needed.items() if not isinstance(state.get(name), kind)]
    if lacking:
        raise BookError(f"{path} lacks its {' and '.join(lacking)}, so it was changed: take another checkpoint")


def check_numbers(tensors: Mapping[str, Any], path: Path) -> None:
    """Raise BookError naming the first tensor whose numbers a network cannot take: sparse, quantised, none or NaN."""
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor):
            continue
        wrong = ""
        if x.is_meta:
            wrong = "was saved without its numbers (device meta): save the network after it was filled"
        elif x.layout != torch.strided:
            wrong = f"is sparse ({x.layout}): save it as .to_dense()"
        elif x.is_quantized:
            wrong = "is quantised: save it as .dequantize()"
        elif x.is_floating_point() and not torch.isfinite(x).all():
            wrong = "holds NaN or infinite numbers: take a checkpoint from before they arose"
        if wrong:
            raise BookError(f"{path}: {name} {wrong}")


def newest(folder: Path, say=print) -> dict | None:
    """The newest sound checkpoint of a run; a broken one is skipped with a message."""
    for path in reversed(paths(folder)):
        try:
            return read(path)
        except BookError as error:
            say(f"passing over a broken checkpoint: {error}")
    return None


def chosen(folder: Path, first: bool, say=print) -> dict | None:
    """The newest sound checkpoint that the first process finds, in every process; a collective.

    On a network file system processes may see different files and would choose different ones. Raises BookError where
    the chosen file does not appear in time, or is another.
    """
    found = newest(folder, say) if first else None
    step = processes.from_first(found and found["step"])
    if first or step is None:
        return found
    path, until = of_step(folder, step), time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.2)
    return read(path)


@contextlib.contextmanager
def fitting(folder: Path, step: int) -> Iterator[None]:
    """Within, where a run takes over its checkpoint, one of another network or with parts missing raises BookError."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(" ".join(str(error).split())[:200].split())
        raise BookError(
            f"{of_step(folder, step)} does not fit this run ({reason}): delete it, and the one before it is used"
        ) from None
