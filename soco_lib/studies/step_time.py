"""Seconds of one training step on random images: what an estimate takes where no earlier run tells."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F

from soco_lib.config import Pretrain, plan
from soco_lib.dataset import Batch
from soco_lib.detector import detector_config, for_finetuning
from soco_lib.model import SoCo
from soco_lib.runs import processes
from soco_lib.train import Trainer
from soco_lib.transfer.benchmarks import Transfer
from soco_lib.transfer.detectron import boxes_and_masks

from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

#: Images that a timed step of a pretraining holds at once, and such steps, without and with a GPU.
IMAGES, STEPS = {False: 4, True: 64}, {False: 2, True: 10}


def seconds(step: Callable[[], object], device: torch.device, repeat: int = 5, before: int = 2) -> float:
    """Median seconds of one call of `step`, after `before` calls that do not count."""
    wait = lambda: torch.cuda.synchronize(device) if device.type == "cuda" else None
    for _ in range(before):
        step()
    times = []
    for _ in range(repeat):
        wait()
        start = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def pretrain_step(cfg: Pretrain) -> float:
    """Seconds an image of an update of SoCo on this machine's first device, without data loading."""
    device = processes.own_device()
    cuda = device.type == "cuda"
    processes.arithmetic(fixed_sizes=True)
    count = min(cfg.micro_batch or cfg.batch, IMAGES[cuda])
    trainer = lone_trainer(dataclasses.replace(cfg, batch=count, micro_batch=0), device)
    batches = itertools.repeat(as_loaded(random_batch(cfg, count), trainer.model, device))
    return seconds(lambda: trainer.update(0, batches), device, STEPS[cuda], before=1) / count


def transfer_step(cfg: Transfer) -> float:
    """Seconds an image of an update of the detector on this machine's first device, without data loading."""
    device, count = processes.own_device(), 2
    processes.arithmetic(fixed_sizes=False)
    return seconds(detector_step(cfg, count, device), device, STEPS[device.type == "cuda"], before=1) / count


def lone_trainer(cfg: Pretrain, device: torch.device) -> Trainer:
    """A trainer on `device`, the only process, with random weights from the seed."""
    return Trainer(cfg, plan(cfg, 10 * cfg.batch), processes.Process(0, 0, 1, 1, device))


def random_batch(cfg: Pretrain, count: int, seed: int = 0) -> Batch:
    """`count` images of coloured blobs, the same in each view, and boxes of 0.3 to 0.8 of the side; a tenth of the
    boxes are lost in all views but the first.

    Blobs, because noise averages to one gray in deep features, and batch norm then magnifies rounding.
    """
    g = torch.Generator().manual_seed(seed)
    blobs = 255 * torch.rand(count, 3, 6, 6, generator=g)
    pictures = [F.interpolate(blobs, (s, s), mode="bicubic").clamp(0, 255) for s in cfg.view_sizes]
    images = [picture.permute(0, 2, 3, 1).contiguous().to(torch.uint8) for picture in pictures]
    side = 0.3 + 0.5 * torch.rand(count, cfg.k, 1, generator=g)
    corner = torch.rand(count, cfg.k, 2, generator=g) * (1 - side)
    boxes = [torch.cat([corner, corner + side], 2) * s for s in cfg.view_sizes]
    seen = torch.rand(count, cfg.k, generator=g) < 0.9
    seen[:, 0] = True
    return Batch(images, boxes, [torch.ones_like(seen), *(seen for _ in boxes[1:])])


def as_loaded(batch: Batch, model: SoCo, device: torch.device) -> Batch:
    """A batch as the loader hands it to a step on `device`: boxes counted, memory pinned for a GPU."""
    batch = dataclasses.replace(batch, counted=model.count(batch.boxes, batch.valid))
    return batch.pin_memory() if device.type == "cuda" else batch


def detector_step(cfg: Transfer, count: int, device: torch.device) -> Callable[[], None]:
    """An update of the detector on `count` random images of the middle training size, ten objects in each."""
    warnings.filterwarnings("ignore", "torch.meshgrid")  # Detectron2's, harmless
    d2 = detector_config(cfg.detector, cfg.overrides)
    d2.MODEL.DEVICE = device.type
    boxes_and_masks(d2, cfg.detector)
    for_finetuning(d2, synchronised=False)
    model, short = build_model(d2).train(), int(statistics.median(cfg.min_sizes))
    width = min(cfg.max_size, short * 4 // 3)
    corner = torch.rand(10, 2) * torch.tensor([width, short]) / 2
    boxes = torch.cat([corner, corner + short / 4], 1)
    objects = Instances((short, width), gt_boxes=Boxes(boxes), gt_classes=torch.zeros(10).long())
    objects.gt_masks = PolygonMasks([[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes.tolist()])
    pixels = [torch.randint(0, 256, (3, short, width), dtype=torch.uint8) for _ in range(count)]
    images = [{"image": image, "instances": objects} for image in pixels]
    d2.SOLVER.BASE_LR = 1e-6  # random images teach nothing, and a loss that leaves the finite numbers ends the step
    optimizer = build_optimizer(d2, model)

    def update() -> None:
        with EventStorage(), processes.autocast(cfg.precision, device):
            loss = sum(model(images).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return update
