"""A transfer's batch: how many images an update has, how many a process holds, which they are, and the update."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

from soco_lib import BookError
from soco_lib.detector import CfgNode
from soco_lib.fields import one_of, require
from soco_lib.runs import loader, processes
from soco_lib.transfer.benchmarks import Transfer
from soco_lib.transfer.detectron import Mapper

from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")
#: Micro-batches that each worker keeps ready, where there is room for them.
AHEAD = 2
#: What a random draw is for: keeps the draws of samples and of updates apart.
SAMPLE, UPDATE = 1, 2


def seed_with(*key: int, devices: bool = True) -> None:
    """Seed Python, numpy and torch with a function of `key` (non-negative); devices: GPUs too, which costs 1 ms."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    (torch if devices else torch.default_generator).manual_seed(seed)


# --- how many images --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """How an update's batch is made up: cfg.batch = world x accumulate x micro_batch images."""

    cfg: Transfer  # as it is run: with reach="scale", its batch, rate and schedule are those of the images held at once
    world: int  # processes
    micro_batch: int  # images a process holds at once
    accumulate: int  # micro-batches a process runs for one update
    asked: int  # images an update was to have

    def describe(self) -> str:
        """The arithmetic in words, e.g. 'batch 16 = 1 process x 8 accumulation x 2 images'."""
        processes = f"{self.world} process{'es' * (self.world > 1)}"
        product = f"{processes} x {self.accumulate} accumulation x {self.micro_batch} images"
        scaled = f" in place of {self.asked}, rate and schedule by the linear rule" * (self.cfg.batch != self.asked)
        return f"batch {self.cfg.batch} = {product}{scaled}"


def _scaled(cfg: Transfer, batch: int) -> Transfer:
    """The linear scaling rule (Goyal et al. 2017, Sec. 2.1), rounded as DefaultTrainer.auto_scale_workers does.

    The rate is in proportion to the batch, all counts of iterations in inverse proportion (and never rounded to none).
    """
    scale = batch / cfg.batch
    names = ("iterations", "warmup", "eval_every", "save_every", "precise_bn")
    counts = {name: max(1, round(getattr(cfg, name) / scale)) for name in names if getattr(cfg, name)}
    return replace(cfg, batch=batch, lr=cfg.lr * scale, **counts)


