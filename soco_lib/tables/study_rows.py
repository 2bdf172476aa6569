"""A study's rows, a variant and benchmark each, from the records of its runs (runs/records.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from soco_lib.runs import records
from soco_lib.studies.plans import Planned, RunIndex, VariantRuns, begun
from soco_lib.studies.study import Study, Variant
from soco_lib.tables.paper_tables import METRICS


@dataclass(frozen=True)
class Row:
    """One variant on one benchmark."""

    variant: Variant
    benchmark: str
    cells: dict[int, VariantRuns]  # by seed

    def outcome(self, seed: int) -> Planned:
        """The transfer, or the pretraining where that is as far as it went."""
        cell = self.cells[seed]
        transfer = cell.transfers[self.benchmark]
        return transfer if cell.pretrain is None or cell.pretrain.state.word == "done" else cell.pretrain

    @property
    def finished(self) -> dict[int, Planned]:
        """Seed -> finished transfer."""
        ends = {seed: self.outcome(seed) for seed in self.cells}
        return {seed: end for seed, end in ends.items() if end.kind == "transfer" and end.state.word == "done"}

    def scores(self, metric: str) -> dict[int, float]:
        """Seed -> percent, of the finished transfers."""
        task, key = METRICS[metric]
        found = {seed: records.numbers(end.run).get(task, {}).get(key) for seed, end in self.finished.items()}
        return {seed: score for seed, score in found.items() if score is not None}

    def runs_at(self, seed: int) -> list[Planned]:
        """The pretraining and transfer that were begun at a seed."""
        cell = self.cells[seed]
        return [planned for planned in (cell.pretrain, cell.transfers[self.benchmark]) if planned and planned.run]

    @property
    def runs(self) -> list[Planned]:
        """All that were begun, seed by seed."""
        return [planned for seed in self.cells for planned in self.runs_at(seed)]

    def processors(self, seed: int) -> set[str]:
        """The kinds that a seed's pretraining and transfer ran on (see folder.processor)."""
        sessions = [session for planned in self.runs_at(seed) for session in planned.run.record["sessions"]]
        return {session.get("hardware", {}).get("cpu", "") for session in sessions} - {""}

    @property
    def state(self) -> str:
        """Of every seed, as one cell; "" where nothing was begun."""
        said = {}
        for seed in self.cells:
            run = self.outcome(seed)
            said[seed] = f"{run.kind} {run.state.text}" if run.state.word == "begun" else run.state.text
            if run.kind == "transfer" and run.state.word == "missing" and self.cells[seed].pretrain:
                said[seed] = "pretrained"
        return records.by_state(said)


def rows_of(study: Study, profile: str, results: Path) -> list[Row]:
    """A row a variant and benchmark, from the records alone."""
    found = begun(study, profile, RunIndex.of_records(results, f"{study.name}-{profile}"))
    scored = found[0].transfers if found else study.benchmarks
    return [Row(variant, benchmark, {cell.seed: cell for cell in found if cell.variant is variant})
            for benchmark in scored for variant in study.variants]  # fmt: skip
