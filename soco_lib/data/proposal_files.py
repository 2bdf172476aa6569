"""Files of proposals as others write and read them, each layout with its reader and its writer.

    soco          the authors' JSON: file name without suffix -> [[x, y, w, h], ...]
    aligndet      a COCO annotation file with one category, as AlignDet reads it
    coco-results  [{image_id, category_id, bbox: [x, y, w, h], score}, ...]
    detectron2    the pickle of LOAD_PROPOSALS: lists of ids, boxes and objectness_logits, an entry an image; bbox_mode
    mmdet         MMDetection 3's pickle: folder/file -> {bboxes, scores}
    mmdet2        MMDetection 2's pickle: an array (n, 4), with scores (n, 5), for each image in its data set's order

x and y are the left top corner, w and h width and height, bboxes x1 y1 x2 y2; all in pixels, not rounded.
"""

from __future__ import annotations

import itertools
import json
import pickle
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from soco_lib import BookError
from soco_lib.data.image_names import Images, coco_images, reading
from soco_lib.data.pickles import Arrays
from soco_lib.data.streams import BEGIN, entries
from soco_lib.fields import require

LAYOUTS = ("soco", "aligndet", "coco-results", "detectron2", "mmdet", "mmdet2")
#: Layouts whose boxes are x1 y1 x2 y2, and those that are pickles.
CORNERS = PICKLES = ("detectron2", "mmdet", "mmdet2")
#: Boxes that are taken from a JSON file at a time.
BLOCK = 2**15


# --- reading ----------------------------------------------------------------------------------------------------------


