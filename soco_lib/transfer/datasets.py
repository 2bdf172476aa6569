"""Annotated images in COCO, LVIS and VOC layout: how they are read, checked, scored and counted."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import types
from pathlib import Path

import numpy as np

from soco_lib import BookError, locate
from soco_lib.data.annotations import VocLabels, coco_root, examine_coco, parsing, voc_split
from soco_lib.data.kinds import Findings, repaired
from soco_lib.data.sources import ImageSource, open_source, split_spec
from soco_lib.fields import require
from soco_lib.runs.folder import write_json, write_text
from soco_lib.transfer.layout import LAYOUTS, DataLayout, coco_dictionary, usage

__all__ = ["LAYOUTS", "DataLayout", "coco_dictionary", "usage"]

# Detectron2 is imported where it is needed: what a benchmark is, and what a run detected, is told without its seconds.

FREQUENCIES = ("r", "c", "f")  # LVIS's groups of classes: rare, common, frequent


def _names(folder: Path, ending: str = "") -> set[str]:
    """Names of the files in a folder with this ending, without it; none where there is no folder."""
    names = os.listdir(folder) if folder.is_dir() else ()
    return {name.removesuffix(ending) for name in names if name.endswith(ending)}


# --- COCO -------------------------------------------------------------------------------------------------------------


class Coco(DataLayout):
    """One JSON file of instances, and a folder of images."""

    kind = "coco"
    form = "ANNOTATIONS.json[@IMAGE_FOLDER]"

    @staticmethod
    def name_files(content: dict) -> None:
        """Give each image its `file_name`, where the layout has it elsewhere."""

    @classmethod
    def content(cls, rest: str) -> tuple[dict, Findings]:
        """The file's dictionary, `file_name` of every image included, repaired; what was found. Raises BookError."""
        file, folder = split_spec(rest)
        content, found = examine_coco(file, folder=folder, prepare=cls.name_files)
        found.check()
        return content, found

    def read(self, rest: str, opened: tuple[dict, Findings] | None = None) -> dict:
        self.rest, (self.source, folder) = rest, split_spec(rest)
        content, self.findings = opened or self.content(rest)
        self.root = coco_root(self.source, folder, [image["file_name"] for image in content["images"]])
        self.metadata = {"json_file": str(self.source), "image_root": str(self.root)}
        self.mask_format = self._mask_format(content["annotations"])
        return content

    def _mask_format(self, annotations: list[dict]) -> str:
        """How objects' masks are stored. Crowd regions do not count: they are RLE everywhere, nobody trains on them."""
        needed, kinds = {"id", "image_id", "category_id", "bbox", "area"}, set()
        for annotation in annotations:
            missing = needed - annotation.keys()
            require(not missing, f"{self.source}: annotation {annotation.get('id')} lacks {', '.join(sorted(missing))}")
            if not annotation.get("iscrowd"):
                kinds.add(type(annotation["segmentation"]) if annotation.get("segmentation") else None)
        require(
            kinds <= {None} or None not in kinds,
            f"{self.source}: some objects have masks and some have none: complete or remove them",
        )
        return "bitmask" if dict in kinds else "polygon" if list in kinds else ""

    def records(self, name: str = "") -> list[dict]:
        from detectron2.data.datasets import load_coco_json

        with self.repairs():
            return load_coco_json(str(self.source), str(self.root), name)

    def truth(self) -> dict:
        return self.content(self.rest)[0]

    @contextlib.contextmanager
    def repairs(self):
        """Within, whoever loads the set's file by `json.load` gets what was repaired in memory."""
        load = json.load

        def instead(file, **how):
            return self.truth() if Path(getattr(file, "name", "")) == self.source else load(file, **how)

        json.load = instead if repaired(self.findings) else load
        try:
            yield
        finally:
            json.load = load

    def evaluator(self, name: str, tasks: tuple[str, ...], folder: Path):
        with self.repairs():
            return super().evaluator(name, tasks, folder)

    @classmethod
    def categories(cls, rest: str, names: list[str]) -> list[dict]:
        file = split_spec(rest)[0]
        listed = sorted(cls.content(rest)[0]["categories"], key=lambda entry: entry["id"]) if file.is_file() else []
        same = [entry["name"] for entry in listed] == names  # else another file lies there now
        ids = [entry["id"] for entry in listed] if same else range(1, len(names) + 1)
        return [{"id": i, "name": name} for i, name in zip(ids, names)]

    @classmethod
    def count(cls, rest: str) -> dict[str, int]:
        file, folder = split_spec(rest)
        with parsing(file, "COCO annotation file", "give an instances_*.json"):
            content, root = json.loads(file.read_bytes()), locate(folder or file.parent)
            cls.name_files(content)
            paths = {root / image["file_name"] for image in content["images"]}
        there = {folder: _names(folder) for folder in {path.parent for path in paths}}
        images = sum(path.name in there[path.parent] for path in paths)
        return {"images": images, "annotations": len(content["annotations"])}


