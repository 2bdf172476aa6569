"""What an experiment is: frozen dataclasses, checked on construction; every derived number is derived here.

Boxes and sizes are pixels of the named view; learning rates are per global batch; "step" is one optimiser update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from soco_lib.fields import MANY, SEEDS, TINY, in_range, one_of, require, tidy

PRECISIONS = ("fp32", "bf16", "fp16")
ASSIGNMENTS = ("scale", "detectron2", "fixed")
OPTIMIZERS = ("lars", "sgd", "adamw")
STAGES = ("res2", "res3", "res4", "res5")
#: Sides of views in pixels: below, no box is left that RoIAlign could pool; above, no memory holds a batch.
SIDES = (16, 4096)
#: Limits, both allowed, of the numbers of a Pretrain.
LIMITS = {
    "size": SIDES, "k": (1, 1024), "jitter_p": (0, 1), "jitter": (0, 1), "cutout_p": (0, 1), "canonical": (TINY, MANY),
    "fixed_level": (2, 6), "hidden": (1, 2**16), "embedding": (1, 2**16), "base_lr": (TINY, MANY),
    "final_lr": (0, MANY),
    "warmup_factor": (0, 1), "warmup_epochs": (0, MANY), "weight_decay": (0, 1), "momentum": (0, 0.99999),
    "trust": (TINY, MANY), "tau": (0, 1), "batch": (1, MANY), "micro_batch": (0, MANY), "epochs": (0, MANY),
    "steps": (0, MANY), "seed": (0, SEEDS), "workers": (0, 1024), "log_every": (1, MANY), "save_every": (1, MANY),
    "keep": (1, MANY), "probe_every": (0, MANY), "probe_images": (1, MANY),
}  # fmt: skip


@dataclass(frozen=True)
class Alignment:
    """How much of the detector is pretrained (Table 4): what an object's feature is made by, and what transfers."""

    boxes: bool = True  # RoIAlign pools each box; False: the mean over the whole image
    neck: bool = False  # it pools from the FPN's levels, if the detector has an FPN; False: from the last ResNet stage
    head: bool = False  # the detector's box head or res5 follows; False: the mean of what was pooled
    regions: bool = False  # the detector's RPN learns the proposals (parts/regions.py); not in the paper

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the detector that are pretrained: a transfer must find all of their weights."""
        return ("backbone", *("neck",) * self.neck, *("head",) * self.head, *("regions",) * self.regions)


#: Every alignment, Table 4's in its order; encoder.Encoder builds from an entry.
ALIGNMENTS = {
    "whole": Alignment(boxes=False),
    "c5": Alignment(),
    "neck": Alignment(neck=True),
    "head": Alignment(neck=True, head=True),
    "rpn": Alignment(neck=True, head=True, regions=True),
}


@dataclass(frozen=True)
class View:
    """An extra view V2, V3, V4, … of the image (V1 is the whole image, resized); paper Sec. 3.2."""

    size: int  # side in pixels
    source: str = "crop"  # "crop": own random crop of V1; "V2", "V3", …: that earlier view, resized
    scale: tuple[float, float] = (0.5, 1.0)  # range of the crop's area over V1's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width over height

    def __post_init__(self):
        in_range(self, {"size": SIDES}, "view ")
        require(0 < self.scale[0] <= self.scale[1] <= 1, f"crop scale={self.scale} must satisfy 0 < low <= high <= 1")
        require(0 < self.ratio[0] <= self.ratio[1] < MANY, f"crop ratio={self.ratio} must satisfy 0 < low <= high")


@dataclass(frozen=True)
class Pretrain:
    """One object-level pretraining; the defaults are the paper's SoCo-R50-FPN, 100 epochs (Sec. 4.1)."""

    images: str  # where images come from (see sources.open_source)
    proposals: str  # a proposal store's folder, or "whole" for one box that is the image
    k: int = 4  # proposals an image a step (Sec. 3.2, Table 5c)
    size: int = 224  # side of V1
    views: tuple[View, ...] = (View(224), View(112, "V2"))  # V2, V3, …
    jitter_p: float = 0.5  # probability that a box is jittered (Sec. 3.2 Box Jitter)
    jitter: float = 0.1  # its largest relative shift and growth
    cutout_p: float = 0.0  # not in the paper: probability of cutout inside a box (authors' FPN-100 and C4 files: 0.5)
    detector: str = "mask-rcnn-r50-fpn"  # see detector.DETECTORS; or a config: a file of Detectron2's zoo, a path
    overrides: tuple[str, ...] = ()  # further Detectron2 "KEY=value" settings of the detector
    alignment: str = "head"  # how much of the detector is pretrained (Table 4): an entry of ALIGNMENTS
    assignment: str = "scale"  # box to pyramid level: scale (Sec. 3.3), detectron2 (224 on P4), fixed (one level)
    canonical: float = 96.0  # assignment="scale": sides in (canonical, 2 x canonical] pixels go to P4; for V1 of 224
    fixed_level: int = 4  # the level of assignment="fixed"
    hidden: int = 4096  # width of projector and predictor
    embedding: int = 256  # dimension of their outputs
    optimizer: str = "lars"
    base_lr: float = 1.0  # per 256 images; the rate is base_lr x batch / 256
    final_lr: float = 1e-6  # where the cosine ends (authors' release)
    warmup_factor: float = 0.01  # first rate over the full one (authors' release)
    warmup_epochs: float = 10.0
    weight_decay: float = 1e-5
    momentum: float = 0.9
    trust: float = 0.001  # LARS trust coefficient
    tau: float = 0.99  # target momentum at the start; rises to 1 (Table 5d)
    batch: int = 2048  # images an update, over all processes
    micro_batch: int = 0  # images a process holds at once; 0: the whole share (else gradients are accumulated)
    epochs: float = 100.0
    steps: int = 0  # 0: from epochs; else this many updates (warm-up shrinks alike)
    precision: str = "bf16"  # fp32, bf16 or fp16 (with gradient scaler); paper: mixed
    channels_last: bool = True
    compile: bool = False
    recompute: tuple[str, ...] = ()  # ResNet stages (res2, …) that backward computes again: less memory
    seed: int = 0
    workers: int = 8  # loader processes a training process
    log_every: int = 50  # steps
    save_every: int = 1000  # steps
    keep: int = 3  # checkpoints kept
    probe: str = ""  # labelled images for the object probe (coco:… or voc:…); "": none
    probe_every: float = 0.0  # epochs between two probes; 0: at the end only
    probe_images: int = 1000  # at most so many images
    profile: str = "paper"  # the label that every table and figure of this run carries

    def __post_init__(self):
        tidy(self, "images", "proposals", "probe")
        in_range(self, LIMITS)
        require(len(self.views) > 0, "views is empty: contrastive learning needs at least V2")
        for number, view in enumerate(self.views, start=2):
            one_of(f"V{number}'s source", view.source, ("crop", *(f"V{i}" for i in range(2, number))))
        one_of("alignment", self.alignment, ALIGNMENTS)
        one_of("assignment", self.assignment, ASSIGNMENTS)
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("precision", self.precision, PRECISIONS)
        require(
            self.aligned.boxes or (self.k == 1 and self.proposals == "whole"),
            f"alignment={self.alignment!r} pools the whole image: set k=1 and proposals='whole'",
        )
        learns = self.proposals != "whole" or not self.aligned.regions
        require(learns, f"alignment={self.alignment!r} learns proposals: PROPOSALS=whole has none")
        for name in self.recompute:
            one_of("recompute", name, STAGES)
        excluded = self.compile and self.recompute
        require(not excluded, "compile and recompute exclude each other: a compiled network frees on its own")
        require(self.steps > 0 or self.epochs > 0, f"epochs={self.epochs} must be positive when steps is 0")

    @property
    def aligned(self) -> Alignment:
        """The entry of `alignment`."""
        return ALIGNMENTS[self.alignment]

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """Sides in pixels of V1, V2, …"""
        return (self.size, *(view.size for view in self.views))


