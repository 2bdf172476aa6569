"""The proposals of a data set: one immutable folder, of which any number of processes read what they need.

    boxes.npy       (M, 4) float32: x1 y1 x2 y2, half-open, pixels of the image; all images, one after the other
    scores.npy      (M,) float32, of boxes that were imported with scores: a number a box, as its generator gave it
    offsets.npy     (N + 1,) int64: the boxes of image i are rows offsets[i]:offsets[i+1]; none where it cannot be read
    sizes.npy       (N, 2) int32: width, height
    images.parquet  key, width, height, count, status, error of each image: for people, queries and error messages
    store.json      settings, source, fingerprint, reader, versions, counts, seconds; written last, which completes it

Row i is the image `source.keys[i]`. float32 and not half the bytes: a lookup is then a view of the file's pages, which
all processes of a machine share. While it is built, the folder holds `shards/`; a rerun makes only the missing ones.

    python -m soco_lib.data.store --images folder:photos --out data/photos-proposals   # --share: notebooks/clusters.md
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shutil
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np

from soco_lib import BookError, locate, one_line_errors
from soco_lib.data.decoding import READER
from soco_lib.data.proposals import STATUSES, ProposalConfig
from soco_lib.data.rows import Rows
from soco_lib.data.shards import make_shards, shard_paths, shard_range, share, to_merge, write_shard
from soco_lib.data.sources import MAY_PASS, ImageSource, UnreadableImage, open_source
from soco_lib.fields import require
from soco_lib.runs import machine
from soco_lib.runs.files import replacing, writable
from soco_lib.runs.folder import write_json

FORMAT = 1
FEW = 16  # fewer images may still be unavailable when a store is completed by those that are there again
FILES = ("boxes.npy", "offsets.npy", "sizes.npy", "images.parquet")
LOOKED_AT = 4096  # images of a store that an earlier reader made: all of a small set


@dataclass(frozen=True, eq=False)
class ProposalStore:
    """A complete store. Opening reads a few hundred bytes, and compares the files' sizes with what they must be."""

    path: Path
    meta: dict  # store.json

    @classmethod
    def open(cls, path: str | os.PathLike) -> ProposalStore:
        """Open the store in the folder `path` (see soco_lib.locate). Raises BookError unless it is there, finished."""
        path = locate(path)
        remedy = f"build it: python -m soco_lib.data.store --images … --out {path}"
        require(path.is_dir(), f"no proposals at {path}; {remedy}")
        state = "unfinished" if (path / "shards").is_dir() else "not there"
        require((path / "store.json").is_file(), f"proposals in {path} are {state}; {remedy}")
        again = f"delete {path} and build the proposals again"
        try:
            meta = json.loads((path / "store.json").read_text())
        except ValueError:
            raise BookError(f"{path}/store.json is damaged: {again}") from None
        except OSError as error:
            raise BookError(f"{path}/store.json cannot be read ({error.strerror}): allow it") from None
        found = meta.get("format") if isinstance(meta, dict) else None
        require(found == FORMAT, f"{path} has store format {found}, this is {FORMAT}: {again}")
        gone = [name for name in FILES if not (path / name).is_file()]
        require(not gone, f"{path} lacks {', '.join(gone)}: {again}")
        store = cls(path, meta)
        try:
            for name in (*FILES[:3], *["scores.npy"] * store.scored):
                getattr(store, f"_{name.removesuffix('.npy')}")  # opened, and its size compared with store.json's
            name = FILES[3]
            with open(path / name, "rb") as file:
                file.seek(-4, os.SEEK_END)
                require(file.read() == b"PAR1", f"{path}/images.parquet was cut short: {again}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged = BookError(f"{path}/{name} is damaged ({error}): {again}")
            raise (error if isinstance(error, BookError) else damaged) from None
        return store

    def __len__(self) -> int:
        return self.meta["images"]

    def __getstate__(self) -> dict:
        return {"path": self.path, "meta": self.meta}  # workers open the files themselves

    _boxes = functools.cached_property(lambda self: Rows(self.path / "boxes.npy", "<f4", self.meta["boxes"], 4))
    _offsets = functools.cached_property(lambda self: Rows(self.path / "offsets.npy", "<i8", self.meta["images"] + 1))
    _sizes = functools.cached_property(lambda self: Rows(self.path / "sizes.npy", "<i4", self.meta["images"], 2))

    _scores = functools.cached_property(lambda self: Rows(self.path / "scores.npy", "<f4", self.meta["boxes"]))

    @property
    def scored(self) -> bool:
        """Whether its boxes have scores."""
        return bool(self.meta["config"].get("scores"))

    def scores(self, index: int) -> np.ndarray | None:
        """(n,) float32 scores of the boxes of image `index`, in their order; None of a store without scores."""
        self._within(index)
        first, last = self._offsets[index : index + 2]
        return self._scores[first:last] if self.scored else None

    def boxes(self, index: int) -> np.ndarray:
        """(n, 4) float32 boxes of image `index`, read-only; empty when the image is unreadable."""
        self._within(index)
        first, last = self._offsets[index : index + 2]
        return self._boxes[first:last]

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of image `index` in pixels; (0, 0) when it is unreadable."""
        self._within(index)
        ((width, height),) = self._sizes[index : index + 1]
        return int(width), int(height)

    @functools.cached_property
    def readable(self) -> np.ndarray:
        """(N,) bool: the image could be read, and so has boxes."""
        offsets = self._offsets[0 : len(self) + 1]
        counts, ends = np.diff(offsets), (offsets[0], offsets[-1])
        sound = ends == (0, self.meta["boxes"]) and (counts >= 0).all()
        require(sound, f"{self.path}/offsets.npy is damaged: delete the folder and build the proposals again")
        return counts > 0

    def _within(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} in {self.path}")

    def table(self):
        """images.parquet as a pandas frame: key, width, height, count, status, error. Reads the whole file."""
        import pandas  # not in every worker

        try:
            return pandas.read_parquet(self.path / "images.parquet")
        except (OSError, ValueError) as error:
            again = "delete the folder and build the proposals again"
            raise BookError(f"{self.path}/images.parquet is damaged ({str(error).splitlines()[0]}): {again}") from None

    def check(self, source: ImageSource) -> None:
        """Raise BookError unless the store was built from the images of `source`, by name and in order, and from the
        same pixels: where an earlier reader made it (see decoding.py), LOOKED_AT images are, and a large one says so.
        """
        if self.meta["fingerprint"] == source.fingerprint:
            _same_images(self.path, self.meta.get("sample", {}), self.meta["source"], source)
            if self.meta.get("reader", 1) != READER:
                self._check_pixels(source)
            return
        pairs = itertools.zip_longest(self.table()["key"], source.keys, fillvalue="its end")
        a, b = next((a, b) for a, b in pairs if a != b)
        raise BookError(
            f"proposals in {self.path} (of {self.meta['source']}, {len(self)} images) do not belong to {source.spec} "
            f"({len(source)} images): first difference {a!r} there, {b!r} here; delete {self.path} and they are made "
            "for these images, or name another folder, PROPOSALS="
        )

    def _check_pixels(self, source: ImageSource) -> None:
        indices = range(0, len(source), -(-len(source) // LOOKED_AT))
        with ThreadPoolExecutor(16) as pool:  # they wait for the disk
            other = list(pool.map(source.read_differently, indices))
        changed = [source.keys[i] for i in itertools.compress(indices, other)]
        count = f"{len(changed)} of the {len(indices)} images looked at, of {len(source)} of {source.spec},"
        require(
            not changed,
            f"{self.path} was built when pictures were read otherwise: {count} are turned by EXIF or "
            f"have 16 bits, first {changed[:1]}; delete that folder and build the proposals again",
        )
        if len(indices) < len(source):
            said = f"{len(indices)} of its {len(source)} images were looked at, and read the same now"
            sure = "to be sure of the others, delete that folder and build the proposals again"
            print(f"{self.path} was built when pictures were read otherwise: {said}; {sure}", flush=True)

    def summary(self) -> dict:
        """Images, boxes, images of each status, and quantiles of the number of boxes in a readable image."""
        counts = np.diff(self._offsets[0 : len(self) + 1])[self.readable]
        quantiles = {f"boxes_q{q:02d}": float(np.quantile(counts, q / 100)) for q in (5, 25, 50, 75, 95)}
        return {"images": len(self), "boxes": self.meta["boxes"], **self.meta["status"], **quantiles}


def build_store(
    source: ImageSource, config: ProposalConfig, out_dir: str | os.PathLike, workers: int | None = None,
    shard_size: int | None = None, progress=None, part: tuple[int, int] = (0, 1),
) -> ProposalStore:  # fmt: skip
    """Make the proposals of all images of `source` in the folder `out_dir`, or go on making them, or find them made.

    `workers` processes (None: one a usable core) make shards of `shard_size` images (None: 16 to 1024, by the number of
    images), each written at once; `progress` receives a line of text now and then. `part` = (rank, count): one of
    several that return when all is made (shards.to_merge). An image that cannot be read is recorded with its error and
    counted. Raises BookError for a folder with something else or proposals of other images or settings, when no image
    at all can be read, and when other participants stay away.
    """
    for name, number in (("workers", workers), ("shard_size", shard_size)):
        require(number is None or number >= 1, f"{name}={number} must be at least 1")
    size, say = shard_size or min(1024, max(16, len(source) // 64)), progress or (lambda line: None)
    make = functools.partial(make_shards, source=source, config=config, workers=workers or machine.cores(), say=say)
    return assemble(locate(out_dir), source, config.essence(), size, make, say, part)


def assemble(out: Path, source: ImageSource, essence: dict, shard_size: int, make, say, part=(0, 1)) -> ProposalStore:
    """Find the store, or have `make` write the shards of this participant, and merge all or wait until another has."""
    if (out / "store.json").is_file():
        store = ProposalStore.open(out)
        _same_settings(out, store.meta["config"], essence)
        store.check(source)
        if part != (0, 1) or not _retry(out, store, source, essence, shard_size, say):
            say(f"{out}: found complete, {len(store)} images, {store.meta['boxes']} boxes")
            return store
    if out.is_dir() and not (out / "shards").is_dir() and any(out.iterdir()):
        raise BookError(f"{out} holds files that are not proposals: name a new or empty folder, PROPOSALS=")
    shards = _plan(out, source, essence, shard_size)
    with to_merge(shards, out / "store.json", part, make, say) as ours:
        if ours:
            return _merge(out, shards, source, essence, say)
    say(f"{out}: complete, merged by another participant")
    return ProposalStore.open(out)


def _retry(out: Path, store: ProposalStore, source: ImageSource, essence: dict, shard_size: int, say) -> bool:
    """Whether images that were unavailable when the store was made are there now: it is then as one that was begun, and
    lacks the shards with these images.
    """
    if not store.meta["status"]["error"]:
        return False
    table = store.table()
    gone = np.flatnonzero(table["error"].str.contains(MAY_PASS, regex=False))
    back = [index for index in gone.tolist() if _there(source, index)]
    if not back:
        return False
    if len(gone) - len(back) >= FEW:
        say(f"{out}: {len(back)} of {len(gone)} images that were unavailable are there now: run again when all are")
        return False
    say(f"{out}: {len(back)} of {len(gone)} images that were unavailable are there now; proposing for them")
    shards, seconds = _plan(out, source, essence, shard_size), store.meta["core_seconds"]
    for shard in shards:
        if set(shard_range(shard)).isdisjoint(back):
            rows = (table.iloc[index] for index in shard_range(shard))
            made = ((store.size(index), store.boxes(index), row["status"], row["error"])
                    for index, row in zip(shard_range(shard), rows))  # fmt: skip
            write_shard(shard, made, seconds * len(shard_range(shard)) / len(store))
    (out / "store.json").unlink()
    return True


def _there(source: ImageSource, index: int) -> bool:
    try:
        source.read(index)
    except UnreadableImage:
        return False
    return True


def _same_images(where: Path, then: dict[str, str], of: str, source: ImageSource) -> None:
    """Raise BookError where most of the images that were looked at when proposals were begun are others now: data sets
    number their images alike.
    """
    now = source.sample() if then else {}
    others = [key for key in then.keys() & now.keys() if then[key] != now[key]]
    alike = f"proposals in {where} (of {of}) are of other images with the same names as those of {source.spec}"
    few = len(others) <= len(then.keys() & now.keys()) / 2
    require(few, f"{alike}, e.g. {sorted(others)[:1]}: delete it, or give PROPOSALS= another folder")


def _same_settings(where: Path, there: dict, asked: dict) -> None:
    names = [name for name in sorted({*there, *asked}) if there.get(name) != asked.get(name)]
    said = ", ".join(f"{name}={there.get(name)!r} there, {asked.get(name)!r} asked" for name in names)
    kind = "are of other images" if "fingerprint" in names else "have other settings"
    remedy = f"delete {where} and they are made so, or name another folder, PROPOSALS="
    require(not names, f"proposals in {where} {kind} ({said}): {remedy}")


def _plan(out: Path, source: ImageSource, essence: dict, shard_size: int) -> list[Path]:
    """The shards of this build; one that was begun keeps its shard size and must be of the same images and settings."""
    plan, asked = out / "shards" / "plan.json", {"fingerprint": source.fingerprint, "reader": READER, **essence}
    if not plan.is_file():
        with writable(out):
            plan.parent.mkdir(parents=True, exist_ok=True)
        write_json(plan, {"shard_size": shard_size, "of": asked, "sample": source.sample(), "source": source.spec})
    try:
        begun = json.loads(plan.read_text())
        reader, _ = begun["of"].get("reader", 1), begun["shard_size"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BookError(f"{plan} is damaged: delete {out} and build the proposals again") from None
    otherwise = f"proposals in {out} were begun when pictures were read otherwise (rule {reader}, now {READER})"
    require(reader == READER, f"{otherwise}: delete that folder and build the proposals again")
    _same_settings(out, begun["of"], asked)
    _same_images(out, begun.get("sample", {}), begun.get("source", "other images"), source)
    return shard_paths(plan.parent, len(source), begun["shard_size"])


def _read_shard(shard: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(shard) as file:
            return dict(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        shard.unlink(missing_ok=True)
        raise BookError(f"{shard} was damaged, and is removed: run again, which makes it anew") from None


def _merge(out: Path, shards: list[Path], source: ImageSource, essence: dict, say) -> ProposalStore:
    """One file of each kind from the shards, one shard in memory at a time; store.json last, then the shards go."""
    import pyarrow
    import pyarrow.parquet

    counts = np.concatenate([_read_shard(shard)["count"] for shard in shards])
    if not counts.any():
        error = _read_shard(shards[0])["error"][0]
        shutil.rmtree(out / "shards")  # or a rerun would find these failures made
        raise BookError(f"none of the {len(source)} images of {source.spec} can be read (first: {error}): check them")
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    sizes, status = np.empty((len(counts), 2), np.int32), np.zeros(len(STATUSES), int)
    seconds, first = 0.0, 0
    text, number = pyarrow.string(), pyarrow.int32()
    kinds = {"key": text, "width": number, "height": number, "count": number, "status": text, "error": text}
    with (
        replacing(out / "boxes.npy", "wb") as boxes,  # no memory map: its pages would count as this process's memory
        replacing(out / "images.parquet", "wb") as file,
        pyarrow.parquet.ParquetWriter(file, pyarrow.schema(kinds)) as writer,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (int(offsets[-1]), 4)}
        np.lib.format.write_array_header_1_0(boxes, header)
        for path in shards:
            shard = _read_shard(path)
            last = first + len(shard["count"])
            boxes.write(shard["boxes"].astype("<f4", copy=False))
            sizes[first:last] = shard["size"]
            status += np.bincount(shard["status"], minlength=len(STATUSES))
            seconds += float(shard["seconds"])
            rows = pyarrow.table({
                "key": list(source.keys[first:last]),
                "width": shard["size"][:, 0],
                "height": shard["size"][:, 1],
                "count": shard["count"],
                "status": [STATUSES[code] for code in shard["status"]],
                "error": [str(text) for text in shard["error"]],
            })  # fmt: skip
            writer.write_table(rows)
            first = last
    for name, array in (("offsets.npy", offsets), ("sizes.npy", sizes)):
        with replacing(out / name, "wb") as file:
            np.save(file, array)
    versions = {"numpy": np.__version__, "opencv": cv2.__version__, "pyarrow": pyarrow.__version__}
    meta = {
        "format": FORMAT, "reader": READER, "config": essence, "source": source.spec, "fingerprint": source.fingerprint,
        "images": len(counts), "boxes": int(offsets[-1]), "status": dict(zip(STATUSES, map(int, status))),
        "sample": source.sample(),
        "core_seconds": round(seconds, 3), "versions": {"python": sys.version.split()[0], **versions},
    }  # fmt: skip
    write_json(out / "store.json", meta)
    shutil.rmtree(out / "shards", ignore_errors=True)
    each = seconds / len(counts)
    say(f"{out}: {len(counts)} images, {meta['boxes']} boxes, {status[-1]} unreadable, {each:.3f} s an image a core")
    return ProposalStore.open(out)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder:, list:, coco:, voc:, zip: or a bare path")
    parser.add_argument("--out", required=True, help="folder of the store")
    parser.add_argument("--workers", type=int, help="processes (default: one a usable core)")
    parser.add_argument("--share", action="store_true", help="one participant of torchrun, srun or a SLURM array")
    for field in fields(ProposalConfig):
        name, default = field.name.replace("_", "-"), field.default
        parser.add_argument(f"--{name}", type=type(default), help=f"default {default}")
    given = vars(parser.parse_args(argv))
    images, out, workers, shared = (given.pop(name) for name in ("images", "out", "workers", "share"))
    part, say = share(os.environ) if shared else (0, 1), functools.partial(print, flush=True)
    source, asked = open_source(images), {name: value for name, value in given.items() if value is not None}
    config = ProposalConfig(**asked)
    if not asked and (locate(out) / "store.json").is_file():  # imported, or made with settings that are not asked for
        store = ProposalStore.open(out)
        store.check(source)
        say(f"{store.path}: found complete, {len(store)} images, {store.meta['boxes']} boxes")
        return
    build_store(source, config, out, workers, progress=say, part=part)


if __name__ == "__main__":
    sys.exit(main())
