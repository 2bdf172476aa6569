"""Detections of a fine-tuned run on new images: `python -m soco_lib.transfer.predict results/NAME`, alone or under
torchrun. A finished run is left alone, an interrupted one begins anew.

    results/<name>/detections.json, images.json, counts.csv, unreadable.txt, README.md   see predict.md beside this file
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import sys
import time
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from soco_lib import BookError, locate
from soco_lib.data.annotations import read_coco
from soco_lib.data.sources import CocoSource, ImageSource, open_source, split_spec
from soco_lib.detector import CfgNode
from soco_lib.fields import from_dict, require
from soco_lib.parts import zoo
from soco_lib.runs import loader, processes, records, session, stop
from soco_lib.runs.folder import Run, read_json, write_text
from soco_lib.runs.reasons import one_line
from soco_lib.transfer.datasets import LAYOUTS
from soco_lib.transfer.evaluate import shared_bytes
from soco_lib.transfer.finetune import FINAL
from soco_lib.transfer.predictions import Predictions, test_set
from soco_lib.weights import formats

from detectron2.config import get_cfg
from detectron2.data import detection_utils
from detectron2.data.build import trivial_batch_collator
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.utils import comm

EVERY = 10.0  # seconds between two lines of progress
AHEAD = 2  # images that each worker keeps ready
OURS = (
    "FCOSFromConfig",
    "Res5ROIHeadsExtraNorm",
    "LazyModel",
)  # that Detectron2 knows once soco_lib.detector is imported


@dataclass(frozen=True)
class Predict:
    """What is detected: by which run, on which images."""

    model: str  # run folder of a finished transfer
    images: str  # see data.sources.KINDS
    score: float = 0.5  # the least that is kept, in [0, 1]; the detector's own threshold holds as well
    workers: int = 2  # loader processes a process
    weights: str = ""  # begins the SHA-256 of the detector's file: a model trained anew makes another run
    names: str = ""  # fingerprint of the images' names: so do other images

    def __post_init__(self):
        require(0 <= self.score <= 1, f"SCORE={self.score:g} must lie in [0, 1]")
        require(self.workers >= 0, f"workers={self.workers} may not be negative")


def settings(**given) -> Predict:
    """A Predict from its fields, `weights` and `names` filled in. Raises BookError for a bad MODEL, value or source."""
    cfg = from_dict(Predict, given)
    with open(finished(cfg.model).folder / "detectron2" / FINAL, "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return from_dict(Predict, {**given, "weights": weights, "names": open_source(cfg.images).fingerprint})


def finished(model: str) -> Run:
    """The finished transfer that MODEL names. Raises BookError for anything else, and when its detector is gone."""
    folder, give = locate(model), "give the folder of a finished transfer, such as results/quickstart-transfer"
    require(bool(model), f"MODEL= is empty: {give}")
    require((folder / "run.json").exists(), f"MODEL={model!r}: no run at {folder}: {give}")
    run = Run.read(folder)
    kind, state = run.record["kind"], run.record["status"]
    tuned = f"fine-tune it (make transfer INIT={model}) and give that run" if kind == "pretrain" else give
    require(kind == "transfer", f"MODEL={model} is of kind {kind!r} and no fine-tuned detector: {tuned}")
    require(run.done, f"MODEL={model} is not finished (status: {state}): finish that transfer first")
    require(bool(records.numbers(run)), f"{folder}/metrics.json is torn or empty: run that transfer again")
    gone = [name for name in ("config.yaml", FINAL) if not (folder / "detectron2" / name).is_file()]
    require(not gone, f"MODEL={model} lacks detectron2/{' and '.join(gone)}: run that transfer again")
    return run


def detector(transfer: Run, device: torch.device) -> tuple[torch.nn.Module, CfgNode, list[dict]]:
    """The fine-tuned detector, for inference on `device`, its config and its classes in order: id and name.

    Ids are those of the test data where its file is still there, else they count from 0 (VOC) or 1.
    """
    folder = transfer.folder / "detectron2"
    try:
        d2 = zoo.read(folder / "config.yaml")
        d2.MODEL.DEVICE = device.type
        model = build_model(d2).eval()
        model.load_state_dict(formats.read(folder / FINAL)["model"])
        names = list(transfer.metrics["bbox"]["per_class"])
    except Exception as error:  # config.yaml, the weights or metrics.json were changed
        said = f"{transfer.folder} holds no detector that can be used ({one_line(error)})"
        raise BookError(f"{said}: run that transfer again") from None
    kind, rest = test_set(transfer)
    classes = LAYOUTS[kind].categories(rest, names)
    count = d2.MODEL.ROI_HEADS.NUM_CLASSES
    require(
        len(classes) == count, f"{folder}: {len(names)} names for {count} classes: give each class its own, train again"
    )
    return model, d2, classes


class Images(Dataset):
    """Item i -> Detectron2's input of image i, resized as in its test, and `index`; or `index` and why it is
    `unreadable`.
    """

    def __init__(self, source: ImageSource, d2: CfgNode):
        self.source, self.form = source, d2.INPUT.FORMAT
        self.resize = AugmentationList(detection_utils.build_augmentation(d2, is_train=False))

    def __getitem__(self, index: int) -> dict:
        key = self.source.keys[index]
        try:
            image = self.source.load(index)
            pixels = AugInput(image[..., ::-1] if self.form == "BGR" else image)
            height, width = pixels.image.shape[:2]
            self.resize(pixels)
        except ValueError as error:  # UnreadableImage, or of Pillow for an image too thin to be resized
            return {"index": index, "unreadable": f"{key}: {str(error).removeprefix(f'{key}: ')}"}
        image = torch.from_numpy(np.ascontiguousarray(pixels.image.transpose(2, 0, 1)))
        return {"index": index, "image": image, "height": height, "width": width}


def _detect(cfg: Predict, source: ImageSource, model, d2: CfgNode, process: processes.Process) -> dict:
    """This process's images: index -> (height, width, COCO results with the numbers of image and class for ids), or why
    it could not be read.
    """
    say = print if process.main else lambda *_, **__: None
    ahead = loader.batches_ahead(AHEAD, shared_bytes(d2), cfg.workers, process.local_world, say=say)
    batches = DataLoader(
        Images(source, d2), sampler=range(process.rank, len(source), process.world), num_workers=cfg.workers,
        collate_fn=trivial_batch_collator, worker_init_fn=loader.start_worker,
        prefetch_factor=ahead if cfg.workers else None, timeout=loader.POLL if cfg.workers else 0,
    )  # fmt: skip
    with stop.children_ignore():
        feed = loader.Feed(batches)
    found, began, said = {}, time.perf_counter(), 0.0
    for [image] in feed:
        index = image["index"]
        if "image" in image:
            instances = model([image])[0]["instances"].to("cpu")
            rows = instances_to_coco_json(instances[instances.scores >= cfg.score], index)
            found[index] = image["height"], image["width"], rows
        else:
            found[index] = image["unreadable"]
        seconds = time.perf_counter() - began
        if seconds - said >= EVERY:
            said, done = seconds, len(found) * process.world
            say(f"{done} of {len(source)} images, {done / seconds:.1f} images/s", flush=True)
    return found


def _image_ids(source: ImageSource) -> Sequence[int]:
    """Id of each image: the file's own of a COCO source, so that the results can be scored, else from 1 on."""
    if not isinstance(source, CocoSource):
        return range(1, len(source) + 1)
    images = read_coco(split_spec(source.spec.removeprefix("coco:"))[0], ("images",))["images"]
    own = {posixpath.normpath(image["file_name"]): image["id"] for image in images}
    return [own[key] for key in source.keys]


