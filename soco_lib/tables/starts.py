"""What a transfer started from, and at which scale it ran: its row in a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from soco_lib import BookError, locate
from soco_lib.config import ALIGNMENTS
from soco_lib.runs import records
from soco_lib.runs.folder import Run
from soco_lib.transfer import benchmarks


@dataclass(frozen=True)
class Start:
    """What a transfer started from, and the row of the paper's tables that this repeats ("": none)."""

    label: str
    epochs: int | None = None
    row: str = ""


def source_of(config: dict, known: dict[str, Run] | None = None) -> Run | None:
    """The pretraining that a transfer with this plain config started from, by its run folder or a checkpoint in it;
    else None.

    known: runs by name, for a folder that is not there.
    """
    path = locate(config["init"])
    for folder in (
        path,
        *([path.parent.parent] if path.parent.name == "checkpoints" else []),
    ):  # results/NAME/checkpoints/FILE
        try:
            run = records.read(folder)
        except BookError:
            run = (known or {}).get(folder.name)
        if run is not None and run.record["kind"] == "pretrain":
            return run
    return None


def start_of(config: dict, known: dict[str, Run] | None = None) -> Start:
    """Scratch, a pretraining (its run's name without -s<seed>: a row is for all seeds) or a checkpoint file, from a
    transfer's plain config.
    """
    if config["init"] == "scratch":
        return Start("Scratch", row="Scratch")
    run = source_of(config, known)
    if run is None:
        return Start(Path(config["init"]).name)
    pretrain, metrics = run.record["config"], records.numbers(run)
    epochs = None if pretrain["steps"] else round(pretrain["epochs"])
    # The paper's own: its settings but for epochs and views, views of its sizes, as many images as ImageNet's 1.28
    # million.
    recipes = {"paper", "epochs", "views", "detector=mask-rcnn-r50-c4"}
    changed = {
        word
        for word in pretrain["profile"].split(", ")
        if word not in recipes and word.partition("=")[0] not in recipes
    }
    sizes = {(224,): "SoCo", (224, 112): "SoCo", (224, 112, 192): "SoCo*"}  # (224,) is C4's
    enough = bool(epochs) and metrics.get("images_seen", 0) > 1.2e6 * epochs
    row = sizes.get(tuple(view["size"] for view in pretrain["views"]), "") if enough and not changed else ""
    method = "SoCo" if ALIGNMENTS[pretrain["alignment"]].boxes else "whole image"
    return Start(f"{method} ({run.name.removesuffix('-s' + str(pretrain['seed']))})", epochs, row)


def scale_of(config: dict) -> str:
    """The label of a transfer's scale: its profile, and whether it ran on other data than its benchmark's."""
    benchmark = benchmarks.BENCHMARKS.get(config.get("benchmark"))
    if benchmark is None:
        return config["profile"]
    usual = benchmark.settings if config["profile"].split(",")[0] == "paper" else benchmark.toy
    return config["profile"] + ", other data" * any(config[key] != usual[key] for key in ("train", "test"))
