"""bench-readers: images read in random order from every layout that holds them, against a folder; and listing large
folders.
"""

from __future__ import annotations

import functools
import os
import statistics
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from soco_lib.config import Pretrain
from soco_lib.data import listings
from soco_lib.data.sources import ImageSource, open_source
from tests.speed.timing import REPETITIONS, Bench, in_turns

CLASSES, SHARDS = 10, 4
FILES_A_FOLDER = 50
NOTES = (
    "plain: a flat folder. A way's number is all images once in random order in one process; every file is in the page "
    "cache, so that the layouts differ, not the disk",
    "goals are on reading and decoding near a view's size, which is what a run does; reading alone is shown beside it",
    "listing: empty files, 50 a folder. First: walked, sorted and kept; kept: folders' times compared and the listing "
    "mapped; plain: pathlib's rglob, sorted",
)


def write_layouts(images: list[tuple[str, bytes]], root: Path) -> dict[str, str]:
    """The same images, (suffix, bytes), in every layout below `root`: name of the layout -> image spec."""
    flat = [(f"{i:06d}{suffix}", data) for i, (suffix, data) in enumerate(images)]
    named = [(f"n{i % CLASSES:08d}/n{i % CLASSES:08d}_{name}", data) for i, (name, data) in enumerate(flat)]
    for folder, files in (("folder", flat), ("classes/train", named)):
        for name, data in files:
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / name).write_bytes(data)
    (root / "shards").mkdir()
    tree = root / "classes/train"
    for file, members in (("all.tar", named), *((f"shards/{i:03d}.tar", named[i::SHARDS]) for i in range(SHARDS))):
        with tarfile.open(root / file, "w") as archive:
            for name, _ in members:
                archive.add(tree / name, name)
    (root / "authors").mkdir()
    for file in ("all.zip", "authors/train.zip"):
        with zipfile.ZipFile(root / file, "w", zipfile.ZIP_STORED) as archive:
            for name, _ in named:
                archive.write(tree / name, name)
    lines = [f"{name}\t{i % CLASSES}\n" for i, (name, _) in enumerate(named)]
    (root / "authors/train_map.txt").write_text("".join(lines))
    return {
        "folder": f"folder:{root}/folder",
        "class folders": f"folder:{root}/classes",
        "zip": f"zip:{root}/all.zip",
        "tar": f"tar:{root}/all.tar",
        f"{SHARDS} tar shards": f"tar:{root}/shards/{{000..{SHARDS - 1:03d}}}.tar",
        "imagenet-zip": f"imagenet-zip:{root}/authors",
    }


def read(source: ImageSource, order: np.ndarray) -> None:
    """The bytes of each image."""
    for index in order:
        source.read(index)


def load(source: ImageSource, order: np.ndarray) -> None:
    """The pixels of each image, as pretraining takes them."""
    for index in order:
        source.load_near(index, Pretrain.size)


def readers(bench: Bench, sources: dict[str, ImageSource], passes: int, repetitions: int) -> None:
    """Images/s by layout, read (`passes` times over: it takes microseconds) and loaded."""
    order = np.random.default_rng(0).permutation(len(sources["folder"])).tolist()
    for what, function, numbers in (("read bytes", read, order * passes), ("read and decode", load, order)):
        ways = {name: functools.partial(function, source, numbers) for name, source in sources.items()}
        rates = {name: [len(numbers) / s for s in seconds] for name, seconds in in_turns(ways, repetitions).items()}
        bench.add(what, "images/s", rates, plain="folder")
    for name in list(sources)[1:]:  # of the last rates: decoded
        ratio = statistics.median(rates[name]) / statistics.median(rates["folder"])
        bench.goal(f"read and decode: {name} against a folder", ratio, 0.9, "times")


def empty_tree(root: Path, folders: int) -> Path:
    """`folders` class folders of empty .jpg files below `root`, changed long ago, so that a listing may be kept."""
    for number in range(folders):
        folder = root / f"n{number:08d}"
        folder.mkdir(parents=True)
        for image in range(FILES_A_FOLDER):
            (folder / f"{folder.name}_{image}.jpg").touch()
        os.utime(folder, (1e9, 1e9))
    os.utime(root, (1e9, 1e9))
    return root


def listing_ways(root: Path, cache: Path) -> dict[str, Callable]:
    """Ways to learn the keys of the images below `root`."""

    def first() -> None:
        for file in (cache / "listings").glob("*.arrow"):
            file.unlink()
        listings.folder_keys(root)

    plain = lambda: sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpg"))
    return {"first": first, "kept": lambda: listings.folder_keys(root), "plain": plain}


def listing(bench: Bench, scratch: Path, sizes: tuple[int, ...], repetitions: int) -> None:
    """Seconds to list `sizes` folders of images, the largest last."""
    cache = scratch / "cache"  # kept however short, for a quick look
    with mock.patch.dict(os.environ, {"SOCO_CACHE": str(cache)}), mock.patch.object(listings, "KEEP_FROM", 1):
        for folders in sizes:
            ways = listing_ways(empty_tree(scratch / f"empty{folders}", folders), cache)
            ways["first"]()
            assert len(list((cache / "listings").glob("*.arrow"))) == 1, "the listing was not kept"
            seconds, images = in_turns(ways, repetitions), folders * FILES_A_FOLDER
            bench.add("listing", "s", seconds, more_is_better=False, over="images", at=images)
    bench.add(f"listing {images} images in {folders} folders", "s", seconds, more_is_better=False)


def run(images: str, quick: bool) -> Bench:
    """Measure with copies of the images that `images` names; a few of them, once, if `quick`."""
    bench = Bench("readers", "reading images in random order, by layout; listing folders")
    count, passes, sizes, repetitions = (12, 2, (10, 40), 1) if quick else (256, 8, (200, 500, 1000), REPETITIONS)
    source = open_source(images)
    chosen = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    with tempfile.TemporaryDirectory() as scratch:
        data = [(Path(source.keys[i]).suffix, source.read(i)) for i in chosen]
        size = np.mean([len(each) for _, each in data]) / 1000
        bench.data = f"{len(data)} images of {images}, {size:.0f} kB on average"
        layouts = write_layouts(data, Path(scratch))
        readers(bench, {name: open_source(spec) for name, spec in layouts.items()}, passes, repetitions)
        listing(bench, Path(scratch), sizes, repetitions)
    bench.notes += NOTES
    return bench