class Boxes:
    """What is read of a file: boxes as they come, each with the position of its image."""

    def __init__(self, file: Path, images: Images, corners: bool | None):
        self.file, self.images, self.layout, self.corners, self._asked = file, images, "", False, corners
        self.listed = np.zeros(len(images.keys), bool)  # images that the file names, with boxes or without
        self.foreign: dict[str, None] = {}  # what it names besides
        self.scored = self.bare = 0  # boxes with and without a score
        self._parts: list[tuple] = []

    def of(self, layout: str, corners: bool | None = None) -> None:
        """Note the layout; its boxes are meant as is usual in it (or as `corners`), unless it was asked otherwise."""
        self.layout, usual = layout, layout in CORNERS if corners is None else corners
        self.corners = usual if self._asked is None else self._asked

    def name(self, index: int, key) -> int:
        """Note that the file names image `index`, as `key` (-1: none of these); returns the index."""
        if index < 0:
            self.foreign[str(key)] = None
        else:
            self.listed[index] = True
        return index

    def add(self, indices, boxes, scores=None) -> None:
        """n boxes, four numbers each, of the images `indices`, with n scores; a missing score is None."""
        indices = np.asarray(indices, np.int64)
        boxes = np.asarray(boxes, np.float64)
        boxes = boxes if len(indices) else np.empty((0, 4))
        require(boxes.shape == (len(indices), 4), f"{self.file} has boxes of other than four numbers: give four each")
        bare = len(indices) if scores is None else sum(score is None for score in scores)
        self.bare, self.scored = self.bare + bare, self.scored + len(indices) - bare
        scores = np.zeros(len(indices)) if bare else np.asarray(scores, np.float64)
        require(scores.shape == (len(indices),), f"{self.file} has {scores.size} scores for {len(indices)} boxes")
        for what, values in (("box", boxes), ("score", scores[:, None])):
            if not np.isfinite(values).all():
                first = int((~np.isfinite(values)).any(1).argmax())
                whose = self.images.keys[indices[first]] if indices[first] >= 0 else "an image that is not asked for"
                raise BookError(f"{self.file} has a {what} that is no number, {values[first].tolist()} of {whose}: "
                                "correct or remove it")  # fmt: skip
        if not self.corners:
            boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        ours = indices >= 0
        with np.errstate(over="ignore"):  # infinity lies outside of every picture
            part = indices[ours].astype(np.int32), boxes[ours].astype(np.float32), scores[ours].astype(np.float32)
        self._parts.append(part)

    def take(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(M,) positions, ascending, (M, 4) float32 x1 y1 x2 y2, (M,) float32 scores; once. Boxes of an image are in
        the file's order.
        """
        empty = np.empty(0, np.int32), np.empty((0, 4), np.float32), np.empty(0, np.float32)
        parts, self._parts = [*zip(empty, *self._parts)], []
        positions = np.concatenate(parts[0])
        order = np.argsort(positions, kind="stable")
        return positions[order], np.concatenate(parts[1])[order], np.concatenate(parts[2])[order]


def read(file: Path, images: Images, corners: bool | None = None) -> Boxes:
    """The boxes in a file, whose layout is told from its content; corners: that they are x1 y1 x2 y2 (True) or x y w h
    (False), whatever is usual in the layout.

    JSON is read in pieces, and of a pickle nothing is run. Raises BookError for a file that is missing, cut short or of
    no layout, for boxes and scores that are no numbers, and for a pickle of other things than arrays.
    """
    require(file.is_file(), f"no proposals file {file}: give FROM=, a file in one of the layouts {', '.join(LAYOUTS)}")
    made = Boxes(file, images, corners)
    with open(file, "rb") as content:
        pickled = content.read(1) in b"\x80(]}"  # of protocol 2 and later; of 0 and 1
    if pickled:
        content = _unpickled(file)
        with reading(file, "pickle of proposals, of Detectron2 or MMDetection"):
            _read_pickle(content, made)
    else:
        name, _ = next(entries(file), ("", {}))
        if name == "":
            _read_results(made)
        elif name in ("images", "annotations", "categories", "info", "licenses"):
            _read_coco(made)
        else:
            _read_soco(made)
    return made


def _blocks(rows: Iterator) -> Iterator[list]:
    while block := list(itertools.islice(rows, BLOCK)):
        yield block


def _read_results(made: Boxes) -> None:
    made.of("coco-results")
    images, nothing = made.images, f"{made.file} names images by ids, and those of {made.images.spec} have none"
    require(bool(images.ids), f"{nothing}: give a COCO file that lists them, ARGS='--ids images.json'")
    with reading(made.file, "list of COCO results, {image_id, bbox: [x, y, width, height], score}"):
        for block in _blocks(row for _, row in entries(made.file)):
            found = [made.name(images.ids.get(str(row["image_id"]), -1), row["image_id"]) for row in block]
            made.add(found, [row["bbox"] for row in block], [row.get("score") for row in block])


def _read_coco(made: Boxes) -> None:
    made.of("aligndet")
    with reading(made.file, "COCO file of images, {id, file_name}, and annotations, {image_id, bbox}"):
        places = {image["id"]: made.name(made.images.state(image), image["file_name"])
                  for image in coco_images(made.file)}  # fmt: skip
        rows = (row for name, row in entries(made.file) if name == "annotations" and row is not BEGIN)
        for block in _blocks(rows):
            found = [places[row["image_id"]] for row in block]
            made.add(found, [row["bbox"] for row in block], [row.get("score") for row in block])


def _read_soco(made: Boxes) -> None:
    made.of("soco")
    made.images.names("soco")  # or images would be taken for each other
    stems = made.images.stems
    with reading(made.file, "file in the authors' format, file name without suffix -> [[x, y, w, h], ...]"):
        index = -1

        def boxes() -> Iterator[tuple[int, list]]:
            nonlocal index
            for name, row in entries(made.file):
                if row is BEGIN:
                    index = made.name(stems.get(name, -1), name)
                else:
                    yield index, row

        for rows in _blocks(boxes()):
            scores = [row[4] if len(row) > 4 else None for _, row in rows]
            made.add([index for index, _ in rows], [row[:4] for _, row in rows], scores)


class _Proposals(Arrays):
    """Arrays, and of two classes the contents alone: Detectron2's BoxMode and MMDetection's InstanceData."""

    _known = {("detectron2", "BoxMode"): int, ("mmengine", "InstanceData"): types.SimpleNamespace,
              ("builtins", "set"): set, ("__builtin__", "set"): set}  # fmt: skip

    def find_class(self, module: str, name: str):
        return self._known.get((module.split(".")[0], name)) or super().find_class(module, name)


def _unpickled(file: Path):
    try:
        with open(file, "rb") as content:
            return _Proposals(content, encoding="latin1").load()  # what Python 2's strings and arrays need
    except Exception as error:  # what a torn file raises depends on its first wrong byte
        said = (str(error).splitlines() or [repr(error)])[0]
        if "Unsupported global" in said:
            raise BookError(
                f"{file} holds a Python object ({said.split()[-1]}), and to load it would run code from the file: "
                "write its boxes as numpy arrays"
            ) from None
        raise BookError(f"{file} is cut short or no pickle of arrays ({said}): copy or write it again") from None


def _read_pickle(content, made: Boxes) -> None:
    images = made.images
    if isinstance(content, dict) and "boxes" in content:
        mode = int(content.get("bbox_mode", 0))
        require(mode in (0, 1), f"{made.file} has bbox_mode {mode}: write XYXY_ABS (0) or XYWH_ABS (1)")
        made.of("detectron2", mode == 0)
        ids, boxes = content["ids" if "ids" in content else "indexes"], content["boxes"]
        scores = content.get("objectness_logits", content.get("scores", [None] * len(ids)))
        counts = len(ids), len(boxes), len(scores)
        said = "{} ids, {} boxes and {} objectness_logits".format(*counts)
        require(len({*counts}) == 1, f"{made.file} has {said}: give an entry an image in each")
        for name, of_image, logits in zip(ids, boxes, scores):
            index = made.name(images.called(name), name)
            made.add(np.full(len(of_image), index), of_image, logits)
    elif isinstance(content, dict):
        made.of("mmdet")
        for path, entry in content.items():
            index, entry = made.name(images.at(path), path), entry if isinstance(entry, dict) else vars(entry)
            made.add(np.full(len(entry["bboxes"]), index), entry["bboxes"], entry.get("scores"))
    else:
        made.of("mmdet2")
        order = images.order or range(len(images.keys))
        counted = f"{made.file} is a list of the boxes of {len(content)} images, and {images.spec} has {len(order)}"
        require(len(content) == len(order), f"{counted}: give the images that it was made for, IMAGES=")
        for index, rows in zip(order, content):
            rows = np.asarray(rows, np.float64) if len(rows) else np.empty((0, 5))
            scores, rows = (rows[:, 4], rows[:, :4]) if rows.shape[1] == 5 else (None, rows)
            made.add(np.full(len(rows), made.name(index, index)), rows, scores)


# --- writing ----------------------------------------------------------------------------------------------------------

#: An image of a store: its position, boxes (n, 4) x1 y1 x2 y2, scores (n,) or None.
Row = tuple[int, np.ndarray, np.ndarray | None]


def write(file: IO, layout: str, images: Images, rows: Iterable[Row], about: dict) -> None:
    """Write boxes to an open file, of text for JSON and of bytes for the pickles; about: for the layout's remarks.

    Numbers are not rounded. An image without a size in `images` cannot be read: it has no boxes in a pickle, and JSON
    leaves it out. Boxes without scores get 1 in COCO's results and 0 in Detectron2's pickle, which need some; the
    authors' layout has no place for any. Raises BookError for images that the layout cannot tell apart.
    """
    names = [] if layout == "mmdet2" else images.names(layout, images.sizes)
    if layout in PICKLES:
        pickle.dump(_pickled(layout, images, names, rows), file, protocol=4)
    else:
        file.writelines(_json(layout, images, names, rows, about))


def _sides(boxes: np.ndarray) -> list[list[float]]:
    """x y w h in float64, of which x + w is x2 again."""
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _json(layout: str, images: Images, names: list, rows: Iterable[Row], about: dict) -> Iterator[str]:
    """A JSON text in pieces: all boxes may not fit in memory."""
    listed = [{"id": names[index], "file_name": images.keys[index], "width": width, "height": height}
              for index, (width, height) in images.sizes.items()]  # fmt: skip
    # The one category is called as AlignDet's configuration asks for it.
    head = {"info": about, "images": listed, "categories": [{"id": 1, "name": "selective_search"}]}
    yield {"soco": "{", "coco-results": "[", "aligndet": json.dumps(head)[:-1] + ', "annotations": ['}[layout]
    pieces = (_entry(layout, names[row[0]], *row[1:]) for row in rows if row[0] in images.sizes)
    mark, number = "\n", itertools.count(1)
    for entry in itertools.chain.from_iterable(pieces):
        if layout == "aligndet":
            entry["id"] = next(number)
        yield mark + (json.dumps(entry) if isinstance(entry, dict) else entry)
        mark = ",\n"
    yield {"soco": "}\n", "coco-results": "]\n", "aligndet": "]}\n"}[layout]


def _entry(layout: str, name, boxes: np.ndarray, scores: np.ndarray | None) -> Iterator[dict | str]:
    if layout == "soco":
        yield f"{json.dumps(name)}: {json.dumps(_sides(boxes))}"
        return
    if scores is None and layout == "coco-results":
        scores = np.ones(len(boxes))
    for place, sides in enumerate(_sides(boxes)):
        entry = {"image_id": name, "category_id": 1, "bbox": sides}
        if layout == "aligndet":
            entry |= {"area": sides[2] * sides[3], "iscrowd": 0}
        yield entry if scores is None else entry | {"score": float(scores[place])}


def _pickled(layout: str, images: Images, names: list, rows: Iterable[Row]):
    if layout == "mmdet2":
        arrays = {index: boxes if scores is None else np.column_stack([boxes, scores])
                  for index, boxes, scores in rows}  # fmt: skip
        return [arrays.get(index, np.empty((0, 4), np.float32)) for index in images.order or arrays]
    if layout == "mmdet":
        return {names[index]: {"bboxes": boxes} | ({} if scores is None else {"scores": scores})
                for index, boxes, scores in rows if names[index] is not None}  # fmt: skip
    made: dict = {"ids": [], "boxes": [], "objectness_logits": [], "bbox_mode": 0}  # BoxMode.XYXY_ABS
    for index, boxes, scores in (row for row in rows if names[row[0]] is not None):
        made["ids"].append(names[index])
        made["boxes"].append(boxes)
        made["objectness_logits"].append(np.zeros(len(boxes), np.float32) if scores is None else scores)
    return made
