"""Proposals: the paper's filter at its limits, selective search on drawn and real pictures, and the store's life."""

import multiprocessing
import os
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest

from soco_lib import ROOT, BookError
from soco_lib.boxes import iou
from soco_lib.data.proposals import (
    ProposalConfig,
    best_overlaps,
    dropped,
    key_rng,
    paper_filter,
    propose,
    random_proposals,
    selective_search,
    whole_image,
)  # fmt: skip
from soco_lib.data.shards import shard_paths, shard_range, share
from soco_lib.data.sources import open_source
from soco_lib.data.store import ProposalStore, build_store, main

SINGLE = ProposalConfig(mode="single", search_side=64)


def box(w: float, h: float, x: float = 0, y: float = 0) -> list[float]:
    return [x, y, x + w, y + h]


@pytest.mark.parametrize(
    "w, h, kept",
    [
        (300, 300, True), (299, 299, False), (800, 800, True), (801, 801, False),  # side 0.3 and 0.8 of 1000
        (900, 300, True), (903, 300, False), (300, 900, True), (300, 903, False),  # aspect 3 and 1/3
        (500, 500, True), (0, 500, False),
    ],
)  # fmt: skip
def test_filter_at_the_papers_limits(w, h, kept):
    for width, height in ((1000, 1000), (2000, 500)):
        boxes, rule = paper_filter([box(w, h)], width, height, fallback=False)
        assert (len(boxes) == 1, rule) == (kept, "paper")
    shifted, _ = paper_filter([box(w, h, 0.7, 1.3)], 1000, 1000, fallback=False)  # float32 corners round
    assert (len(shifted) == 1) == kept


def test_each_dropped_box_has_one_reason():
    found = np.array([box(50, 50), box(20, 80), box(90, 25), box(10, 10), box(95, 95), box(5, 90), box(99, 8)])
    why = dropped(found, 100, 100)
    assert {reason: np.flatnonzero(which).tolist() for reason, which in why.items()} == {
        "aspect": [1, 2], "too small": [3], "too large": [4], "aspect and size": [5, 6],
    }  # fmt: skip
    assert (sum(why.values()).astype(bool) != (paper_filter(found, 100, 100)[0][:, None] == found).all(2).any(0)).all()


def test_fallback_chain():
    paper, small, wide, tiny = box(500, 500), box(40, 40), box(200, 40), box(31, 31)
    for given, expected, rule in (
        ([tiny, wide, small, paper], [paper], "paper"),
        ([tiny, wide, small], [small], "aspect"),
        ([tiny, wide], [wide], "side"),
        ([tiny], [box(1000, 1000)], "whole"),
        ([], [box(1000, 1000)], "whole"),
    ):
        boxes, chosen = paper_filter(given, 1000, 1000)
        assert boxes.tolist() == expected and chosen == rule


def drawn(width: int, height: int, rectangle) -> np.ndarray:
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 110, (height // 12, width // 12, 3), dtype=np.uint8)
    image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.rectangle(image, rectangle[:2], (rectangle[2] - 1, rectangle[3] - 1), (230, 210, 60), -1)
    return image


@pytest.mark.parametrize("max_side", [96, 128, 0])
def test_selective_search_finds_a_drawn_rectangle(max_side):
    target = (90, 60, 210, 180)
    image = drawn(320, 240, target)
    boxes = selective_search(image, max_side=max_side)
    assert iou(boxes, [target]).max() > 0.8
    assert boxes.dtype == np.float32 and boxes.min() >= 0 and (boxes.max(axis=0) <= (320, 240, 320, 240)).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes) and (boxes[:, 2:] > boxes[:, :2]).all()
    np.testing.assert_array_equal(boxes, selective_search(image, max_side=max_side))


def test_selective_search_of_odd_images():
    for shape in ((1, 1), (1, 500), (500, 3), (33, 40)):
        boxes = selective_search(np.zeros((*shape, 3), np.uint8))
        np.testing.assert_allclose(boxes, [[0, 0, shape[1], shape[0]]], rtol=1e-6)  # a constant image is one region
    with pytest.raises(BookError, match="mode='fas'.*fast"):
        selective_search(np.zeros((9, 9, 3), np.uint8), mode="fas")


@pytest.mark.parametrize("size", [(500, 375), (100, 300), (64, 64)])
def test_random_boxes_obey_the_filter_and_are_spread(size):
    boxes = random_proposals(np.random.default_rng(0), *size, count=500)
    assert boxes.shape == (500, 4) and len(paper_filter(boxes, *size, fallback=False)[0]) == 500
    assert boxes.min() >= 0 and (boxes <= np.array(size * 2)).all()
    side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) / np.prod(size))
    assert side.min() < 0.33 and side.max() > (0.75 if size[0] >= size[1] else 0.6)


