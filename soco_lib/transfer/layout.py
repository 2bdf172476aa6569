"""What every layout of annotated images has; COCO's, LVIS's and VOC's are in datasets.py.

A layout is one class, known by its `kind` from its definition on; nothing elsewhere asks which one it is.
"""

from __future__ import annotations

import abc
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from soco_lib.data.kinds import Findings
from soco_lib.data.pictures import Pictures, examine
from soco_lib.fields import require

#: Images of a set whose existence is checked before a run starts.
SAMPLED = 50
#: kind -> layout; LAYOUTS[kind](rest) opens a set.
LAYOUTS: dict[str, type[DataLayout]] = {}


class DataLayout(abc.ABC):
    """One annotated set as it lies on disk, named by the data "KIND:REST".

    A layout has `read` and `records`; where it says nothing else, COCO's metrics score it. Raises BookError on
    construction for missing or foreign files and images (a sample is looked at).
    """

    kind: str  # what data in this layout begin with
    form: str  # what follows it, in messages
    predictions = "coco_instances_results.json"  # in a run's detectron2/ folder: all predictions, as COCO results

    source: Path  # the file that names the images
    root: Path  # folder of the images
    classes: tuple[str, ...]  # by ascending category id, as Detectron2 has them
    category_ids: tuple[int, ...]  # of each class, in predictions and in `truth`
    image_ids: tuple  # sorted
    findings: Findings  # what is odd about the labels
    sizes: dict[str, tuple[int, int]]  # file name below `root` -> width, height, as the labels have it
    empty_boxes: int  # objects whose box has no area: nobody trains on them
    mask_format = ""  # polygon, bitmask (RLE), or "" without masks
    metadata: dict = {}  # what Detectron2's evaluator of this layout asks for

    def __init_subclass__(cls):
        LAYOUTS[cls.kind] = cls

    def __init__(self, rest: str, *opened):
        self.findings = Findings()
        content = self.read(rest, *opened)
        names = [image["file_name"] for image in content["images"]]
        sample = names[:: -(-len(names) // SAMPLED)]
        missing = [name for name in sample if not os.path.isfile(self.root / name)]
        require(
            not missing,
            f"{len(missing)} of {len(sample)} images sampled from {self.source} are not in {self.root}, "
            f"e.g. {missing[:1]}: complete the folder",
        )
        ordered = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = tuple(category["id"] for category in ordered)
        self.classes = tuple(category["name"] for category in ordered)
        self.image_ids = tuple(sorted(image["id"] for image in content["images"]))
        sides = np.array([annotation["bbox"][2:] for annotation in content["annotations"]], float).reshape(-1, 2)
        self.empty_boxes = int((sides <= 0).any(1).sum()) + self.findings.counts.get("box-empty", 0)
        self.sizes = {image["file_name"]: (image["width"], image["height"]) for image in content["images"]}

    @abc.abstractmethod
    def read(self, rest: str, opened=None) -> dict:
        """Set `source`, `root` and what is not the default; returns the set as a COCO dictionary. Raises BookError.

        opened: what somebody who has looked at the set has of it, so that it is read once.
        """

    def examine_pictures(self, deep: bool = False, say: Callable = lambda line: None) -> Findings:
        """What is odd about the pictures, all of them; an evaluator needs each (see pictures.examine)."""
        return examine(Pictures.below(self.root, self.sizes), strict=True, deep=deep, labels=self.source, say=say)

    @abc.abstractmethod
    def records(self, name: str = "") -> list[dict]:
        """Detectron2's dataset dicts; `name` is the set's in Detectron2's catalogue."""

    def truth(self) -> dict:
        """The set as a COCO dictionary, in which a "difficult" object is a crowd region."""
        return coco_dictionary(self.records(), self.classes)

    def evaluator(self, name: str, tasks: tuple[str, ...], folder: Path):
        """Detectron2's evaluator of the set called `name`, which writes `predictions` into `folder`."""
        from detectron2.evaluation import COCOEvaluator

        return COCOEvaluator(name, tasks=tasks, output_dir=str(folder), use_fast_impl=False)

    def scores(self, results: dict) -> dict:
        """What the evaluator returns, as {task: {AP, AP50, AP75, ..., per_class: {class: AP}}}, in percent.

        NaN for what the data lacks (no small object, a class without objects).
        """
        found = {}
        for task, values in results.items():
            found[task] = {name: value for name, value in values.items() if not name.startswith("AP-")}
            alone = values["AP"] if len(self.classes) == 1 else math.nan  # Detectron2 leaves the only class out
            found[task]["per_class"] = {name: values.get(f"AP-{name}", alone) for name in self.classes}
        return found

    @classmethod
    def categories(cls, rest: str, names: list[str]) -> list[dict]:
        """COCO's entries of the classes `names`, with the ids that predictions have; the set itself may be gone."""
        return [{"id": i, "name": name} for i, name in enumerate(names)]

    @classmethod
    @abc.abstractmethod
    def count(cls, rest: str) -> dict[str, int]:
        """Images that are listed and there, and annotations where they are counted. Raises BookError."""


def usage() -> str:
    """How data may be named, for messages."""
    return ", ".join(f"{kind}:{layout.form}" for kind, layout in LAYOUTS.items())


def coco_dictionary(records: list[dict], classes: tuple[str, ...]) -> dict:
    """Detectron2's dataset dicts as a COCO dictionary; category ids are positions in `classes`.

    Boxes are taken as absolute x1 y1 x2 y2 (bbox_mode 0) or x y w h (1); a "difficult" object counts as a crowd region.
    """
    images, annotations = [], []
    for record in records:
        images.append({k: record[k] for k in ("file_name", "height", "width")} | {"id": record["image_id"]})
        for item in record["annotations"]:
            x, y, a, b = map(float, item["bbox"])
            w, h = (a, b) if int(item["bbox_mode"]) == 1 else (a - x, b - y)
            crowd = int(item.get("iscrowd", 0) or item.get("difficult", 0))
            of = {"id": len(annotations) + 1, "image_id": record["image_id"], "category_id": item["category_id"]}
            annotations.append(of | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": crowd})
    categories = [{"id": i, "name": name} for i, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}
