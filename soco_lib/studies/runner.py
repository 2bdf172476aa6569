"""Running what is missing of a study, one run after the other or several at a time; a stopped study goes on.

    python -m soco_lib.studies batchsize --profile toy --seeds 0,1 [--plan]

A variant that fails is reported and the others go on. When asked to stop (SIGTERM, Ctrl-C) the runs save, and the same
command goes on. Exit status: 0; 1 for bad input; 3 after a failed variant; 143 when stopped. The runs' records are kept
at the end; their table is made by another command, which is then printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from soco_lib import ROOT, BookError, one_line_errors
from soco_lib.fields import require
from soco_lib.runs import locks
from soco_lib.runs.folder import Run
from soco_lib.runs.launch import Launch, add_options, launch, shares
from soco_lib.runs.records import State
from soco_lib.runs.stop import STOPPED, Stopped, StopRequests, requests
from soco_lib.studies import estimate, plans, prepare
from soco_lib.studies import study as studies
from soco_lib.studies.plans import Planned, RunIndex, VariantRuns
from soco_lib.transfer import benchmarks

#: Exit status where a variant failed; what there is can be tabulated all the same.
FAILED = 3
#: Seconds between two looks at a run that another process writes.
POLL = 2.0
#: Seconds between two lines of a run that tell its loss; its other lines, such as scores, are few and all shown.
EVERY = 30.0


@dataclass
class Crew:
    """What the threads of a runner share."""

    how: Launch
    results: Path
    shares: queue.Queue = field(default_factory=queue.Queue)  # environment variables for each run at a time
    stop: StopRequests = field(default_factory=StopRequests)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, line: str) -> None:
        """Print one whole line at a time."""
        with self.lock:
            print(line, flush=True)


def thinned(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say` for a run's lines, without most of those that tell its loss (see EVERY)."""
    last = -EVERY

    def line(text: str) -> None:
        nonlocal last
        of_loss = text.startswith("step ") and "  loss " in text
        if not of_loss or time.monotonic() - last >= EVERY:
            last = time.monotonic() if of_loss else last
            say(text)

    return line


def ensure(planned: Planned, crew: Crew, share: dict, say, source: Run | None = None) -> State:
    """Find the run or start it, and bring it to its end; source: the pretraining that a transfer starts from.

    Raises BookError for a folder that holds something else and when the run fails, Stopped when it was stopped.
    """
    run = RunIndex.of_folders(crew.results).find(planned.kind, planned.cfg, planned.name, source)
    run = run or Run.start(planned.name, planned.kind, planned.cfg, crew.results)
    if source is not None and plans.of_another(run, source):
        other = f"{run.name} started from other weights than {source.name}'s"
        raise BookError(f"{other}: delete {run.folder} and run again")
    busy = lambda: not crew.how.slurm and locks.is_taken(run.folder / ".lock")
    if busy():
        say(f"{run.name} is being written by another process: waiting for it")
        while busy() and not crew.stop:
            time.sleep(POLL)

    def look() -> State:
        planned.use(Run.read(run.folder))
        return planned.state

    if look().final:
        return planned.state
    if planned.run.done:  # by its record, but its metrics are torn: training computes them again from its checkpoint
        (run.folder / "metrics.json").unlink()
    if crew.stop:
        raise Stopped(f"{run.name} was stopped before it began")
    say(f"{run.name}: {'goes on' if run.record['sessions'] else 'begins'}")
    try:
        launch(planned.run, crew.how, thinned(say), env=share, stop=crew.stop)
    except BookError:
        if not look().final:  # to diverge is a result
            raise
    say(f"{run.name}: {look().text}")
    return planned.state


def run_cell(cell: VariantRuns, crew: Crew) -> str:
    """Run a variant at a seed; returns what went wrong, "" for nothing. From a diverged pretraining nothing follows."""
    if crew.stop:
        return "stopped before it began"
    share = crew.shares.get()
    say = lambda line: crew.say(f"[{cell.variant.name} s{cell.seed}] {line}")
    try:
        source = cell.pretrain
        if source is None or ensure(source, crew, share, say).word == "done":
            for run in cell.transfers.values():
                if source:
                    run.cfg = dataclasses.replace(run.cfg, init=plans.inside(source.run.folder))
                ensure(run, crew, share, say, source and source.run)
    except Stopped as error:
        return str(error)
    except (BookError, OSError) as error:
        say(f"FAILED: {error}")
        return f"failed: {error}"
    finally:
        crew.shares.put(share)
    return ""


def run_cells(study: studies.Study, todo: list[VariantRuns], crew: Crew, jobs: int) -> dict[str, str]:
    """Make the data that is missing, then run all cells, `jobs` at a time; returns what went wrong, by name.

    Raises BookError, with where to get it, for data that cannot be made.
    """
    for cell in todo:
        for run in cell.transfers.values():
            benchmarks.require_data(run.cfg)
    pretrains = [cell.pretrain.cfg for cell in todo if cell.pretrain and not cell.pretrain.state.final]
    prepare.prepare(study, pretrains, crew.say)
    with requests(into=crew.stop), ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(lambda cell: run_cell(cell, crew), todo))
    return {cell.name: said for cell, said in zip(todo, outcomes) if said}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help=f"{', '.join(studies.names())}, or a study's YAML file")
    parser.add_argument("--profile", default="toy", help="toy or paper")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--variants", default="", help="only these, such as batch-512,batch-2048")
    parser.add_argument("--benchmarks", default="", help="in place of the study's own; none: pretrain only")
    parser.add_argument("--results", default="results", help="folder of the run folders")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--plan", action="store_true", help="print the plan and stop")
    parser.add_argument("--recorded", action="store_true", help="runs of which there are only records count as done")
    parser.add_argument("--measure", action="store_true", help="time a step where no earlier run tells the speed")
    add_options(parser)
    return parser.parse_args(arguments)


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    given = parse(arguments)
    words = lambda text: tuple(word.strip() for word in text.split(",") if word.strip())
    seeds, results, how = words(given.seeds), ROOT / given.results, Launch.of_arguments(given)
    require(all(word.isdigit() for word in seeds), f"SEEDS={given.seeds} must be whole numbers, as SEEDS=0,1,2")
    require(how.nodes == 1 or how.slurm, f"NODES={how.nodes}: a study uses several nodes through LAUNCHER=slurm only")
    study, chosen = studies.read(given.study), (words(given.benchmarks), words(given.variants))
    cells = plans.make(study, given.profile, [*map(int, seeds)], results, how.world, *chosen, given.recorded)
    print(estimate.describe(study, cells, results, how, given.jobs, given.measure), flush=True)
    if given.plan:
        return 0
    with locks.exclusive(results / f".{study.name}-{given.profile}.lock", f"study {study.name} ({given.profile})"):
        crew = Crew(how, results)
        for share in shares(given.jobs, how):
            crew.shares.put(share)
        wrong = run_cells(study, [cell for cell in cells if cell.todo], crew, given.jobs)
        plans.record(study, given.profile, results)
    for name, said in wrong.items():
        print(f"{name}: {said}", file=sys.stderr)
    where = f"--profile {given.profile} --results {given.results}"
    print(f"its table: python -m soco_lib.tables --studies {given.study} {where}", flush=True)
    if crew.stop:
        print("stopped; the same command goes on", file=sys.stderr)
        return STOPPED
    return FAILED if wrong else 0
