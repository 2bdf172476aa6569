"""Images and proposals to batches. What a sample is depends on (seed, its number in the run) and on nothing else:
not on workers, processes or interruptions.

B images of a micro-batch, K proposals, S_v side of view v in pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from soco_lib import BookError, loader
from soco_lib.config import Plan, Pretrain, require
from soco_lib.sources import ImageSource, UnreadableImage, open_source
from soco_lib.store import ProposalStore
from soco_lib.views import ViewSample, make_views

#: ImageNet mean and standard deviation of RGB in 0..255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def normalize(images: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 on any device to (B, 3, S, S) float32, channels-last in memory, zero mean and unit deviation.

    Row by row of S x 3 numbers: subtracting three from three at a time would leave a processor's vector units idle.
    """
    mean, scale = _rows(images.shape[2], images.device)
    x = torch.sub(images.flatten(2), mean).mul_(scale)
    return x.view(images.shape).permute(0, 3, 1, 2)


@functools.cache
def _rows(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """MEAN and 1 / STD, repeated for a row of pixels: (side x 3,) each. Kept, so that a device need not be waited for."""
    return torch.tensor(MEAN, device=device).repeat(side), (1 / torch.tensor(STD, device=device)).repeat(side)


@dataclass
class Batch:
    """One entry a view, V1 first."""

    images: list[Tensor]  # (B, S_v, S_v, 3) uint8
    boxes: list[Tensor]  # (B, K, 4) float32, view pixels
    valid: list[Tensor]  # (B, K) bool
    unreadable: int = 0  # samples that another image stands in for

    def pin_memory(self) -> Batch:
        """Called by DataLoader(pin_memory=True)."""
        return Batch(*([t.pin_memory() for t in ts] for ts in (self.images, self.boxes, self.valid)), self.unreadable)

    def to(self, device: torch.device) -> Batch:
        """Copy without waiting where the memory is pinned."""
        move = lambda ts: [t.to(device, non_blocking=True) for t in ts]  # noqa: E731
        return Batch(move(self.images), move(self.boxes), move(self.valid), self.unreadable)


def collate(samples: list[tuple[list[ViewSample], bool]]) -> Batch:
    """Stack samples view by view."""
    views = list(zip(*(views for views, _ in samples)))
    stack = lambda name: [torch.from_numpy(np.stack([getattr(v, name) for v in view])) for view in views]  # noqa: E731
    return Batch(stack("image"), stack("boxes"), stack("valid"), sum(bad for _, bad in samples))


def choose(rng: np.random.Generator, count: int, k: int) -> np.ndarray:
    """k of `count` proposals, uniformly without replacement (Sec. 3.2); fewer than k: all of them, then repeats."""
    order = rng.permutation(count)
    return order[:k] if count >= k else np.concatenate([order, rng.integers(0, count, k - count)])


class ProposalViews(Dataset):
    """Item (number, image index) -> (views, whether the image could not be read and another stands in)."""

    def __init__(self, cfg: Pretrain, source: ImageSource | None = None, store: ProposalStore | None = None):
        self.cfg = cfg
        self.source = source or open_source(cfg.images)
        self.store = store or (None if cfg.proposals == "whole" else ProposalStore.open(cfg.proposals))
        if self.store is None:
            self.usable = np.arange(len(self.source))
        else:
            self.store.check(self.source)
            self.usable = np.flatnonzero(self.store.readable)
        require(len(self.usable) > 0, f"no usable image in {cfg.images}")

    def __len__(self) -> int:
        return len(self.usable)

    def proposals(self, index: int, image: np.ndarray) -> np.ndarray:
        """(n, 4) boxes of image `index`, given whole, in its pixels. Raises BookError when its size is not the store's."""
        return self.boxes(index, image.shape[1::-1])

    def boxes(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """As `proposals`, for an image stored as `size` = (width, height)."""
        width, height = size
        if self.store is None:
            return np.array([[0, 0, width, height]], np.float32)
        if self.store.size(index) != (width, height):
            raise BookError(
                f"proposals in {self.cfg.proposals} do not belong to {self.source.keys[index]}: the image is {width}x{height}, "
                f"the store says {'x'.join(map(str, self.store.size(index)))}; build the proposals again"
            )
        return self.store.boxes(index)

    def __getitem__(self, item: tuple[int, int]) -> tuple[list[ViewSample], bool]:
        number, index = item
        rng = np.random.default_rng((self.cfg.seed, number))
        for attempt in range(10):
            try:
                image, size = self.source.load_near(int(index), self.cfg.size)
                break
            except UnreadableImage:
                if attempt == 9:
                    raise
                index = self.usable[rng.integers(len(self.usable))]
        boxes = self.boxes(int(index), size)
        boxes = boxes[choose(rng, len(boxes), self.cfg.k)]
        return make_views(rng, image, boxes, self.cfg, size), attempt > 0


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The permutation of `count` images in an epoch."""
    return np.random.default_rng((seed, epoch, 1)).permutation(count)


class Schedule:
    """Batch sampler: the micro-batches of one process from optimiser step `start` to the end, as lists of items."""

    def __init__(self, usable: np.ndarray, cfg: Pretrain, plan: Plan, rank: int = 0, start: int = 0):
        self.usable, self.cfg, self.plan, self.rank, self.start = usable, cfg, plan, rank, start

    def __len__(self) -> int:
        return (self.plan.steps - self.start) * self.plan.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        cfg, plan, epoch, order = self.cfg, self.plan, -1, None
        for step in range(self.start, plan.steps):
            if step // plan.steps_per_epoch != epoch:
                epoch = step // plan.steps_per_epoch
                order = epoch_order(cfg.seed, epoch, len(self.usable))
            first = (step % plan.steps_per_epoch) * cfg.batch + self.rank * plan.share
            items = [(step * cfg.batch + self.rank * plan.share + i, self.usable[order[first + i]]) for i in range(plan.share)]
            for i in range(0, plan.share, plan.micro_batch):
                yield items[i : i + plan.micro_batch]


#: Micro-batches that each worker keeps ready, where there is room for them.
AHEAD = 4


def shared_bytes(cfg: Pretrain, plan: Plan) -> int:
    """Shared memory that a micro-batch on its way from a worker takes: images, boxes and validity of each view."""
    n = plan.micro_batch
    return sum(loader.pages(n * 3 * size**2, n * cfg.k * 16, n * cfg.k) for size in cfg.view_sizes)


def _start_worker(number: int) -> None:
    loader.start_worker(number)
    cv2.setNumThreads(0)  # one core a worker: OpenCV's own pool only fights the other workers


def build_loader(dataset: ProposalViews, plan: Plan, rank: int, start: int, pin: bool, ahead: int = AHEAD) -> DataLoader:
    """Loader of the micro-batches that remain from optimiser step `start`, for a loader.Feed. ahead: what a worker keeps ready."""
    workers = dataset.cfg.workers
    return DataLoader(
        dataset,
        batch_sampler=Schedule(dataset.usable, dataset.cfg, plan, rank, start),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        prefetch_factor=ahead if workers else None,
        timeout=loader.POLL if workers else 0,
    )
