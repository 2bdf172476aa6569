"""The pretraining loop: `python -m soco_lib.train results/NAME`, alone or under torchrun.

The folder's run.json says everything (see runs/launch.py); a run that was interrupted goes on.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from soco_lib.config import Plan, Pretrain, plan
from soco_lib.data.pictures import record_oddities
from soco_lib.dataset import AHEAD, Batch, ProposalViews, build_loader, normalize
from soco_lib.encoder import send
from soco_lib.features import probe
from soco_lib.fields import from_dict, to_dict
from soco_lib.model import SoCo
from soco_lib.optim import build_optimizer, learning_rate, target_momentum
from soco_lib.runs import checkpoint, loader, machine, processes, reasons, session, stop
from soco_lib.runs.folder import Run
from soco_lib.runs.log import Log
from soco_lib.runs.recompute import recompute


def build_model(cfg: Pretrain, process: processes.Process) -> SoCo:
    """SoCo on the process's device, in train mode, with synchronised batch norm where several GPUs share the batch."""
    if cfg.compile:
        processes.require_compiler(process)
    torch.manual_seed(cfg.seed)
    with reasons.building(cfg):
        model = SoCo(cfg).to(process.device)
    if cfg.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if process.synchronised:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    recompute(model.online.encoder.trunk, cfg.recompute)  # the target has no backward
    if cfg.compile:
        model.online.encoder.trunk.compile()
        model.target.encoder.trunk.compile()
    return model.train()


