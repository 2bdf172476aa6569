"""The benchmarks of proposals and of their store: what they measure and record; how fast anything is, is not tested."""

import dataclasses

import pytest

from soco_lib.figures import speed
from soco_lib.scenes import write as scenes
from tests.speed import bench_proposals, bench_store


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "scenes"
    scenes.write_scenes(folder, 6, 2, workers=1)
    return f"coco:{folder}/annotations/instances_train.json@{folder}/images"


@pytest.fixture(scope="module")
def record(labelled):
    return bench_proposals.run(labelled, True)


@pytest.fixture
def light(monkeypatch):
    """Selective search at full size is slow, and so is starting processes."""
    monkeypatch.setattr(bench_proposals, "_speed", lambda *_: None)
    monkeypatch.setattr(bench_proposals, "_processes", lambda *_: None)
    monkeypatch.setattr(bench_store, "apart", lambda function, *arguments: (function(*arguments), 2**20))


def test_proposals(record):
    assert {row.way for row in record.rows if row.what == "search and filter" and not row.over} == {
        "ours",
        "fine",
        "plain",
    }
    assert {row.over for row in record.rows} == {"", "searched side (px)", "processes"}
    assert [goal.what.split()[0] for goal in record.goals] == ["search", "recall@0.5", "mean"]
    rows = record.tables["Settings"]
    tried = {(64, "single"), (64, "fast"), (64, "quality"), (128, "single"), (128, "fast")}
    tried |= {(64, "fine"), (96, "fine"), (128, "fine")}
    assert {(row["side"], row["mode"]) for row in rows} == tried
    assert sorted(filter(None, (row["default"] for row in rows))) == ["fine", "yes"]
    for row in rows:
        assert row["images"] == 6 and row["s an image"] > 0 and row["boxes an image"] >= 1
        assert (
            row["objects"] > 0
            and 0 <= row["recall"] <= 1
            and 0 < row["mean best IoU"] <= 1
            and 0 <= row["precision"] <= 1
        )
    assert "precision" in record.markdown()


def test_images_without_labels_have_no_quality(pictures, light):
    record = bench_proposals.run(f"folder:{pictures}", True)
    assert all("recall" not in row for row in record.tables["Settings"]) and not record.goals
    assert any("no labels" in note for note in record.notes) and "Settings" in record.markdown()
    assert speed.tradeoff(dataclasses.asdict(record)) is None
    assert "without labels" in speed.choice(dataclasses.asdict(record))


def test_a_setting_too_slow_is_tried_on_few_images(labelled, light, monkeypatch):
    for name, value in (("FEW", 2), ("SLOW", 0), ("ENOUGH", 0)):
        monkeypatch.setattr(bench_proposals, name, value)
    rows = bench_proposals.run(labelled, True).tables["Settings"]
    assert [row["images"] for row in rows] == [6 if row["default"] else 2 for row in rows]


def test_tradeoff_is_drawn_and_read(record):
    plain = dataclasses.asdict(record)
    figure = speed.tradeoff(plain)
    assert [ax.get_title() for ax in figure.axes] == ["recall", "mean best IoU", "precision"]
    row = {"mode": "fast", "base k": 100, "images": 9, "mean best IoU": 0.9, "precision": 0.2, "default": ""}
    plain["tables"] = {"Settings": [
        row | {"side": 128, "s an image": 0.031, "recall": 0.97, "default": "yes"},
        row | {"side": 96, "s an image": 0.03, "recall": 0.965},
        row | {"side": 64, "s an image": 0.02, "recall": 0.95},
        row | {"side": "full", "s an image": 0.04, "recall": 0.99, "images": 2},
    ]}  # fmt: skip
    text = speed.choice(plain)
    assert text.startswith(
        "2 of 4 settings reach all goals on all images; the default, fast at 128 px, base k 100: 0.031 s, rec"
    )
    assert text.endswith(
        "; fastest, fast at 96 px, base k 100: 0.030 s, recall 0.965, mean best IoU 0.900, precision 0.200."
    )
    plain["tables"]["Settings"][1]["recall"] = 0.9
    assert speed.choice(plain).endswith("; it is the fastest of them.")


def test_store(light):
    record = bench_store.run("", True)
    assert {row.way for row in record.rows} == {"ours", "plain"} and {row.over for row in record.rows} == {"", "images"}
    assert {row.at for row in record.rows if row.what == "shards to store"} == {500, 20_000}
    goals = {goal.what: goal for goal in record.goals}
    assert list(goals) == [
        "open and first lookup, 20000 images", "random lookup, median, 20000 images", "peak memory of building",
        "private memory of each of 2 processes, the largest",
    ]  # fmt: skip
    assert goals["peak memory of building"].value == 2**20 / 2**30
    assert "smaps_rollup" in record.markdown() and speed.growth(dataclasses.asdict(record)) is not None


def test_the_plain_store_holds_the_same_boxes(tmp_path):
    bench_store._build(tmp_path / "s", 30)
    bench_store.export_boxes(bench_store.ProposalStore.open(tmp_path / "s"), tmp_path / "s.json")
    ours, plain = bench_store._open_store(tmp_path / "s"), bench_store._open_json(tmp_path / "s.json")
    for index in range(30):
        x, y, w, h = plain(index).T
        assert abs(ours(index).T - [x, y, x + w, y + h]).max() < 0.02
