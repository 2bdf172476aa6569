"""Do several processes compute what one does, and live through what happens to them? NCCL on all visible GPUs; two gloo
processes on a single one, where batch norm is synchronised as well; two on a CPU, where it is not.

    torchrun ... -m tests.gpu.group FOLDER    what a process of these checks runs: training, if it is a run's folder
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from soco_lib import BookError, train
from soco_lib.config import Pretrain, plan
from soco_lib.dataset import Batch
from soco_lib.fields import from_dict, to_dict
from soco_lib.runs import checkpoint, processes
from soco_lib.runs.folder import Run, write_json
from soco_lib.runs.launch import Launch, command, environment
from soco_lib.runs.processes import Process
from soco_lib.studies.step_time import as_loaded, lone_trainer, random_batch
from tests.gpu.checks import (
    GRADIENT,
    LOSS,
    SMALL,
    TRAINING,
    Found,
    cosine,
    difference,
    fitted,
    learned,
    one_pass,
    settings,
    smooth,
)

#: What torchrun starts: this module.
MODULE = "tests.gpu.group"
#: Seconds after which a group counts as hung.
LIMIT = 300.0
#: Least cosine between gradients of synchronised batch norm and of one process's: both round, and batch norm magnifies
#: it.
SYNCHRONISED = 0.99
STEPS, SAVE_EVERY, DIES_AT = 6, 2, 3


def world_of(device: torch.device) -> int:
    """Processes of a group on this machine."""
    return max(2, torch.cuda.device_count()) if device.type == "cuda" else 2


def perform(folder: Path, world: int, restarts: int = 0) -> str:
    """Run MODULE on `folder` in `world` processes; returns "" or how it failed."""
    words = command(MODULE, folder, Launch(gpus=world, restarts=restarts))
    with open(folder / "group.txt", "w") as output:
        # A process that waits on a GPU for a dead one hears no signal: it need not be given long to save.
        how = environment(world) | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10"}
        child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=how, start_new_session=True)
        try:
            status = child.wait(LIMIT)
        except subprocess.TimeoutExpired:
            return f"{world} processes did not end in {LIMIT:g} s: they wait for each other"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # its processes too, which a killed torchrun would leave behind
            child.wait()
    lines = (folder / "group.txt").read_text(errors="replace").splitlines()
    errors = [line.split("]:")[-1].strip() for line in lines if "Error: " in line or line.startswith("error: ")]
    return f"exit {status}: {(errors or lines or [''])[0][:200]}" if status else ""


# --- in the process that checks


def alike(device: torch.device, folder: Path) -> Found:
    """Loss and gradients of one global batch, by several processes and by one."""
    folder.mkdir()
    world = world_of(device)
    cfg = settings(device)
    cfg = dataclasses.replace(cfg, batch=world * max(2, cfg.batch // world))
    batch = random_batch(cfg, cfg.batch)
    with smooth():
        model = fitted(cfg, batch, device)
    torch.save({"config": to_dict(cfg), "state": model.state_dict()}, folder / "reference.pt")
    save_two(folder, cfg)
    if wrong := perform(folder, world):
        return Found(False, wrong)
    passed, parts = True, []
    for mode in json.loads((folder / "found.json").read_text())["modes"]:
        loss, gradients = torch.load(folder / f"{mode}.pt", weights_only=True)
        with smooth():
            expected, theirs = one_pass(cfg, batch, device, model.train(mode == "synchronised batch norm"))
        off, relative = abs(loss - expected), difference(gradients, theirs)
        if model.training:
            passed &= off <= TRAINING and cosine(gradients, theirs) >= SYNCHRONISED
            parts.append(f"{mode}: loss {off:.1e}, cosine of the gradients {cosine(gradients, theirs):.4f}")
        else:
            passed &= off <= LOSS and relative <= GRADIENT
            parts.append(f"{mode}: loss {off:.1e}, gradients {relative:.1e}")
    return Found(passed, f"{json.loads((folder / 'found.json').read_text())['who']} against one; " + "; ".join(parts))


def save_two(folder: Path, cfg: Pretrain) -> None:
    """Two checkpoints with different weights, for `one_checkpoint`."""
    trainer = lone_trainer(cfg, torch.device("cpu"))
    for step in (2, 4):
        with torch.no_grad():
            trainer.model.predictor[0].weight.fill_(float(step))
        checkpoint.save(folder, step, to_dict(cfg), 2, **trainer.state())


def one_checkpoint(folder: Path) -> Found:
    """All processes go on from the same checkpoint, though only the first of them sees the newest."""
    if not (folder / "found.json").exists():
        return Found(False, "the processes ended before they came to it")
    steps = json.loads((folder / "found.json").read_text())["steps"]
    said = f"went on from steps {', '.join(f'{step:g}' for step in steps)}; the first process sees step 4"
    return Found(set(steps) == {4.0}, said)


def training(device: torch.device, folder: Path, data: dict, labelled: str) -> Found:
    """A training with the object probe every other step, one of whose processes is killed, ends as it should."""
    world = world_of(device)
    every = SAVE_EVERY / (data["count"] // (2 * world))  # epochs
    data = {name: data[name] for name in ("images", "proposals")} | {"probe": labelled, "workers": 1}
    precision = "bf16" if device.type == "cuda" else "fp32"
    times = {"steps": STEPS, "warmup_epochs": 0, "log_every": 1, "save_every": SAVE_EVERY, "probe_every": every}
    cfg = dataclasses.replace(SMALL, **data, **times, batch=2 * world, precision=precision, profile="check")
    run = Run.start("group", "pretrain", cfg, folder)
    if wrong := perform(run.folder, world, restarts=1):
        return Found(False, wrong)
    run = Run.read(run.folder)
    rows = run.rows()
    probes, lives = sum("knn" in row for row in rows), len(run.record["sessions"])
    good = run.done and lives == 2 and probes == STEPS // SAVE_EVERY and rows[-1]["step"] == STEPS
    said = f"{run.record['status']} after step {rows[-1]['step']} of {STEPS}, {probes} probes, {lives - 1} restart"
    return Found(good, said)


# --- in a process of the group


def share(batch: Batch, process: Process) -> Batch:
    """This process's part of a global batch."""
    n = len(batch.images[0]) // process.world
    cut = lambda tensors: [t[process.rank * n : (process.rank + 1) * n] for t in tensors]
    return Batch(cut(batch.images), cut(batch.boxes), cut(batch.valid))


