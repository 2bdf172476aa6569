"""What benchmarks share: ways timed in turns within one run, memory of a process of its own, and the record that is
kept.

    results/bench/NAME.json    machine, versions, commit, data, every repetition, goals
                  goals.md     all goals, then every benchmark's tables (bench.py)

A noisy machine is why: of two ways that take turns both meet the same noise, and a median of repetitions stands beside
its range.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from soco_lib import ROOT
from soco_lib.fields import require
from soco_lib.runs.folder import provenance, write_json
from soco_lib.runs.machine import peak_memory

REPETITIONS = 5


@dataclass(frozen=True)
class Speed:
    """What the notebook about speed reads: the names of benchmarks' records."""

    records: tuple[str, ...]
    profile: str = "benchmark"


def in_turns(ways: Mapping[str, Callable[[], object]], repetitions: int = REPETITIONS) -> dict[str, list[float]]:
    """Seconds of each call of each way, after one that is not counted; every other round runs backwards."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repetitions):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def stage_table(columns: Mapping[str, Mapping[str, float]]) -> list[dict]:
    """A row a stage from way -> stage -> number, in the stages' order of the way "ours"."""
    return [{"stage": stage} | {way: columns[way][stage] for way in columns} for stage in columns["ours"]]


def _report(connection, function: Callable, arguments: tuple) -> None:
    try:
        result = function(*arguments)
    except Exception as error:  # raised on the other side
        result = error
    connection.send((result, peak_memory()))


def apart(function: Callable, *arguments) -> tuple[object, int]:
    """(what `function(*arguments)` returns, peak resident bytes) of a fresh process; the function is a module's, its
    result small.

    What the function raises is raised here; a process that dies without a word raises RuntimeError.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        result, peak = ours.recv()
    except EOFError:
        raise RuntimeError(
            f"the process of {function.__name__} died (exit status {process.exitcode}): out of memory?"
        ) from None
    finally:
        process.join()
    if isinstance(result, Exception):
        raise result
    return result, peak


@dataclass(frozen=True)
class Row:
    """One way of doing something, and what was measured. `over`, `at`: a point of a growth curve, such as ("K", 8)."""

    what: str
    way: str
    unit: str
    values: tuple[float, ...]
    ratio: float | None = None  # median against the plain way's; above 1 is better, whatever the unit
    over: str = ""
    at: float | None = None

    @property
    def median(self) -> float:
        """The value that is reported."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Goal:
    """A limit, at least or at most, and what was measured."""

    what: str
    value: float
    limit: float
    unit: str
    at_least: bool

    @property
    def reached(self) -> bool:
        """Whether the measured value is on the right side of the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Bench:
    """One benchmark's record; `data` says what it ran on."""

    name: str
    title: str
    data: str = ""
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: title -> rows of what is no repetition, such as a sweep's scores
    tables: dict[str, list[dict]] = field(default_factory=dict)

    def add(
        self,
        what: str,
        unit: str,
        values: Mapping[str, Sequence[float]],
        plain: str = "plain",
        more_is_better: bool = True,
        over: str = "",
        at: float | None = None,
    ) -> None:
        """One row a way of `values` (way -> one number a repetition, in `unit`), compared with the way named `plain` if
        there.
        """
        require(all(len(v) > 0 for v in values.values()), f"{what}: a way without a measured value")
        base = statistics.median(values[plain]) if plain in values else None
        for way, numbers in values.items():
            ratio = None
            if base and way != plain:
                ratio = statistics.median(numbers) / base
                ratio = ratio if more_is_better else 1 / ratio
            self.rows.append(Row(what, way, unit, tuple(map(float, numbers)), ratio, over, at))

    def goal(self, what: str, value: float, limit: float, unit: str, at_least: bool = True) -> None:
        """Hold a measured value against a limit."""
        self.goals.append(Goal(what, float(value), limit, unit, at_least))

    @classmethod
    def of(cls, record: Mapping) -> Bench:
        """From what `write` wrote."""
        rows, goals = ([kind(**item) for item in record[name]] for kind, name in ((Row, "rows"), (Goal, "goals")))
        return cls(record["name"], record["title"], record["data"], rows, goals, record["notes"], record["tables"])

    def markdown(self, hardware: Mapping | None = None) -> str:
        """Everything as tables; hardware: what it was measured on, None for this machine."""
        number = lambda v: "" if v is None else f"{v:.4g}"
        rows = [
            {
                "what": row.what + (f", {row.over} {row.at:g}" if row.over and row.at is not None else ""),
                "way": row.way,
                "median": number(row.median),
                "range": f"{number(min(row.values))} to {number(max(row.values))}" if len(row.values) > 1 else "",
                "unit": row.unit,
                "times plain": number(row.ratio),
            }
            for row in self.rows
        ]
        data = f"Data: {self.data}." if self.data else ""
        parts = [f"# {self.title}", data, pd.DataFrame(rows).to_markdown(index=False)]
        if self.goals:
            goals = [
                {
                    "goal": goal.what,
                    "limit": f"{'>=' if goal.at_least else '<='} {goal.limit:g} {goal.unit}",
                    "here": number(goal.value),
                    "reached": "yes" if goal.reached else "no",
                }
                for goal in self.goals
            ]
            parts.append(pd.DataFrame(goals).to_markdown(index=False))
        for title, table in self.tables.items():
            parts.append(f"## {title}\n\n{pd.DataFrame(table).to_markdown(index=False)}")
        parts += [f"- {note}" for note in self.notes]
        parts.append(
            f"Machine: {hardware or provenance()['hardware']}. Versions and every repetition: {self.name}.json."
        )
        return "\n\n".join(part for part in parts if part) + "\n"

    def write(self, folder: Path = ROOT / "results/bench") -> str:
        """Write NAME.json below `folder`; returns the markdown."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {**dataclasses.asdict(self), **provenance(), "measured": time.strftime("%F")}
        write_json(folder / f"{self.name}.json", record)
        return self.markdown()
