"""bench-step: a training step of SoCo-R50-FPN on this machine's CPU, against the plain formulation (plain_step.py)."""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import subprocess
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from soco_lib import ROOT
from soco_lib.config import Pretrain, View
from soco_lib.dataset import Batch, normalize
from soco_lib.fields import to_dict
from soco_lib.train import Trainer
from tests.speed.plain_step import AGAIN, WAYS, Clock, PlainStep, a_batch, a_trainer, ours
from tests.speed.timing import REPETITIONS, Bench, in_turns, stage_table

RATE = "images/s"
#: The goals' step: 8 images, K = 4, fp32, all else the paper's; and one that is over in a moment.
FULL = Pretrain("", "", batch=8, steps=100, precision="fp32")
SMALL = dataclasses.replace(
    FULL,
    detector="toy-mask-rcnn-narrow-r50-fpn",
    size=64,
    views=(View(64), View(32, "V2")),
    batch=2,
    hidden=32,
    embedding=16,
)
NOTES = (
    "ours: Trainer.update: box head once a box on its own level, no level without a box, one view's graph at a time, "
    "channels-last, foreach LARS and EMA",
    "plain: box head on every level and a mask, one graph over all views, contiguous, a loop over parameters",
    f"recomputing: ours with recompute: [{', '.join(AGAIN)}], for which activations of these stages are not kept",
    "random pixels, boxes of the paper's sizes as the views show them; without data loading",
    "memory: largest resident bytes of a process that imports what training does and makes three updates; 'private' "
    "leaves out pages of libraries' files",
    "operations: of all convolutions and matrix products, forward and backward, a multiplication and an addition "
    "counted as two",
)