def _write(folder: Path, source: ImageSource, found: dict, classes: list[dict]) -> dict:
    """The run's files but for its README; returns what they hold in numbers. Raises BookError for no readable image."""
    ids, bad = _image_ids(source), [found[i] for i in sorted(found) if isinstance(found[i], str)]
    read = [(i, *found[i]) for i in sorted(found) if not isinstance(found[i], str)]
    write_text(folder / "unreadable.txt", "".join(f"{line}\n" for line in bad))
    if bad:
        print(f"{len(bad)} of {len(found)} images could not be read, see unreadable.txt; first {bad[0]}", flush=True)
    require(bool(read), f"none of the {len(found)} images of {source.spec} can be read; first {bad[:1]}")
    images = [{"id": ids[i], "file_name": source.keys[i], "height": h, "width": w} for i, h, w, _ in read]
    rows = [{**row, "image_id": ids[i], "category_id": classes[row["category_id"]]["id"]}
            for i, _, _, own in read for row in own]  # fmt: skip
    layout = {"info": {}, "images": images, "annotations": [], "categories": classes}
    write_text(folder / "images.json", json.dumps(layout) + "\n")
    write_text(folder / "detections.json", json.dumps(rows) + "\n")
    grouped = pd.DataFrame(rows, columns=["image_id", "category_id"]).groupby("category_id")["image_id"]
    counts = grouped.agg(detections="size", images="nunique").reindex([c["id"] for c in classes], fill_value=0)
    counts.insert(0, "class", [c["name"] for c in classes])
    write_text(folder / "counts.csv", counts.to_csv(index=False))
    return {"images": len(read), "unreadable": len(bad), "detections": len(rows)}


