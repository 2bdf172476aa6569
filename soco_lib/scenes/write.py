"""Generated scenes for a machine without data: objects of ten categories drawn into photographs, with exact masks.

`python -m soco_lib.scenes --out data/scenes --train 1500 --val 200 --seed 0` writes a COCO layout in seconds, from
nothing but the photographs inside scikit-image's wheel. Segmentations are compressed RLE: detectors need
`INPUT.MASK_FORMAT: bitmask`.
"""

import argparse
import json
import multiprocessing
import shutil
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle

from soco_lib import BookError, one_line_errors
from soco_lib.runs import machine
from soco_lib.scenes.objects import CATEGORIES
from soco_lib.scenes.picture import MOST, SMALLEST, SPLITS, draw_scene

GENERATOR = 1  #: raise it when the same seed starts to give other pictures


def write_scenes(out: Path, train: int, val: int, seed: int = 0, workers: int | None = None, most: int = MOST,
                 smallest: float = SMALLEST) -> Path:  # fmt: skip
    """Write `train` + `val` scenes as a COCO layout and return `out`; does nothing if the same are there already.

    `<out>/images/{train,val}/000001.jpg`, `<out>/annotations/instances_{train,val}.json` with `file_name` relative to
    `<out>/images` and category ids from 1, and `<out>/scenes.json`, the parameters. The folder appears whole or not at
    all. `workers`: processes, None for one a usable core; `most`, `smallest`: see draw_scene. Raises BookError if the
    folder holds something else.
    """
    out = Path(out)
    if min(train, val) < 0:
        raise BookError(f"cannot write {train} train and {val} val scenes: give counts of 0 or more")
    wanted = {"generator": GENERATOR, "seed": seed, "train": train, "val": val, "most": most, "smallest": smallest}
    if _is_written(out, wanted):
        return out
    jobs = [(split, index) for split, count in (("train", train), ("val", val)) for index in range(count)]
    workers = min(workers or machine.cores(), max(1, len(jobs) // 32))
    building = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        for split in SPLITS:
            (building / "images" / split).mkdir(parents=True)
        job = partial(_write_scene, building / "images", seed, most, smallest)
        if workers == 1:
            records = list(map(job, jobs))
        else:
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
                records = list(pool.map(job, jobs, chunksize=8))
        (building / "annotations").mkdir()
        for split in SPLITS:
            coco = _coco([r for (s, _), r in zip(jobs, records) if s == split])
            (building / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))
        (building / "scenes.json").write_text(json.dumps(wanted, indent=1) + "\n")
        try:
            building.rename(out)
        except OSError:  # someone else wrote the folder meanwhile
            if not _is_written(out, wanted):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return out


def _is_written(out, wanted):
    record = out / "scenes.json"
    if not record.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise BookError(f"{out} exists and holds no scenes: choose another folder")
        return False
    found = json.loads(record.read_text())
    for name, value in wanted.items():
        if found.get(name) != value:
            other = f"{name}={found.get(name)}, not {value}"
            raise BookError(f"{out} holds scenes with {other}: delete the folder or choose another")
    return True


def _write_scene(folder, seed, most, smallest, job):
    """Draw and save one scene; its COCO image record and annotations, ids left to the caller, which knows the order."""
    split, index = job
    scene = draw_scene(seed, index, split, most=most, smallest=smallest)
    name = f"{split}/{index + 1:06d}.jpg"
    if not cv2.imwrite(str(folder / name), scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]):
        raise BookError(f"could not write {folder / name}: is the disk full?")
    height, width = scene.image.shape[:2]
    annotations = []
    for mask, (x1, y1, x2, y2), label in zip(scene.masks, scene.boxes.tolist(), scene.labels.tolist()):
        code = rle.encode(np.asfortranarray(mask, np.uint8))
        where = {"area": int(mask.sum()), "bbox": [x1, y1, x2 - x1, y2 - y1]}
        where["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
        annotations.append({"category_id": label + 1, "iscrowd": 0} | where)
    return {"id": index + 1, "file_name": name, "height": height, "width": width}, annotations


def _coco(records):
    annotations = [a | {"image_id": image["id"]} for image, found in records for a in found]
    return {
        "info": {"description": "generated scenes (soco_lib.scenes)"},
        "images": [image for image, _ in records],
        "annotations": [{"id": i} | a for i, a in enumerate(annotations, 1)],
        "categories": [{"id": i, "name": name, "supercategory": "object"} for i, name in enumerate(CATEGORIES, 1)],
    }


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    """The command line: write the scenes, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=400, help="training scenes")
    parser.add_argument("--val", type=int, default=120, help="validation scenes")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--most", type=int, default=MOST, help="objects of a scene, at most")
    least = "side of the smallest object, as a share of the image's"
    parser.add_argument("--smallest", type=float, default=SMALLEST, help=least)
    parser.add_argument("--workers", type=int, help="processes (default: one a usable core)")
    given, start = parser.parse_args(argv), time.perf_counter()
    write_scenes(given.out, given.train, given.val, given.seed, given.workers, given.most, given.smallest)
    counts = f"{given.train} train and {given.val} val scenes, {len(CATEGORIES)} categories"
    print(f"{given.out}: {counts}, {time.perf_counter() - start:.1f} s")
