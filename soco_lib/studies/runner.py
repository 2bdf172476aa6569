"""Running what is missing of a study: in order or several runs at a time, on from where it was stopped.

    python -m soco_lib.studies batchsize --profile toy --seeds 0,1 [--plan]

A variant that fails is told and the others go on; the exit status is then 1. Told to stop (SIGTERM, Ctrl-C), the runs
save and the same command goes on. The runs' records are kept at the end; tables are another command's (`python -m soco_lib.tables`).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from soco_lib import ROOT, BookError, one_line_errors
from soco_lib.fields import one_of, require
from soco_lib.runs import locks, session
from soco_lib.runs.folder import Run
from soco_lib.runs.launch import LAUNCHERS
from soco_lib.runs.pool import Crew, perform, slots
from soco_lib.runs.records import State, state_of
from soco_lib.studies import estimate, plans
from soco_lib.studies import study as studies
from soco_lib.studies.plans import Planned, RunIndex, VariantRuns
from soco_lib.studies.prepare import prepare as make_data
from soco_lib.transfer import benchmarks  # fmt: skip

#: Seconds between two looks at a run that another process writes.
POLL = 2.0


class Stopped(BookError):
    """The runner was told to stop."""


def _busy(run: Run) -> bool:
    """Whether another process writes the run."""
    with locks.lockable(run.folder / ".lock") as file:
        return not locks.take(file)


def ensure(planned: Planned, crew: Crew, environment: dict, say, source: Run | None = None) -> State:
    """Find the run or start it, and bring it to its end; source: the pretraining that a transfer starts from.

    Raises BookError for a folder that holds something else, and with the run's own last line when it fails.
    """
    run = RunIndex.of_folders(crew.results).find(planned.kind, planned.cfg, planned.name, source)
    run = run or Run.start(planned.name, planned.kind, planned.cfg, crew.results)
    if source is not None and plans.of_another(run, source):
        raise BookError(
            f"{run.name} started from other weights than {source.name}'s: delete {run.folder} and run again"
        )
    if crew.how["launcher"] == "local" and _busy(run):
        say(f"{run.name} is being written by another process: waiting for it")
        while _busy(run) and not crew.stopping.is_set():
            time.sleep(POLL)
    planned.run, planned.name = Run.read(run.folder), run.name
    planned.state = state_of(planned.run)
    if planned.state.final:
        return planned.state
    if planned.run.done:  # by its record, but its metrics are torn: training says them again from its last checkpoint
        (run.folder / "metrics.json").unlink()
    if crew.stopping.is_set():
        raise Stopped("stopped before it began")
    say(f"{run.name}: {'goes on' if run.record['sessions'] else 'begins'}")
    last = perform(planned.run, crew, environment, say)
    planned.run = Run.read(run.folder)
    planned.state = state_of(planned.run)
    if planned.state.final:
        say(f"{run.name}: {planned.state.text}")
    elif crew.stopping.is_set():
        raise Stopped(f"{run.name}: {planned.state.text or planned.state.word}")
    else:
        raise BookError(last.removeprefix("error: "))
    return planned.state


def run_cell(cell: VariantRuns, crew: Crew) -> str:
    """A variant at a seed; returns what went wrong, "" for nothing. Divergence is a result: there is then nothing to
    transfer.
    """
    if crew.stopping.is_set():
        return "stopped"
    environment = crew.slots.get()
    say = lambda line: crew.say(f"[{cell.variant.name} s{cell.seed}] {line}")
    try:
        source = cell.pretrain
        if source is None or ensure(source, crew, environment, say).word == "done":
            for run in cell.transfers.values():
                if source:
                    run.cfg = dataclasses.replace(run.cfg, init=plans.inside(source.run.folder))
                ensure(run, crew, environment, say, source and source.run)
    except Stopped as error:
        return f"stopped: {error}"
    except (BookError, OSError) as error:
        say(f"FAILED: {error}")
        return str(error)
    finally:
        crew.slots.put(environment)
    return ""


@contextlib.contextmanager
def locked(study: str, profile: str, results: Path):
    """Only one runner a study and profile. Raises BookError when another has it or nothing can be written or locked
    there.
    """
    path = results / f".{study}-{profile}.lock"
    try:
        results.mkdir(parents=True, exist_ok=True)
        file = locks.lockable(path)
    except OSError as error:
        raise BookError(f"cannot write the results folder {results}: {error.strerror}") from None
    with file:
        if not locks.take(file):
            file.seek(0)
            who = f"process {file.read().strip() or '?'}"
            raise BookError(f"study {study} ({profile}) is being run by {who}: wait for it or stop it")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def prepare(study: studies.Study, todo: list[VariantRuns], say) -> None:
    """Make the data that can be made. Raises BookError, with where to get it, for data that is not there."""
    for cell in todo:
        for run in cell.transfers.values():
            benchmarks.require_data(run.cfg)
    make_data(study, [cell.pretrain.cfg for cell in todo if cell.pretrain and not cell.pretrain.state.final], say)


def run_cells(todo: list[VariantRuns], crew: Crew, jobs: int) -> dict[str, str]:
    """All of them, `jobs` at a time; returns what went wrong, by name."""
    with crew.listening(), ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(lambda cell: run_cell(cell, crew), todo))
    return {cell.name: said for cell, said in zip(todo, outcomes) if said}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help=f"{', '.join(studies.names())}, or a study's YAML file")
    parser.add_argument("--profile", default="toy", help="toy or paper")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--variants", default="", help="only these, such as batch-512,batch-2048")
    parser.add_argument("--benchmarks", default="", help="in place of the study's own")
    parser.add_argument("--results", default="results", help="folder of the run folders")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--gpus", type=int, default=1, help="processes of a run")
    parser.add_argument("--nodes", type=int, default=1, help="machines of a run, with slurm")
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--launcher", default="local", help="local or slurm (a job a run)")
    parser.add_argument("--partition", default="")
    parser.add_argument("--minutes", type=int, default=240)
    parser.add_argument("--cpus", type=int, default=0)
    parser.add_argument("--plan", action="store_true", help="print the plan and stop")
    parser.add_argument("--recorded", action="store_true", help="runs of which there are only records count as done")
    parser.add_argument("--measure", action="store_true", help="time a step where no earlier run tells the speed")
    return parser.parse_args(arguments)


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 1 after a failure, session.STOPPED."""
    given = parse(arguments)
    words = lambda text: tuple(word.strip() for word in text.split(",") if word.strip())
    results = ROOT / given.results
    require(
        all(word.isdigit() for word in words(given.seeds)), f"SEEDS={given.seeds} must be whole numbers, as SEEDS=0,1,2"
    )
    one_of("LAUNCHER", given.launcher, LAUNCHERS)
    study, seeds = studies.read(given.study), [int(word) for word in words(given.seeds)]
    require(given.nodes == 1 or given.launcher == "slurm", f"NODES={given.nodes}: for several nodes use LAUNCHER=slurm")
    world = given.gpus * given.nodes
    cells = plans.make(
        study, given.profile, seeds, results, world, words(given.benchmarks), words(given.variants), given.recorded
    )
    local = given.launcher == "local"
    print(
        estimate.describe(study, cells, results, given.gpus, given.nodes, given.jobs, given.measure, local), flush=True
    )
    if given.plan:
        return 0
    how = {
        name: getattr(given, name) for name in ("gpus", "nodes", "restarts", "launcher", "partition", "minutes", "cpus")
    }
    with locked(study.name, given.profile, results):
        crew = Crew(how, results, slots(given.jobs, given.gpus, given.launcher))
        todo = [cell for cell in cells if cell.todo]
        prepare(study, todo, crew.say)
        wrong = run_cells(todo, crew, given.jobs)
        plans.record(study, given.profile, results)
    for name, said in wrong.items():
        print(f"{'' if said.startswith('stopped') else 'failed: '}{name}: {said}", file=sys.stderr)
    if crew.stopping.is_set():
        print("stopped; the same command goes on", file=sys.stderr)
        return session.STOPPED
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
