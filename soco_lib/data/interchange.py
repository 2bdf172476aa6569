"""Proposals in and out of the JSON format of the authors' release: one dictionary, file name without suffix ->
[[x, y, w, h], ...], in pixels, x and y the left top corner.

    python -m soco_lib.data.interchange export data/photos-proposals boxes.json
    python -m soco_lib.data.interchange import boxes.json data/photos-proposals --images folder:photos
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

from soco_lib import BookError, locate, one_line_errors
from soco_lib.boxes import as_boxes
from soco_lib.data.shards import Row, given_row, shard_range, write_shard
from soco_lib.data.sources import ImageSource, open_source
from soco_lib.data.store import ProposalStore, assemble
from soco_lib.fields import require
from soco_lib.runs.files import replacing


def export_json(store: ProposalStore, path: str | os.PathLike) -> None:
    """Write the boxes in the authors' format, rounded to 0.01; unreadable images are left out.

    Raises BookError where two images have one name.
    """
    names = _json_names(store.table()["key"])
    path = locate(path)
    with replacing(path) as file:  # image by image: the whole dictionary may not fit in memory
        separator = "{"
        for index in np.flatnonzero(store.readable):
            boxes = store.boxes(index).astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            file.write(f"{separator}{json.dumps(names[index])}: {json.dumps(boxes.round(2).tolist())}")
            separator = ",\n"
        file.write("}\n")


def import_json(
    path: str | os.PathLike, source: ImageSource, out_dir: str | os.PathLike, progress=None
) -> ProposalStore:
    """A store from boxes in the authors' format, as they are: no filter is applied, only clipped to the image.

    x2 = x + w: the release's writer means a column more by w (x2 = x + w + 1), its reader one less (x + w - 1), so this
    is within a pixel of both. Pixels are those of the picture as decoding.py turns it. An empty list becomes the whole
    image. Reads the whole file. Raises BookError for a file of another shape and for images that it does not name.
    """
    file, names = locate(path), _json_names(source.keys)
    require(file.is_file(), f"no proposals file {file}: give the authors' JSON, e.g. train_ratio3size0308post.json")
    try:
        found = {
            name: as_boxes([entry[:4] for entry in entries]) for name, entries in json.loads(file.read_bytes()).items()
        }
    except (ValueError, TypeError, AttributeError, KeyError):
        form = "a dictionary, file name without suffix -> [[x, y, w, h], ...]"
        raise BookError(f"{file} is not the authors' format: {form}") from None
    missing = [name for name in names if name not in found]
    count = f"{len(missing)} of {len(names)}"
    require(not missing, f"{file} names no boxes for {count} images of {source.spec}, first {missing[:1]}")

    def row(index: int) -> Row:
        boxes = found[names[index]]
        return given_row(source, index, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))

    def make(shards: list[Path]) -> None:
        for shard in shards:
            write_shard(shard, map(row, shard_range(shard)))

    essence = {"generator": "imported", "file": file.name, "bytes": file.stat().st_size}
    return assemble(locate(out_dir), source, essence, 1024, make, progress or (lambda line: None))


def _json_names(keys) -> list[str]:
    names = [key.rsplit("/", 1)[-1].split(".")[0] for key in keys]
    seen: set[str] = set()
    twice = next((name for name in names if name in seen or seen.add(name)), None)
    require(twice is None, f"two images are named {twice!r}: the authors' format tells images apart by file name alone")
    return names


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="a store's boxes to a JSON file")
    export.add_argument("store", help="folder of the store")
    export.add_argument("json", help="file to write")
    into = commands.add_parser("import", help="a JSON file's boxes to a new store")
    into.add_argument("json", help="the authors' file")
    into.add_argument("store", help="folder to write")
    into.add_argument("--images", required=True, help="the images that the boxes are of, as for soco_lib.data.store")
    given = parser.parse_args(argv)
    if given.command == "export":
        export_json(ProposalStore.open(given.store), given.json)
    else:
        import_json(given.json, open_source(given.images), given.store, print)


if __name__ == "__main__":
    sys.exit(main())
