"""The data that a study's pretrainings need and that can be made here: drawn lists of images, proposal stores; each
made once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from soco_lib import locate
from soco_lib.config import Pretrain
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import build_store
from soco_lib.fields import from_dict, require
from soco_lib.runs import locks
from soco_lib.studies.study import ImageList, Study


def write_list(path: Path, asked: ImageList) -> int:
    """Draw a list file (see sources.open_source), by write-then-rename; returns the number of images.

    Paths are relative to the file: the list is of this place. Raises BookError when the sources hold fewer images.
    """
    sources = [open_source(spec) for spec in asked.of]
    files = [source.root / key for source in sources for key in source.keys]
    require(
        asked.images <= len(files),
        f"{path.name} asks for {asked.images} images; {' and '.join(asked.of)} hold {len(files)}",
    )
    chosen = np.random.default_rng(asked.seed).permutation(len(files))[: asked.images or None]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(f"{os.path.relpath(files[i], path.parent)}\n" for i in sorted(chosen)))
    os.replace(temporary, path)
    return len(chosen)


@contextlib.contextmanager
def _alone(folder: Path):
    """Waits until no other process makes this folder: two studies may want one store at the same time. Raises BookError
    for a file system without locks.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locks.lockable(folder.with_name(f".{folder.name}.lock")) as file:
        locks.take(file, wait=True)
        yield


def prepare(study: Study, configs: Sequence[Pretrain], say: Callable[[str], None]) -> None:
    """Make the lists and stores that these pretrainings need and that are missing."""
    for name, fields in study.lists.items():
        path = locate(name)
        if not path.is_file() and any(cfg.images == f"list:{name}" for cfg in configs):
            say(f"{name}: {write_list(path, from_dict(ImageList, fields))} images drawn")
    for images, proposals in dict.fromkeys((cfg.images, cfg.proposals) for cfg in configs if cfg.proposals != "whole"):
        if not (locate(proposals) / "store.json").is_file():
            with _alone(locate(proposals)):
                config = from_dict(ProposalConfig, study.stores.get(proposals, {}))
                build_store(open_source(images), config, proposals, progress=say)
