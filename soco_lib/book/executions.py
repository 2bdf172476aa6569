"""Which notebooks have been executed, when, and what executes the others."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import nbformat

from soco_lib import ROOT, BookError

NOTEBOOKS = ROOT / "notebooks"
#: Targets of make that execute a notebook (any other: see `command`).
TARGETS = {
    "01_proposals": "make proposals",
    "02_views": "make views",
    "03_pretrain": "make pretrain",
    "04_transfer": "make transfer",
    "05_report": "make quickstart",
    "08_ablation": "make ablation-labels",
    "09_speed": "make bench",
    "10_claims": "make claims",
    "11_predict": "make predict MODEL=results/quickstart-transfer IMAGES=folder:data/scenes-test",
    "12_worth": "make worth IMAGES=folder:mine TRAIN=coco:… TEST=coco:…",
}


class Execution(NamedTuple):
    """An executed copy of a notebook, as papermill left it."""

    began: datetime
    path: Path
    said: str  # when, and how long it took or how it ended otherwise

    @property
    def run(self) -> str:
        return self.path.parent.name

    @classmethod
    def read(cls, path: Path) -> Execution:
        told = read_notebook(path).metadata.get("papermill") or {}
        began = told.get("start_time")
        began = (datetime.fromisoformat(began) if began else datetime.fromtimestamp(path.stat().st_mtime)).astimezone()
        end = f"{told['duration']:.0f} s" if told.get("duration") else "unfinished: running, or cut short"
        end = "failed" if told.get("exception") else end if told else "saved by hand"
        return cls(began, path, f"{began:%Y-%m-%d %H:%M}, {end}")


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Raises BookError for a file that is none, or not yet."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises what its JSON and its schema do
        raise BookError(f"{path} is no whole notebook: wait until its run has ended, or remove it") from error


def executions(results: Path) -> dict[str, list[Execution]]:
    """Executed copies by notebook, the newest first: every one of `notebooks/` ([]: never executed), then any other."""
    found = {path.stem: [] for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    for path in sorted(results.glob("[!.]*/*.ipynb")):
        found.setdefault(path.stem, []).append(Execution.read(path))
    return {name: sorted(copies, reverse=True) for name, copies in found.items()}


def command(name: str) -> str:
    """What executes a notebook of `notebooks/`."""
    own = f"python -m soco_lib.book notebooks/{name}.ipynb --run-name {name.split('_', 1)[-1]}"
    return TARGETS.get(name, own)
