"""A transfer's data in Detectron2's catalogues, and the Detectron2 config that follows from settings and data."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from soco_lib import BookError
from soco_lib.data.decoding import decode
from soco_lib.detector import CfgNode, architecture, detector_config, for_finetuning, is_lazy
from soco_lib.fields import require
from soco_lib.transfer.benchmarks import Transfer, require_data, split_sets
from soco_lib.transfer.datasets import LAYOUTS, DataLayout

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.transforms import AugInput

logging.getLogger("detectron2").setLevel(logging.ERROR)  # quiet until a run gives it a log file
#: Architectures that detect nothing.
NO_BOXES = ("SemanticSegmentor", "ProposalNetwork", "PanopticDeepLab")
STRIDE = 32  # of a ResNet's last stage: an image no larger is one value there


@dataclass(frozen=True)
class DetectionData:
    """A data set, or several of one layout and the same classes, as Detectron2 knows it."""

    name: str  # in Detectron2's catalogues
    image_ids: tuple = field(repr=False)  # sorted; those drawn, where only a part is labelled; VOC's are names
    layouts: tuple[DataLayout, ...] = field(repr=False)  # the sets that it is joined from

    @property
    def kind(self) -> str:
        """The layout's."""
        return self.layouts[0].kind

    @property
    def classes(self) -> tuple[str, ...]:
        """COCO, LVIS: sorted by category id; VOC: its own order, or sorted by name."""
        return self.layouts[0].classes

    @property
    def mask_format(self) -> str:
        """polygon, bitmask (RLE), or "" without masks."""
        return self.layouts[0].mask_format

    @property
    def records(self) -> list[dict]:
        """Detectron2's dataset dicts: file_name, height, width, image_id, annotations."""
        return DatasetCatalog.get(self.name)

    def describe(self) -> str:
        """What it holds, for a log: images, classes, masks, boxes without area."""
        count = sum(layout.empty_boxes for layout in self.layouts)
        empty = f", {count} boxes without area" if count else ""
        return f"{len(self.image_ids)} images, {len(self.classes)} classes, masks: {self.mask_format or 'none'}{empty}"


def draw_images(image_ids: tuple[int, ...], labelled: float, seed: int) -> tuple[int, ...]:
    """The labelled images, sorted: a share (up to 1) or a number of them, drawn by `seed` (Table 8)."""
    count = round(labelled * len(image_ids)) if labelled <= 1 else int(labelled)
    left = f"labelled={labelled:g} leaves {count} of {len(image_ids)} images"
    require(1 <= count <= len(image_ids), f"{left}: choose 1 to all")
    if count == len(image_ids):
        return image_ids
    return tuple(sorted(np.random.default_rng(seed).choice(image_ids, count, replace=False).tolist()))


def open_data(spec: str, labelled: float = 1.0, seed: int = 0) -> DetectionData:
    """Check a data set (see datasets.LAYOUTS) and register it with Detectron2, named by its files and drawn part.

    Raises BookError for a bad spec, for what the layout refuses, and for sets that cannot be joined.
    """
    layouts = tuple(LAYOUTS[kind](rest) for kind, rest in split_sets(spec))
    first = layouts[0]
    for other in layouts[1:]:
        for what in ("kind", "classes", "category_ids", "mask_format"):
            differ = f"{spec!r} joins sets that differ in {what.replace('_', ' ')}"
            require(getattr(first, what) == getattr(other, what), f"{differ}: join only parts of one data set")
    everything = sorted(itertools.chain.from_iterable(part.image_ids for part in layouts))
    ids = draw_images(tuple(everything), labelled, seed)
    whole = len(ids) == len(everything)
    clear = whole or len(set(everything)) == len(everything)
    require(clear, f"labelled={labelled:g}: sets of {spec!r} use the same image ids: renumber those of one")
    files = ((part.source, part.root, part.source.stat().st_mtime_ns) for part in layouts)
    unique = f"{list(map(str, itertools.chain.from_iterable(files)))}{'' if whole else ids}"
    name = f"{first.source.stem}-{hashlib.sha256(unique.encode()).hexdigest()[:8]}"
    if name not in DatasetCatalog.list():

        @functools.cache  # several loaders ask, and reading train2017 takes half a minute
        def load() -> list[dict]:
            chosen = set(ids)
            return [record for layout in layouts for record in layout.records(name) if record["image_id"] in chosen]

        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(thing_classes=list(first.classes), evaluator_type=first.kind, **first.metadata)
    return DetectionData(name, ids, layouts)


