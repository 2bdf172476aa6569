"""What a run's record says, whatever its kind: state, cost, provenance; and the small copies of records that git
tracks.

    results/studies/<table or study>/<run>/run.json, metrics.json    as the run left them, and probe.json
                                           log.jsonl                 a few rows and columns of its log

Tables are made from these alone: with the runs, and on a fresh clone without them, the bytes are the same.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from soco_lib import BookError
from soco_lib.fields import require
from soco_lib.runs.folder import Run

#: How training says that its loss left the finite numbers (train.py, finetune.py); this is a result, not a failure.
_DIVERGED = re.compile(r"the loss is (?:nan|-?inf|not finite) at step (\d+)")
#: What run.json must hold.
_PARTS = {"name": str, "kind": str, "config": dict, "status": str, "sessions": list}
#: What a tracked record keeps of a log, in at most so many rows (and those with a score).
KEPT, ROWS = ("step", "loss", "spread", "effective_rank", "images_per_s", "bbox_AP", "segm_AP", "knn", "linear"), 60


@dataclass(frozen=True)
class State:
    """word: done, diverged, failed, begun or missing; text: the same for people."""

    word: str
    text: str = ""

    @property
    def final(self) -> bool:
        """Nothing is left to do: a rerun gives the same."""
        return self.word in ("done", "diverged")


def read(folder: Path) -> Run:
    """The run in a folder. Raises BookError, naming the file, when run.json is missing, torn, unreadable or no run's."""
    path = folder / "run.json"
    try:
        run = Run.read(folder)
    except (OSError, UnicodeDecodeError) as error:
        raise BookError(f"{path} cannot be read: {getattr(error, 'strerror', '') or error}") from None
    whole = isinstance(run.record, dict) and all(isinstance(run.record.get(name), cls) for name, cls in _PARTS.items())
    whole = whole and all(isinstance(session, dict) for session in run.record["sessions"])
    require(whole, f"{path} is no run's record: delete it and run again")
    return run


def read_all(paths: Iterable[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The runs of these run.json files by path, and the files that hold none with what is wrong."""
    runs, wrong = [], []
    for path in sorted(paths):
        try:
            runs.append(read(path.parent))
        except BookError as error:
            wrong.append((path, str(error)))
    return runs, wrong


def numbers(run: Run) -> dict:
    """The metrics; {} where there are none, or a torn file (see state_of)."""
    try:
        found = run.metrics
    except (BookError, OSError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def state_of(run: Run | None) -> State:
    """From a run folder alone."""
    if run is None:
        return State("missing")
    if run.done:  # run.json says so, and a run writes metrics.json in one piece: no number in it is another's work
        return (
            State("done", "done")
            if numbers(run)
            else State("failed", f"failed: {run.name}/metrics.json is torn or empty")
        )
    error = (run.record["sessions"] or [{}])[-1].get("error", "")
    if found := _DIVERGED.search(error):
        return State("diverged", f"diverged at step {found[1]}")
    if run.record["status"] == "failed":
        return State("failed", f"failed: {error}")
    config, rows = run.record["config"], run.rows()
    total = config.get("steps") or config.get("iterations")
    return State("begun", f"step {rows[-1]['step'] if rows else 0}" + (f" of {total}" if total else ""))


def found(results: Path) -> tuple[dict[str, Run], list[str]]:
    """Every run under `results` by name, a record in place of one that is gone or further back; and a line on each torn
    file.

    Records of trials (trials.py) are left out: they were for finding a setting, not for a table.
    """
    runs, torn = read_all(Path(results).glob("*/run.json"))
    kept, worn = read_all(path for path in Path(results).glob("studies/*/*/run.json") if path.parts[-3] != "trials")
    known: dict[str, Run] = {}
    for run in (*runs, *kept):
        if run.name not in known or (state_of(run).final and not state_of(known[run.name]).final):
            known[run.name] = run
    return known, [said.replace(f"{results}/", "") for path, said in torn + worn if path.parent.name not in known]


def by_state(texts: dict[int, str]) -> str:
    """States of several seeds as one cell: seed -> text becomes "done (s0 s2); diverged at step 7 (s1)"; "" is not
    told.
    """
    seeds: dict[str, list[str]] = {}
    for seed, text in texts.items():
        if text:
            seeds.setdefault(text, []).append(f"s{seed}")
    return "; ".join(f"{text} ({' '.join(named)})" for text, named in seeds.items())


# --- cost and provenance ----------------------------------------------------------------------------------------------

COST = ["run", "state", "hardware", "processes", "minutes", "images seen", "commit"]


def minutes(run: Run) -> tuple[float, bool]:
    """Of all sessions that have an end, and whether one has none (it was killed: nobody knows how long it took)."""
    known = [s for s in run.record["sessions"] if "end" in s]
    total = sum((datetime.fromisoformat(s["end"]) - datetime.fromisoformat(s["start"])).total_seconds() for s in known)
    return total / 60, len(known) < len(run.record["sessions"])


def cost(run: Run) -> dict:
    """One run's cost and provenance, a value for each of COST; hardware and commit are those of its last session."""
    last, metrics, state = (run.record["sessions"] or [{}])[-1], numbers(run), state_of(run)
    where, git, (time, more) = last.get("hardware", {}), last.get("git", {}), minutes(run)
    seen = metrics.get("images_seen") or metrics.get("iterations", 0) * metrics.get("batch", 0)
    hardware = ", ".join(where.get("gpus") or [f"{where['cores']} x {where['cpu']}"] if where else [])
    commit = git.get("commit", "")[:10] + "+changes" * bool(git.get("dirty"))
    words = (
        run.name,
        state.text or state.word,
        hardware,
        last.get("processes"),
        f"{'≥' * more}{time:.1f}",
        seen or None,
        commit,
    )
    return dict(zip(COST, words))


def together(spent: pd.DataFrame) -> str:
    """The title of a table of costs: how many runs, and their minutes in all."""
    known = spent["minutes"].str.lstrip("≥").astype(float).sum()
    some = "≥" * bool(spent["minutes"].str.startswith("≥").any())
    return f"Cost and provenance of {len(spent)} run{'s' * (len(spent) != 1)}, {some}{known:.1f} minutes together"


# --- tracked copies ---------------------------------------------------------------------------------------------------


def keep(run: Run, folder: Path) -> None:
    """Copy a run's record under `folder`; that of a finished run is not replaced by that of an unfinished one."""
    target = folder / run.name
    if target.resolve() == run.folder.resolve():
        return
    with contextlib.suppress(BookError):
        if state_of(read(target)).final and not state_of(run).final:
            return
    target.mkdir(parents=True, exist_ok=True)
    for name in ("run.json", "metrics.json", "probe.json"):
        (target / name).unlink(missing_ok=True)
        if (run.folder / name).is_file():
            shutil.copyfile(run.folder / name, target / name)
    rows = run.rows()
    every = max(1, math.ceil(len(rows) / ROWS))
    thin = [row for i, row in enumerate(rows) if not (len(rows) - 1 - i) % every or "bbox_AP" in row or "knn" in row]
    (target / "log.jsonl").write_text("".join(json.dumps({k: row[k] for k in KEPT if k in row}) + "\n" for row in thin))


@contextlib.contextmanager
def writing(folder: Path):
    """Within, a folder that cannot be written is the user's mistake: raises BookError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise BookError(f"cannot write the results folder {folder}: {error.strerror}") from None