def reach(cfg: Transfer, world: int = 1) -> Reach:
    """How `world` processes reach cfg.batch (or, with reach="scale", what schedule follows from what they hold).

    Raises BookError for a batch that equal shares or micro-batches do not make up.
    """
    require(cfg.micro_batch >= 0, f"micro_batch={cfg.micro_batch} may not be negative: 0 is a process's whole share")
    uneven = f"batch={cfg.batch} cannot be split evenly over {world} processes"
    even = cfg.micro_batch > 0 or cfg.batch % world == 0
    require(even, f"{uneven}: choose a multiple of {world} or other GPUS/NODES")
    micro = cfg.micro_batch or cfg.batch // world
    if cfg.reach == "scale":
        return Reach(_scaled(cfg, world * micro), world, micro, 1, cfg.batch)
    require(
        cfg.batch % (world * micro) == 0,
        f"no accumulation reaches batch={cfg.batch}: {world} x micro_batch={micro} images at once do not divide it: "
        "choose another micro_batch, or reach=scale",
    )
    return Reach(cfg, world, micro, cfg.batch // (world * micro), cfg.batch)


# --- which images -----------------------------------------------------------------------------------------------------


class Samples(Dataset):
    """Item (number, index) -> record `index` as Detectron2's mapper gives it, augmented by (seed, number) alone."""

    def __init__(self, d2: CfgNode):
        records = get_detection_dataset_dicts(d2.DATASETS.TRAIN, filter_empty=d2.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        self.seed, self.records, self.mapper = d2.SEED, DatasetFromList(records, copy=False), Mapper(d2, True)
        self.area = max(d2.INPUT.MIN_SIZE_TRAIN) * d2.INPUT.MAX_SIZE_TRAIN
        masks = d2.MODEL.MASK_ON and d2.INPUT.MASK_FORMAT == "bitmask"  # polygons are a few numbers
        self.planes = 3 + (-(-sum(len(record["annotations"]) for record in records) // len(records)) if masks else 0)
        grouped = d2.DATALOADER.ASPECT_RATIO_GROUPING
        self.wide = [grouped and record["width"] > record["height"] for record in records]
        one_of("DATALOADER.SAMPLER_TRAIN", d2.DATALOADER.SAMPLER_TRAIN, SAMPLERS)
        if d2.DATALOADER.SAMPLER_TRAIN == "TrainingSampler":
            self.order = TrainingSampler(len(records), seed=d2.SEED)
        else:  # LVIS
            threshold, sqrt = d2.DATALOADER.REPEAT_THRESHOLD, d2.DATALOADER.REPEAT_SQRT
            factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, threshold, sqrt)
            self.order = RepeatFactorTrainingSampler(factors, seed=d2.SEED)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        number, index = item
        seed_with(SAMPLE, self.seed, number, devices=False)  # the mapper draws with numpy, on the CPU
        try:
            return self.mapper(self.records[index])
        except BookError:
            raise
        except Exception as error:
            raise loader.unexpected(self.records[index]["file_name"], error) from None

    def shared_bytes(self, images: int) -> int:
        """Shared memory that a micro-batch on its way from a worker takes at most: every image as large as they become.

        Masks that are no polygons come on top, as many as an image has objects in the mean.
        """
        return images * loader.pages(self.area * self.planes, loader.PAGE, loader.PAGE)  # the others: boxes and classes

    def loader(self, reached: Reach, workers: int, start: int = 0, ahead: int = AHEAD) -> DataLoader:
        """Endless micro-batches of this process from update `start` on, whatever the number of workers; each keeps
        `ahead` of them ready.
        """
        batches = Batches(self, reached.accumulate, reached.micro_batch, start)
        parallel = {"prefetch_factor": ahead, "timeout": loader.POLL} if workers else {}
        return DataLoader(self, batch_sampler=batches, num_workers=workers, collate_fn=trivial_batch_collator,
                          worker_init_fn=loader.start_worker, **parallel)  # fmt: skip


class Batches(Sampler):
    """Items of this process's micro-batches from update `start` on; `accumulate` of them are its share of one update.

    Wide and tall images do not meet in one share. Detectron2's AspectRatioGroupedDataset groups what was loaded, in an
    order that depends on the workers, and forgets what it holds back at an interruption. Grouping the records before
    they are loaded gives the batches that it gives without workers.
    """

    def __init__(self, samples: Samples, accumulate: int, micro_batch: int, start: int = 0):
        self.samples, self.accumulate, self.micro_batch, self.start = samples, accumulate, micro_batch, start

    def _shares(self) -> Iterator[list[tuple[int, int]]]:
        rank, world, groups = comm.get_rank(), comm.get_world_size(), ([], [])
        for i, index in enumerate(self.samples.order):
            group = groups[self.samples.wide[index]]
            group.append((i * world + rank, index))
            if len(group) == self.accumulate * self.micro_batch:
                yield group[:]
                group.clear()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for share in itertools.islice(self._shares(), self.start, None):
            for i in range(0, len(share), self.micro_batch):
                yield share[i : i + self.micro_batch]


# --- the update -------------------------------------------------------------------------------------------------------


class Accumulator(SimpleTrainer):
    """Detectron2's SimpleTrainer and AMPTrainer in one: a step over `accumulate` micro-batches, in any precision.

    An update's gradient is the mean of its micro-batches' gradients. That equals the whole batch's for a loss with as
    many terms from each image: RPN's, and the box head's while all images give equally many regions. It differs for the
    mask head (mean over the micro-batch's foreground), RetinaNet and FCOS (running count of foreground anchors) and
    batch norm, which sees a micro-batch.
    """

    def __init__(self, model, data_loader, optimizer, accumulate: int = 1, precision: str = "fp32", seed: int = 0):
        super().__init__(model, data_loader, optimizer)
        self.accumulate, self.precision, self.seed = accumulate, precision, seed
        self.scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")

    def run_step(self):
        """One update; its random draws depend on seed, iteration and process only, not on interruptions."""
        parts, waited = [], 0.0
        self.optimizer.zero_grad()
        for i in range(self.accumulate):
            started = time.perf_counter()
            images = next(self._data_loader_iter)
            waited += time.perf_counter() - started
            seed_with(UPDATE, self.seed, self.iter, i, comm.get_rank())
            alone = i == self.accumulate - 1 or not isinstance(self.model, DistributedDataParallel)
            with contextlib.nullcontext() if alone else self.model.no_sync():
                losses = self.forward(images)
                self.scaler.scale(sum(losses.values()) / self.accumulate).backward()
            parts.append(losses)
        mean = lambda name: torch.stack([part[name].detach().float() for part in parts]).mean()
        self._write_metrics({name: mean(name) for name in losses}, waited)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def forward(self, images: list[dict]) -> dict[str, torch.Tensor]:
        """The model's losses of a micro-batch, under the run's precision."""
        with processes.autocast(self.precision, processes.own_device()):
            return self.model(images)

    def state_dict(self) -> dict:
        return {**super().state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict):
        super().load_state_dict(state)
        self.scaler.load_state_dict(state["scaler"])
