"""Scores of a detector on a test set, by Detectron2's evaluator of the set's layout."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from soco_lib.runs import loader, session
from soco_lib.runs.folder import write_json
from soco_lib.transfer.datasets import lvis_package
from soco_lib.transfer.detectron import DetectionData

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, LVISEvaluator, PascalVOCDetectionEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

#: Layout -> file of a run's detectron2/ folder with all predictions, as COCO results with the layout's `category_ids`.
PREDICTIONS = {kind: f"{kind}_instances_results.json" for kind in ("coco", "lvis", "voc")}


class _Coco(COCOEvaluator):
    """{task: {AP, AP50, AP75, APs, APm, APl, per_class}}; NaN for what the data lacks (no small object)."""

    def __init__(self, test: DetectionData, tasks: tuple[str, ...], folder: Path):
        super().__init__(test.name, tasks=tasks, output_dir=str(folder), use_fast_impl=False)
        self.classes = test.classes

    def evaluate(self) -> dict:
        found = {}
        for task, values in (super().evaluate() or {}).items():
            only = (
                {self.classes[0]: values["AP"]} if len(self.classes) == 1 else {}
            )  # Detectron2 leaves the only class out
            found[task] = {name: value for name, value in values.items() if not name.startswith("AP-")}
            found[task]["per_class"] = {
                name: values.get(f"AP-{name}", only.get(name, math.nan)) for name in self.classes
            }
        return found


class _Lvis(LVISEvaluator):
    """As COCO's, with APr, APc, APf of rare, common and frequent classes; at most 300 detections an image count."""

    def __init__(self, test: DetectionData, tasks: tuple[str, ...], folder: Path):
        lvis, precision = lvis_package(), {}

        class Judge(lvis.eval.LVISEval):
            """Keeps what Detectron2 throws away: precision (IoU thresholds, recalls, classes, areas) of each task."""

            def run(self):
                super().run()
                precision[self.params.iou_type] = self.eval["precision"]

        lvis.LVISEval = Judge  # Detectron2 looks it up there when it evaluates
        super().__init__(test.name, tasks=tasks, output_dir=str(folder))
        self.classes, self.precision = test.classes, precision

    def evaluate(self) -> dict:
        found = super().evaluate() or {}
        for task, values in found.items():
            for name, value in values.items():
                values[name] = value if value >= 0 else math.nan  # -100 for what the data lacks
            of_class = np.moveaxis(self.precision[task][..., 0], -1, 0) if task in self.precision else ()
            present = [100 * float(p[p > -1].mean()) if (p > -1).any() else math.nan for p in of_class]
            values["per_class"] = dict(zip(self.classes, present))
        return found


class _Voc(PascalVOCDetectionEvaluator):
    """{"bbox": {AP, AP50, AP75, per_class}}: VOC's AP, over IoU 0.5 ... 0.95, at 0.5 and at 0.75.

    A class without an object in the test set has no AP (NaN) and no part in the mean, as in COCO's; VOC's own sets have
    none such.
    """

    def __init__(self, test: DetectionData, tasks: tuple[str, ...], folder: Path):
        super().__init__(test.name)
        self.data, self.file = test, folder / PREDICTIONS["voc"]

    def reset(self):
        super().reset()
        self.saved = []

    def process(self, inputs, outputs):
        super().process(inputs, outputs)
        for image, output in zip(inputs, outputs):
            self.saved += instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])

    def evaluate(self) -> dict:
        saved = comm.gather(self.saved, dst=0)
        if comm.is_main_process():
            write_json(self.file, list(itertools.chain(*saved)))
        objects = (o for record in self.data.records for o in record["annotations"])
        present = {o["category_id"] for o in objects if not o["difficult"]}
        mine, found = self._predictions, {}
        for i in sorted(present):  # one class at a time: Detectron2 reports the mean only
            self._class_names, self._predictions = [self.data.classes[i]], {0: mine[i]} if mine.get(i) else {}
            found[i] = (super().evaluate() or {}).get("bbox")
        if not comm.is_main_process():
            return {}
        mean = {name: float(np.mean([values[name] for values in found.values()])) for name in ("AP", "AP50", "AP75")}
        per_class = {
            name: float(found[i]["AP"]) if i in found else math.nan for i, name in enumerate(self.data.classes)
        }
        return {"bbox": {**mean, "per_class": per_class}}


EVALUATORS = {"coco": _Coco, "lvis": _Lvis, "voc": _Voc}


def _without_predictions(scores: dict, classes: tuple[str, ...]) -> dict:
    """AP 0 for a detector that found nothing, where Detectron2 says NaN."""
    return {name: dict.fromkeys(classes, 0.0) if name == "per_class" else 0.0 for name in scores}


def _images(d2: CfgNode, test: DetectionData, told: Sequence) -> loader.Feed:
    """The test images, each loaded by one of the config's workers."""
    images = build_detection_test_loader(d2, test.name)
    images.worker_init_fn, images.timeout = loader.start_worker, loader.POLL if images.num_workers else 0
    with session.deaf_children():
        return loader.Feed(images, told=told)


def shared_bytes(d2: CfgNode) -> int:
    """Shared memory that a test image on its way from a worker takes at most."""
    return loader.pages(3 * d2.INPUT.MIN_SIZE_TEST * d2.INPUT.MAX_SIZE_TEST)


def evaluate(model: torch.nn.Module, d2: CfgNode, test: DetectionData, told: Sequence = ()) -> dict:
    """{task: {AP, AP50, AP75, ..., per_class: {class: AP}}} in percent, for boxes (bbox) and, with a mask head, masks
    (segm).

    Saves the predictions in OUTPUT_DIR (see PREDICTIONS). All processes take part; all but the first get {}.
    told: see loader.Feed, whose errors this raises.
    """
    tasks = ("bbox", "segm") if d2.MODEL.MASK_ON else ("bbox",)
    folder = Path(d2.OUTPUT_DIR)
    with open(folder / "log.txt", "a") as file, contextlib.redirect_stdout(file):  # pycocotools prints
        evaluator = EVALUATORS[test.kind](test, tasks, folder)
        results = inference_on_dataset(model, _images(d2, test, told), evaluator)
    if not comm.is_main_process():
        return {}
    if (folder / PREDICTIONS[test.kind]).stat().st_size <= len("[]\n"):
        return {task: _without_predictions(scores, test.classes) for task, scores in results.items()}
    return results