# --- LVIS -------------------------------------------------------------------------------------------------------------


def lvis_package():
    """LVIS's own package, fit for this numpy. Raises BookError where it is not installed.

    It writes `np.float`, which numpy 2 lacks, and sets up logging for the whole process; both stay inside it here.
    """
    handlers = logging.root.handlers[:]
    try:
        import lvis.eval
    except ImportError:
        raise BookError("LVIS data needs the package lvis: make setup, or pip install --no-deps lvis==0.5.3") from None
    logging.root.handlers[:] = handlers
    logging.getLogger("lvis").setLevel(logging.ERROR)
    lvis.eval.np = types.SimpleNamespace(**{**vars(np), "float": float})
    return lvis


class Lvis(Coco):
    """As COCO, with masks as polygons only and, of each image, the classes that are absent or not marked completely.

    Its score has APr, APc, APf of rare, common and frequent classes as well; at most 300 detections an image count.
    """

    kind = "lvis"
    predictions = "lvis_instances_results.json"

    @staticmethod
    def name_files(content: dict) -> None:
        """LVIS names no files: an image's, split folder included, is the end of its `coco_url`."""
        for image in content["images"]:
            image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])

    def read(self, rest: str, opened: tuple[dict, Findings] | None = None) -> dict:
        lvis_package()
        content = super().read(rest, opened)
        ids = sorted(category["id"] for category in content["categories"])
        require(
            ids == [*range(1, len(ids) + 1)],
            f"{self.source}: category ids of LVIS run from 1 to their number, {len(ids)}, here from {ids[0]} to "
            f"{ids[-1]}: renumber them",
        )
        require(
            all(category.get("frequency") in FREQUENCIES for category in content["categories"])
            and all({"neg_category_ids", "not_exhaustive_category_ids"} <= image.keys() for image in content["images"]),
            f"{self.source}: LVIS's evaluation needs each category's frequency ({', '.join(FREQUENCIES)}) and each "
            "image's neg_category_ids and not_exhaustive_category_ids: take the published file, or make one with "
            "python -m soco_lib.transfer.make_lvis",
        )
        bad = [
            a["id"] for a in content["annotations"] if type(a.get("segmentation")) is not list or not a["segmentation"]
        ]
        require(not bad, f"{self.source}: {len(bad)} annotations are no polygons, e.g. id {bad[:1]}: remove them")
        return content

    def records(self, name: str = "") -> list[dict]:
        from detectron2.data.datasets.lvis import load_lvis_json

        with self.repairs():
            return load_lvis_json(str(self.source), f"{self.root}/")  # which joins folder and split without a slash

    def evaluator(self, name: str, tasks: tuple[str, ...], folder: Path):
        from detectron2.evaluation import LVISEvaluator

        lvis, self.precision = lvis_package(), {}
        kept = self.precision  # (IoU thresholds, recalls, classes, areas) of each task, which Detectron2 throws away

        class Judge(lvis.eval.LVISEval):
            def run(self):
                super().run()
                kept[self.params.iou_type] = self.eval["precision"]

        lvis.LVISEval = Judge  # Detectron2 looks it up there when it evaluates
        with self.repairs():
            return LVISEvaluator(name, tasks=tasks, output_dir=str(folder))

    def scores(self, results: dict) -> dict:
        for task, values in results.items():
            for name, value in values.items():
                values[name] = value if value >= 0 else math.nan  # -100 for what the data lacks
            of_class = np.moveaxis(self.precision[task][..., 0], -1, 0) if task in self.precision else ()
            present = [100 * float(p[p > -1].mean()) if (p > -1).any() else math.nan for p in of_class]
            values["per_class"] = dict(zip(self.classes, present))
        return results


# --- VOC --------------------------------------------------------------------------------------------------------------


