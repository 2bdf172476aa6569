"""Selective search: seconds an image of one core, and what they buy.

A box that covers an object is what makes the loss object-level (recall, best overlap), and K boxes are drawn uniformly
from all kept ones, so the share of them that sit on an object counts too (precision). Labels are read here alone.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from soco_lib.boxes import iou
from soco_lib.data.proposals import ProposalConfig, best_overlaps, paper_filter, propose, selective_search
from soco_lib.data.shards import make_shards, shard_paths
from soco_lib.data.sources import ImageSource, open_source
from tests.speed.timing import Bench, in_turns

#: Goals of FINE: seconds an image a core, recall@0.5, mean best IoU.
SECONDS, RECALL, OVERLAP = 0.032, 0.965, 0.80
SIDES, SWEPT, BASE_K = (64, 96, 128, 192, 0), ("single", "fast", "quality"), (50, 100, 150)
#: Sides at which FINE is tried.
FINER_SIDES = (64, 96, 128)
#: Seconds beyond which a setting is only looked at.
SLOW = 0.08
#: Longest side at which "quality" is tried: beyond, it is far from the goal.
QUALITY_SIDE = 96
#: Images of the sweep; at least so many, and seconds, of a setting that misses the goal of time.
MOST, FEW, ENOUGH = 320, 12, 4.0
OURS, FINE = ProposalConfig(), ProposalConfig(mode="fine", search_side=96, base_k=30)


def run(images: str, quick: bool) -> Bench:
    """Time the default beside OpenCV's own at full size, and sweep over side, mode and base k."""
    source, threads = open_source(images), cv2.getNumThreads()
    bench = Bench("proposals", "Selective search on one core")
    cv2.setNumThreads(1)
    try:
        most = 6 if quick else MOST
        pictures = [source.load(i) for i in _spread(len(source), most)]
        labels = [source.annotations(i)[0] for i in _spread(len(source), most)] if source.classes else None
        sides = ", ".join(f"{q:.0f}" for q in np.quantile([max(p.shape) for p in pictures], (0, 0.5, 1)))
        bench.data = f"{images}, {len(pictures)} images, longer sides {sides} px (least, median, most)"
        _speed(bench, pictures[: 2 if quick else 3], quick)
        _sweep(bench, pictures, labels, quick)
        _processes(bench, source, quick)
    finally:
        cv2.setNumThreads(threads)
    return bench


def _spread(total: int, most: int) -> list[int]:
    return [int(i) for i in np.linspace(0, total - 1, min(total, most)).round()]


def _search(pictures: list[np.ndarray], **settings) -> None:
    for picture in pictures:
        paper_filter(selective_search(picture, **settings), picture.shape[1], picture.shape[0])


def _speed(bench: Bench, pictures: list[np.ndarray], quick: bool) -> None:
    """Ours beside plain, and seconds against the searched side."""
    unit, repetitions = "s an image a core", 2 if quick else 5
    ways = {
        "ours": lambda: [propose(picture, "", OURS) for picture in pictures],
        "fine": lambda: [propose(picture, "", FINE) for picture in pictures],
        "plain": lambda: _search(pictures, mode="fast", max_side=0, base_k=150),  # OpenCV's own k
    }
    each = {way: np.divide(seconds, len(pictures)) for way, seconds in in_turns(ways, repetitions).items()}
    bench.add("search and filter", unit, each, more_is_better=False)
    bench.goal("search and filter, fine", float(np.median(each["fine"])), SECONDS, unit, at_least=False)
    for side in (64, 128) if quick else (64, 96, 128, 192, 256, 384):
        search = partial(_search, pictures, max_side=side, base_k=OURS.base_k)
        ways = {mode: partial(search, mode=mode) for mode in ("single", "fast")}
        for mode, seconds in in_turns(ways, 1 if quick else 3).items():
            each = {mode: np.divide(seconds, len(pictures))}
            bench.add("search and filter", unit, each, over="searched side (px)", at=side)


def _settings(quick: bool) -> Iterator[ProposalConfig]:
    for side in (64, OURS.search_side) if quick else SIDES:
        for mode in SWEPT:
            if mode != "quality" or 0 < side <= QUALITY_SIDE:
                for base_k in (OURS.base_k,) if quick else BASE_K:
                    yield ProposalConfig(mode=mode, search_side=side, base_k=base_k)
    for side in FINER_SIDES:
        yield dataclasses.replace(FINE, search_side=side)


def _sweep(bench: Bench, pictures: list[np.ndarray], labels: list[np.ndarray] | None, quick: bool) -> None:
    """A row a setting; the default's quality is held against the goals."""
    rows = []
    for config in _settings(quick):
        seconds, counts, best, precise = [], [], [], []
        for n, picture in enumerate(pictures):
            if n >= FEW and config not in (OURS, FINE) and sum(seconds) > max(n * SLOW, ENOUGH):
                break  # too slow to be chosen: its quality is worth a look, not minutes
            start = time.thread_time()  # what others do on this machine counts less
            found = propose(picture, "", config)[0]
            seconds.append(time.thread_time() - start)
            counts.append(len(found))
            if labels is not None and len(labels[n]):
                best.extend(best_overlaps(labels[n], found, picture.shape[1::-1]))
                precise.append(np.mean(iou(found, labels[n]).max(axis=1) >= 0.5))
        row = {
            "side": config.search_side or "full", "mode": config.mode, "base k": config.base_k, "images": len(seconds),
            "s an image": float(np.mean(seconds)), "boxes an image": float(np.mean(counts)),
        }  # fmt: skip
        if best:
            row |= {"objects": len(best), "recall": float(np.mean(np.array(best) >= 0.5))}
            row |= {"mean best IoU": float(np.mean(best)), "precision": float(np.mean(precise))}
        rows.append(row | {"default": "yes" if config == OURS else "fine" if config == FINE else ""})
    bench.tables["Settings"] = rows
    bench.notes.append(
        "Settings: CPU seconds of search and filter in one thread; a setting slower than "
        f"{SLOW:g} s an image is tried on {FEW} images or for {ENOUGH:g} s (column images): too few to rank by. "
        "The paper names neither side nor mode."
    )
    fine = next(row for row in rows if row["default"] == "fine")
    if "recall" not in fine:
        bench.notes.append(
            "These images carry no labels of the filter's size range: recall, overlap and precision are left out."
        )
        return
    bench.goal("recall@0.5 of labelled objects in the filter's size range, fine", fine["recall"], RECALL, "")
    bench.goal("mean best IoU of the same objects, fine", fine["mean best IoU"], OVERLAP, "")
    bench.notes.append(
        f"fine: --mode {FINE.mode} --search-side {FINE.search_side} --base-k {FINE.base_k}, found on other images; "
        "the default is what the tracked runs were made with."
    )
    bench.notes.append(
        "recall: share of labelled objects of the filter's size range that some kept box covers with IoU >= 0.5; "
        "precision: share of an image's kept boxes with IoU >= 0.5 with some labelled object of any size, mean over "
        "images with labels. Not every object is labelled, so precision is a lower bound; it compares settings."
    )


def _processes(bench: Bench, source: ImageSource, quick: bool) -> None:
    """Wall seconds of the same shards by one and two processes, their start included."""
    number = min(len(source), 8 if quick else 64)

    def build(workers: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            paths = shard_paths(Path(folder), number, max(1, number // 8))
            make_shards(paths, source, OURS, workers, lambda line: None)

    for workers, seconds in in_turns({n: partial(build, n) for n in (1, 2)}, 1 if quick else 2).items():
        bench.add(f"proposals of {number} images", "s", {"ours": seconds}, over="processes", at=workers)
