"""Scores of a detector on a test set, by Detectron2's evaluators."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from soco_lib.detection import DetectionData

from detectron2.config import CfgNode  # noqa: E402  (soco_lib.detection silences its imports)
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.utils import comm


def scores(results: dict, classes: tuple[str, ...], predictions: bool) -> dict:
    """Detectron2's flat COCO results as {task: {AP, AP50, AP75, APs, APm, APl, per_class: {class: AP}}}, in percent.

    A detector without predictions has AP 0, where Detectron2 says NaN; NaN stays for what the data lacks (no small object).
    """
    found = {}
    for task, values in results.items():
        if not predictions:
            values = dict.fromkeys(values, 0.0)
        found[task] = {name: value for name, value in values.items() if not name.startswith("AP-")}
        only = {classes[0]: values["AP"]} if len(classes) == 1 else {}  # Detectron2 leaves the only class out
        found[task]["per_class"] = {name: values.get(f"AP-{name}", only.get(name, 0.0)) for name in classes}
    return found


def evaluate(model: torch.nn.Module, d2: CfgNode, test: DetectionData) -> dict:
    """COCO scores (see `scores`) of box and, with a mask head, mask; saves coco_instances_results.json in OUTPUT_DIR.

    All processes take part; all but the first get {}.
    """
    tasks = ("bbox", "segm") if d2.MODEL.MASK_ON else ("bbox",)
    folder = Path(d2.OUTPUT_DIR)
    with open(folder / "log.txt", "a") as file, contextlib.redirect_stdout(file):  # pycocotools prints
        evaluator = COCOEvaluator(test.name, tasks=tasks, output_dir=str(folder), use_fast_impl=False)
        results = inference_on_dataset(model, build_detection_test_loader(d2, test.name), evaluator)
    if not comm.is_main_process():
        return {}
    predictions = (folder / "coco_instances_results.json").stat().st_size > len("[]")
    return scores(results, test.classes, predictions)
