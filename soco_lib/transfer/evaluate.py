"""Scores of a detector on a test set, by Detectron2's evaluator of the set's layout."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch

from soco_lib.runs import loader, stop
from soco_lib.transfer.detectron import DetectionData, Mapper

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm


def _without_predictions(scores: dict, classes: tuple[str, ...]) -> dict:
    """AP 0 for a detector that found nothing, where Detectron2 says NaN."""
    return {name: dict.fromkeys(classes, 0.0) if name == "per_class" else 0.0 for name in scores}


def _images(d2: CfgNode, test: DetectionData, stop_requests: Sequence) -> loader.Feed:
    """The test images, each loaded by one of the config's workers."""
    images = build_detection_test_loader(d2, test.name, mapper=Mapper(d2, False))
    images.worker_init_fn, images.timeout = loader.start_worker, loader.POLL if images.num_workers else 0
    with stop.children_ignore():
        return loader.Feed(images, stop_requests=stop_requests)


def shared_bytes(d2: CfgNode) -> int:
    """Shared memory that a test image on its way from a worker takes at most."""
    return loader.pages(3 * d2.INPUT.MIN_SIZE_TEST * d2.INPUT.MAX_SIZE_TEST)


def evaluate(model: torch.nn.Module, d2: CfgNode, test: DetectionData, stop_requests: Sequence = ()) -> dict:
    """{task: {AP, AP50, AP75, ..., per_class: {class: AP}}} in percent, for boxes (bbox) and, with a mask head, masks
    (segm).

    Saves the layout's `predictions` in OUTPUT_DIR. All processes take part; all but the first get {}.
    stop_requests: see loader.Feed, whose errors this raises.
    """
    tasks = ("bbox", "segm") if d2.MODEL.MASK_ON else ("bbox",)
    folder, layout = Path(d2.OUTPUT_DIR), test.layouts[0]
    with open(folder / "log.txt", "a") as file, contextlib.redirect_stdout(file):  # pycocotools prints
        evaluator = layout.evaluator(test.name, tasks, folder)
        results = layout.scores(inference_on_dataset(model, _images(d2, test, stop_requests), evaluator))
    if not comm.is_main_process():
        return {}
    if (folder / layout.predictions).stat().st_size <= len("[]\n"):
        return {task: _without_predictions(scores, test.classes) for task, scores in results.items()}
    return results