class Voc(DataLayout):
    """One split of a folder with JPEGImages, Annotations and ImageSets/Main.

    Classes are VOC's twenty in its order where the set has no others, else all names in `Annotations/`, sorted. The
    score is VOC's AP, boxes only: over IoU 0.5 ... 0.95, at 0.5 and at 0.75. A class without an object in the test set
    has no AP (NaN) and no part in the mean, as in COCO's; VOC's own sets have none such.
    """

    kind = "voc"
    form = "ROOT[@SPLIT]"
    predictions = "voc_instances_results.json"

    def read(self, rest: str, opened: ImageSource | None = None) -> dict:
        import soco_lib.detector  # noqa: F401 - silences what Detectron2 says when it is imported

        from detectron2.data.datasets.pascal_voc import CLASS_NAMES

        source, split = opened or open_source(f"voc:{rest}"), split_spec(rest)[1]
        self.findings = source.findings
        self.findings.check()
        self.source, self.root = voc_split(source.root, split)[0], source.root / "JPEGImages"
        self.classes = tuple(CLASS_NAMES if {*source.classes} <= {*CLASS_NAMES} else source.classes)
        # The 11-point AP of VOC 2007 but for later years' sets; what is not VOC's own is scored as its benchmark is.
        year = 2012 if "2012" in source.root.name else 2007
        self.metadata = {"dirname": str(source.root), "split": self.source.stem, "year": year}
        self._records = [self._record(Path(key), source.labels(i)) for i, key in enumerate(source.keys)]
        return self.truth()

    def _record(self, key: Path, labels: VocLabels) -> dict:
        """Of one image, with difficult objects, which are trained on too."""
        annotations = [
            {"category_id": self.classes.index(name), "bbox": box, "bbox_mode": 0, "difficult": hard}  # x1 y1 x2 y2
            for name, box, hard in zip(labels.names, labels.boxes.tolist(), labels.difficult)
        ]
        width, height = labels.size
        name = key.stem.replace(" ", "%20")  # a blank would end it in the lists that Detectron2's evaluator writes
        return {"file_name": str(self.root / key.name), "image_id": name, "height": height, "width": width,
                "annotations": annotations}  # fmt: skip

    def records(self, name: str = "") -> list[dict]:
        return self._records

    def evaluator(self, name: str, tasks: tuple[str, ...], folder: Path):
        from detectron2.evaluation import PascalVOCDetectionEvaluator, pascal_voc_evaluation
        from detectron2.evaluation.coco_evaluation import instances_to_coco_json
        from detectron2.utils import comm

        classes, objects = self.classes, (item for record in self._records for item in record["annotations"])
        # As read here, instead of from files that must hold pose, truncated and whole numbers, in one encoding.
        truth, split = {}, folder / "voc_split.txt"
        for record in self._records:
            truth[record["image_id"]] = [
                {"name": classes[a["category_id"]], "difficult": a["difficult"], "bbox": [x + 1, y + 1, x2, y2]}
                for a in record["annotations"]
                for x, y, x2, y2 in [a["bbox"]]
            ]
        present = sorted({item["category_id"] for item in objects if not item["difficult"]})

        class Evaluator(PascalVOCDetectionEvaluator):
            """Of each class that is present (Detectron2 reports their mean only), and with the predictions saved."""

            def reset(self):
                super().reset()
                self.saved = []

            def process(self, inputs, outputs):
                super().process(inputs, outputs)
                for image, output in zip(inputs, outputs):
                    self.saved += instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])

            def evaluate(self):
                self._image_set_path = str(split)
                pascal_voc_evaluation.parse_rec = lambda file: truth[Path(file).stem]
                saved = comm.gather(self.saved, dst=0)
                if comm.is_main_process():
                    write_json(folder / Voc.predictions, list(itertools.chain(*saved)))
                    write_text(split, "".join(f"{name}\n" for name in truth))
                every, found = self._predictions, {}
                for i in present:
                    self._class_names, self._predictions = [classes[i]], {0: every[i]} if every.get(i) else {}
                    found[classes[i]] = (super().evaluate() or {}).get("bbox")
                return found if comm.is_main_process() else {}

        return Evaluator(name)

    def scores(self, results: dict) -> dict:
        if not results:
            return {}
        mean = {name: float(np.mean([values[name] for values in results.values()])) for name in ("AP", "AP50", "AP75")}
        per_class = {name: float(results[name]["AP"]) if name in results else math.nan for name in self.classes}
        return {"bbox": {**mean, "per_class": per_class}}

    @classmethod
    def count(cls, rest: str) -> dict[str, int]:
        """Images of the split that are there with their annotation."""
        root, split = split_spec(rest)
        parts = _names(root / "JPEGImages", ".jpg"), _names(root / "Annotations", ".xml")
        return {"images": len({*voc_split(root, split)[1]}.intersection(*parts))}
