"""Does this machine compute what the book says, and how fast? `make check-gpu`, or `python -m tests.gpu`.

A line a check, tables of speed and memory, and results/gpu/<device>.json; the exit status is 1 if a check fails. On a
GPU at the paper's size, meant to take 8 minutes (--quick: 2); on a CPU small, which says nothing about a GPU. Nothing
is downloaded.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from soco_lib import ROOT, one_line_errors
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import build_store
from soco_lib.fields import one_of
from soco_lib.runs import processes
from soco_lib.runs.folder import provenance, write_json
from soco_lib.runs.machine import cores
from soco_lib.scenes import write as scenes
from tests.gpu import checks as gpu_checks
from tests.gpu import group as gpu_group
from tests.gpu import speed as gpu_speed
from tests.gpu.checks import Found

#: Checks of several processes, by name.
GROUP = ("several processes", "one checkpoint for all", "probe, and a killed process")
#: Scenes that are drawn to train and probe on.
SCENES = 60


@dataclass(frozen=True)
class Line:
    """One check's outcome; passed None: left out, and why."""

    name: str
    passed: bool | None
    said: str
    seconds: float

    def __str__(self) -> str:
        word = {True: "ok", False: "FAILED", None: "-"}[self.passed]
        return f"{word:<7}{self.name:<30}{self.said}  ({self.seconds:.1f} s)"


def drawn(folder: Path) -> dict:
    """Scenes and random proposals of them: images, proposals, count."""
    scenes.write_scenes(folder / "scenes", SCENES, 1, workers=1)
    spec = f"coco:{folder}/scenes/annotations/instances_train.json"
    build_store(open_source(spec), ProposalConfig(generator="random"), folder / "store", workers=1)
    return {"images": spec, "proposals": str(folder / "store")}


def group(name: str, device: torch.device, folder: Path, data: dict) -> Found:
    """A check of GROUP; the second reads what the processes of the first one wrote."""
    if name == GROUP[0]:
        return gpu_group.alike(device, folder / "alike")
    if name == GROUP[1]:
        if not (folder / "alike").exists():
            gpu_group.alike(device, folder / "alike")
        return gpu_group.one_checkpoint(folder / "alike")
    return gpu_group.training(device, folder / "runs", {**data, "count": SCENES}, data["images"])


def checked(name: str, check) -> Line:
    """A check's line; what it raises is a failure that says why."""
    start = time.perf_counter()
    try:
        found = check()
    except Exception as error:  # whatever a device does, the other checks are still worth having
        found = Found(False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return Line(name, found.passed, found.said, time.perf_counter() - start)


def checks(names: list[str], device: torch.device, folder: Path, data: dict, quick: bool, say=print) -> list[Line]:
    """Every check of `names`, in order, each said as it ends."""
    lines = []
    for name in names:
        if quick and name in gpu_checks.SLOW:
            lines.append(Line(name, None, "left out by QUICK", 0.0))
        elif name in GROUP:
            lines.append(checked(name, lambda name=name: group(name, device, folder, data)))
        else:
            lines.append(checked(name, lambda name=name: gpu_checks.CHECKS[name](device, data)))
        say(str(lines[-1]), flush=True)
    return lines


def table(rows: list[dict]) -> str:
    """As text; three digits."""
    frame = pd.DataFrame(rows).dropna(axis="columns", how="all")
    return frame.to_string(index=False, na_rep="", float_format=lambda x: f"{x:.3g}")


def outlook(name: str, rate: float, loads: float, workers: int) -> list[str]:
    """What follows from images a second of the GPU `name` (`rate`) and of `workers` loader processes (`loads`)."""
    each = ", ".join(f"{gpu_speed.hours(rate, n):.1f} on {n}" for n in (1, 8, 16))
    gpus, hours = gpu_speed.PAPER_GPUS, gpu_speed.PAPER_HOURS
    binds, needed = "the loader" if loads < rate else "the GPU", max(1, math.ceil(rate / (loads / workers)))
    reached = "reached" if rate >= gpu_speed.GOAL else "not reached"
    return [
        f"{binds} binds: the fastest step takes {rate:.0f} images/s, {needed} worker{'s' * (needed > 1)} feed it",
        f"hours of the paper's {gpu_speed.EPOCHS} epochs, if several GPUs lose nothing: {each}; "
        f"the paper's: {hours:g} on {gpus} V100, {gpu_speed.hours(1, gpus) / hours:.0f} images/s a GPU",
        f"goal of {gpu_speed.GOAL:g} images/s on one H100: {reached}, {rate:.0f} on this {name}",
    ]


def speeds(device: torch.device, folder: Path, data: dict, quick: bool, say=print) -> dict:
    """Tables of speed, said as they are made: step, loader, outlook, transfer."""
    cuda, workers = device.type == "cuda", max(1, cores() - 1)
    made = {"step": gpu_speed.sweep(device, quick)}
    say(f"\nOne update of the {'paper' if cuda else 'small check'}'s network:\n{table(made['step'])}", flush=True)
    loads = gpu_speed.loaded(folder / "jpegs", data["images"], device, workers, 3 if quick else 8)
    made["loader"] = {"workers": workers, "images/s": loads}
    say(f"\nloader: {loads:.0f} images/s of the paper's views with {workers} worker{'s' * (workers > 1)}")
    if cuda:
        rate = max(row["images/s"] or 0.0 for row in made["step"])
        made["outlook"] = outlook(torch.cuda.get_device_name(device), rate, loads, workers)
        say("\n".join(made["outlook"]))
    made["transfer"] = gpu_speed.transfers(device, quick)
    network = "Mask R-CNN R50-FPN at 800 pixels" if cuda else "a narrow Mask R-CNN at 64 pixels"
    say(f"\nOne update of {network}:\n{table(made['transfer'])}", flush=True)
    return made


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0, or 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CHECK", help="only these checks, and no speeds (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer points and seconds")
    parser.add_argument("--results", default="results", help="the record goes to its folder gpu")
    given = parser.parse_args(arguments)
    everything = [*gpu_checks.CHECKS, *GROUP]
    for name in given.names:
        one_of("check", name, everything)
    device, start = processes.own_device(), time.perf_counter()
    processes.arithmetic(fixed_sizes=False)  # trials of algorithms would take longer than what is checked
    cuda = device.type == "cuda"
    if not cuda and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # small networks gain little from more, and lose much to a busy machine
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    small = "small networks and views; the figures are this processor's and say nothing of a GPU"
    scale = f", {torch.cuda.device_count()} visible" if cuda else f": {small}"
    print(f"{name}, torch {torch.__version__}{scale}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = drawn(folder)
        lines = checks(given.names or everything, device, folder, data, given.quick)
        failed = [line.name for line in lines if line.passed is False]
        if not given.names:
            path = ROOT / given.results / "gpu" / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            record = {"device": name, "scale": "paper" if cuda else "small, CPU", "quick": given.quick, **provenance()}
            record |= {"measured": time.strftime("%F"), "checks": [vars(line) for line in lines]}
            write_json(path, record)  # what was checked stays, whatever becomes of the speeds
            record |= speeds(device, folder, data, given.quick)
            write_json(path, {**record, "seconds": round(time.perf_counter() - start, 1)})
            print(f"\nrecord: {path}")
    passed = sum(line.passed is True for line in lines)
    said = f"{passed} of {len(lines)} checks passed"
    if left_out := len(lines) - passed - len(failed):
        said += f", {left_out} left out"
    said += f", in {time.perf_counter() - start:.0f} s"
    print(said + f"; FAILED: {', '.join(failed)}" * bool(failed))
    return 1 if failed else 0