@dataclass(frozen=True)
class Plan:
    """Numbers that follow from a `Pretrain`, the number of images and of processes; the first thing a log says."""

    images: int
    world: int
    share: int  # images of a global batch that one process sees
    micro_batch: int
    accumulate: int  # micro-batches a process runs for one update
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    lr: float

    def describe(self, cfg: Pretrain) -> str:
        """One line of arithmetic: batch = processes x accumulation x micro-batch, steps, learning rate."""
        processes = f"{self.world} process{'es' * (self.world > 1)}"
        return (
            f"global batch {cfg.batch} = {processes} x {self.accumulate} accumulation x {self.micro_batch} images; "
            f"{self.images} images, {self.steps_per_epoch} steps an epoch, {self.steps} steps, {self.warmup_steps} of "
            f"them warm-up; lr {cfg.base_lr} x {cfg.batch}/256 = {self.lr:g}; {cfg.optimizer}, {cfg.precision}"
        )


def plan(cfg: Pretrain, images: int, world: int = 1, synchronised: bool | None = None) -> Plan:
    """Derive steps, rates and the batch arithmetic.

    synchronised: whether batch norm sees all processes' shares (None: as several GPUs do). Raises BookError when the
    batch exceeds the images, does not split into equal micro-batches, or leaves batch norm with a single box.
    """
    batch, share = f"batch={cfg.batch}", cfg.batch // world
    micro_batch = cfg.micro_batch or share
    give = f"is larger than the {images} usable images of {cfg.images}: give more images or a smaller batch"
    require(cfg.batch <= images, f"{batch} {give}")
    other = f"choose a multiple of {world} or other GPUS/NODES"
    require(cfg.batch % world == 0, f"{batch} cannot be split evenly over {world} processes: {other}")
    parts = f"each of {world} processes has {share} images, not a multiple of micro_batch={micro_batch}"
    require(share % micro_batch == 0, f"no accumulation reaches {batch}: {parts}")
    require(
        micro_batch > 1 or (world > 1 if synchronised is None else synchronised),
        "batch norm needs two boxes at once, and of one image a crop may leave one: a process that holds a single "
        f"image cannot train; raise micro_batch={cfg.micro_batch} or {batch}, or start fewer processes",
    )
    accumulate, steps_per_epoch = share // micro_batch, images // cfg.batch
    steps = cfg.steps or math.ceil(cfg.epochs * steps_per_epoch)
    warmup_steps = min(steps, round(cfg.warmup_epochs / cfg.epochs * steps) if cfg.epochs else 0)
    lr = cfg.base_lr * cfg.batch / 256
    return Plan(images, world, share, micro_batch, accumulate, steps_per_epoch, steps, warmup_steps, lr)
