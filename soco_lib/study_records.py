"""Small records of a study's runs, which git tracks; tables and figures are made from these alone, and again without the runs.

    results/studies/<study>-<profile>/<run>/run.json, metrics.json    as the run left them
                                            log.jsonl                 a few rows and columns of its log
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from soco_lib import benchmarks
from soco_lib.plans import Cell, Planned, Shelf, make_cell, state_of
from soco_lib.results import Run
from soco_lib.studies import Study, Variant
from soco_lib.tables import METRICS

#: What a record keeps of a log, in at most so many rows (and those with a score).
KEPT, ROWS = ("step", "loss", "spread", "effective_rank", "images_per_s", "bbox_AP", "segm_AP", "knn", "linear"), 60


def cells_of(study: Study, profile: str, shelf: Shelf) -> list[Cell]:
    """Every variant at every seed that has a pretraining on the shelf, with its transfers to any benchmark."""
    cells = [make_cell(study, variant, profile, seed, shelf, tuple(benchmarks.BENCHMARKS)) for variant in study.variants
             for seed in shelf.seeds()]  # fmt: skip
    return [cell for cell in cells if cell.pretrain.run is not None]


def record(run: Run, folder: Path) -> None:
    """Keep a run under `folder`; a finished run's record is not replaced by that of an unfinished one."""
    target = folder / run.name
    if (target / "run.json").is_file() and state_of(Run.read(target)).final and not state_of(run).final:
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in ("run.json", "metrics.json"):
        (target / name).unlink(missing_ok=True)
        if (run.folder / name).is_file():
            shutil.copyfile(run.folder / name, target / name)
    rows = run.rows()
    every = max(1, math.ceil(len(rows) / ROWS))
    thin = [row for i, row in enumerate(rows) if not (len(rows) - 1 - i) % every or "bbox_AP" in row or "knn" in row]
    (target / "log.jsonl").write_text("".join(json.dumps({k: row[k] for k in KEPT if k in row}) + "\n" for row in thin))


def collect(study: Study, profile: str, results: Path) -> Path:
    """Record what there is of a study; returns the records' folder."""
    folder = Path(results) / "studies" / f"{study.name}-{profile}"
    for cell in cells_of(study, profile, Shelf(Path(results))):
        for planned in (cell.pretrain, *cell.transfers.values()):
            if planned.run is not None:
                record(planned.run, folder)
    return folder


@dataclass(frozen=True)
class Row:
    """One variant on one benchmark."""

    variant: Variant
    benchmark: str
    cells: dict[int, Cell]  # by seed

    def outcome(self, seed: int) -> Planned:
        """The transfer, or the pretraining where that is as far as it went."""
        cell = self.cells[seed]
        transfer = cell.transfers[self.benchmark]
        return transfer if cell.pretrain.state.word == "done" else cell.pretrain

    def scores(self, metric: str) -> dict[int, float]:
        """Seed -> percent, of the finished transfers."""
        task, key = METRICS[metric]
        ended = {seed: self.outcome(seed) for seed in self.cells}
        scored = {seed: end.run for seed, end in ended.items() if end.kind == "transfer" and end.state.word == "done"}
        return {seed: run.metrics[task][key] for seed, run in scored.items()}

    @property
    def runs(self) -> list[Planned]:
        """All that were begun, seed by seed."""
        both = [planned for cell in self.cells.values() for planned in (cell.pretrain, cell.transfers[self.benchmark])]
        return [planned for planned in both if planned.run is not None]

    @property
    def state(self) -> str:
        """What is not simply done, a word a seed; "" where nothing was begun."""
        said = {}
        for seed in self.cells:
            run = self.outcome(seed)
            ready = run.kind == "transfer" and run.state.word == "missing"
            text = "pretrained" if ready else f"{run.kind} {run.state.text}" if run.state.word == "begun" else run.state.text
            said.setdefault(text, []).append(f"s{seed}")
        return "; ".join(f"{text} ({' '.join(seeds)})" for text, seeds in said.items())


def rows_of(study: Study, profile: str, folder: Path) -> list[Row]:
    """A row a variant and benchmark, from the records in `folder`."""
    cells = cells_of(study, profile, Shelf(folder))
    more = [name for name in benchmarks.BENCHMARKS if any(cell.transfers[name].run for cell in cells)]
    return [Row(variant, benchmark, {cell.seed: cell for cell in cells if cell.variant is variant})
            for benchmark in dict.fromkeys([*study.benchmarks, *more]) for variant in study.variants]  # fmt: skip
