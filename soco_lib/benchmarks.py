"""What a transfer is: the settings of one fine-tuning and its evaluation (method.md 5)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from soco_lib import BookError
from soco_lib.config import PRECISIONS, one_of, require
from soco_lib.sources import coco_root, split_spec

SOLVERS = ("sgd", "adamw")
REACHES = ("accumulate", "scale")


@dataclass(frozen=True)
class Transfer:
    """One fine-tuning and its evaluation; the defaults are Table 1's COCO 1x schedule with Mask R-CNN R50-FPN."""

    train: str  # coco:ANNOTATIONS.json@IMAGE_FOLDER
    test: str
    init: str = "scratch"  # or a run folder or checkpoint of a pretraining
    benchmark: str = ""  # the paper's benchmark that these settings are of (see find); "": none
    network: str = "online"  # which of the checkpoint's networks: online or target
    detector: str = "mask-rcnn-r50-fpn"  # see detector.DETECTORS; or any Detectron2 model-zoo file
    overrides: tuple[str, ...] = ()  # further Detectron2 "KEY=value" settings
    iterations: int = 90000
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)  # where the rate falls tenfold, as shares of the iterations
    warmup: int = 1000  # iterations
    batch: int = 16  # images an update, over all processes
    micro_batch: int = 0  # images a process holds at once; 0: its whole share of the batch
    reach: str = "accumulate"  # how fewer than `batch` images at once follow the schedule: accumulate, or scale (linear rule)
    lr: float = 0.02
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 2.5e-5  # the paper's; Detectron2's own is 1e-4
    clip_gradients: float = 0.0  # largest gradient norm of a parameter; 0: no clipping
    min_sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # shorter side in training, drawn an image
    max_size: int = 1333  # longest side, training and test
    test_size: int = 800  # shorter side in the test
    precise_bn: int = 200  # iterations that measure batch statistics before each evaluation; 0: running averages
    eval_every: int = 0  # iterations; 0: only at the end
    labelled: float = 1.0  # training images drawn at random: a share up to 1, else a number (Table 8)
    precision: str = "fp32"  # bf16 and fp16 need a GPU
    seed: int = 0
    workers: int = 4  # loader processes a training process
    log_every: int = 20  # iterations
    save_every: int = 5000  # iterations
    keep: int = 2  # checkpoints kept beside the final one
    profile: str = "paper"  # the label that every table and figure of this run carries

    def __post_init__(self):
        one_of("network", self.network, ("online", "target"))
        one_of("optimizer", self.optimizer, SOLVERS)
        one_of("reach", self.reach, REACHES)
        one_of("precision", self.precision, PRECISIONS)
        for name in ("iterations", "batch", "max_size", "test_size", "log_every", "save_every", "keep"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("warmup", "precise_bn", "eval_every", "workers", "clip_gradients", "weight_decay"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} may not be negative")
        require(self.lr > 0, f"lr={self.lr} must be positive")
        require(self.labelled > 0, f"labelled={self.labelled} must be positive: a share up to 1, else a number of images")
        require(bool(self.min_sizes) and min(self.min_sizes) > 0, f"min_sizes={self.min_sizes} needs at least one side in pixels")
        ordered = all(a < b for a, b in zip((0, *self.milestones), (*self.milestones, 1)))
        require(ordered, f"milestones={self.milestones} must rise inside (0, 1): they are shares of the iterations")


def read_coco(spec: str) -> tuple[Path, Path, dict]:
    """Annotation file, image folder and contents of "coco:ANNOTATIONS.json[@IMAGE_FOLDER]".

    Raises BookError for a bad spec, a missing or foreign file, or a folder that lacks its images.
    """
    kind, _, rest = spec.partition(":")
    require(kind == "coco" and bool(rest), f"data {spec!r} must read coco:ANNOTATIONS.json[@IMAGE_FOLDER]")
    path, folder = split_spec(rest)
    require(path.is_file(), f"no annotation file {path}: give coco:ANNOTATIONS.json[@IMAGE_FOLDER]")
    try:
        content = json.loads(path.read_bytes())
        images, _, categories = content["images"], content["annotations"], content["categories"]
    except (ValueError, KeyError, TypeError):
        raise BookError(f"{path} is not a COCO instances file (JSON with images, annotations, categories)") from None
    require(bool(images and categories), f"{path} lists no images or no categories")
    return path, coco_root(path, folder, images[0]["file_name"]), content