class Trainer:
    """What one update needs; plain state, no hooks."""

    def __init__(self, cfg: Pretrain, plan: Plan, process: processes.Process):
        self.cfg, self.plan, self.process = cfg, plan, process
        self.model = build_model(cfg, process)
        self.optimizer = build_optimizer(self.model, cfg)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=cfg.precision == "fp16")
        self.parallel = self.model
        if process.world > 1:
            unused = cfg.assignment == "fixed"  # the other levels' convolutions get no gradient
            gpu = [process.device] if process.device.type == "cuda" else None
            options = dict(device_ids=gpu, find_unused_parameters=unused, **processes.own_buffers())
            self.parallel = DistributedDataParallel(self.model, **options)

    def backward(self, batch: Batch, last: bool) -> dict[str, torch.Tensor]:
        """Add one micro-batch's gradients of loss.soco_loss, view by view; processes share them after the last view of
        the `last` one. Returns, without a graph, loss (scalar), pairs ((P,), each with both directions) and embeddings
        ((M_1, E), the target's of V1).
        """
        device, count, precision = self.process.device, len(batch.images), self.cfg.precision
        counted = batch.counted or self.model.count(batch.boxes, batch.valid)
        if self.process.synchronised:  # all compute the batch norms of a level, or none does
            counted = counted.reaching(processes.anyones)
        counted = counted.moved(send(device))
        images, pairs = [normalize(x) for x in batch.images_on(device)], 0
        with processes.autocast(precision, device):
            z = self.model.targets(images, counted.rois)
        for j in range(count):
            shares = self.process.world == 1 or (last and j == count - 1)
            with contextlib.nullcontext() if shares else self.parallel.no_sync():
                with processes.autocast(precision, device):
                    added = self.parallel(j, images[j], counted.rois[j], counted.pairs, z, batch.regions)
                self.scaler.scale(added.sum() / self.plan.accumulate).backward()  # and the view's graph is freed
            pairs = pairs + added.detach()
        return {"loss": pairs.sum(), "pairs": pairs, "embeddings": z[0]}

    def update(self, step: int, batches) -> dict:
        """One optimiser update from `accumulate` micro-batches; returns what log.Log.row reads.

        No GPU is waited for, but in fp16: its scaler asks whether a gradient overflowed. Such an update is skipped as a
        whole: weights, their momentum and the target stay; rate and tau, which follow the step's number, go on.
        """
        lr, tau = learning_rate(step, self.plan, self.cfg), target_momentum(step, self.plan.steps, self.cfg.tau)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        parts, data_s, unreadable = [], 0.0, 0
        for i in range(self.plan.accumulate):
            waited = time.perf_counter()
            batch = next(batches)
            data_s += time.perf_counter() - waited
            unreadable += batch.unreadable
            parts.append(self.backward(batch, last=i == self.plan.accumulate - 1))
        scale = self.scaler.get_scale()  # 1, and never less, without a scaler
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.scaler.get_scale() < scale
        self.optimizer.zero_grad(set_to_none=True)
        if not skipped:
            self.model.update_target(tau)
        mean = lambda name: torch.stack([part[name] for part in parts]).mean(0)
        out = {"loss": mean("loss"), "pairs": mean("pairs"), "embeddings": torch.cat([p["embeddings"] for p in parts])}
        out |= {"lr": lr, "tau": tau, "trust": getattr(self.optimizer, "trust_ratios", None)}
        return out | {"data_s": data_s, "unreadable": unreadable, "skipped": skipped}

    def state(self) -> dict:
        """Everything a resumed run needs beyond the step: sampler and augmentation follow from (seed, step)."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scaler")}
        return {**parts, "torch_rng": torch.get_rng_state()}

    def resume(self, folder: Path, say=print) -> int:
        """Load a run's newest checkpoint, the same in every process; returns the updates made. A collective, which lets
        go of the file's contents: they are as large as network and optimiser together.
        """
        state = checkpoint.chosen(folder, self.process.main, say)
        if state is None:
            return 0
        with checkpoint.fitting(folder, state["step"]):
            for name in ("model", "optimizer", "scaler"):
                getattr(self, name).load_state_dict(state[name])
            torch.set_rng_state(state["torch_rng"])
        return state["step"]


def train(run: Run, process: processes.Process, stop_requests: Sequence = ()) -> dict:
    """Run (or go on with) a pretraining to its end; returns its metrics. Raises BookError before any work on bad input.

    stop_requests: not empty once this process shall stop; all then do after the same update, with stop.Stopped.
    """
    cfg = from_dict(Pretrain, run.record["config"])
    say = print if process.main else lambda *_, **__: None
    if cfg.probe:
        probe.open_labelled(cfg.probe)  # or a mistake in its name would be found after hours
    dataset = ProposalViews(cfg)
    if process.main:
        record_oddities(run, dataset.source, dataset.store, cfg.probe)
    numbers = plan(cfg, len(dataset), process.world, process.synchronised)
    say(f"{process.describe()}; {numbers.describe(cfg)}", flush=True)
    # Before any process starts its workers: they meet when the model is built.
    ahead = loader.batches_ahead(AHEAD, loader.shared_bytes(cfg, numbers), cfg.workers, process.local_world, say=say)
    trainer = Trainer(cfg, numbers, process)
    say(f"{cfg.detector}: {trainer.model.online.encoder.describe()}", flush=True)
    done = trainer.resume(run.folder, say)
    if done:
        say(f"going on after step {done}", flush=True)
    started, log, row = time.perf_counter(), Log(run, cfg, numbers, writes=process.main), {}
    pin = process.device.type == "cuda"
    batches = build_loader(dataset, numbers, process.rank, done, pin, trainer.model.count, ahead)
    stop.keep(stop_requests)
    with stop.children_ignore():
        batches = loader.Feed(batches, numbers.accumulate, stop_requests)
    unread = []  # (step, loss): a GPU's answer is read when the next update is queued, so that it never runs dry

    def save() -> None:
        if process.main:
            checkpoint.save(run.folder, done, to_dict(cfg), cfg.keep, **trainer.state())

    def look(leave: int) -> None:
        """Read the losses but for the last `leave`. Raises session.Diverged."""
        while len(unread) > leave:
            at, loss = unread.pop(0)
            if not math.isfinite(value := loss.read().item()):
                remedy = f"lower base_lr={cfg.base_lr} or use precision=fp32"
                kept = f"the last good checkpoint stays in {run.folder / 'checkpoints'}"
                raise session.Diverged(f"the loss is {value} at step {at}: {remedy}; {kept}", at)

    look_at_objects = lambda: probe.after(done, trainer.model.online.encoder, cfg, log, stop_requests, save)
    if processes.from_first(probe.due(done, cfg, numbers, run.rows())):  # a request to stop ended it
        look_at_objects()
    for step in range(done, numbers.steps):
        try:
            out = trainer.update(step, batches)
        except loader.Waiting as waiting:
            look(leave=0)
            if waiting.between and done:
                save()
            raise stop.Stopped(waiting.describe(done, run.folder)) from None
        log.add(out)
        done = step + 1
        logs = done % cfg.log_every == 0 or done == numbers.steps
        saves = done % cfg.save_every == 0 or done == numbers.steps
        unread.append((done, processes.Later(processes.mean(out["loss"].float()))))
        look(leave=1 if process.ahead and not (logs or saves) else 0)
        stopping = processes.anyone(bool(stop_requests))  # after the look, which is where a GPU's process waits
        if stopping:
            look(leave=0)
        if logs:
            row = log.row(done, out)
        if saves or stopping:
            save()
        if stopping and done < numbers.steps:
            raise stop.Stopped(stop.AFTER.format(done))
        if probe.due(done, cfg, numbers):
            look_at_objects()
    if not process.main:  # the first one may still be writing what follows
        return {}
    last = run.rows()[-1]
    logged = ("loss", "spread", "effective_rank", "images_per_s", "unreadable")
    return {
        "profile": cfg.profile,
        "steps": numbers.steps,
        "images_seen": numbers.steps * cfg.batch,
        "processes": process.world,
        **{name: (row or last)[name] for name in logged},
        "seconds": round(time.perf_counter() - started, 1),
        **{name: value for name, value in last.items() if name.startswith(("knn", "linear"))},
        "checkpoint": str(checkpoint.paths(run.folder)[-1].relative_to(run.folder)),
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status (see session.main)."""
    machine.give_back_freed()
    return session.main(__doc__, train, arguments, fixed_sizes=True)


if __name__ == "__main__":
    sys.exit(main())
