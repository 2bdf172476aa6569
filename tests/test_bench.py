"""Benchmarks run on any images and leave a record of the same shape; what they measure is no test's matter."""

import importlib
import statistics

import pytest

from soco_lib.config import Pretrain
from soco_lib.data.sources import open_source
from tests.speed import bench_readers, bench_startup, bench_step, bench_views
from tests.speed.timing import Bench

LAYOUTS = ("class folders", "zip", "tar", "4 tar shards", "imagenet-zip")
GOALS = {
    "views": ["views"],
    "readers": [f"read and decode: {layout} against a folder" for layout in LAYOUTS],
    "startup": ["import soco_lib, soco_lib.config, soco_lib.data.sources", "a run, to its first step"],
}


@pytest.mark.parametrize("name", GOALS)
def test_a_benchmark_on_a_folder(pictures, monkeypatch, name):
    heavy = ("plain", "soco_lib.train")  # seconds each; a run that starts imports them anyway
    monkeypatch.setattr(
        bench_startup, "IMPORTS", {k: "" if k in heavy else code for k, code in bench_startup.IMPORTS.items()}
    )
    bench = importlib.import_module(f"tests.speed.bench_{name}").run(f"folder:{pictures}", True)
    assert isinstance(bench, Bench) and bench.name == name and str(pictures) in bench.data and bench.notes
    assert [goal.what for goal in bench.goals] == GOALS[name]
    assert all(value > 0 for row in bench.rows for value in row.values)
    assert all(goal.value > 0 for goal in bench.goals)
    text = bench.markdown()
    assert text.startswith(f"# {bench.title}") and all(goal.what in text for goal in bench.goals)
    assert all(title in text and rows for title, rows in bench.tables.items())


def test_every_layout_holds_the_same_images(pictures, tmp_path):
    source = open_source(f"folder:{pictures}")
    images = [(".jpg", source.read(i)) for i in range(len(source))]
    for spec in bench_readers.write_layouts(images, tmp_path).values():
        found = open_source(spec)
        assert sorted(found.read(i) for i in range(len(found))) == sorted(data for _, data in images), spec


def test_stages_add_up_and_operations_agree_with_torchvision(pictures):
    given = bench_views.photos(f"folder:{pictures}", 3)
    rows = bench_views.stages(given, bench_views.every_way(Pretrain("", "")))
    assert [row["stage"] for row in rows][-1] == "boxes, draws" and len(rows) == 5
    assert all(row[way] > 0 for row in rows for way in ("ours", "plain"))
    for row in bench_views.agreement(given):
        assert row["mean difference, 1/255"] <= (2.5 if row["operation"] == "hue" else 1.0), row


def test_large_copies_have_boxes_of_their_own_size(pictures):
    (photo,) = bench_views.photos(f"folder:{pictures}", 1, 640)
    assert photo.data[:2] == b"\xff\xd8" and photo.boxes.shape == (64, 4)
    assert 128 < statistics.median(photo.boxes[:, 2]) <= 640


def test_the_plain_step_is_the_same_step():
    """Gradients agree where batch norm has fixed statistics; both ways have the same stages."""
    assert bench_step.agreement(bench_step.SMALL) <= 1e-5
    rows = bench_step.stages(bench_step.SMALL)
    assert [row["stage"] for row in rows][:3] == ["normalise", "target forward", "online forward"] and len(rows) == 6
    assert all(row[way] > 0 for row in rows for way in ("ours", "plain"))
    assert bench_step.operations(bench_step.SMALL) > 1e8


def test_growth_varies_one_thing_at_a_time():
    points = list(bench_step.growing(bench_step.FULL))
    assert [(over, at) for over, at, _ in points[:3]] == [("K", 1), ("K", 4), ("K", 16)]
    assert {cfg.batch for over, _, cfg in points if over != "images a step"} == {4}
    assert [cfg.view_sizes for over, _, cfg in points if over == "views"] == [
        (224, 224),
        (224, 224, 112),
        (224, 224, 112, 192),
    ]
