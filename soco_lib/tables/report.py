"""A few transfer runs beside the paper's rows: what notebooks 4 and 5 show. Every row says at which scale it was
earned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from soco_lib.runs.folder import Run
from soco_lib.studies.paper import paper_table
from soco_lib.tables.paper_tables import METRICS, scale_of, start_of
from soco_lib.transfer.benchmarks import Benchmark

#: Rows of the paper that one run is put beside.
PAPER_ROWS = ("Scratch", "Supervised", "SoCo", "SoCo*")


@dataclass(frozen=True)
class Report:
    """What a report shows."""

    runs: tuple[str, ...]  # transfer run folders
    table: str  # of the paper
    benchmark: str  # column group of that table
    paper_rows: tuple[str, ...]  # rows of the paper to stand beside ours


def _ours(run: Run) -> dict:
    config, metrics = run.record["config"], run.metrics or {}
    row = {"scale": scale_of(config), "pretraining": start_of(config).label, "run": run.name, "seed": config["seed"]}
    for column, (task, key) in METRICS.items():
        row[column] = metrics.get(task, {}).get(key)
    return row


def beside_paper(runs: list[Run], table: str, benchmark: str, rows) -> pd.DataFrame:
    """Our runs, then the named rows of the paper's table; a cell without a finished run is empty (NaN).

    Columns: scale, pretraining, run, seed and the METRICS in percent.
    """
    published = paper_table(table)[benchmark]
    source = {"scale": "paper", "run": f"paper, Table {table}"}
    theirs = [
        {**source, "pretraining": f"{name}, {epoch} epochs" if pd.notna(epoch) else name, **cells}
        for (name, epoch), cells in zip(published.index, published.to_dict("records"))
        if name in rows
    ]
    frame = pd.DataFrame([*map(_ours, runs), *theirs])
    return frame.reindex(columns=["scale", "pretraining", "run", "seed", *METRICS])


def against_paper(run: Run, benchmark: Benchmark) -> pd.DataFrame:
    """One run above the paper's rows of its benchmark, printed: theirs with ours minus theirs in brackets."""
    frame = beside_paper([run], benchmark.table, benchmark.paper, PAPER_ROWS).set_index(["scale", "pretraining"])
    ours, metrics = frame.iloc[0], list(benchmark.metrics)
    printed = frame[metrics].astype(object)
    for i, (_, row) in enumerate(frame.iterrows()):
        difference = {m: f" ({ours[m] - row[m]:+.1f})" if i and pd.notna(ours[m]) else "" for m in metrics}
        printed.iloc[i] = ["" if pd.isna(row[m]) else f"{row[m]:.1f}{difference[m]}" for m in metrics]
    return printed


def text(frame: pd.DataFrame) -> pd.DataFrame:
    """A report's table as it is printed: one decimal, empty where there is no number."""
    shown = frame.copy()
    for column in METRICS:
        shown[column] = [("" if pd.isna(v) else f"{v:.1f}") for v in frame[column]]
    shown["seed"] = [("" if pd.isna(v) else f"{v:.0f}") for v in frame["seed"]]
    return shown


def reading(runs: list[Run]) -> str:
    """What the rows say, and no more: one difference of one seed is not evidence."""
    done = [(run, run.metrics["bbox"]["AP"]) for run in runs if run.metrics]
    if len(done) < len(runs):
        missing = ", ".join(run.name for run in runs if not run.metrics)
        return f"Unfinished: {missing}. Nothing can be said yet."
    (first, a), (last, b) = done[0], done[-1]
    names = [start_of(run.record["config"]).label for run in (first, last)]
    return (
        f"AP^bb {b:.2f} from {names[1]} against {a:.2f} from {names[0]}: a difference of {b - a:+.2f}, "
        f"from one seed each at {first.record['config']['profile']} scale. Fine-tuning seeds alone move such numbers by as much or "
        "more; only repeated seeds can tell whether pretraining helped here."
    )


def records(frame: pd.DataFrame) -> list[dict]:
    """Rows as JSON-ready dictionaries, None for empty."""
    return frame.astype(object).replace({np.nan: None}).to_dict("records")


def costs(runs: list[Run]) -> pd.DataFrame:
    """What each run took: status, minutes, hardware, commit."""
    rows = []
    for run in runs:
        last, metrics = (run.record["sessions"] or [{}])[-1], run.metrics or {}
        hardware, git = last.get("hardware", {}), last.get("git", {})
        rows.append(
            {
                "run": run.name,
                "status": run.record["status"],
                "minutes": round(metrics["seconds"] / 60, 1) if "seconds" in metrics else None,
                "hardware": ", ".join(hardware.get("gpus") or [f"{hardware.get('cores')} x {hardware.get('cpu')}"]),
                "commit": git.get("commit", "")[:10] + ("+changes" if git.get("dirty") else ""),
            }
        )
    return pd.DataFrame(rows).set_index("run")
