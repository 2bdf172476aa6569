"""Annotated images in COCO, LVIS and VOC layout: how they are read, checked, scored and counted.

A layout is one class here, known by its `kind` from its definition on; nothing elsewhere asks which one it is.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import types
from pathlib import Path

import numpy as np

from soco_lib import BookError, locate
from soco_lib.data.annotations import coco_root, parsing, read_coco, read_voc, voc_split
from soco_lib.data.sources import open_source, split_spec
from soco_lib.fields import require
from soco_lib.runs.folder import write_json

# Detectron2 is imported where it is needed: what a benchmark is, and what a run detected, is told without its seconds.

#: Images of a set whose existence is checked before a run starts.
SAMPLED = 50
FREQUENCIES = ("r", "c", "f")  # LVIS's groups of classes: rare, common, frequent
#: kind -> layout; LAYOUTS[kind](rest) opens a set.
LAYOUTS: dict[str, type[DataLayout]] = {}


class DataLayout:
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
    empty_boxes: int  # objects whose box has no area: nobody trains on them
    mask_format = ""  # polygon, bitmask (RLE), or "" without masks
    metadata: dict = {}  # what Detectron2's evaluator of this layout asks for

    def __init_subclass__(cls):
        LAYOUTS[cls.kind] = cls

    def __init__(self, rest: str):
        content = self.read(rest)
        names = [image["file_name"] for image in content["images"]]
        sample = names[:: -(-len(names) // SAMPLED)]
        missing = [name for name in sample if not (self.root / name).is_file()]
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
        self.empty_boxes = int((sides <= 0).any(1).sum())

    def read(self, rest: str) -> dict:
        """Set `source`, `root` and what is not the default; returns the set as a COCO dictionary. Raises BookError."""
        raise NotImplementedError

    def records(self, name: str = "") -> list[dict]:
        """Detectron2's dataset dicts; `name` is the set's in Detectron2's catalogue."""
        raise NotImplementedError

    def truth(self) -> dict:
        """The set as a COCO dictionary, in which a "difficult" object is a crowd region."""
        return coco_dictionary(self.records(), self.classes)

    def check_scored(self) -> None:
        """Raise BookError where the evaluator could not read the set, if it asks more of it than training does."""

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
    def count(cls, rest: str) -> dict[str, int]:
        """Images that are listed and there, and annotations where they are counted. Raises BookError."""
        raise NotImplementedError


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
    def content(file: Path) -> dict:
        """The file's dictionary, `file_name` of every image included. Raises BookError."""
        return read_coco(file)

    def read(self, rest: str) -> dict:
        self.source, folder = split_spec(rest)
        content = self.content(self.source)
        self.root = coco_root(self.source, folder, content["images"][0]["file_name"])
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

        return load_coco_json(str(self.source), str(self.root), name)

    def truth(self) -> dict:
        return self.content(self.source)

    @classmethod
    def categories(cls, rest: str, names: list[str]) -> list[dict]:
        file = split_spec(rest)[0]
        listed = sorted(cls.content(file)["categories"], key=lambda entry: entry["id"]) if file.is_file() else []
        same = [entry["name"] for entry in listed] == names  # else another file lies there now
        ids = [entry["id"] for entry in listed] if same else range(1, len(names) + 1)
        return [{"id": i, "name": name} for i, name in zip(ids, names)]

    @classmethod
    def count(cls, rest: str) -> dict[str, int]:
        file, folder = split_spec(rest)
        content, root = cls.content(file), locate(folder or file.parent)
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
    def content(file: Path) -> dict:
        """LVIS names no files: an image's, split folder included, is the end of its `coco_url`."""
        content = read_coco(file)
        with parsing(file, "file of LVIS instances", "take the published one, with a coco_url of every image"):
            for image in content["images"]:
                image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
        return content

    def read(self, rest: str) -> dict:
        lvis_package()
        content = super().read(rest)
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
        bad = [a["id"] for a in content["annotations"]
               if not isinstance(a.get("segmentation"), list) or not a["segmentation"]
               or any(len(polygon) < 6 or len(polygon) % 2 for polygon in a["segmentation"])]  # fmt: skip
        require(
            not bad,
            f"{self.source}: {len(bad)} annotations are no polygons of three points or more, e.g. id {bad[:1]}: "
            "remove them",
        )
        return content

    def records(self, name: str = "") -> list[dict]:
        from detectron2.data.datasets.lvis import load_lvis_json

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

    def read(self, rest: str) -> dict:
        import soco_lib.detector  # noqa: F401 - silences what Detectron2 says when it is imported

        from detectron2.data.datasets.pascal_voc import CLASS_NAMES

        source, split = open_source(f"voc:{rest}"), split_spec(rest)[1]
        self.source, self.root = voc_split(source.root, split)[0], source.root / "JPEGImages"
        self.classes = tuple(CLASS_NAMES if {*source.classes} <= {*CLASS_NAMES} else source.classes)
        # The 11-point AP of VOC 2007 but for later years' sets; what is not VOC's own is scored as its benchmark is.
        year = 2012 if "2012" in source.root.name else 2007
        self.metadata = {"dirname": str(source.root), "split": self.source.stem, "year": year}
        self._records = [self._record(Path(key).stem) for key in source.keys]
        return self.truth()

    def _record(self, name: str) -> dict:
        """Of one image, with difficult objects, which are trained on too."""
        size, objects = read_voc(self.root.parent, name)
        require(
            size is not None, f"{self.root.parent}/Annotations/{name}.xml names no size (width, height): complete it"
        )
        corners = [(x1 - 1, y1 - 1, x2, y2) for x1, y1, x2, y2 in (item.corners for item in objects)]
        annotations = [{"category_id": self.classes.index(item.name), "bbox": [*box], "bbox_mode": 0,  # x1 y1 x2 y2
                        "difficult": item.difficult} for item, box in zip(objects, corners)]  # fmt: skip
        return {"file_name": f"{self.root / name}.jpg", "image_id": name, "height": size[1], "width": size[0],
                "annotations": annotations}  # fmt: skip

    def records(self, name: str = "") -> list[dict]:
        return self._records

    def check_scored(self) -> None:
        from detectron2.evaluation.pascal_voc_evaluation import parse_rec

        for name in self.source.read_text().splitlines():
            file = self.root.parent / "Annotations" / f"{name.strip()}.xml"
            try:
                parse_rec(str(file))
            except (OSError, AttributeError, TypeError, ValueError):
                raise BookError(
                    f"{file} cannot be scored: VOC's evaluation needs the file of every line of {self.source}, and in "
                    "it pose, truncated, difficult and whole-number corners of every object: complete it"
                ) from None

    def evaluator(self, name: str, tasks: tuple[str, ...], folder: Path):
        from detectron2.evaluation import PascalVOCDetectionEvaluator
        from detectron2.evaluation.coco_evaluation import instances_to_coco_json
        from detectron2.utils import comm

        classes, objects = self.classes, (item for record in self._records for item in record["annotations"])
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
                saved = comm.gather(self.saved, dst=0)
                if comm.is_main_process():
                    write_json(folder / Voc.predictions, list(itertools.chain(*saved)))
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
