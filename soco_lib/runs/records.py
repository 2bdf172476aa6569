"""What a run's record says, whatever its kind: state, cost, provenance; and the records that git tracks, a line a run.

    results/runs.jsonl      runs of studies and of the paper's tables
    results/trials.jsonl    settings that were tried before one was frozen

A line holds the fields of run.json, the studies whose tables show the run, its metrics, its probe and a thinned log;
`pandas.read_json(path, lines=True)` reads such a file. Tables are made from these lines alone: with the run folders,
and on a fresh clone without them, the bytes are the same.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from soco_lib import BookError, locate
from soco_lib.runs import locks
from soco_lib.runs.files import unwritable
from soco_lib.runs.folder import Run, is_record, read_json, write_text

#: How runs say that their loss left the finite numbers where the session names no `diverged_at`: a result, no failure.
_DIVERGED = re.compile(r"the loss is (?:nan|-?inf|not finite) at step (\d+)")
#: Columns of a log that a record keeps, in at most so many rows (and those with a score).
KEPT, ROWS = ("step", "loss", "spread", "effective_rank", "images_per_s", "bbox_AP", "segm_AP", "knn", "linear"), 60
#: Files of records, in the results folder.
RUNS, TRIALS = "runs.jsonl", "trials.jsonl"


@dataclass(frozen=True)
class State:
    """word: done, diverged, failed, begun or missing; text: the same for people."""

    word: str
    text: str = ""

    @property
    def final(self) -> bool:
        """Nothing is left to do: a rerun gives the same."""
        return self.word in ("done", "diverged")


class Record(Run):
    """A line of a file of records, read like a run folder; `folder` is where the run lay or lies."""

    @property
    def metrics(self) -> dict | None:
        return self.record.get("metrics")

    @property
    def done(self) -> bool:
        return self.record["status"] == "done" and self.metrics is not None

    def rows(self) -> list[dict]:
        """Rows of the thinned log."""
        return self.record["log"]


def read_all(folder: Path) -> tuple[list[Run], dict[str, str]]:
    """The runs in the folders of `folder`, and name -> what is wrong with the run.json of the others."""
    runs, wrong = [], {}
    for path in sorted(folder.glob("*/run.json")):
        try:
            runs.append(Run.read(path.parent))
        except BookError as error:
            wrong[path.parent.name] = str(error).replace(f"{folder}/", "")
    return runs, wrong


@functools.lru_cache(maxsize=2)
def _lines(path: Path, version: os.stat_result) -> tuple[dict, ...]:
    found = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if is_record(record) and isinstance(record.get("log"), list):
                found.append(record)
                continue
        raise BookError(f"{path}, line {number}, is no run's record: `git checkout {path}` brings the tracked one back")
    return tuple(found)


def tracked(results: Path, file: str = RUNS) -> list[Record]:
    """The records of a file by name, [] without it. Raises BookError naming the line that is no record."""
    path = Path(results) / file
    lines = _lines(path, path.stat()) if path.is_file() else ()
    return [Record(Path(results) / record["name"], record) for record in lines]


def named(variable: str, given: str, results: Path) -> Run:
    """The run that a command's `variable` names: its folder, its name under `results`, or that of a tracked record.

    Raises BookError with the nearest names.
    """
    for folder in (results / given, locate(given)):
        if given and (folder / "run.json").exists():
            return Run.read(folder)
    known = {run.name: run for run in tracked(results)}
    for trial in tracked(results, TRIALS):  # a trial and a run may share a name
        known[f"trials/{trial.name}"] = trial
        known.setdefault(trial.name, trial)
    if given in known:
        return known[given]
    names = sorted({path.parent.name for path in results.glob("*/run.json")} | known.keys())
    near = difflib.get_close_matches(given.rstrip("/").rpartition("/")[2], names) or names[:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "there is none yet"
    raise BookError(f"{variable}={given}: no run folder or record of that name in {results}; {hint}")


def found(results: Path) -> tuple[dict[str, Run], list[str]]:
    """Every run under `results` by name, its record in place of one that is gone or further back; and a line on each
    torn run.json. Trials are left out: they were for finding a setting, not for a table.
    """
    runs, wrong = read_all(Path(results))
    known: dict[str, Run] = {}
    for run in (*runs, *tracked(results)):
        if run.name not in known or (state_of(run).final and not state_of(known[run.name]).final):
            known[run.name] = run
    return known, [said for name, said in wrong.items() if name not in known]


def keep(runs: Iterable[Run], results: Path, file: str = RUNS, study: str = "") -> None:
    """Put runs into a file of records, as shown by `study`, if any; a finished run's record stays where its folder now
    holds less. The file is written whole, and only by one process at a time.
    """
    runs, path = [run for run in runs if not isinstance(run, Record)], Path(results) / file
    if not runs:
        return
    with writing(path.parent), locks.lockable(path.with_name(f".{file}.lock")) as lock:
        locks.take(lock, wait=True)
        known = {record.name: record for record in tracked(results, file)}
        for run in runs:
            old = known.get(run.name)
            if old is None or state_of(run).final or not state_of(old).final:
                studies = old.record["studies"] if old else []
                known[run.name] = Record(run.folder, {**_line(run), "studies": studies})
            record = known[run.name].record
            known[run.name].record = {**record, "studies": sorted({*record["studies"], study} - {""})}
        text = "".join(json.dumps(known[name].record) + "\n" for name in sorted(known))
        if not path.is_file() or path.read_text() != text:
            write_text(path, text)


def _line(run: Run) -> dict:
    rows, line = run.rows(), {**run.record, "studies": []}
    if (run.folder / "metrics.json").exists():
        line["metrics"] = numbers(run)
    if (run.folder / "probe.json").exists():
        line["probe"] = read_json(run.folder / "probe.json")
    every = max(1, math.ceil(len(rows) / ROWS))
    thin = [row for i, row in enumerate(rows) if not (len(rows) - 1 - i) % every or "bbox_AP" in row or "knn" in row]
    return {**line, "log": [{key: row[key] for key in KEPT if key in row} for row in thin]}


@contextlib.contextmanager
def writing(folder: Path):
    """Within, a folder that cannot be written is the user's mistake: raises BookError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        told = unwritable(error, f"the results folder {folder}")
        raise told or BookError(f"cannot write the results folder {folder}: {error.strerror}") from None


