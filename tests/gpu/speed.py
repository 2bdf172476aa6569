"""How fast this device makes the paper's step, what memory that takes, and what holds it up. Random pixels; no
download.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import time
from pathlib import Path

import cv2
import torch
from torch.utils.flop_counter import FlopCounterMode

from soco_lib.config import Pretrain, plan
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import build_store
from soco_lib.dataset import AHEAD, ProposalViews, build_loader
from soco_lib.runs import processes
from soco_lib.runs.loader import Feed, batches_ahead, shared_bytes
from soco_lib.runs.machine import peak_memory
from soco_lib.studies.step_time import as_loaded, detector_step, lone_trainer, random_batch, seconds
from soco_lib.transfer.benchmarks import Transfer
from tests.gpu.checks import SMALL, counted_waits, settings

#: ImageNet's training images, and the epochs of the paper's shorter schedule.
IMAGENET, EPOCHS = 1_281_167, 100
#: What the paper's authors report: 16 V100, about 35 hours for 100 epochs, which is 64 images a second and GPU.
PAPER_GPUS, PAPER_HOURS = 16, 35.0
#: The goal on one H100 in bf16: 100 epochs in 36 hours.
GOAL = 1000.0
#: Points of the sweep: precision, images held at once, other settings. Without a GPU: SMALL's.
SWEEP = (
    *(("bf16", n, {}) for n in (32, 128, 256, 512)),
    ("bf16", 512, {"recompute": ("res2", "res3")}),
    ("fp16", 32, {}),
    ("fp16", 512, {}),
    ("fp32", 32, {}),
    ("fp32", 256, {}),
    ("bf16", 256, {"compile": True}),
)
QUICK_SWEEP = (("bf16", 128, {}), ("fp32", 64, {}))
CPU_SWEEP = (("fp32", 4, {}), ("fp32", 8, {}), ("fp32", 8, {"recompute": ("res2", "res3")}))
#: Fine-tunings: images held at once, precision.
TRANSFERS = ((2, "fp32"), (2, "bf16"), (16, "fp32"), (16, "bf16"))


def product(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product: what this device can do at most, in practice."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device)


def operations(cfg: Pretrain, device: torch.device) -> float:
    """Operations an image of one update, forward and backward, a multiplication and an addition counted as two."""
    cfg = dataclasses.replace(cfg, batch=4, precision="fp32", compile=False, recompute=())
    trainer = lone_trainer(cfg, device)
    batches = itertools.repeat(as_loaded(random_batch(cfg, 4), trainer.model, device))
    with FlopCounterMode(display=False) as counter:
        trainer.update(0, batches)
    return counter.get_total_flops() / 4


def step(cfg: Pretrain, device: torch.device) -> dict:
    """images/s, GB and waits of the host of an update that holds cfg.batch images at once."""
    forget(device)
    trainer = lone_trainer(cfg, device)
    batches = itertools.repeat(as_loaded(random_batch(cfg, cfg.batch), trainer.model, device))
    update = lambda: trainer.update(0, batches)
    taken = seconds(update, device, *((5, 2) if device.type == "cuda" else (2, 1)))
    memory = peak_memory(cuda=True) / 1e9 if device.type == "cuda" else None
    with counted_waits(device) as found:
        update()
    return {"images/s": cfg.batch / taken, "GB": memory, "waits": len(found)}


def why(error: Exception) -> str:
    """A row's word for what could not be measured."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return (str(error).splitlines() or [type(error).__name__])[0][:80]


def forget(device: torch.device) -> None:
    """Let go of earlier networks, of which recomputing ones are cycles, and count memory anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def sweep(device: torch.device, quick: bool) -> list[dict]:
    """A row a point; a point that does not fit says so. share: of what a matrix product reaches in the same type."""
    points = CPU_SWEEP if device.type != "cuda" else QUICK_SWEEP if quick else SWEEP
    processes.arithmetic(fixed_sizes=True)  # as in a pretraining
    each, rows = operations(settings(device), device), []
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    most = {precision: product(device, kinds[precision]) for precision in {p for p, _, _ in points}}
    for precision, count, changes in points:
        cfg = dataclasses.replace(settings(device), precision=precision, batch=count, **changes)
        row = {"precision": precision, "images at once": count, "how": ", ".join(changes) or "plain"}
        try:
            row |= step(cfg, device)
        except (RuntimeError, ArithmeticError) as error:  # out of memory, in cuDNN's own words too; no compiler
            rows.append(row | {"images/s": None, "why": why(error)})
            continue
        rate = each * row["images/s"]
        rows.append(row | {"TFLOP/s": rate / 1e12, "share of a matrix product": rate / most[precision]})
    return rows


def loaded(folder: Path, scenes: str, device: torch.device, workers: int, limit: float) -> float:
    """Images a second that `workers` processes make into the paper's views, from JPEGs of ImageNet's size, measured for
    `limit` seconds.
    """
    folder.mkdir()
    source = open_source(scenes)
    for index in range(len(source)):
        image = cv2.resize(source.load(index), (500, 375), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index:04d}.jpg"), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    build_store(open_source(f"folder:{folder}"), ProposalConfig(generator="random"), folder / "store", workers=1)
    cfg = Pretrain(f"folder:{folder}", str(folder / "store"), batch=16, steps=10**6, workers=workers)
    dataset = ProposalViews(cfg)
    numbers, count = plan(cfg, len(dataset)), lone_trainer(SMALL, torch.device("cpu")).model.count
    ahead = batches_ahead(AHEAD, shared_bytes(cfg, numbers), workers, 1)
    batches = Feed(build_loader(dataset, numbers, 0, 0, device.type == "cuda", count, ahead))
    for _ in range(workers + 1):  # each worker's first
        next(batches)
    start, seen = time.perf_counter(), 0
    while time.perf_counter() - start < limit:
        seen += len(next(batches).images[0])
    return seen / (time.perf_counter() - start)


def hours(rate: float, gpus: int = 1) -> float:
    """Of the paper's 100 epochs at `rate` images a second and GPU, if more GPUs lose nothing."""
    return IMAGENET * EPOCHS / rate / gpus / 3600


def transfers(device: torch.device, quick: bool) -> list[dict]:
    """Mask R-CNN R50-FPN at 800 pixels, two images (16 over 8 GPUs) and 16; a narrow one at 64 without a GPU."""
    cuda, rows = device.type == "cuda", []
    processes.arithmetic(fixed_sizes=False)  # as in a transfer
    small = {"detector": "toy-mask-rcnn-slim-r50-fpn", "min_sizes": (64,)}
    base = Transfer("", "", **({"min_sizes": (800,)} if cuda else small))
    for count, precision in TRANSFERS[: 2 if quick else 4] if cuda else TRANSFERS[:1]:
        forget(device)
        row = {"images at once": count, "precision": precision}
        try:
            update = detector_step(dataclasses.replace(base, precision=precision), count, device)
            taken = seconds(update, device, 5 if cuda else 2)
        except (RuntimeError, ArithmeticError) as error:
            rows.append(row | {"updates/s": None, "why": why(error)})
            continue
        memory = peak_memory(cuda=True) / 1e9 if cuda else None
        row |= {"updates/s": 1 / taken, "GB": memory}
        if cuda:
            row |= {"hours of 1x": base.iterations * taken / 3600, "GPUs": base.batch // count}
        rows.append(row)
    return rows