def test_random_boxes_depend_on_seed_and_key_alone():
    image, config = np.zeros((90, 120, 3), np.uint8), ProposalConfig(generator="random", count=10, seed=4)
    first, rule = propose(image, "a/b.jpg", config)
    assert rule == "paper" and first.shape == (10, 4)
    np.testing.assert_array_equal(propose(image, "a/b.jpg", config)[0], first)
    assert not np.array_equal(propose(image, "a/c.jpg", config)[0], first)
    assert not np.array_equal(propose(image, "a/b.jpg", ProposalConfig(generator="random", count=10, seed=5))[0], first)
    assert key_rng(0, "x").integers(10**6) == 949652  # the same on every machine and Python
    assert propose(np.zeros((4, 500, 3), np.uint8), "x", config)[1] == "whole"  # no box of the filter's range fits


def test_whole_image():
    boxes, rule = propose(np.zeros((90, 120, 3), np.uint8), "x", ProposalConfig(generator="whole"))
    assert boxes.tolist() == [[0, 0, 120, 90]] == whole_image(120, 90).tolist() and rule == "whole"


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(generator="selective"), "did you mean 'selective_search'.*random, whole"),
        (dict(mode="slow"), "known: fast, quality, single"),
        (dict(search_side=16), "search_side=16.*0 for full size"),
        (dict(base_k=0), "base_k=0"),
        (dict(count=0), "count=0"),
        (dict(seed=-1), "seed=-1"),
    ],
)
def test_config_is_checked(values, message):
    with pytest.raises(BookError, match=message):
        ProposalConfig(**values)


# --- store
# -------------------------------------------------------------------------------------------------------------


def contents(store: ProposalStore) -> list[list]:
    return [store.boxes(i).tolist() for i in range(len(store))]


def test_store_holds_what_propose_says(pictures, tmp_path):
    source, lines = open_source(str(pictures)), []
    store = build_store(source, SINGLE, tmp_path / "s", workers=1, shard_size=5, progress=lines.append)
    names = sorted(p.name for p in (tmp_path / "s").iterdir())
    assert names == ["boxes.npy", "images.parquet", "offsets.npy", "sizes.npy", "store.json"]
    for i, key in enumerate(source.keys):
        np.testing.assert_array_equal(store.boxes(i), propose(source.load(i), key, SINGLE)[0])
        assert store.size(i) == (128, 96)
    assert store.readable.all() and len(store) == 12 and "12 images" in lines[-1]
    assert store.boxes(0).base is not None and not store.boxes(0).flags.writeable  # a view of the file
    table = store.table()
    assert table["key"].tolist() == list(source.keys) and table["count"].sum() == store.meta["boxes"]
    summary = store.summary()
    assert (
        summary["images"] == 12 == sum(summary[s] for s in ("paper", "aspect", "side", "whole"))
        and summary["error"] == 0
    )
    assert summary["boxes_q05"] <= summary["boxes_q50"] <= summary["boxes_q95"]
    for wrong in (-1, 12):
        with pytest.raises(IndexError):
            store.boxes(wrong)
    store.check(source)
    again = pickle.loads(pickle.dumps(store))
    assert contents(again) == contents(ProposalStore.open(tmp_path / "s")) == contents(store)
    assert len(pickle.dumps(store)) < 2000  # no arrays travel to loader processes


def test_complete_store_is_found_and_other_settings_are_refused(pictures, tmp_path):
    source = open_source(str(pictures))
    build_store(source, SINGLE, tmp_path / "s", workers=1)
    stamp, lines = (tmp_path / "s" / "boxes.npy").stat().st_mtime_ns, []
    build_store(
        source, ProposalConfig(mode="single", search_side=64, seed=9, count=3), tmp_path / "s", progress=lines.append
    )
    assert (tmp_path / "s" / "boxes.npy").stat().st_mtime_ns == stamp and "found complete" in lines[
        0
    ]  # seed, count: unused
    with pytest.raises(
        BookError, match=r"mode='single' there, 'fast' asked, search_side=64 there, 128 asked\).*another folder"
    ):
        build_store(source, ProposalConfig(), tmp_path / "s")