def open_both(cfg: Transfer) -> tuple[DetectionData, DetectionData]:
    """Training and test data of a transfer.

    Raises BookError when they are missing, their classes differ, nothing can be learnt, or the test cannot be scored.
    """
    require_data(cfg)
    train, test = open_data(cfg.train, cfg.labelled, cfg.seed), open_data(cfg.test)
    different = sorted({*train.classes} ^ {*test.classes}) or [a for a, b in zip(train.classes, test.classes) if a != b]
    said = f"training and test data have different classes, e.g. {different[:3]}"
    require(not different, f"{said}: give two parts of one data set")
    learnable = any(not a.get("iscrowd", 0) for record in train.records for a in record["annotations"])
    empty = f"the {len(train.image_ids)} training images of {cfg.train} hold no objects"
    require(learnable, f"{empty} but crowd regions, if any: give others, TRAIN=")
    crowd = lambda a: a.get("iscrowd", 0) or a.get("difficult", 0)
    scored = any(not crowd(a) for record in test.records for a in record["annotations"])
    require(scored, f"the {len(test.image_ids)} test images of {cfg.test} hold no objects to score: give others, TEST=")
    require(len(test.layouts) == 1, f"test={cfg.test!r} joins several sets: evaluators take one")
    return train, test


# --- Detectron2 -------------------------------------------------------------------------------------------------------


