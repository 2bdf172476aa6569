"""A finished or tracked run once more, from nothing, and every number of both compared.

    python -m soco_lib.studies.rerun labels-soco-toy-s0-minicoco-10 --results results

runs it (a transfer's pretraining before it) in results/reruns and prints what differs. On the same kind of machine,
with the same threads and versions, nothing does: CPU runs are bit-equal.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import pandas as pd

from soco_lib import ROOT, one_line_errors
from soco_lib.fields import from_dict, one_of, require
from soco_lib.runs import records
from soco_lib.runs.folder import Run
from soco_lib.runs.launch import launch
from soco_lib.studies.plans import KINDS, inside

#: Metrics that say how fast a machine was or where files lie, not what came out.
OPERATIONAL = {"seconds", "images_per_s", "memory_gb", "init"}


def flat(metrics: dict) -> dict:
    """Nested metrics as one level, {"bbox": {"AP": 1}} as {"bbox.AP": 1}, without OPERATIONAL."""
    values = pd.json_normalize(metrics).iloc[0].to_dict()
    return {name: value for name, value in values.items() if not OPERATIONAL & {*name.split(".")}}


def compare(then: dict, now: dict) -> dict[str, tuple]:
    """Metrics that differ: name -> (then, now); NaN equals NaN, and one that a side lacks is None there."""
    a, b = flat(then), flat(now)
    same = lambda x, y: x == y or (x != x and y != y)
    pairs = {name: (a.get(name), b.get(name)) for name in sorted({*a, *b})}
    return {name: pair for name, pair in pairs.items() if not same(*pair)}


def again(name: str, known: dict[str, Run], results: Path, say=print) -> Run:
    """Run `name` once more in results/reruns, after the pretraining that it starts from; returns the finished run.

    Raises BookError for an unfinished run, one of another kind, or a transfer from a file that is no run's.
    """
    run = known[name]
    one_of(f"the kind of {name}", run.record["kind"], KINDS)
    require(records.state_of(run).word == "done", f"{name} is not finished: {records.state_of(run).text or 'missing'}")
    cfg = from_dict(KINDS[run.record["kind"]], run.record["config"])
    if getattr(cfg, "init", "scratch") != "scratch":
        source = Path(cfg.init).name
        require(source in known, f"{name} started from {cfg.init}, of which there is no run or record")
        cfg = dataclasses.replace(cfg, init=inside(again(source, known, results, say).folder))
    made = Run.start(name, run.record["kind"], cfg, results / "reruns")
    threads = run.last_session.get("threads")
    os.environ["OMP_NUM_THREADS"] = str(threads or 1)  # sums of floats depend on how many threads share them
    say(f"{name}: {'done already' if made.done else f'again, {threads or 1} threads a process'}")
    launch(made, say=lambda line: None)
    return Run.read(made.folder)


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 where every number is the same, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="name of a run or of a tracked record")
    parser.add_argument("--results", default="results", help="folder of the run folders")
    given = parser.parse_args(arguments)
    results = ROOT / given.results
    known, _ = records.found(results)
    then = known.get(given.run) or records.named("RUN", given.run, results)
    made = again(then.name, {then.name: then} | known, results)
    differ = compare(then.metrics, made.metrics)
    for name, (old, new) in differ.items():
        print(f"{name}: {old} then, {new} now")
    machines = [run.last_session.get("hardware", {}).get("cpu", "unknown") for run in (then, made)]
    if differ and machines[0] != machines[1]:
        print(f"then on {machines[0]}, now on {machines[1]}: another kind of processor sums floats in another order, "
              "and training amplifies that")  # fmt: skip
    count = len(flat(then.metrics))
    print(f"{then.name}: {count - len(differ)} of {count} numbers are the same to the last digit")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
