"""The pretraining loop: `python -m soco_lib.train results/NAME`, alone or under torchrun.

The run folder's run.json says everything (see launch.py, which makes it); a run that was interrupted goes on.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import time
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from soco_lib import BookError, checkpoint, distributed, loader, session
from soco_lib.config import Plan, Pretrain, from_dict, plan, to_dict
from soco_lib.dataset import AHEAD, Batch, ProposalViews, build_loader, normalize, shared_bytes
from soco_lib.encoder import recompute
from soco_lib.meter import Meter, Record
from soco_lib.optim import build_optimizer, learning_rate, target_momentum
from soco_lib.results import Run
from soco_lib.soco import SoCo

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: Updates between two looks at the loss and at whether to stop, on a GPU: asking it at every step would make it wait.
LOOK_EVERY = 10


class Diverged(BookError):
    """The loss became NaN or infinite."""


def build_model(cfg: Pretrain, process: distributed.Process) -> SoCo:
    """SoCo on the process's device; batch norm is synchronised wherever several GPUs share the batch."""
    torch.manual_seed(cfg.seed)
    model = SoCo(cfg).to(process.device)
    if cfg.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if process.world > 1 and process.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    recompute(model.online.encoder.trunk, cfg.recompute)  # the target has no backward
    if cfg.compile:
        for branch in (model.online, model.target):
            branch.encoder.trunk.compile()
    return model.train()


