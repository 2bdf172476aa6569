"""The data that a study's pretrainings need and that can be made here, each once: drawn lists of images, proposals."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from soco_lib import locate
from soco_lib.config import Pretrain
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import ProposalStore, build_store
from soco_lib.fields import from_dict, require
from soco_lib.runs import locks
from soco_lib.runs.folder import write_text
from soco_lib.scenes.write import write_scenes
from soco_lib.studies.study import ImageList, Study


def write_list(path: Path, asked: ImageList) -> int:
    """Draw a list file (see sources.open_source); returns the number of images.

    Paths are relative to the file. Raises BookError when the sources hold fewer images.
    """
    sources = [open_source(spec) for spec in asked.of]
    files = [source.root / key for source in sources for key in source.keys]
    held = f"{' and '.join(asked.of)} hold {len(files)}"
    require(asked.images <= len(files), f"{path.name} asks for {asked.images} images; {held}")
    chosen = np.random.default_rng(asked.seed).permutation(len(files))[: asked.images or None]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{os.path.relpath(files[i], path.parent)}\n" for i in sorted(chosen)))
    return len(chosen)


def prepare(study: Study, configs: Sequence[Pretrain], say: Callable[[str], None]) -> None:
    """Make the scenes, lists and stores that these pretrainings need and that are missing. Raises BookError for a store
    that is there and of other images, before anything runs.
    """
    for name, fields in study.scenes.items():
        if any(f"{name}/" in cfg.images for cfg in configs):
            write_scenes(locate(name), **fields)
    for name, fields in study.lists.items():
        path = locate(name)
        if not path.is_file() and any(cfg.images == f"list:{name}" for cfg in configs):
            say(f"{name}: {write_list(path, from_dict(ImageList, fields))} images drawn")
    for images, proposals in dict.fromkeys((cfg.images, cfg.proposals) for cfg in configs if cfg.proposals != "whole"):
        store = locate(proposals)
        if generator := study.stores.get(proposals, {}).get("imported"):
            _imported(store, proposals, images, generator)
        if (store / "store.json").is_file():
            ProposalStore.open(store).check(open_source(images))
        else:
            with locks.exclusive(store.with_name(f".{store.name}.lock"), proposals, wait=True):  # another study's, too
                config = from_dict(ProposalConfig, study.stores.get(proposals, {}))
                build_store(open_source(images), config, proposals, progress=say)


def _imported(store: Path, proposals: str, images: str, generator: str) -> None:
    """Raise BookError unless the store is there and its boxes are of this generator."""
    how = f"make proposals-import FROM=boxes.json STORE={proposals} IMAGES='{images}' GENERATOR='{generator}'"
    require((store / "store.json").is_file(), f"{proposals}, boxes of {generator}, is not there: {how}")
    found = ProposalStore.open(store).meta["config"]["generator"]
    said = f"{proposals} holds boxes of {found}, and the study says {generator}"
    require(found == generator, f"{said}: change one of them, or import it under another name: {how}")
