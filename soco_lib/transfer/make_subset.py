"""Boxes of some classes of an annotated set, as a COCO file of their own:

    python -m soco_lib.transfer.make_subset voc:voc_style@train --classes person --out data/people/train.json

Prints how to name the file as data; the images stay where they are, those without an object of the classes among
them. Crowd regions and what VOC calls difficult are kept as crowds: nobody trains on them and no detection on them is
wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from soco_lib import ROOT, one_line_errors
from soco_lib.fields import one_of, require
from soco_lib.runs.folder import write_json
from soco_lib.transfer.datasets import coco_dictionary, usage
from soco_lib.transfer.detectron import open_data


def subset(content: dict, chosen: tuple[str, ...], root: Path) -> dict:
    """What a COCO dictionary says of the classes `chosen`; images and categories are numbered from 1.

    root: folder that image names are made relative to.
    """
    category = {item["id"]: chosen.index(item["name"]) + 1 for item in content["categories"] if item["name"] in chosen}
    image = {item["id"]: number for number, item in enumerate(content["images"], start=1)}
    kept = [item for item in content["annotations"] if item["category_id"] in category]
    return {
        "images": [
            item | {"id": image[item["id"]], "file_name": os.path.relpath(item["file_name"], root)}
            for item in content["images"]
        ],
        "annotations": [
            item | {"id": number, "image_id": image[item["image_id"]], "category_id": category[item["category_id"]]}
            for number, item in enumerate(kept, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(chosen, start=1)],
    }


def make(spec: str, chosen: tuple[str, ...], out: Path) -> str:
    """Write the file `out`; returns a line that names it as data. Raises BookError for bad data or an unknown class."""
    data = open_data(spec)
    require(len(data.layouts) == 1, f"{spec!r} joins several sets: take them one by one")
    require(len({*chosen}) == len(chosen) and bool(chosen), f"classes {', '.join(chosen) or '(none)'}: name each once")
    for name in chosen:
        one_of(f"class of {spec}", name, data.classes)
    root = data.layouts[0].root
    made = subset(coco_dictionary(data.records, data.classes), chosen, root)
    crowds = sum(item["iscrowd"] for item in made["annotations"])
    objects = len(made["annotations"]) - crowds
    require(objects > 0, f"{spec} holds no object of {', '.join(chosen)}: nothing could be learnt or scored")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, made)
    counts = f"{len(made['images'])} images, {objects} objects, {crowds} crowd regions, {len(chosen)} classes"
    return f"coco:{out}@{root}  ({counts})"


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help=f"data set: {usage()}")
    parser.add_argument("--classes", required=True, help="names, separated by commas")
    parser.add_argument("--out", type=Path, required=True, help="COCO file to write")
    given = parser.parse_args(arguments)
    print(make(given.data, tuple(name.strip() for name in given.classes.split(",") if name.strip()), ROOT / given.out))


if __name__ == "__main__":
    sys.exit(main())