def test_two_processes_and_a_rerun_make_the_same_store(pictures, tmp_path, monkeypatch):
    source, lines = open_source(str(pictures)), []
    expected = contents(build_store(source, SINGLE, tmp_path / "one", workers=1))
    assert contents(build_store(source, SINGLE, tmp_path / "two", workers=2, shard_size=4)) == expected
    monkeypatch.setattr("soco_lib.data.store._merge", lambda *_: None)  # as if stopped before the end
    build_store(source, SINGLE, tmp_path / "three", workers=1, shard_size=4)
    monkeypatch.undo()
    with pytest.raises(BookError, match="unfinished; build it"):
        ProposalStore.open(tmp_path / "three")
    shards = sorted((tmp_path / "three" / "shards").glob("*.npz"))
    stamps = [s.stat().st_mtime_ns for s in shards]
    shards[1].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:100])  # a disk that was full
    with pytest.raises(BookError, match="mode='single' there, 'fast' asked"):
        build_store(source, ProposalConfig(), tmp_path / "three")
    monkeypatch.setattr("soco_lib.data.store.shutil.rmtree", lambda *_, **__: None)
    store = build_store(source, SINGLE, tmp_path / "three", 1, shard_size=7, progress=lines.append)
    assert contents(store) == expected and lines[0].startswith("1 of 3 shards were made before")
    assert [s.stat().st_mtime_ns == t for s, t in zip(shards, stamps)] == [True, False, False]


def test_shards_partition_the_images(tmp_path):
    covered = [i for shard in shard_paths(tmp_path, 10, 4) for i in shard_range(shard)]
    assert covered == list(range(10)) and shard_range(shard_paths(tmp_path, 10, 4)[-1]) == range(8, 10)


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, (0, 1)),
        (
            {"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
            (3, 8),
        ),  # torchrun inside srun
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, (1, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),  # a batch script, which runs once
        ({"ARRAY": "6 4 4"}, (2, 4)),  # --array=4-7
        ({"ARRAY": "6 4 2", "SLURM_ARRAY_TASK_STEP": "2"}, (1, 2)),  # --array=4,6 by --array=4-7:2
        ({"ARRAY": "1 0 2", "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"}, (5, 6)),
        ({"ARRAY": "9 1 3"}, "an array of 3 tasks, one of them 8 from the first: give --array=0-2"),  # --array=1,4,9
        ({"WORLD_SIZE": "2", "RANK": "2"}, "participant 2 of 2"),
        ({"WORLD_SIZE": "2"}, "participant -1 of 2"),
    ],
)
def test_which_participant_this_is(environment, expected):
    if "ARRAY" in environment:
        names = (f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "COUNT"))
        environment = environment | dict(zip(names, environment["ARRAY"].split()))
    if isinstance(expected, tuple):
        assert share(environment) == expected
    else:
        with pytest.raises(BookError, match=expected):
            share(environment)


