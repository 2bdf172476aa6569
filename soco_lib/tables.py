"""Tables from run folders alone, beside the paper's rows; every row says at which scale it was earned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from soco_lib.paper import paper_table
from soco_lib.results import Run

#: Column -> (task, key) in a transfer run's metrics; the paper's names of the same numbers.
METRICS = {
    "AP_bb": ("bbox", "AP"),
    "AP50_bb": ("bbox", "AP50"),
    "AP75_bb": ("bbox", "AP75"),
    "AP_mk": ("segm", "AP"),
    "AP50_mk": ("segm", "AP50"),
    "AP75_mk": ("segm", "AP75"),
}


@dataclass(frozen=True)
class Report:
    """What a report shows."""

    runs: tuple[str, ...]  # transfer run folders
    table: str  # of the paper
    benchmark: str  # column group of that table
    paper_rows: tuple[str, ...]  # rows of the paper to stand beside ours


def _initialisation(run: Run) -> str:
    init = run.record["config"]["init"]
    return "Scratch" if init == "scratch" else f"SoCo ({Path(init).name})"


def _ours(run: Run) -> dict:
    config, metrics = run.record["config"], run.metrics or {}
    row = {"scale": config["profile"], "pretraining": _initialisation(run), "run": run.name, "seed": config["seed"]}
    for column, (task, key) in METRICS.items():
        row[column] = metrics.get(task, {}).get(key)
    return row


def beside_paper(runs: list[Run], table: str, benchmark: str, rows) -> pd.DataFrame:
    """Our runs, then the named rows of the paper's table; a cell without a finished run is empty (NaN).

    Columns: scale, pretraining, run, seed and the METRICS in percent.
    """
    published = paper_table(table)[benchmark]
    theirs = [
        {"scale": "paper", "pretraining": f"{name}, {epoch} epochs" if pd.notna(epoch) else name, "run": f"paper, Table {table}", **cells}
        for (name, epoch), cells in zip(published.index, published.to_dict("records"))
        if name in rows
    ]
    frame = pd.DataFrame([*map(_ours, runs), *theirs])
    return frame.reindex(columns=["scale", "pretraining", "run", "seed", *METRICS])


def caption(runs: list[Run], table: str) -> str:
    """Says that scales differ, and at how much of the paper's."""
    ours = {run.record["config"]["profile"] for run in runs}
    if ours == {"paper"}:
        return f"Ours beside Table {table} of the paper."
    return (
        f"Rows of scale '{', '.join(sorted(ours))}' are small runs on small data: they show that the book works and are not "
        f"comparable with the rows of Table {table} of the paper."
    )


def text(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as it is printed: one decimal, empty where there is no number."""
    shown = frame.copy()
    for column in METRICS:
        shown[column] = [("" if pd.isna(v) else f"{v:.1f}") for v in frame[column]]
    shown["seed"] = [("" if pd.isna(v) else f"{v:.0f}") for v in frame["seed"]]
    return shown


def write(frame: pd.DataFrame, stem: Path, caption: str) -> None:
    """Write <stem>.csv (all digits), <stem>.md and <stem>.tex (printed form)."""
    frame.to_csv(stem.with_suffix(".csv"), index=False)
    printed = text(frame)
    align = ["left"] * 3 + ["right"] * (len(printed.columns) - 3)
    table = printed.to_markdown(index=False, colalign=align, disable_numparse=True)
    stem.with_suffix(".md").write_text(f"{table}\n\n{caption}\n")
    stem.with_suffix(".tex").write_text(printed.to_latex(index=False, caption=caption, escape=True))


def reading(runs: list[Run]) -> str:
    """What the rows say, and no more: one difference of one seed is not evidence."""
    done = [(run, run.metrics["bbox"]["AP"]) for run in runs if run.metrics]
    if len(done) < len(runs):
        missing = ", ".join(run.name for run in runs if not run.metrics)
        return f"Unfinished: {missing}. Nothing can be said yet."
    (first, a), (last, b) = done[0], done[-1]
    return (
        f"AP^bb {b:.2f} from {_initialisation(last)} against {a:.2f} from {_initialisation(first)}: a difference of {b - a:+.2f}, "
        f"from one seed each at {first.record['config']['profile']} scale. Fine-tuning seeds alone move such numbers by as much or more; "
        "only repeated seeds can tell whether pretraining helped here."
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
