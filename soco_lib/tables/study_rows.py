"""A study's runs from their small records, which git tracks (records.py), in results/studies/<study>-<profile>."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from soco_lib.runs import records
from soco_lib.studies.plans import Cell, Planned, Shelf, make_cell
from soco_lib.studies.study import Study, Variant
from soco_lib.tables.paper_tables import METRICS
from soco_lib.transfer import benchmarks


def cells_of(study: Study, profile: str, shelf: Shelf) -> list[Cell]:
    """Every variant at every seed that has a run on the shelf, with its transfers to the study's benchmarks and to any
    other that the study was run with: what another study scored of the same pretraining is not told here.
    """
    cells = [make_cell(study, variant, profile, seed, shelf, tuple(benchmarks.BENCHMARKS)) for variant in study.variants
             for seed in shelf.seeds()]  # fmt: skip
    runs = {planned.name for cell in cells for planned in cell.transfers.values() if planned.run}
    own = [name for name in benchmarks.BENCHMARKS if any(f"{cell.name}-{name}" in runs for cell in cells)]
    for cell in cells:
        cell.transfers = {name: cell.transfers[name] for name in dict.fromkeys([*study.benchmarks, *own])}
    return [cell for cell in cells if any(planned.run for planned in cell.runs)]


def folder_of(study: Study, profile: str, results: Path) -> Path:
    """Where its records lie."""
    return Path(results) / "studies" / f"{study.name}-{profile}"


def collect(study: Study, profile: str, results: Path) -> Path:
    """Record what there is of a study; returns the records' folder."""
    folder = folder_of(study, profile, results)
    for cell in cells_of(study, profile, Shelf(Path(results))):
        for planned in cell.runs:
            if planned.run is not None:
                with records.writing(folder):
                    records.keep(planned.run, folder)
    return folder


def unreadable(study: Study, profile: str, results: Path) -> list[str]:
    """A line for each run.json of this study, of a run or a record, that cannot be read; paths are relative to
    `results`.

    A run that is told by a record all the same is not among them.
    """
    folder = folder_of(study, profile, results)
    shelf, own = Shelf(folder), re.compile(rf"{re.escape(study.name)}-.*-{profile}-s\d+(-|$)")
    known = {run.name for kind in ("pretrain", "transfer") for run in shelf.runs(kind)}
    others = [(path, said) for path, said in Shelf(Path(results)).unreadable
              if own.match(path.parent.name) and path.parent.name not in known]  # fmt: skip
    return [said.replace(f"{results}/", "") for _, said in shelf.unreadable + others]


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
        return transfer if cell.pretrain is None or cell.pretrain.state.word == "done" else cell.pretrain

    def scores(self, metric: str) -> dict[int, float]:
        """Seed -> percent, of the finished transfers."""
        task, key = METRICS[metric]
        ended = {seed: self.outcome(seed) for seed in self.cells}
        scored = {seed: end.run for seed, end in ended.items() if end.kind == "transfer" and end.state.word == "done"}
        found = {seed: records.numbers(run).get(task, {}).get(key) for seed, run in scored.items()}
        return {seed: score for seed, score in found.items() if score is not None}

    @property
    def runs(self) -> list[Planned]:
        """All that were begun, seed by seed."""
        both = [planned for cell in self.cells.values() for planned in (cell.pretrain, cell.transfers[self.benchmark])]
        return [planned for planned in both if planned and planned.run]

    def scored(self, metric: str) -> dict[int, str]:
        """Seed -> name of the run that gave its score."""
        return {seed: self.outcome(seed).run.name for seed in self.scores(metric)}

    def processors(self, seed: int) -> set[str]:
        """The kinds that a seed's pretraining and transfer ran on, as their records name them (results.processor)."""
        cell = self.cells[seed]
        runs = [planned.run for planned in (cell.pretrain, cell.transfers[self.benchmark]) if planned and planned.run]
        named = {session.get("hardware", {}).get("cpu", "") for run in runs for session in run.record["sessions"]}
        return named - {""}

    @property
    def state(self) -> str:
        """Of every seed, as one cell; "" where nothing was begun."""
        said = {}
        for seed in self.cells:
            run = self.outcome(seed)
            ready = run.kind == "transfer" and run.state.word == "missing" and not self.variant.scratch
            said[seed] = (
                "pretrained"
                if ready
                else f"{run.kind} {run.state.text}"
                if run.state.word == "begun"
                else run.state.text
            )
        return records.by_state(said)


def rows_of(study: Study, profile: str, folder: Path) -> list[Row]:
    """A row a variant and benchmark, from the records in `folder`."""
    cells = cells_of(study, profile, Shelf(folder))
    scored = cells[0].transfers if cells else study.benchmarks
    return [Row(variant, benchmark, {cell.seed: cell for cell in cells if cell.variant is variant})
            for benchmark in scored for variant in study.variants]  # fmt: skip
