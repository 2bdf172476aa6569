"""How long runs will take, from runs or records of the same sizes on the same hardware, else from a step timed here."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from soco_lib.fields import differences, from_dict, to_dict
from soco_lib.runs.folder import Run, provenance
from soco_lib.runs.launch import Launch
from soco_lib.runs.records import numbers, state_of
from soco_lib.studies.plans import KINDS, Planned, RunIndex, VariantRuns, fields, frame
from soco_lib.studies.study import Study

#: Fields that decide how long an image takes.
SIZES = {
    "pretrain": "detector overrides size views k alignment assignment hidden embedding precision channels_last compile "
    "recompute batch micro_batch".split(),
    "transfer": "detector overrides min_sizes max_size test_size test precise_bn eval_every precision iterations batch "
    "micro_batch".split(),
}


@dataclass(frozen=True)
class Speed:
    """Seconds of a whole run, and where the number comes from; None: nobody knows."""

    seconds: float | None
    said: str


def hardware(session: dict) -> tuple | None:
    """What two sessions must share for their speeds to be the same; None where the record does not say.

    GPUs by kind: a run is shown only its own share of a machine's, and `processes` says how many it used.
    """
    where = session.get("hardware", {})
    if not {"cpu", "cores", "gpus"} <= {*where}:
        return None
    return where["cpu"], where["cores"], frozenset(where["gpus"]), session.get("processes", 1)


def earlier(run: Planned, shelves: tuple[RunIndex, ...], here: tuple) -> list[Run]:
    """Finished runs and records of the same sizes on the same hardware, one of a name."""
    wanted, cls = to_dict(run.cfg), KINDS[run.kind]
    found = {}
    for other in (other for shelf in shelves for other in shelf.runs(run.kind)):
        if state_of(other).word == "done" and {hardware(session) for session in other.record["sessions"]} == {here}:
            changed = differences(wanted, to_dict(from_dict(cls, other.record["config"])))
            if not {*changed} & {*SIZES[run.kind]} and "seconds" in numbers(other):
                found.setdefault(other.name, other)
    return list(found.values())


def from_runs(run: Planned, shelves: tuple[RunIndex, ...], here: tuple, images: int) -> Speed | None:
    """images: that a pretraining sees; a transfer's time is that of the whole run, evaluation included."""
    runs = earlier(run, shelves, here)
    if run.kind == "transfer":
        times = [numbers(other)["seconds"] for other in runs]
    else:
        times = [images / row["images_per_s"] for other in runs for row in other.rows() if row.get("images_per_s")]
    more = f" and {len(runs) - 1} more" * (len(runs) > 1)
    return Speed(median(times), f"as {runs[0].name}{more}") if times else None


def speeds(cells: list[VariantRuns], results: Path, world: int, measure: bool) -> dict[int, Speed]:
    """Time of every run that is to do, by its id(); measure: time a step where no earlier run tells."""
    shelves = RunIndex.of_folders(results), RunIndex.of_records(results)
    here = hardware({"hardware": provenance()["hardware"], "processes": world})
    steps: dict[tuple, float] = {}
    found, unknown = {}, Speed(None, "unknown: no earlier run of these sizes on this hardware (MEASURE=1 times a step)")
    for cell in cells:
        for run in cell.todo:
            cfg = run.cfg
            images = (cell.numbers.steps if run.kind == "pretrain" else cfg.iterations) * cfg.batch
            speed = from_runs(run, shelves, here, images)
            if speed is None and measure:
                from soco_lib.studies import step_time  # late: it imports all that a training does

                key = run.kind, *(str(getattr(cfg, name)) for name in SIZES[run.kind] if name != "test")
                timed = step_time.pretrain_step if run.kind == "pretrain" else step_time.transfer_step
                steps[key] = steps.get(key) or timed(cfg)
                what = "without data loading" if run.kind == "pretrain" else "without data loading and evaluation"
                speed = Speed(steps[key] * images / world, f"a step timed here, {what}")
            found[id(run)] = speed or unknown
    return found


def elapsed(hours: list[float | None], jobs: int, shared: bool) -> str:
    """How long cells of these hours take, `jobs` of them at a time in this order; None: nobody knows.

    shared: jobs share the cores, so that several at a time are counted as no faster than one after the other.
    """
    known = [taken for taken in hours if taken is not None]
    ends = [0.0] * (1 if shared else jobs)
    for taken in known:  # the next one begins where the first one ends
        heapq.heappush(ends, heapq.heappop(ends) + taken)
    total = f"about {max(ends):.1f} hours" if max(ends) >= 1 else f"about {max(ends) * 60:.0f} minutes"
    if not known:
        return "for an unknown time"
    unknown = len(hours) - len(known)
    return total + f", and {unknown} cell{'s' * (unknown > 1)} of unknown time" * (unknown > 0)


def describe(study: Study, cells: list[VariantRuns], results: Path, how: Launch, jobs: int, measure: bool) -> str:
    """A plan: the base's configuration, a row a variant and seed, what is to run, and how long that takes here."""
    speed = speeds(cells, results, how.world, measure)
    profile = cells[0].profile
    small = "small runs on small data, not comparable with the paper's numbers"
    scale = "the paper's setting" if profile == "paper" else small
    repeats, reference = f" (Table {study.tables})" if study.tables else "", study.reference(profile)
    lines = [f"study {study.name}{repeats}, PROFILE={profile}: {scale}", study.question]
    lines += [f"base, pretraining: {fields(reference)}"] if reference else []
    first, *others = [(name, run.cfg) for name, run in cells[0].transfers.items()] or [("", None)]
    first, base = first
    lines += [f"base, {first}: {fields(base)}"] if base else []
    lines += [f"base, {name}: as {first}, but for {fields(cfg, base)}" for name, cfg in others]
    hours = []
    for cell in cells:
        seconds = [speed[id(run)].seconds for run in cell.todo]
        hours.append(None if None in seconds else sum(seconds) / 3600)
    lines.append(frame(cells, study, hours).to_string(index=False))
    todo = [run for cell in cells for run in cell.todo]
    if not todo:
        return "\n".join([*lines, "nothing to run: all is there"])
    words = {"pretrain": "pretraining", "transfer": "transfer"}
    of_kind = {word: [run for run in todo if run.kind == kind] for kind, word in words.items()}
    counts = ", ".join(f"{len(runs)} {word}{'s' * (len(runs) > 1)}" for word, runs in of_kind.items() if runs)
    shared = not how.slurm and jobs > 1 and not provenance()["hardware"]["gpus"]
    total = elapsed([taken for cell, taken in zip(cells, hours) if cell.todo], jobs, shared)
    each = f"{how.gpus} process{'es' * (how.gpus > 1)}" + f" on each of {how.nodes} nodes" * (how.nodes > 1)
    lines.append(f"to run: {counts}, {total}, {jobs} at a time, each with {each}")
    lines += ["jobs share the cores of this machine: counted as no faster than one after the other"] * shared
    for word, runs in of_kind.items():
        lines += [f"time of a {word}: {said}" for said in sorted({speed[id(run)].said for run in runs})]
    return "\n".join(lines)
