"""A transfer's data in Detectron2's catalogues, and the Detectron2 config that follows from settings and data."""

from __future__ import annotations

import functools
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from soco_lib.benchmarks import Transfer, read_coco
from soco_lib.config import require
from soco_lib.detector import CfgNode, detector_config

from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402  (soco_lib.detector silences its imports)
from detectron2.data.datasets import load_coco_json

logging.getLogger("detectron2").setLevel(logging.ERROR)  # quiet until a run gives it a log file
#: Images of an annotation file whose existence is checked before a run starts.
SAMPLED = 50


@dataclass(frozen=True)
class DetectionData:
    """A COCO-layout data set as Detectron2 knows it."""

    name: str  # in Detectron2's catalogues
    annotations: Path
    classes: tuple[str, ...]  # sorted by the file's category ids
    image_ids: tuple[int, ...]  # sorted
    mask_format: str  # polygon, bitmask (RLE), or "" without masks

    @property
    def records(self) -> list[dict]:
        """Detectron2's dataset dicts: file_name, height, width, image_id, annotations."""
        return DatasetCatalog.get(self.name)


def _mask_format(annotations: list[dict], path: Path) -> str:
    """How objects' masks are stored. Crowd regions do not count: they are RLE everywhere and nobody trains on them."""
    needed, kinds = {"id", "image_id", "category_id", "bbox", "area"}, set()
    for annotation in annotations:
        missing = needed - annotation.keys()
        require(not missing, f"{path}: annotation {annotation.get('id')} lacks {', '.join(sorted(missing))}")
        if not annotation.get("iscrowd"):
            kinds.add(type(annotation["segmentation"]) if annotation.get("segmentation") else None)
    require(kinds <= {None} or None not in kinds, f"{path}: some objects have masks and some have none: complete or remove them")
    return "bitmask" if dict in kinds else "polygon" if list in kinds else ""


def _check_images(root: Path, names: list[str], path: Path) -> None:
    sample = names[:: -(-len(names) // SAMPLED)]
    missing = [name for name in sample if not (root / name).is_file()]
    require(
        not missing,
        f"{len(missing)} of {len(sample)} images sampled from {path} are not in {root}, e.g. {missing[:1]}: complete the folder",
    )


def draw_images(image_ids: tuple[int, ...], labelled: float, seed: int) -> tuple[int, ...]:
    """The labelled part of a data set, sorted: a share (up to 1) or a number of its images, drawn by `seed` (Table 8)."""
    count = round(labelled * len(image_ids)) if labelled <= 1 else int(labelled)
    require(1 <= count <= len(image_ids), f"labelled={labelled:g} leaves {count} of {len(image_ids)} images: choose 1 to all")
    if count == len(image_ids):
        return image_ids
    return tuple(sorted(np.random.default_rng(seed).choice(image_ids, count, replace=False).tolist()))


def open_data(spec: str, labelled: float = 1.0, seed: int = 0) -> DetectionData:
    """Check a COCO-layout data set and register it with Detectron2 under a name that its paths and drawn part give.

    Raises BookError for a bad spec, a missing or foreign file, missing images (a sample is looked at).
    """
    path, root, content = read_coco(spec)
    mask_format = _mask_format(content["annotations"], path)
    _check_images(root, [image["file_name"] for image in content["images"]], path)
    ids = draw_images(tuple(sorted(image["id"] for image in content["images"])), labelled, seed)
    whole = len(ids) == len(content["images"])
    unique = f"{path}@{root}@{path.stat().st_mtime_ns}@{'' if whole else ids}"
    name = f"{path.stem}-{hashlib.sha256(unique.encode()).hexdigest()[:8]}"
    if name not in DatasetCatalog.list():

        @functools.cache  # the training loader, precise BN's and our own readers ask; reading train2017 takes half a minute
        def load() -> list[dict]:
            chosen = set(ids)
            return [record for record in load_coco_json(str(path), str(root), name) if record["image_id"] in chosen]

        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(json_file=str(path), image_root=str(root), evaluator_type="coco")
    classes = tuple(category["name"] for category in sorted(content["categories"], key=lambda c: c["id"]))
    return DetectionData(name, path, classes, ids, mask_format)


def open_both(cfg: Transfer) -> tuple[DetectionData, DetectionData]:
    """Training and test data of a transfer. Raises BookError when their classes differ or nothing can be learnt."""
    train, test = open_data(cfg.train, cfg.labelled, cfg.seed), open_data(cfg.test)
    different = sorted({*train.classes} ^ {*test.classes}) or [a for a, b in zip(train.classes, test.classes) if a != b]
    require(not different, f"training and test data have different classes, e.g. {different[:3]}: give two parts of one data set")
    require(
        any(not a.get("iscrowd", 0) for record in train.records for a in record["annotations"]),
        f"the {len(train.image_ids)} training images of {cfg.train} hold no objects",
    )
    return train, test


# --- Detectron2 -------------------------------------------------------------------------------------------------------


def milestones(cfg: Transfer) -> tuple[int, ...]:
    """Iterations at which the rate falls tenfold; kept inside (0, iterations), which a smoke run's rounding may leave."""
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


def detectron_config(cfg: Transfer, train: DetectionData, test: DetectionData, folder: Path, world: int = 1) -> CfgNode:
    """The full Detectron2 config of a transfer that writes into `folder` with `world` processes.

    Raises BookError for a batch that cannot be split, an override of a setting that a Transfer field owns, data without
    masks for a precision or detector that the machine lacks.
    """
    require(cfg.batch % world == 0, f"batch={cfg.batch} cannot be split evenly over {world} processes: choose a multiple of {world}")
    cuda = torch.cuda.is_available()
    require(cuda or cfg.precision == "fp32", f"precision={cfg.precision} needs a GPU: set precision=fp32 on this machine")
    owned = _settings(cfg, train, test, folder)
    for item in cfg.overrides:
        require(item.partition("=")[0] not in owned, f"detector override {item!r}: set the transfer's own field instead")
    d2 = detector_config(cfg.detector, cfg.overrides)
    for key, value in owned.items():
        d2.merge_from_list([key, value])
    d2.MODEL.DEVICE = "cuda" if cuda else "cpu"
    d2.MODEL.MASK_ON = d2.MODEL.MASK_ON and bool(train.mask_format)
    d2.INPUT.MASK_FORMAT = train.mask_format or "polygon"
    if cuda and world > 1:
        for part in (d2.MODEL.RESNETS, d2.MODEL.FPN, d2.MODEL.ROI_BOX_HEAD, d2.MODEL.ROI_MASK_HEAD):
            part.NORM = "SyncBN" if part.NORM == "BN" else part.NORM
    d2.freeze()
    return d2