def compute(folder: Path, process: Process) -> None:
    """This process's part of `alike` and `one_checkpoint`."""
    reference = torch.load(folder / "reference.pt", weights_only=True)
    cfg = from_dict(Pretrain, reference["config"])
    trainer = train.Trainer(cfg, plan(cfg, 10 * cfg.batch, process.world, process.synchronised), process)
    trainer.model.load_state_dict(reference["state"])
    batch = share(random_batch(cfg, cfg.batch), process)
    modes = ["given statistics", "synchronised batch norm"][: 1 + process.synchronised]
    for mode in modes:
        trainer.model.train(mode != modes[0])
        trainer.optimizer.zero_grad()
        with smooth():
            own = trainer.backward(as_loaded(batch, trainer.model, process.device), last=True)["loss"]
            loss = float(processes.mean(own))
        if process.main:
            torch.save((loss, [p.grad.float().cpu() for p in learned(trainer.model)]), folder / f"{mode}.pt")
    if not process.main:
        seen = checkpoint.paths  # from a file system that does not show this process the newest yet
        checkpoint.paths = lambda folder: seen(folder)[:-1]
    trainer.resume(folder)
    steps = [None] * process.world
    dist.all_gather_object(steps, float(trainer.model.predictor[0].weight.mean()))
    if process.main:
        write_json(folder / "found.json", {"modes": modes, "steps": steps, "who": process.describe()})


def mortal(update, step: int, *args):
    """Trainer.update of a process whose first life ends before step DIES_AT, without a word."""
    if step == DIES_AT and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return update(step, *args)


def main(arguments: list[str]) -> int:
    """Command line of one process; returns the exit status."""
    folder = Path(arguments[0])
    processes.start = functools.partial(processes.start, share_gpus=torch.cuda.device_count() == 1)
    if (folder / "run.json").exists():
        if os.environ["RANK"] != "0":
            build = train.Trainer.update
            train.Trainer.update = lambda self, *args: mortal(functools.partial(build, self), *args)
        return train.main([str(folder)])
    processes.arithmetic(fixed_sizes=False)
    try:
        compute(folder, processes.start())
    except BookError as error:
        print(f"error: {error}", flush=True)
        return 1
    processes.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
