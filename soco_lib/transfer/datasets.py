"""Annotated images in COCO, LVIS and VOC layout as Detectron2 reads them, checked before anything is built on them."""

from __future__ import annotations

import logging
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

import soco_lib.detector
from soco_lib import BookError
from soco_lib.data.sources import open_source, split_spec
from soco_lib.fields import require
from soco_lib.transfer.benchmarks import read_coco

from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.data.datasets.pascal_voc import CLASS_NAMES as VOC_CLASSES
from detectron2.evaluation.pascal_voc_evaluation import parse_rec
from detectron2.structures import BoxMode

#: Images of a set whose existence is checked before a run starts.
SAMPLED = 50
FREQUENCIES = ("r", "c", "f")  # LVIS's groups of classes: rare, common, frequent


@dataclass(frozen=True)
class Layout:
    """One annotated set as it lies on disk."""

    kind: str  # coco, lvis or voc
    source: Path  # annotation file; VOC: the split's file
    root: Path  # folder of the images; VOC: of the set
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # of each class in predictions and, but for VOC, in the annotation file
    image_ids: tuple = field(repr=False)  # sorted
    mask_format: str  # polygon, bitmask (RLE), or "" without masks
    empty_boxes: int  # objects whose box has no area: nobody trains on them
    load: Callable[[str], list[dict]] = field(repr=False)  # name in the catalogue -> Detectron2's records
    metadata: dict = field(repr=False)  # what Detectron2's evaluator of this kind asks for


def read_layout(kind: str, rest: str) -> Layout:
    """The set that "KIND:REST" names. Raises BookError for missing or foreign files and images (a sample is looked at)."""
    return {"coco": _read_coco, "lvis": _read_lvis, "voc": _read_voc}[kind](rest)


