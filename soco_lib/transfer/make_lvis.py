"""A small data set in LVIS layout, made from one in COCO layout, whose images stay where they are:

    python -m soco_lib.transfer.make_lvis [TRAIN TEST] [--out FOLDER]

TRAIN and TEST read coco:ANNOTATIONS.json[@IMAGE_FOLDER] (default: the drawn scenes). Writes FOLDER/lvis_train.json and
lvis_val.json and prints how to name them as data.

What LVIS has and COCO has not: classes numbered from 1 without gaps, each with its frequency in the training set; masks
as polygons only; and for each image the classes that are known to be absent (COCO looks for all of its classes, so all
that are not there) and those of which not every object is marked (here those with a crowd region, which itself is left
out).
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import cv2
from pycocotools import mask as rle

from soco_lib import ROOT, one_line_errors
from soco_lib.data.annotations import coco_root, read_coco
from soco_lib.data.sources import split_spec
from soco_lib.fields import require
from soco_lib.runs.folder import write_json

SCENES = tuple(f"coco:data/scenes/annotations/instances_{split}.json@data/scenes/images" for split in ("train", "val"))
#: Most training images of a rare, of a common and of a frequent class (LVIS v1).
FREQUENCY = (("r", 10), ("c", 100), ("f", float("inf")))


def polygons(segmentation, height: int, width: int) -> list[list[float]]:
    """COCO polygons or run-length code as polygons of three points or more; outlines of a code's parts lose holes."""
    if isinstance(segmentation, list):
        found = segmentation
    else:
        counts = segmentation["counts"]
        code = rle.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
        outlines, _ = cv2.findContours(rle.decode(code), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        found = [outline.reshape(-1).astype(float).tolist() for outline in outlines]
    return [polygon for polygon in found if len(polygon) >= 6 and len(polygon) % 2 == 0]


def convert(content: dict, folder: str, numbers: dict[int, int]) -> tuple[dict, int]:
    """A COCO dictionary's images and annotations as LVIS's, and how many objects had no mask to be kept.

    folder: the images' own, which LVIS reads from `coco_url`. numbers: category id of COCO -> of LVIS.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    there, crowded, annotations, lost = defaultdict(set), defaultdict(set), [], 0
    for item in content["annotations"]:
        image, category = item["image_id"], numbers[item["category_id"]]
        outline = [] if item.get("iscrowd") else polygons(item.get("segmentation") or [], *sizes[image])
        if outline:
            there[image].add(category)
            own = {"id": len(annotations) + 1, "image_id": image, "category_id": category}
            annotations.append(own | {"bbox": item["bbox"], "area": item["area"], "segmentation": outline})
        else:  # there is such an object, but it is not marked
            crowded[image].add(category)
            lost += not item.get("iscrowd")
    images = []
    for image in content["images"]:
        present, unsure = there[image["id"]], crowded[image["id"]]
        last_two = f"{folder}/{image['file_name']}".split("/")[-2:]
        about = {key: image[key] for key in ("id", "height", "width")} | {"coco_url": "/".join(last_two)}
        images.append(about | {"neg_category_ids": sorted({*numbers.values()} - present - unsure),
                               "not_exhaustive_category_ids": sorted(unsure)})  # fmt: skip
    return {"images": images, "annotations": annotations}, lost


def _read(spec: str) -> tuple[Path, Path, dict]:
    """Annotation file, image folder and content."""
    require(spec.startswith("coco:"), f"data {spec!r} must read coco:ANNOTATIONS.json[@IMAGE_FOLDER]")
    path, folder = split_spec(spec.removeprefix("coco:"))
    content = read_coco(path, folder=folder)
    return path, coco_root(path, folder, [image["file_name"] for image in content["images"]]), content


def make(train: str, test: str, out: Path) -> dict[str, str]:
    """Write out/lvis_train.json and out/lvis_val.json; returns name -> one line about it.

    Raises BookError for data without masks, of different categories, or in folders that LVIS cannot name.
    """
    read = {name: _read(spec) for name, spec in (("lvis_train", train), ("lvis_val", test))}
    categories = {name: {c["id"]: c["name"] for c in content["categories"]} for name, (*_, content) in read.items()}
    same = categories["lvis_train"] == categories["lvis_val"]
    require(same, f"{train} and {test} have different categories: give two parts of one set")
    ids = sorted(categories["lvis_train"])
    numbers, counts, said = {identity: i for i, identity in enumerate(ids, start=1)}, None, {}
    out.mkdir(parents=True, exist_ok=True)
    for name, (path, root, content) in read.items():
        folders = {(root / image["file_name"]).parent for image in content["images"]}
        above = {folder.parent for folder in folders}
        require(len(above) == 1, f"{path}: the images lie in folders of different depth; LVIS's lie in ROOT/SPLIT/FILE")
        made, lost = convert(content, root.name, numbers)
        require(bool(made["annotations"]), f"{path} holds no masks: LVIS needs them")
        if counts is None:  # of the training set, for both
            pairs = {(a["category_id"], a["image_id"]) for a in made["annotations"]}
            counts = {number: sum(category == number for category, _ in pairs) for number in numbers.values()}
        called = categories[name]
        made["categories"] = [
            {"id": numbers[i], "name": called[i], "synonyms": [called[i]], "image_count": counts[numbers[i]],
             "frequency": next(word for word, most in FREQUENCY if counts[numbers[i]] <= most)} for i in ids
        ]  # fmt: skip
        write_json(out / f"{name}.json", made)
        said[name] = (
            f"lvis:{out / name}.json@{above.pop()}  ({len(made['images'])} images, {len(made['annotations'])} objects, "
            f"{len(ids)} classes; {lost} objects without a usable mask left out)"
        )
    return said


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about, out = "two coco: data sets (default: the embedded scenes)", "folder to write (default: data/scenes-lvis)"
    parser.add_argument("data", nargs="*", metavar="TRAIN TEST", help=about)
    parser.add_argument("--out", type=Path, default=ROOT / "data/scenes-lvis", help=out)
    given = parser.parse_args(arguments)
    require(len(given.data) in (0, 2), "give two data sets, TRAIN and TEST, or none for the drawn scenes")
    for line in make(*(given.data or SCENES), given.out).values():
        print(line)


if __name__ == "__main__":
    sys.exit(main())