# --- state, cost and provenance ---------------------------------------------------------------------------------------


def numbers(run: Run) -> dict:
    """The metrics; {} where there are none, or a torn file (see state_of)."""
    try:
        found = run.metrics
    except (BookError, OSError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def state_of(run: Run | None) -> State:
    """From a run folder or a record alone."""
    if run is None:
        return State("missing")
    if run.done:  # run.json says so, and a run writes metrics.json in one piece: no number in it is another's work
        torn = State("failed", f"failed: {run.name}/metrics.json is torn or empty")
        return State("done", "done") if numbers(run) else torn
    last = run.last_session
    old = _DIVERGED.search(last.get("error", ""))
    if step := last.get("diverged_at") or (old and old[1]):
        return State("diverged", f"diverged at step {step}")
    if run.record["status"] == "failed":
        return State("failed", f"failed: {last.get('error', '')}")
    config, rows = run.record["config"], run.rows()
    total = config.get("steps") or config.get("iterations")
    return State("begun", f"step {rows[-1]['step'] if rows else 0}" + (f" of {total}" if total else ""))


def by_state(texts: dict[int, str]) -> str:
    """States of several seeds as one cell: seed -> text becomes "done (s0 s2); diverged at step 7 (s1)"; "" is left
    out.
    """
    seeds: dict[str, list[str]] = {}
    for seed, text in texts.items():
        if text:
            seeds.setdefault(text, []).append(f"s{seed}")
    return "; ".join(f"{text} ({' '.join(named)})" for text, named in seeds.items())


COST = ["run", "state", "hardware", "processes", "minutes", "images seen", "commit"]


def minutes(session: dict) -> float:
    """Of one session; NaN where it has no end (it was killed) or no sound times: nobody knows how long it took."""
    try:
        start, end = (datetime.fromisoformat(session[name]) for name in ("start", "end"))
        return (end - start).total_seconds() / 60 if end >= start else math.nan  # the clock was set back
    except (KeyError, TypeError, ValueError):
        return math.nan


def hardware(session: dict) -> str:
    """The GPUs, else cores and processor, that a session ran on."""
    where = session.get("hardware")
    if not isinstance(where, dict) or not where:
        return ""
    gpus = where.get("gpus")
    return (
        ", ".join(map(str, gpus)) if gpus and isinstance(gpus, list) else f"{where.get('cores')} x {where.get('cpu')}"
    )


def commit(session: dict) -> str:
    """Of the code that a session ran, shortened; "+changes" where the checkout had others."""
    git = session.get("git")
    git = git if isinstance(git, dict) else {}
    return (git.get("commit") or "")[:10] + "+changes" * bool(git.get("dirty"))


def cost(run: Run) -> dict:
    """One run's cost and provenance, a value for each of COST; minutes are those of all sessions ("≥": of the known
    ones), hardware and commit those of the last.
    """
    last, metrics, state = run.last_session, numbers(run), state_of(run)
    time = [minutes(session) for session in run.record["sessions"]]
    known = [each for each in time if not math.isnan(each)]
    seen = metrics.get("images_seen") or metrics.get("iterations", 0) * metrics.get("batch", 0)
    spent = f"{'≥' * (len(known) < len(time))}{sum(known):.1f}"
    where = hardware(last), last.get("processes")
    return dict(zip(COST, (run.name, state.text or state.word, *where, spent, seen or None, commit(last))))


def together(spent) -> str:
    """The title of a table of costs, a frame of rows of `cost`: how many runs, and their minutes in all."""
    known = spent["minutes"].str.lstrip("≥").astype(float).sum()
    some = "≥" * bool(spent["minutes"].str.startswith("≥").any())
    return f"Cost and provenance of {len(spent)} run{'s' * (len(spent) != 1)}, {some}{known:.1f} minutes together"
