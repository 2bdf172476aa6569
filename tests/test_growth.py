"""A study whose variants are arms at several lengths: its table and figure over images seen, its scenes."""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest

from soco_lib import BookError
from soco_lib.figures.studies import draw_growth
from soco_lib.studies import prepare
from soco_lib.studies import study as studies
from soco_lib.tables import growth

LENGTHS = {"x1": 100, "x4": 400, "x16": 1600}
GAIN = {"whole": 0.5, "soco": 2.0}  # points a doubling


def made(arm, length, seed):
    """k-NN of a seed: a line over the logarithm of images seen."""
    return 30 + GAIN[arm] * math.log2(LENGTHS[length] / 100) + 0.1 * seed


def cell(arm, length, seed, missing=()):
    metrics = {"images_seen": LENGTHS[length], "knn": made(arm, length, seed) / 100}
    run = SimpleNamespace(record={}, metrics=metrics)
    word = "begun" if (arm, length, seed) in missing else "done"
    return SimpleNamespace(pretrain=SimpleNamespace(run=run, state=SimpleNamespace(word=word)))


def rows(missing=(), arms=GAIN, lengths=LENGTHS):
    pretrained = [
        SimpleNamespace(
            variant=SimpleNamespace(name=f"{arm}-{length}", scratch=False),
            benchmark="coco-fpn-1x",
            cells={seed: cell(arm, length, seed, missing) for seed in range(3)},
            scores=lambda metric, arm=arm, length=length: {0: made(arm, length, 0) / 10},
        )  # fmt: skip
        for arm in arms
        for length in lengths
    ]
    scratch = SimpleNamespace(
        variant=SimpleNamespace(name="scratch", scratch=True), benchmark="coco-fpn-1x",
        cells={seed: SimpleNamespace(pretrain=None) for seed in range(3)}, scores=lambda metric: {0: 1.5},
    )  # fmt: skip
    return [scratch, *pretrained]


@pytest.fixture(autouse=True)
def plain_records(monkeypatch):
    monkeypatch.setattr(growth.records, "numbers", lambda run: run.metrics)


def test_scores_and_slopes_are_those_that_were_put_in():
    frame = growth.scores(rows())
    assert {*frame["score"]} == {"k-NN", "coco-fpn-1x, AP_bb"} and len(frame) == 2 * 3 * 3 + 2 * 3 + 1
    table = growth.table(frame).set_index(["score", "arm"])
    assert table.loc[("k-NN", "soco"), "1,600"] == "38.10 ± 0.10 (3)"
    assert table.loc[("k-NN", "whole"), "a doubling"] == "+0.50 [+0.50, +0.50] (3)"
    assert table.loc[("k-NN", "soco"), "beyond whole's"] == "+1.50 [+1.50, +1.50] (3)"
    assert table.loc[("coco-fpn-1x, AP_bb", "random weights"), "100"] == "1.50 (1)"


def test_a_seed_without_every_length_has_no_slope():
    table = growth.table(growth.scores(rows(missing=[("soco", "x16", 1)]))).set_index(["score", "arm"])
    assert table.loc[("k-NN", "soco"), "a doubling"].endswith("(2)")
    assert table.loc[("k-NN", "soco"), "1,600"].endswith("(2)") and table.loc[("k-NN", "soco"), "100"].endswith("(3)")


def test_other_studies_have_no_growth():
    assert growth.scores(rows(lengths=["x1"])).empty and growth.scores([]).empty
    assert growth.arm_of("proposals-4") == growth.arm_of("soco") == growth.arm_of("soco-xl") == ""


def test_the_figure_has_a_panel_a_score_and_a_line_an_arm():
    figure = draw_growth(growth.scores(rows()), "toy")
    first, second = [ax for ax in figure.axes if ax.lines]
    assert [line.get_label() for line in first.lines if line.get_marker() != "."] == ["whole", "soco"]
    assert [round(y, 2) for y in first.lines[3].get_ydata()] == [30.1, 34.1, 38.1]
    assert "random weights" in [line.get_label() for line in second.lines]


def test_the_study_is_arms_at_three_lengths_on_scenes_that_it_draws(tmp_path, monkeypatch):
    study = studies.read("growth")
    arms = pd.Series([growth.arm_of(v.name) for v in study.variants if not v.scratch]).value_counts()
    assert {*arms} == {3} and {*arms.index} == {"whole-image", "c5", "soco"}
    seen = {v.name: study.pretrain(v, "toy").steps * 16 for v in study.variants if not v.scratch}
    assert {*seen.values()} == {4800, 19200, 76800}
    drawn = []
    monkeypatch.setattr(prepare, "write_scenes", lambda folder, **given: drawn.append((folder.name, given["train"])))
    monkeypatch.setattr(prepare, "build_store", lambda *given, **more: None)
    monkeypatch.setattr(prepare, "open_source", lambda spec: None)
    monkeypatch.setattr(prepare, "locate", lambda name: tmp_path / name)
    prepare.prepare(study, [study.pretrain(study.variant("soco-x1"), "toy")], print)
    assert drawn == [("scenes-many", 6000)]


def test_scenes_of_a_study_are_checked(tmp_path):
    content = {"question": "?", "benchmarks": ["coco-fpn-1x"], "metrics": ["AP_bb"], "baseline": "a",
               "variants": {"a": {"toy": {"k": 2}, "paper": {"k": 2}}}}  # fmt: skip
    for wrong in (7, {"train": 3}, {"train": 3, "val": 0, "size": 4}):
        (tmp_path / "mine.yaml").write_text(json.dumps(content | {"scenes": {"data/x": wrong}}))
        with pytest.raises(BookError, match="mine.yaml: scenes data/x: .* needs train and val"):
            studies.read(str(tmp_path / "mine.yaml"))