@pytest.fixture(scope="module")
def many(pictures, tmp_path_factory):
    """Forty pictures: three shards of the usual size."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(40):
        (folder / f"{i:02d}.jpg").write_bytes((pictures / f"{i % 12:02d}.jpg").read_bytes())
    return folder


def same_files(a, b) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in ("boxes.npy", "offsets.npy", "sizes.npy"))


def test_two_participants_build_the_store_of_one(many, tmp_path):
    build_store(open_source(str(many)), SINGLE, tmp_path / "one", workers=1)
    words = [
        sys.executable,
        "-m",
        "soco_lib.data.store",
        "--images",
        str(many),
        "--out",
        str(tmp_path / "two"),
        "--share",
    ]
    words += ["--workers", "1", "--mode", "single", "--search-side", "64"]
    ranks = [{**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    participants = [subprocess.Popen(words, cwd=ROOT, env=rank, stdout=subprocess.PIPE, text=True) for rank in ranks]
    said = [process.communicate(timeout=60)[0] for process in participants]
    assert [process.returncode for process in participants] == [0, 0]
    assert sum("40 images" in text and "a core" in text for text in said) == 1  # one merged
    assert same_files(tmp_path / "one", tmp_path / "two") and not (tmp_path / "two" / "shards").exists()


def test_an_absent_participant_is_named_and_a_rerun_completes(many, tmp_path, monkeypatch):
    source, lines = open_source(str(many)), []
    monkeypatch.setattr("soco_lib.data.shards.GRACE", 0)
    with pytest.raises(
        BookError, match="1 of 3 shards in .* missing and nobody makes them: those of participant 1 of 0 to 1"
    ):
        build_store(source, SINGLE, tmp_path / "s", workers=1, part=(0, 2))
    build_store(source, SINGLE, tmp_path / "s", workers=1, progress=lines.append)
    assert lines[0].startswith("2 of 3 shards were made before")
    build_store(source, SINGLE, tmp_path / "one", workers=1)
    assert same_files(tmp_path / "one", tmp_path / "s")


def test_a_corrupt_image_is_recorded_and_the_rest_goes_on(pictures, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, file in enumerate(sorted(pictures.iterdir())[:4]):
        (folder / file.name).write_bytes(b"junk" if i == 1 else file.read_bytes())
    source = open_source(str(folder))
    store = build_store(source, SINGLE, tmp_path / "s", workers=1, shard_size=1)
    assert store.readable.tolist() == [True, False, True, True] and store.summary()["error"] == 1
    assert store.size(1) == (0, 0) and store.boxes(1).shape == (0, 4) and len(store.boxes(2)) > 0
    row = store.table().iloc[1]
    assert (
        row["status"] == "error" and row["error"].startswith("01.jpg: not an image") and store.table()["error"][0] == ""
    )


def test_nothing_readable_is_an_error_that_a_rerun_can_mend(pictures, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"junk")
    with pytest.raises(BookError, match="none of the 1 images .* can be read .first: a.jpg: not an image"):
        build_store(open_source(str(folder)), SINGLE, tmp_path / "s", workers=1)
    (folder / "a.jpg").write_bytes((pictures / "00.jpg").read_bytes())
    assert build_store(open_source(str(folder)), SINGLE, tmp_path / "s", workers=1).readable.all()


def test_a_foreign_store_is_refused(pictures, tmp_path):
    store = build_store(open_source(str(pictures)), ProposalConfig(generator="whole"), tmp_path / "s", workers=1)
    folder = tmp_path / "others"
    folder.mkdir()
    for name in ("00.jpg", "0x.jpg"):
        (folder / name).write_bytes((pictures / "00.jpg").read_bytes())
    with pytest.raises(
        BookError, match=r"do not belong to .*others \(2 images\): first difference '01.jpg' there, '0x.jpg' here"
    ):
        store.check(open_source(str(folder)))
    (folder / "0x.jpg").unlink()
    with pytest.raises(BookError, match="first difference '01.jpg' there, 'its end' here"):
        store.check(open_source(str(folder)))
    with pytest.raises(BookError, match="do not belong"):
        build_store(open_source(str(folder)), ProposalConfig(generator="whole"), tmp_path / "s")


def test_folders_that_are_no_store(pictures, tmp_path):
    with pytest.raises(BookError, match="no proposals at .*none; build it: python -m soco_lib.data.store"):
        ProposalStore.open(tmp_path / "none")
    with pytest.raises(BookError, match="not proposals: name a new or empty folder"):
        build_store(open_source(str(pictures)), SINGLE, pictures)


def _pairs(path, index, queue):
    store = ProposalStore.open(path)
    queue.put(store.boxes(index).sum())


def test_other_processes_open_it_themselves(pictures, tmp_path):
    store = build_store(open_source(str(pictures)), ProposalConfig(generator="random"), tmp_path / "s", workers=1)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_pairs, args=(tmp_path / "s", 3, queue))
    process.start()
    assert queue.get(timeout=20) == store.boxes(3).sum()
    process.join()


def test_command_line(pictures, tmp_path, capsys):
    command = ["--images", str(pictures), "--out", str(tmp_path / "s"), "--workers", "1"]
    assert main([*command, "--generator", "random", "--count", "5"]) == 0
    assert "12 images, 60 boxes, 0 unreadable" in capsys.readouterr().out
    assert main([*command, "--generator", "rndom"]) == 1
    assert "did you mean 'random'" in capsys.readouterr().err


def test_recall_on_real_photographs(data_root):
    if not (data_root / "coco_masks").is_dir():
        pytest.skip(f"no coco_masks in SOCO_DATA={data_root}")
    source = open_source(f"coco:{data_root}/coco_masks/instances_val.json")
    best = []
    for index in range(10):
        image = source.load(index)
        boxes, rule = propose(image, source.keys[index], ProposalConfig())
        assert rule == "paper"
        best.extend(best_overlaps(source.annotations(index)[0], boxes, (image.shape[1], image.shape[0])))
    assert len(best) >= 8 and np.mean(np.array(best) >= 0.5) >= 0.85 and np.mean(best) >= 0.7, best


def test_best_overlaps_asks_only_for_objects_of_the_filters_range():
    objects = [[0, 0, 50, 50], [0, 0, 10, 10], [0, 0, 90, 25]]  # fits; side 0.1; aspect 3.6
    np.testing.assert_allclose(best_overlaps(objects, [[0, 0, 50, 25], [60, 60, 99, 99]], (100, 100)), [0.5])
    assert best_overlaps(objects, np.zeros((0, 4)), (100, 100)).tolist() == [0.0]
    assert best_overlaps([], [[0, 0, 50, 25]], (100, 100)).shape == (0,)
