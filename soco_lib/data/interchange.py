"""Proposals in and out of other programs' files: see proposal_files.py for the layouts.

    python -m soco_lib.data.interchange export --STORE data/photos-proposals --TO boxes.json --LAYOUT soco
    python -m soco_lib.data.interchange import --FROM boxes.json --STORE data/photos-sam --IMAGES folder:photos

`make proposals-export` and `make proposals-import` give the names in capitals; ARGS= takes the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soco_lib import BookError, locate, one_line_errors
from soco_lib.boxes import clip, valid
from soco_lib.data.decoding import header_size
from soco_lib.data.image_names import images_of
from soco_lib.data.proposal_files import LAYOUTS, PICKLES, Boxes, read, write
from soco_lib.data.proposals import fulfilled, whole_image
from soco_lib.data.shards import Row, shard_range, write_shard
from soco_lib.data.sources import ImageSource, open_source
from soco_lib.data.store import ProposalStore, assemble
from soco_lib.fields import one_of, require
from soco_lib.runs.files import replacing

#: Pixels by which a box may reach over the edge of its picture: some count the last column in, some do not.
EDGE = 1.0
WAYS = {"": None, "xywh": False, "xyxy": True}


@dataclass(frozen=True)
class Importing:
    """How a file is taken; checked on construction. Raises BookError for an unknown name."""

    generator: str = "imported"  # what made the boxes, for the store's record and for tables
    boxes: str = ""  # xywh or xyxy, where a file's numbers are not those of its layout
    ids: str = ""  # COCO file with the images' ids; default: images.json beside the file, else the source's own
    filter: bool = False  # keep what the paper's filter keeps, with its fallback; else all boxes of at least a pixel
    clip: bool = False  # cut boxes at the picture's edge; else one that reaches over it is an error
    whole: bool = False  # an image without boxes gets the whole image as its only one; else it is an error
    no_scores: bool = False  # leave scores away

    def __post_init__(self):
        one_of("boxes", self.boxes, WAYS)
        require(self.generator.strip() != "", "generator= is empty: name what made the boxes, GENERATOR=SAM")


def export_boxes(
    store: ProposalStore, path: str | os.PathLike, layout: str = "soco", ids: str | os.PathLike = "", say=None
) -> None:
    """Write the boxes of `store`, and their scores where it has any and the layout has a place for them.

    ids: COCO file with the ids of the images, where the store is not of a COCO file. Raises BookError for an unknown
    layout and for images that it cannot tell apart; no file is left then.
    """
    one_of("LAYOUT", layout, LAYOUTS)
    path, config, say = locate(path), store.meta["config"], say or (lambda line: None)
    images = images_of(store.meta["source"], store.table()["key"], ids)
    images.sizes = {int(index): store.size(int(index)) for index in np.flatnonzero(store.readable)}
    filtered = "none" if config.get("filter", "none" if "file" in config else "paper") == "none" else "paper"
    about = {"generator": config["generator"], "filter": filtered, "images": store.meta["source"]}
    rows = ((index, store.boxes(index), store.scores(index)) for index in range(len(store)))
    with replacing(path, "wb" if layout in PICKLES else "w") as file:
        write(file, layout, images, rows, about)
    scores = "kept" if store.scored else {"coco-results": "1, there were none", "detectron2": "0, there were none"}.get(
        layout, "none")  # fmt: skip
    scores = "left out, it has no place for them" if store.scored and layout == "soco" else scores
    lost = len(store) - len(images.sizes)
    unreadable = f", {lost} images cannot be read" * (lost > 0)
    said = "were filtered as in the paper" if filtered == "paper" else "are as they were imported, not filtered"
    say(f"{path}: {store.meta['boxes']} boxes of {len(images.sizes)} images, layout {layout}; they {said}; scores: "
        f"{scores}{unreadable}")  # fmt: skip


def import_boxes(
    path: str | os.PathLike, source: ImageSource, out_dir: str | os.PathLike, how: Importing | None = None, say=None
) -> ProposalStore:
    """A store of the boxes and scores in a file of any layout (see proposal_files.read), looked at before it is begun.

    Of the authors' JSON x2 is x + w: the release's writer means a column more by w (x2 = x + w + 1), its reader one
    less (x + w - 1), so this is within a pixel of both. Pixels are those of the picture as decoding.py turns it. Boxes
    with a side below a pixel are left out, and counted. An image that the file lists without boxes gets the whole
    image, with score 0.

    Raises BookError, besides what `read` refuses, for a file that lacks images or some scores, for boxes outside of
    their picture or in fractions of it, and for a folder with something else.
    """
    file, how, say = locate(path), how or Importing(), say or (lambda line: None)
    beside = file.with_name("images.json")  # as `make predict` writes it
    ids = how.ids or (beside if beside.is_file() and beside != file else "")
    boxes = read(file, images_of(source.spec, source.keys, ids), WAYS[how.boxes])
    scored = _scored(boxes, how)
    heads = _heads(source)
    _whose(boxes, source, heads, how)
    positions, corners, scores = boxes.take()
    _inside(boxes, positions, corners, np.array([size for size, _ in heads]), how)
    starts = np.searchsorted(positions, np.arange(len(source) + 1))
    kept: list[np.ndarray] = []

    def row(index: int) -> Row:
        own = slice(starts[index], starts[index + 1])
        found, keep, status = _chosen(corners[own], *heads[index], how.filter)
        kept.append(scores[own][keep] if status != "whole" else np.zeros(1, np.float32))
        return heads[index][0], found, status, heads[index][1]

    def make(shards: list[Path]) -> None:
        for shard in shards:
            write_shard(shard, map(row, shard_range(shard)))
        if scored:
            with replacing(locate(out_dir) / "scores.npy", "wb") as out:
                np.save(out, np.concatenate(kept))

    essence = {"generator": how.generator, "file": file.name, "bytes": file.stat().st_size, "layout": boxes.layout}
    essence |= {"boxes": "xyxy" if boxes.corners else "xywh", "filter": "paper" if how.filter else "none"}
    essence |= {"scores": scored, "clip": how.clip, "whole": how.whole}
    store = assemble(locate(out_dir), source, essence, 1024, make, say)
    whole = store.meta["status"]["whole"]
    left = len(positions) - store.meta["boxes"] + whole
    said = [f"{len(positions)} boxes of {how.generator} read as {essence['boxes']}, layout {boxes.layout}"]
    said += [f"the paper's filter {'applied' if how.filter else 'not applied'}, {left} left out"]
    said += ["scores kept" if scored else "without scores"]
    said += [f"{whole} images have no box but the whole image"] * (whole > 0)
    said += [f"boxes of {len(boxes.foreign)} other images not read"] * bool(boxes.foreign)
    say(f"{file}: {'; '.join(said)}")
    return store


def _scored(boxes: Boxes, how: Importing) -> bool:
    """Whether scores are kept. Raises BookError where they are missing."""
    total, needed = boxes.scored + boxes.bare, boxes.scored or boxes.layout in ("coco-results", "detectron2")
    lacking = boxes.bare if needed and not how.no_scores else 0
    remedy = "give each box one, or leave scores away with ARGS=--no-scores"
    require(lacking == 0, f"{boxes.file} has no score for {lacking} of {total} boxes: {remedy}")
    return boxes.scored > 0 and not how.no_scores


def _heads(source: ImageSource) -> list[tuple[tuple[int, int], str]]:
    """(width, height) of each picture and "", or (0, 0) and why it cannot be read."""
    found = []
    for index in range(len(source)):
        try:
            found.append((header_size(source.read(index), functools.partial(source.stated, index)), ""))
        except (BookError, OSError) as error:
            found.append(((0, 0), " ".join(str(error).split())))
    return found


def _whose(boxes: Boxes, source: ImageSource, heads: list, how: Importing) -> None:
    """Raise BookError unless the file is of these images: it names each that can be read, and sizes that they have."""
    missing = [index for index in np.flatnonzero(~boxes.listed) if not heads[index][1]]
    if missing and not how.whole:
        share = f"{len(missing)} of {len(source)} images ({len(missing) / len(source):.0%}) of {source.spec}, first "
        share += repr(source.keys[missing[0]])
        if boxes.foreign:
            share += f", and names {len(boxes.foreign)} others, first {next(iter(boxes.foreign))!r}"
        raise BookError(
            f"{boxes.file} names no boxes for {share}: "
            "give the images that it was made for, IMAGES=, or take the whole image for these, ARGS=--whole"
        )
    for index, stated in boxes.images.sizes.items():
        (width, height), error = heads[index]
        there = f"{source.keys[index]!r} is {stated[0]} x {stated[1]} pixels there and {width} x {height} here"
        same = error or {*stated} == {width, height}
        require(bool(same), f"{boxes.file} is of other pictures with the same names, {there}: give those, IMAGES=")


def _inside(boxes: Boxes, positions: np.ndarray, corners: np.ndarray, sizes: np.ndarray, how: Importing) -> None:
    """Raise BookError for boxes turned inside out, in fractions, or over the edge of their picture."""
    sizes = sizes.astype(np.float32)[positions]

    def wrong(x1, y1, x2, y2) -> np.ndarray:
        over = (x1 < -EDGE) | (y1 < -EDGE) | (x2 > sizes[:, 0] + EDGE) | (y2 > sizes[:, 1] + EDGE)
        return ((x2 < x1) | (y2 < y1) | over) & (sizes[:, 0] > 0)

    x1, y1, x2, y2 = corners.T
    outside, turned = wrong(x1, y1, x2, y2), (x2 < x1) | (y2 < y1)
    if len(corners):
        fractions = corners.max() <= 1 and sizes.max() > 2
        remedy = "multiply them by the pictures' width and height"
        require(not fractions, f"{boxes.file} has boxes in 0 ... 1, not in pixels: {remedy}")
    if not outside.any() or (how.clip and not turned.any()):
        return
    ways = {True: "x1 y1 x2 y2", False: "x y width height"}
    others = (x1, y1, x2 - x1, y2 - y1) if not boxes.corners else (x1, y1, x1 + x2, y1 + y2)
    first = int(outside.argmax())
    index = int(positions[first])
    count = f"{int(outside.sum())} of {len(corners)} boxes"
    if not wrong(*others).any():
        remedy = f"ARGS='--boxes {'xywh' if boxes.corners else 'xyxy'}' takes them so"
        meant = f"outside of their picture as {ways[boxes.corners]}, and none as {ways[not boxes.corners]}"
        raise BookError(f"{boxes.file} has {count} {meant}: {remedy}")
    size = " x ".join(f"{side:.0f}" for side in sizes[first])
    what, remedy = "reach over the edge of their picture", "correct them, or cut them at the edge with ARGS=--clip"
    if turned.any():
        what, remedy = "lie outside of their picture or have a negative width or height", "correct them"
    raise BookError(f"{boxes.file} has {count} that {what}, first {corners[first].tolist()} (x1 y1 x2 y2) of "
                    f"{boxes.images.keys[index]!r}, {size} pixels: {remedy}")  # fmt: skip


def _chosen(boxes: np.ndarray, size: tuple[int, int], error: str, paper: bool) -> tuple[np.ndarray, np.ndarray, str]:
    """The boxes of an image that its store gets, which of `boxes` (n, 4) these are, (n,) bool, and its status.

    Without the paper's filter that is the strictest rule that all of them fulfil, "side" where all fulfil none.
    """
    if error:
        return boxes[:0], np.zeros(len(boxes), bool), "error"
    keep, boxes = valid(boxes, *size), clip(boxes, *size)
    rules = fulfilled(boxes, *size)
    if paper:
        status = next((rule for rule, fits in rules.items() if (fits & keep).any()), "whole")
        keep = keep & rules.get(status, False)
    else:
        status = next((rule for rule, fits in rules.items() if fits[keep].all()), "side") if keep.any() else "whole"
    return boxes[keep] if status != "whole" else whole_image(*size), keep, status


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("export", "import"))
    parser.add_argument("--STORE", required=True, help="folder of the store, to read or to write")
    parser.add_argument("--TO", default="", help="file to write")
    parser.add_argument("--LAYOUT", default="", help=f"of that file: {', '.join(LAYOUTS)} (default: soco)")
    parser.add_argument("--FROM", default="", help="file to read, of any of these layouts")
    parser.add_argument("--IMAGES", "--PICTURES", default="", help="the images that it is of, as for data.store")
    parser.add_argument("--GENERATOR", default="", help="what made its boxes, for the store's record and for tables")
    parser.add_argument("--ids", default="", help="COCO file with the ids of the images")
    parser.add_argument("--boxes", default="", help="xywh or xyxy, where that is not as usual in the file's layout")
    parser.add_argument("--filter", action="store_true", help="keep what the paper's filter keeps, with its fallback")
    parser.add_argument("--clip", action="store_true", help="cut boxes at the edge of their picture")
    parser.add_argument(
        "--whole", action="store_true", help="an image without boxes gets the whole image as its only one"
    )
    parser.add_argument("--no-scores", action="store_true", help="leave scores away")
    given = vars(parser.parse_args(argv))
    given["generator"] = given["GENERATOR"] or Importing.generator
    how = Importing(**{option.name: given[option.name] for option in dataclasses.fields(Importing)})
    say = functools.partial(print, flush=True)
    if given["command"] == "export":
        require(given["TO"] != "", "give the file to write, TO=boxes.json")
        export_boxes(ProposalStore.open(given["STORE"]), given["TO"], given["LAYOUT"] or "soco", how.ids, say)
    else:
        require(given["FROM"] != "", "give the file to read, FROM=boxes.json")
        import_boxes(given["FROM"], open_source(given["IMAGES"]), given["STORE"], how, say)


if __name__ == "__main__":
    sys.exit(main())
