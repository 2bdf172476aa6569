"""A training step as one would write it straight from the paper, on the same modules as ours; and either, to be
measured.

Every box goes through RoIAlign and box head at every pyramid level and a mask keeps one of them; all views are in one
graph; tensors are contiguous; LARS and EMA visit one parameter after the other. B images, K boxes an image, S view side
in pixels.

    python -m tests.speed.plain_step WAY CONFIG        three updates; prints their memory (bench_step.memory)
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from soco_lib.config import Pretrain, plan
from soco_lib.dataset import Batch, normalize
from soco_lib.encoder import Encoder, assign_levels
from soco_lib.fields import from_dict
from soco_lib.loss import soco_loss
from soco_lib.model import SoCo
from soco_lib.runs import processes
from soco_lib.runs.machine import give_back_freed, peak_memory
from soco_lib.train import Trainer
from soco_lib.views import make_views

#: Called with a stage's name when it has ended.
Told = Callable[[str], None]
#: Stages whose activations are the largest, and cheap to compute again.
AGAIN = ("res2", "res3")


def features(encoder: Encoder, images: Tensor, boxes: Tensor, cfg: Pretrain) -> Tensor:
    """Object features h of all boxes (B, K, 4) of images (B, 3, S, S) by box head on every level and a mask: (B x K,
    D).
    """
    maps, rois = encoder.maps(images), list(boxes)
    level, kept = assign_levels(boxes.flatten(0, 1), cfg), 0
    for number, name in enumerate(encoder.levels, start=2):
        scale, side = encoder.pooler.level_poolers[number - 2].spatial_scale, encoder.pooler.output_size
        x = roi_align(
            maps[name], rois, side, scale, encoder.pooler.level_poolers[number - 2].sampling_ratio, aligned=True
        )
        kept = kept + encoder.roi_heads.box_head(x) * (level == number)[:, None]
    return kept


def no_stage(_name: str) -> None:
    """For who does not time stages."""


class PlainStep:
    """One update after another of `model`, whose boxes are all there (valid everywhere)."""

    def __init__(self, model: SoCo, cfg: Pretrain):
        self.model, self.cfg, self.momentum = model, cfg, {}

    def loss(self, images: list[Tensor], boxes: list[Tensor], told: Told = no_stage) -> Tensor:
        """Eqs. 5 and 6, symmetrised; images (B, 3, S_j, S_j) and boxes (B, K, 4), one a view."""
        model, cfg, everywhere = self.model, self.cfg, torch.ones(boxes[0].shape[:2], dtype=torch.bool)
        with torch.no_grad():
            z = [model.target.projector(features(model.target.encoder, x, b, cfg)) for x, b in zip(images, boxes)]
        told("target forward")
        v = [
            model.predictor(model.online.projector(features(model.online.encoder, x, b, cfg)))
            for x, b in zip(images, boxes)
        ]
        v, z = ([x.unflatten(0, everywhere.shape) for x in part] for part in (v, z))
        loss = soco_loss(v, z, [everywhere] * len(v))
        told("online forward")
        return loss

    def update(self, batch: Batch, rate: float, tau: float, told: Told = no_stage) -> None:
        """Gradient, LARS at learning rate `rate`, EMA with `tau`."""
        images = [normalize(x).contiguous() for x in batch.images]
        told("normalise")
        self.loss(images, batch.boxes, told).backward()
        told("online backward")
        with torch.no_grad():
            for p in (*self.model.online.parameters(), *self.model.predictor.parameters()):
                self._lars(p, rate)
            told("optimiser")
            for target, online in zip(self.model.target.parameters(), self.model.online.parameters()):
                target.copy_(tau * target + (1 - tau) * online)
        told("EMA")

    def _lars(self, p: Tensor, rate: float) -> None:
        cfg, d = self.cfg, p.grad
        if p.ndim > 1:
            d = d + cfg.weight_decay * p
            d = cfg.trust * p.norm() / d.norm() * d
        self.momentum[p] = cfg.momentum * self.momentum[p] + d if p in self.momentum else d
        p -= rate * self.momentum[p]
        p.grad = None


class Clock:
    """Seconds of each stage: the time since the last call goes to the stage that is named."""

    def __init__(self):
        self.seconds, self._last = {}, time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._last = self.seconds.get(stage, 0.0) + now - self._last, now


# --- to be measured
# ----------------------------------------------------------------------------------------------------


def a_batch(cfg: Pretrain, seed: int = 0) -> Batch:
    """Random images, and boxes of 0.3 to 0.8 of the side as the views show them: draws in which all are there."""
    rng, drawn = np.random.default_rng(seed), []
    while len(drawn) < cfg.batch:
        side = rng.uniform(0.3, 0.8, (cfg.k, 1))
        corner = rng.random((cfg.k, 2)) * (1 - side)
        pixels = rng.integers(0, 256, (cfg.size, cfg.size, 3), dtype=np.uint8)
        views = make_views(rng, pixels, cfg.size * np.concatenate([corner, corner + side], 1), cfg)
        if all(view.valid.all() for view in views):
            drawn.append(views)
    stacked = lambda name: [torch.from_numpy(np.stack([getattr(v, name) for v in own])) for own in zip(*drawn)]
    return Batch(*map(stacked, ("image", "boxes", "valid")))


def a_trainer(cfg: Pretrain) -> Trainer:
    """On the CPU, whatever else is there."""
    return Trainer(cfg, plan(cfg, 1000), processes.Process(0, 0, 1, 1, torch.device("cpu")))


def ours(cfg: Pretrain):
    """A function that makes one update."""
    trainer, batches = a_trainer(cfg), itertools.repeat(a_batch(cfg))
    return lambda: trainer.update(0, batches)


def plain(cfg: Pretrain):
    """The same."""
    cfg = dataclasses.replace(cfg, channels_last=False)
    step, batch = PlainStep(a_trainer(cfg).model, cfg), a_batch(cfg)
    return lambda: step.update(batch, 1e-4, cfg.tau)


def recomputing(cfg: Pretrain):
    """The same."""
    return ours(dataclasses.replace(cfg, recompute=AGAIN))


WAYS = {"ours": ours, "recomputing": recomputing, "plain": plain}


def main(arguments: list[str]) -> None:
    """Command line."""
    way, config = arguments
    give_back_freed()
    update = WAYS[way](from_dict(Pretrain, json.loads(config)))
    for _ in range(3):
        update()
    status = Path("/proc/self/status")
    said = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    files = int(said["RssFile"].split()[0]) * 1024 if "RssFile" in said else 0
    print(json.dumps({"resident": peak_memory(), "files": files}))


if __name__ == "__main__":
    main(sys.argv[1:])