class Mapper(DatasetMapper):
    """Detectron2's mapper of a record to the detector's input, over pictures that the book's own reader read."""

    def __call__(self, record: dict) -> dict:
        """Raises BookError for a picture that cannot be read or is of another size than its annotations say."""
        record, file, stated = copy.deepcopy(record), record["file_name"], (record["width"], record["height"])
        try:
            image = decode(Path(file).read_bytes(), lambda: stated)
        except (OSError, BookError) as error:
            raise BookError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        size = image.shape[1::-1]
        require(
            size == stated,
            f"{file} is {size[0]} x {size[1]} pixels, its annotations say {stated[0]} x {stated[1]}: correct them",
        )
        seen = AugInput(image[..., ::-1] if self.image_format == "BGR" else image)
        transforms = self.augmentations(seen)
        record["image"] = torch.as_tensor(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
        if self.is_train:
            self._transform_annotations(record, transforms, seen.image.shape[:2])
        else:
            del record["annotations"]
        return record


def milestones(cfg: Transfer) -> tuple[int, ...]:
    """Iterations at which the rate falls tenfold, inside (0, iterations) also where a short run rounds them out."""
    return tuple(sorted({min(round(share * cfg.iterations), cfg.iterations - 1) for share in cfg.milestones} - {0}))


def _settings(cfg: Transfer, train: DetectionData, test: DetectionData, folder: Path) -> dict:
    """Detectron2's settings that a Transfer owns."""
    return {
        "DATASETS.TRAIN": (train.name,),
        "DATASETS.TEST": (test.name,),
        "DATALOADER.NUM_WORKERS": cfg.workers,
        "INPUT.MIN_SIZE_TRAIN": cfg.min_sizes,
        "INPUT.MAX_SIZE_TRAIN": cfg.max_size,
        "INPUT.MIN_SIZE_TEST": cfg.test_size,
        "INPUT.MAX_SIZE_TEST": cfg.max_size,
        "MODEL.ROI_HEADS.NUM_CLASSES": len(train.classes),
        "MODEL.RETINANET.NUM_CLASSES": len(train.classes),
        "SOLVER.IMS_PER_BATCH": cfg.batch,
        "SOLVER.BASE_LR": cfg.lr,
        "SOLVER.MOMENTUM": cfg.momentum,
        "SOLVER.WEIGHT_DECAY": cfg.weight_decay,
        "SOLVER.MAX_ITER": cfg.iterations,
        "SOLVER.STEPS": milestones(cfg),
        "SOLVER.WARMUP_ITERS": cfg.warmup,
        "SOLVER.CHECKPOINT_PERIOD": cfg.save_every,
        "SOLVER.CLIP_GRADIENTS.ENABLED": cfg.clip_gradients > 0,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": cfg.clip_gradients or 1.0,
        "TEST.EVAL_PERIOD": cfg.eval_every,
        "TEST.PRECISE_BN.ENABLED": cfg.precise_bn > 0,
        "TEST.PRECISE_BN.NUM_ITER": max(cfg.precise_bn, 1),
        "OUTPUT_DIR": str(folder),
        "SEED": cfg.seed,
    }


def boxes_and_masks(d2: CfgNode, name: str) -> None:
    """Leave out heads of the detector `name` that boxes and masks do not train (see `without`). Raises BookError where
    nothing is left.
    """
    kind = architecture(d2)
    other = "pretrain with it, and fine-tune a detector with the same backbone"
    require(kind not in NO_BOXES, f"detector={name!r} is a {kind}, which finds no objects to be scored: {other}")
    own = "override MODEL.PROPOSAL_GENERATOR.NAME=RPN and MODEL.LOAD_PROPOSALS=False"
    require(
        not d2.MODEL.LOAD_PROPOSALS, f"detector={name!r} takes its proposals from files, not from the images: {own}"
    )
    classes = f"detector={name!r} has no num_classes, in its model or its RoI heads, that labelled data could set"
    require(d2.MODEL.ROI_HEADS.NUM_CLASSES > 0, f"{classes}: give its config one")
    d2.MODEL.KEYPOINT_ON = False
    if kind == "PanopticFPN":
        where, key = (d2.MODEL.LAZY, "ARCHITECTURE") if is_lazy(d2) else (d2.MODEL, "META_ARCHITECTURE")
        where[key] = "GeneralizedRCNN"


def without(cfg: Transfer) -> str:
    """What of the detector's config a transfer does not use, in a sentence; "" where it uses everything."""
    d2 = detector_config(cfg.detector, cfg.overrides)
    heads = ["keypoint head"] * d2.MODEL.KEYPOINT_ON + ["semantic head"] * (architecture(d2) == "PanopticFPN")
    said = f"without its {' and '.join(heads)}, for which the data have no labels" if heads else ""
    lazy = "its model alone: data, augmentation, schedule and optimiser are this transfer's" if is_lazy(d2) else ""
    return "; ".join(filter(None, (lazy, said)))


def detectron_config(cfg: Transfer, train: DetectionData, test: DetectionData, folder: Path, world: int = 1) -> CfgNode:
    """The full Detectron2 config of a transfer that writes into `folder` with `world` processes.

    cfg is as batches.reach has it. Raises BookError for a precision that the machine lacks, an image too small for
    batch norm, and an override of a setting that a Transfer field owns.
    """
    cuda, held, side = torch.cuda.is_available(), cfg.micro_batch or cfg.batch // world, min(cfg.min_sizes)
    exact = cfg.precision == "fp32"
    require(cuda or exact, f"precision={cfg.precision} needs a GPU: set precision=fp32 on this machine")
    require(
        held > 1 or side > STRIDE or (cuda and world > 1),
        f"a process that holds one image of min_sizes={side} leaves batch norm a single value at stride {STRIDE}: "
        f"raise micro_batch={cfg.micro_batch}, batch={cfg.batch} or min_sizes",
    )
    owned = _settings(cfg, train, test, folder)
    for item in cfg.overrides:
        name = item.partition("=")[0]
        require(
            name not in owned and not (name.startswith("model.") and name.endswith("num_classes")),
            f"detector override {item!r}: set the transfer's own field instead",
        )
    d2 = detector_config(cfg.detector, cfg.overrides)
    boxes_and_masks(d2, cfg.detector)
    for key, value in owned.items():
        d2.merge_from_list([key, value])
    if "POINT_HEAD" in d2.MODEL:  # PointRend's
        d2.MODEL.POINT_HEAD.NUM_CLASSES = len(train.classes)
    d2.MODEL.DEVICE = "cuda" if cuda else "cpu"
    d2.MODEL.MASK_ON = d2.MODEL.MASK_ON and bool(train.mask_format)
    less = (
        "its objects have no masks, those of the training data have: give a test set with masks, TEST=, or a detector"
    )
    require(test.mask_format or not d2.MODEL.MASK_ON, f"test={cfg.test!r} cannot score masks: {less} without them")
    if d2.INPUT.MASK_FORMAT != "bitmask":  # which a config may ask for, of polygons too
        d2.INPUT.MASK_FORMAT = train.mask_format or "polygon"
    for_finetuning(d2, synchronised=cuda and world > 1)  # SyncBatchNorm takes no CPU tensors
    d2.freeze()
    return d2