class Trainer:
    """What one update needs; plain state, no hooks."""

    def __init__(self, cfg: Pretrain, plan: Plan, process: distributed.Process):
        self.cfg, self.plan, self.process = cfg, plan, process
        self.model = build_model(cfg, process)
        self.optimizer = build_optimizer(self.model, cfg)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=cfg.precision == "fp16")
        self.parallel = self.model
        if process.world > 1:
            self.parallel = DistributedDataParallel(
                self.model,
                device_ids=[process.device] if process.device.type == "cuda" else None,
                find_unused_parameters=cfg.assignment == "fixed",  # the other levels' convolutions get no gradient
            )

    def backward(self, batch: Batch, last: bool) -> dict[str, torch.Tensor]:
        """Add one micro-batch's gradients, view by view; processes share them after its last view if it is the `last` one.

        Returns loss (scalar), pairs ((P,), each with both directions) and embeddings (M_1, E), the target's of V1; no graph.
        """
        batch = batch.to(self.process.device)
        images, pairs = [normalize(x) for x in batch.images], 0
        dtype, count = AUTOCAST.get(self.cfg.precision), len(batch.images)
        autocast = functools.partial(torch.autocast, self.process.device.type, dtype, enabled=dtype is not None)
        with autocast():
            z = self.model.targets(images, batch.boxes, batch.valid)
        for j in range(count):
            shares = self.process.world == 1 or (last and j == count - 1)
            with contextlib.nullcontext() if shares else self.parallel.no_sync():
                with autocast():
                    added = self.parallel(j, images[j], batch.boxes[j], batch.valid, z)
                self.scaler.scale(added.sum() / self.plan.accumulate).backward()
            pairs = pairs + added.detach()
        return {"loss": pairs.sum(), "pairs": pairs, "embeddings": z[0]}

    def update(self, step: int, batches) -> dict:
        """One optimiser update from `accumulate` micro-batches; returns loss, pairs, embeddings, data_s, unreadable."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.plan, self.cfg)
        parts, data_s, unreadable = [], 0.0, 0
        for i in range(self.plan.accumulate):
            waited = time.perf_counter()
            batch = next(batches)
            data_s += time.perf_counter() - waited
            unreadable += batch.unreadable
            parts.append(self.backward(batch, last=i == self.plan.accumulate - 1))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.update_target(target_momentum(step, self.plan.steps, self.cfg.tau))
        return {
            "loss": torch.stack([p["loss"] for p in parts]).mean(0),
            "pairs": torch.stack([p["pairs"] for p in parts]).mean(0),
            "embeddings": torch.cat([p["embeddings"] for p in parts]),
            "data_s": data_s,
            "unreadable": unreadable,
        }

    def state(self) -> dict:
        """Everything a resumed run needs beyond the step: sampler and augmentation follow from (seed, step)."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }

    def restore(self, state: dict) -> int:
        """Load a checkpoint; returns the number of updates already made."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["torch_rng"])
        return state["step"]


def train(run: Run, process: distributed.Process, told: Sequence = ()) -> dict:
    """Run (or go on with) a pretraining to its end; returns its metrics. Raises BookError before any work for bad input.

    told: no longer empty once this process shall stop; all processes then do so after the same update, with session.Stopped.
    """
    cfg = from_dict(Pretrain, run.record["config"])
    say = print if process.main else lambda *_, **__: None
    dataset = ProposalViews(cfg)
    numbers = plan(cfg, len(dataset), process.world)
    say(f"{process.describe()}; {numbers.describe(cfg)}", flush=True)
    # Before any process starts its workers: they meet when the model is built.
    ahead = loader.batches_ahead(AHEAD, shared_bytes(cfg, numbers), cfg.workers, process.local_world, say=say)
    trainer = Trainer(cfg, numbers, process)
    found = checkpoint.newest(run.folder, say)
    done = trainer.restore(found) if found else 0
    if found:
        say(f"going on after step {done}", flush=True)
    started, meter, row = time.perf_counter(), Meter(cfg, numbers), {}
    record = Record(run, cfg, numbers) if process.main else None
    with session.deaf_children():
        remaining = build_loader(dataset, numbers, process.rank, done, process.device.type == "cuda", ahead)
        batches = loader.Feed(remaining, numbers.accumulate, told)
    for step in range(done, numbers.steps):
        try:
            out = trainer.update(step, batches)
        except loader.Waiting as waiting:
            if process.main and waiting.between and done:
                checkpoint.save(run.folder, done, to_dict(cfg), cfg.keep, **trainer.state())
            raise session.Stopped(waiting.describe(done, run.folder)) from None
        meter.add(out)
        done = step + 1
        logs = done % cfg.log_every == 0 or done == numbers.steps
        saves = done % cfg.save_every == 0 or done == numbers.steps
        stop = False
        if logs or saves or done % LOOK_EVERY == 0 or process.device.type == "cpu":
            asked = torch.tensor(float(bool(told)), device=process.device)
            loss, stop = distributed.mean(torch.stack([out["loss"].float(), asked])).tolist()
            if not math.isfinite(loss):
                raise Diverged(
                    f"the loss is {loss} at step {done}: lower base_lr={cfg.base_lr} or use precision=fp32; "
                    f"the last good checkpoint stays in {run.folder / 'checkpoints'}"
                )
        if logs:
            row = meter.row(done, out, trainer)
        if process.main and logs:
            record.row(row)
        if process.main and (saves or stop):
            checkpoint.save(run.folder, done, to_dict(cfg), cfg.keep, **trainer.state())
        if process.main and record.probes_after(done):
            record.probe(done, trainer.model.online.encoder)
        if stop and done < numbers.steps:
            raise session.Stopped(f"told to stop after step {done}, of which a checkpoint is saved: run again to go on")
    if not process.main:  # the first one may still be writing what follows
        return {}
    row = row or run.rows()[-1]
    probed = {k: v for k, v in run.rows()[-1].items() if k.startswith(("knn", "linear"))}
    return {
        "profile": cfg.profile,
        "steps": numbers.steps,
        "images_seen": numbers.steps * cfg.batch,
        "processes": process.world,
        "loss": row["loss"],
        "spread": row["spread"],
        "effective_rank": row["effective_rank"],
        "images_per_s": row["images_per_s"],
        "unreadable": row["unreadable"],
        "seconds": round(time.perf_counter() - started, 1),
        **probed,
        "checkpoint": str(checkpoint.paths(run.folder)[-1].relative_to(run.folder)),
    }


def work(run: Run, process: distributed.Process) -> dict:
    """`train` that ends with a checkpoint when the process is told to stop."""
    with session.told_to_stop() as told:
        return train(run, process, told)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status (see session.main)."""
    return session.main(__doc__, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