def _readme(cfg: Predict, folder: Path, d2: CfgNode) -> str:
    plain = d2.MODEL.keys() == get_cfg().MODEL.keys()  # settings that Detectron2 itself knows
    named = {d2.MODEL.META_ARCHITECTURE, d2.MODEL.ROI_HEADS.NAME} & {*OURS}
    ours = "".join(f"import soco_lib.detector  # registers {name}\n" for name in named)
    file = f'"{folder.resolve()}/config.yaml"'
    ours += "from detectron2.config import get_cfg\n" if plain else "from soco_lib.parts import zoo\n"
    settings = f"cfg = get_cfg()\ncfg.merge_from_file({file})" if plain else f"cfg = zoo.read({file})"
    text, given = Path(__file__).with_suffix(".md").read_text(), {"ours": ours, "settings": settings}
    return text.format(cfg=cfg, folder=folder.resolve(), weights=FINAL, device=d2.MODEL.DEVICE, **given)


def predict(run: Run, process: processes.Process) -> dict:
    """Detect on all images; returns the run's metrics, {} but in the first process. Raises BookError for bad input."""
    cfg = from_dict(Predict, run.record["config"])
    transfer, source = finished(cfg.model), open_source(cfg.images)
    model, d2, classes = detector(transfer, process.device)
    if process.main:
        print(f"{process.describe()}; {cfg.model} on {len(source)} images, score {cfg.score:g} or more", flush=True)
    began = time.perf_counter()
    found = _detect(cfg, source, model, d2, process)
    parts, seconds = comm.gather(found, dst=0), time.perf_counter() - began
    if not process.main:
        return {}
    numbers = _write(run.folder, source, {i: value for part in parts for i, value in part.items()}, classes)
    write_text(run.folder / "README.md", _readme(cfg, transfer.folder / "detectron2", d2))
    own = {name: transfer.record["config"][name] for name in ("profile", "detector")}
    speed = {"processes": process.world, "images_per_s": len(source) / seconds, "seconds": round(seconds, 1)}
    print(f"{numbers['detections']} detections, {speed['images_per_s']:.1f} images/s", flush=True)
    return {**own, **speed, **numbers}


def work(run: Run, process: processes.Process, stop_requests: Sequence) -> dict:
    """`predict` that ends at once when told to stop, and rounds as a transfer's evaluation (see finetune.py)."""
    warnings.filterwarnings("ignore", "torch.meshgrid")  # Detectron2's, harmless
    exact = torch.jit.optimized_execution(process.device.type != "cpu")
    with torch.no_grad(), exact, stop.harmless(stop_requests, "told to stop before the last image: run again"):
        return predict(run, process)


@dataclass(frozen=True)
class Detected(Predictions):
    """A finished run's detections: Predictions without a ground truth, on images of any source."""

    source: ImageSource = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """A figure's title: run, scale, model, score."""
        cfg = self.run.record["config"]
        return f"{self.run.name}: {cfg['model']} ({self.run.metrics['profile']} scale), score {cfg['score']:g} or more"

    def pixels(self, image: dict) -> np.ndarray:
        """An image as (H, W, 3) uint8 RGB, turned as its boxes are. Raises UnreadableImage."""
        return self.source.load(bisect_left(self.source.keys, image["file_name"]))


def read(folder: str | Path) -> Detected:
    """The saved detections of a finished run. Raises BookError when it is not finished or its images are gone."""
    run = Run.read(folder)
    require(run.done, f"{folder} is not finished (status: {run.record['status']}): run it to its end first")
    rows, source = read_json(run.folder / "detections.json", list), open_source(run.record["config"]["images"])
    best_first = sorted(rows, key=lambda row: -row["score"])
    return Detected(run, source.root, read_json(run.folder / "images.json"), best_first, source)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status (see session.main)."""
    return session.main(__doc__, work, arguments, fixed_sizes=False)


if __name__ == "__main__":
    sys.exit(main())