def _check_images(root: Path, names: list[str], source: Path) -> None:
    sample = names[:: -(-len(names) // SAMPLED)]
    missing = [name for name in sample if not (root / name).is_file()]
    require(
        not missing,
        f"{len(missing)} of {len(sample)} images sampled from {source} are not in {root}, e.g. {missing[:1]}: complete the folder",
    )


def _by_id(content: dict) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids and names of the categories in the order of the ids, which is Detectron2's order of classes."""
    ordered = sorted(content["categories"], key=lambda category: category["id"])
    return tuple(category["id"] for category in ordered), tuple(category["name"] for category in ordered)


def _empty(boxes: list) -> int:
    """How many of the boxes (x, y, w, h) have no area."""
    return int((np.array(boxes, float).reshape(-1, 4)[:, 2:] <= 0).any(1).sum())


# --- COCO -------------------------------------------------------------------------------------------------------------


def _mask_format(annotations: list[dict], path: Path) -> str:
    """How objects' masks are stored. Crowd regions do not count: they are RLE everywhere and nobody trains on them."""
    needed, kinds = {"id", "image_id", "category_id", "bbox", "area"}, set()
    for annotation in annotations:
        missing = needed - annotation.keys()
        require(not missing, f"{path}: annotation {annotation.get('id')} lacks {', '.join(sorted(missing))}")
        if not annotation.get("iscrowd"):
            kinds.add(type(annotation["segmentation"]) if annotation.get("segmentation") else None)
    require(
        kinds <= {None} or None not in kinds,
        f"{path}: some objects have masks and some have none: complete or remove them",
    )
    return "bitmask" if dict in kinds else "polygon" if list in kinds else ""


def _read_json(kind: str, rest: str, load: Callable[[Path, Path, str], list[dict]]) -> tuple[Layout, dict]:
    """A set whose annotations are one JSON file, and the file's content; `load` takes file, image folder and name."""
    path, root, content = read_coco(f"{kind}:{rest}")
    mask_format = _mask_format(content["annotations"], path)
    _check_images(root, [image["file_name"] for image in content["images"]], path)
    ids, classes = _by_id(content)
    layout = Layout(
        kind=kind, source=path, root=root, classes=classes, category_ids=ids, mask_format=mask_format,
        image_ids=tuple(sorted(image["id"] for image in content["images"])),
        empty_boxes=_empty([annotation["bbox"] for annotation in content["annotations"]]),
        load=lambda name: load(path, root, name), metadata={"json_file": str(path), "image_root": str(root)},
    )  # fmt: skip
    return layout, content


def _read_coco(rest: str) -> Layout:
    return _read_json("coco", rest, lambda path, root, name: load_coco_json(str(path), str(root), name))[0]


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


def _read_lvis(rest: str) -> Layout:
    lvis_package()
    # Detectron2 joins folder and split of an image without a slash of its own.
    layout, content = _read_json("lvis", rest, lambda path, root, name: load_lvis_json(str(path), f"{root}/"))
    path, ids = layout.source, layout.category_ids
    require(
        ids == tuple(range(1, len(ids) + 1)),
        f"{path}: category ids of LVIS run from 1 to their number, {len(ids)}, here from {ids[0]} to {ids[-1]}: renumber them",
    )
    require(
        all(category.get("frequency") in FREQUENCIES for category in content["categories"])
        and all({"neg_category_ids", "not_exhaustive_category_ids"} <= image.keys() for image in content["images"]),
        f"{path}: LVIS's evaluation needs each category's frequency ({', '.join(FREQUENCIES)}) and each image's neg_category_ids "
        "and not_exhaustive_category_ids: take the published file, or make one with python -m soco_lib.transfer.make_lvis",
    )
    bad = [a["id"] for a in content["annotations"]
           if not isinstance(a.get("segmentation"), list) or not a["segmentation"]
           or any(len(polygon) < 6 or len(polygon) % 2 for polygon in a["segmentation"])]  # fmt: skip
    require(
        not bad,
        f"{path}: {len(bad)} annotations are no polygons of three points or more, e.g. id {bad[:1]}: remove them",
    )
    return layout


# --- VOC --------------------------------------------------------------------------------------------------------------


def _read_voc(rest: str) -> Layout:
    """Classes are VOC's twenty in its order where the set has no others, else all names in `Annotations/`, sorted."""
    source = open_source(f"voc:{rest}")
    file = source.root / "ImageSets" / "Main" / f"{split_spec(rest)[1] or 'trainval'}.txt"
    try:
        names = source.classes
    except (ElementTree.ParseError, AttributeError) as error:
        raise BookError(
            f"a file in {source.root / 'Annotations'} is not a VOC annotation ({error}): repair or remove it"
        ) from None
    classes = VOC_CLASSES if set(names) <= set(VOC_CLASSES) else names
    _check_images(source.root, list(source.keys), file)
    records = [_voc_record(source.root, key, classes) for key in source.keys]
    corners = np.array([o["bbox"] for record in records for o in record["annotations"]], float).reshape(-1, 4)
    return Layout(
        kind="voc", source=file, root=source.root, classes=tuple(classes), category_ids=tuple(range(len(classes))), mask_format="",
        image_ids=tuple(record["image_id"] for record in records),
        empty_boxes=int((corners[:, 2:] <= corners[:, :2]).any(1).sum()),
        load=lambda name: records,
        # The 11-point AP of VOC 2007 but for later years' sets; what is not VOC's own is scored as its benchmark is,
        # like 2007's.
        metadata={"dirname": str(source.root), "split": file.stem, "year": 2012 if "2012" in source.root.name else 2007},
    )  # fmt: skip


def _voc_record(root: Path, key: str, classes: tuple[str, ...]) -> dict:
    """Detectron2's record of one image: its corners are 1-based and inclusive, and difficult objects are trained on
    too.
    """
    name = Path(key).stem
    file = root / "Annotations" / f"{name}.xml"
    try:
        tree = ElementTree.parse(file)
        height, width = (int(tree.findtext(f"size/{side}")) for side in ("height", "width"))
        objects = []
        for item in tree.iterfind("object"):
            x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
            objects.append({"category_id": classes.index(item.findtext("name").strip()), "bbox": [x1 - 1, y1 - 1, x2, y2],
                            "bbox_mode": BoxMode.XYXY_ABS, "difficult": int(item.findtext("difficult") or 0)})  # fmt: skip
    except (OSError, ElementTree.ParseError, TypeError, ValueError, AttributeError) as error:
        reason = f"{file} is missing or no VOC annotation ({error})"
        raise BookError(f"{reason}: complete Annotations, or take {name} out of the split") from None
    return {"file_name": str(root / key), "image_id": name, "height": height, "width": width, "annotations": objects}


def check_scored(data: Layout) -> None:
    """Raise BookError where Detectron2's VOC evaluator could not read the set, which asks more of it than training
    does.
    """
    if data.kind != "voc":
        return
    for name in data.source.read_text().splitlines():
        file = data.root / "Annotations" / f"{name.strip()}.xml"
        try:
            parse_rec(str(file))
        except (OSError, AttributeError, TypeError, ValueError):
            raise BookError(
                f"{file} cannot be scored: VOC's evaluation needs the file of every line of {data.source}, and in it pose, "
                "truncated, difficult and whole-number corners of every object: complete it"
            ) from None
