"""Images and proposals to batches. A sample depends on (seed, its number in the run) alone.

B images of a micro-batch, K proposals, S_v side of view v in pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from soco_lib import BookError
from soco_lib.config import Plan, Pretrain
from soco_lib.data.sources import ImageSource, UnreadableImage, open_source
from soco_lib.data.store import ProposalStore
from soco_lib.fields import require
from soco_lib.runs import loader
from soco_lib.views import ViewSample, all_in_first, make_views

#: ImageNet mean and standard deviation of RGB in 0..255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def normalize(images: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 on any device to (B, 3, S, S) float32, channels-last in memory, normalised by MEAN and STD."""
    return (_by_table if images.device.type == "cpu" else _by_formula)(images).permute(0, 3, 1, 2)


def _by_formula(images: Tensor) -> Tensor:
    """What a GPU computes."""
    mean, scale = _rows(images.shape[2], images.device)
    return torch.sub(images.flatten(2), mean).mul_(scale).view(images.shape)


def _by_table(images: Tensor) -> Tensor:
    """The same numbers, on the CPU in one pass where torch takes three."""
    x = torch.empty(images.shape)
    for image, out in zip(images.numpy(), x.numpy()):
        cv2.LUT(image, _levels(), out)
    return x


@functools.cache
def _levels() -> np.ndarray:
    """What each level becomes in each channel: (1, 256, 3) float32."""
    return _by_formula(torch.arange(256).view(1, 1, 256, 1).expand(-1, -1, -1, 3))[0].numpy()


@functools.cache
def _rows(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """MEAN and 1 / STD for a row of pixels, (side x 3,) each: long rows are fast, and kept on the device."""
    return torch.tensor(MEAN, device=device).repeat(side), (1 / torch.tensor(STD, device=device)).repeat(side)


@dataclass
class Batch:
    """One entry a view, V1 first. Boxes and flags stay on the CPU; what the network needs of them is counted there."""

    images: list[Tensor]  # (B, S_v, S_v, 3) uint8
    boxes: list[Tensor]  # (B, K, 4) float32, view pixels
    valid: list[Tensor]  # (B, K) bool
    unreadable: int = 0  # samples that another image stands in for
    counted: Any = None  # what a step needs to know of boxes and flags: a parts.counted.Counted
    regions: list[Tensor] | None = None  # every proposal in V1, B tensors (n_i, 4); None where no RPN learns them

    def pin_memory(self) -> Batch:
        """Called by DataLoader(pin_memory=True)."""
        counted = self.counted and self.counted.moved(Tensor.pin_memory)
        images = [x.pin_memory() for x in self.images]
        return dataclasses.replace(self, images=images, counted=counted)

    def images_on(self, device: torch.device) -> list[Tensor]:
        """The images, copied without waiting where their memory is pinned."""
        return [x.to(device, non_blocking=True) for x in self.images]


#: Images that are tried for a sample before training gives up.
TRIES = 10


def collate(samples: list[tuple[list[ViewSample], bool]], count: Callable | None = None) -> Batch:
    """Stack samples view by view; count(boxes, valid), SoCo.count, makes the batch's `counted`."""
    views = list(zip(*(views for views, _ in samples)))
    stack = lambda name: [torch.from_numpy(np.stack([getattr(v, name) for v in view])) for view in views]
    boxes, valid = stack("boxes"), stack("valid")
    regions = None if views[0][0].regions is None else [torch.from_numpy(v.regions) for v in views[0]]
    return Batch(stack("image"), boxes, valid, sum(bad for _, bad in samples), count and count(boxes, valid), regions)


def choose(rng: np.random.Generator, count: int, k: int) -> np.ndarray:
    """k of `count` proposals, uniformly without replacement (Sec. 3.2); fewer than k: all of them, then repeats."""
    order = rng.permutation(count)
    return order[:k] if count >= k else np.concatenate([order, rng.integers(0, count, k - count)])


class ProposalViews(Dataset):
    """Item (number, image index) -> (views, whether another image had to stand in for one that shows nothing)."""

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

    def boxes(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """(n, 4) proposals of image `index` in its pixels; `size` = (width, height), which must be the store's."""
        if self.store is None:
            return np.array([[0, 0, *size]], np.float32)
        if self.store.size(index) != tuple(size):
            here, there = ("x".join(map(str, one)) for one in (size, self.store.size(index)))
            stranger = f"proposals in {self.cfg.proposals} do not belong to {self.source.keys[index]}"
            again = f"delete {self.store.path} and build the proposals again"
            raise BookError(f"{stranger}: the image is {here}, the store says {there}; {again}")
        return self.store.boxes(index)

    def __getitem__(self, item: tuple[int, int]) -> tuple[list[ViewSample], bool]:
        number, index = item
        rng = np.random.default_rng((self.cfg.seed, number))
        for attempt in range(TRIES):
            try:
                image, size = self.source.load_near(int(index), self.cfg.size)
                boxes = self.boxes(int(index), size)
                views = make_views(rng, image, boxes[choose(rng, len(boxes), self.cfg.k)], self.cfg, size)
                if all(view.valid.any() for view in views):  # else there is nothing to compare
                    if self.cfg.aligned.regions:
                        views[0] = all_in_first(views[0], rng.permutation(boxes), size)
                    return views, attempt > 0
                key = self.source.keys[int(index)]
                reason = BookError(f"every proposal drawn of {key} is under a pixel in some view")
            except UnreadableImage as error:
                reason = error
            except BookError:
                raise
            except Exception as error:
                raise loader.unexpected(f"{self.source.root / self.source.keys[int(index)]}", error) from None
            index = self.usable[rng.integers(len(self.usable))]
        at = f"SOCO_DATA={os.environ.get('SOCO_DATA', '')}"
        raise UnreadableImage(f"{reason}; so are {TRIES} images in a row: look at IMAGES={self.source.spec} and {at}")


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
                order = np.random.default_rng((cfg.seed, epoch, 1)).permutation(len(self.usable))
            first = (step % plan.steps_per_epoch) * cfg.batch + self.rank * plan.share
            number = step * cfg.batch + self.rank * plan.share
            items = [(number + i, self.usable[order[first + i]]) for i in range(plan.share)]
            for i in range(0, plan.share, plan.micro_batch):
                yield items[i : i + plan.micro_batch]


#: Micro-batches that each worker keeps ready, where there is room for them.
AHEAD = 4


def _start_worker(number: int) -> None:
    loader.start_worker(number)
    cv2.setNumThreads(0)  # one core a worker: OpenCV's own pool only fights the other workers


def build_loader(dataset: ProposalViews, plan: Plan, rank: int, start: int, pin: bool, count: Callable | None = None,
                 ahead: int = AHEAD) -> DataLoader:  # fmt: skip
    """Loader of the micro-batches from optimiser step `start` on, for a loader.Feed; a worker keeps `ahead` ready."""
    workers = dataset.cfg.workers
    return DataLoader(
        dataset,
        batch_sampler=Schedule(dataset.usable, dataset.cfg, plan, rank, start),
        num_workers=workers,
        collate_fn=functools.partial(collate, count=count),
        pin_memory=pin,
        worker_init_fn=_start_worker,
        prefetch_factor=ahead if workers else None,
        timeout=loader.POLL if workers else 0,
    )