def memory(way: str, cfg: Pretrain) -> dict[str, int]:
    """Largest resident bytes, and those of libraries' files, of a process that imports no more than training does."""
    words = [sys.executable, "-m", "tests.speed.plain_step", way, json.dumps(to_dict(cfg))]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def peak_flops(side: int, repetitions: int) -> float:
    """Operations a second of a large float32 matrix product here: what these cores can do at most, in practice."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    return 2 * side**3 / statistics.median(in_turns({"": lambda: a @ b}, repetitions)[""])


def operations(cfg: Pretrain) -> int:
    """Operations of one update."""
    update = ours(cfg)
    with FlopCounterMode(display=False) as counter:
        update()
    return counter.get_total_flops()


def stages(cfg: Pretrain) -> list[dict]:
    """Milliseconds an image of each stage of one update, the second one: a row a stage, a column a way."""
    columns, batch = {}, a_batch(cfg)
    step = PlainStep(a_trainer(dataclasses.replace(cfg, channels_last=False)).model, cfg)
    trainer = a_trainer(cfg)
    for way, update in {"ours": functools.partial(_timed_update, trainer), "plain": _plain_update(step, cfg)}.items():
        for _ in range(2):
            clock = Clock()
            update(batch, clock)
        columns[way] = {stage: 1000 * seconds / cfg.batch for stage, seconds in clock.seconds.items()}
    return stage_table(columns)


def _plain_update(step: PlainStep, cfg: Pretrain):
    return lambda batch, clock: step.update(batch, 1e-4, cfg.tau, clock)


def _timed_update(trainer: Trainer, batch: Batch, clock: Clock) -> None:
    """Trainer.update with a clock between its lines."""
    model = trainer.model
    counted, images = model.count(batch.boxes, batch.valid), [normalize(x) for x in batch.images]
    clock("normalise")
    z = model.targets(images, counted.rois)
    clock("target forward")
    for j in range(len(images)):
        added = model(j, images[j], counted.rois[j], counted.pairs, z)
        clock("online forward")
        added.sum().backward()
        clock("online backward")
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    clock("optimiser")
    model.update_target(trainer.cfg.tau)
    clock("EMA")


def agreement(cfg: Pretrain) -> float:
    """Largest difference between gradients, ours and plain, relative to a tensor's norm.

    Batch norm uses fixed statistics: in training the plain head's also see the boxes that a mask then drops.
    """
    model, batch = a_trainer(cfg).model, a_batch(cfg)
    counted, images = model.count(batch.boxes, batch.valid), [normalize(x) for x in batch.images]
    for _ in range(5):  # running statistics that fit
        model.targets(images, counted.rois)
        with torch.no_grad():
            _ = [model.predictor(model.online(x, r)) for x, r in zip(images, counted.rois)]
    model.eval()
    learned = [*model.online.parameters(), *model.predictor.parameters()]
    z = model.targets(images, counted.rois)
    for j in range(len(images)):
        model(j, images[j], counted.rois[j], counted.pairs, z).sum().backward()
    found = [p.grad.clone() for p in learned]
    model.zero_grad()
    PlainStep(model, cfg).loss(images, batch.boxes).backward()
    return max(float((a - p.grad).norm() / p.grad.norm().clamp(min=1e-12)) for a, p in zip(found, learned))


def growing(cfg: Pretrain):
    """Points of growth curves: variable, its value, the configuration; half the images, which is time enough."""
    small = dataclasses.replace(cfg, batch=max(2, cfg.batch // 2))
    for k in (1, 4, 16):
        yield "K", k, dataclasses.replace(small, k=k)
    first, second, third = small.size, small.size, small.views[1].size
    for extra in ((View(second),), small.views, (View(second), View(third, "V2"), View(second * 6 // 7))):
        yield "views", 1 + len(extra), dataclasses.replace(small, views=extra)
    for side in (first // 2, first * 3 // 4, first):
        yield "side of V1, px", side, dataclasses.replace(small, size=side, views=(View(side), View(side // 2, "V2")))
    for batch in (2, 4, 8)[: 2 if cfg is SMALL else 3]:
        yield "images a step", batch, dataclasses.replace(small, batch=batch)


def run(images: str, quick: bool) -> Bench:
    """Measure; pixels are random, so `images` is not read. A small network, once, if `quick`."""
    bench, cfg = Bench("step", "one training step, two threads"), SMALL if quick else FULL
    repetitions = 1 if quick else REPETITIONS
    views = ", ".join(map(str, cfg.view_sizes))
    bench.data = f"{cfg.batch} random images, views {views}, K = {cfg.k}, {cfg.detector}, fp32"
    torch.set_num_threads(min(2, torch.get_num_threads()))
    seconds = in_turns({way: make(cfg) for way, make in WAYS.items()}, repetitions)
    rates = {way: [cfg.batch / s for s in values] for way, values in seconds.items()}
    speed = statistics.median(rates["ours"])
    bench.add("training step", RATE, rates)
    bench.goal("training step", speed, 1.1, RATE)
    bench.goal("training step, recomputing", statistics.median(rates["recomputing"]), 1.1, RATE)

    peaks = {way: memory(way, cfg) for way in WAYS}
    resident = {way: [peak["resident"] / 1e9] for way, peak in peaks.items()}
    bench.add("largest resident memory", "GB", resident, more_is_better=False)
    private = {way: [(peak["resident"] - peak["files"]) / 1e9] for way, peak in peaks.items()}
    bench.add("of it private", "GB", private, more_is_better=False)
    for way in ("ours", "recomputing"):
        bench.goal(f"largest resident memory, {way}", resident[way][0], 2.5, "GB", at_least=False)

    bench.goal("gradients, largest relative difference from plain", agreement(cfg), 1e-5, "", at_least=False)
    bench.tables["Stages of one update, ms an image"] = stages(cfg)
    each, most = operations(cfg) / cfg.batch, peak_flops(256 if quick else 4096, repetitions)
    bench.tables["Arithmetic of ours"] = [
        {
            "operations an image (10^9)": each / 1e9,
            "reached (10^9/s)": each * speed / 1e9,
            "a matrix product reaches (10^9/s)": most / 1e9,
            "share reached": each * speed / most,
        }
    ]
    for over, at, changed in growing(cfg):
        times = in_turns({"ours": ours(changed)}, 1 if quick else 2)["ours"]
        each = {"ours": [1000 * s / changed.batch for s in times]}
        bench.add("step", "ms an image", each, more_is_better=False, over=over, at=at)
    for batch in (2,) if quick else (2, 4, 8):
        peak = memory("ours", dataclasses.replace(cfg, batch=batch))["resident"]
        growth = {"over": "images a step", "at": batch}
        bench.add("largest resident memory", "GB", {"ours": [peak / 1e9]}, more_is_better=False, **growth)
    bench.notes += NOTES
    return bench
