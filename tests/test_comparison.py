"""Two transfers against each other, and what is read from their folders for it."""

import json
import math
import shutil

import cv2
import numpy as np
import pytest

from soco_lib import BookError
from soco_lib.config import Pretrain
from soco_lib.fields import to_dict
from soco_lib.figures.detections import class_bars
from soco_lib.runs import records
from soco_lib.runs.folder import Run
from soco_lib.transfer import benchmarks, compare, predictions

DETECTIONS = [
    {"image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20], "score": 0.4},
    {"image_id": 1, "category_id": 7, "bbox": [60, 10, 20, 20], "score": 0.9},
]


@pytest.fixture
def data(tmp_path):
    """Two images with one object each in COCO layout; returns the spec."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 50, "width": 100} for i in (1, 2)],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 7, "bbox": [10, 10, 20, 20], "area": 400} for i in (1, 2)
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    for i in (1, 2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((50, 100, 3), (0, 0, 40 * i), np.uint8))
    return f"coco:{tmp_path}/val.json@{tmp_path}"


def transfer(folder, test, ap=1.0, detections=(), **changes):
    """A finished transfer's folder."""
    (folder / "detectron2").mkdir(parents=True)
    config = to_dict(benchmarks.settings("coco-fpn-1x", "toy", test=test) if "benchmark" not in changes else
                     benchmarks.settings(changes.pop("benchmark"), "toy", test=test)) | changes  # fmt: skip
    record = {"name": folder.name, "kind": "transfer", "config": config, "status": "done", "sessions": []}
    (folder / "run.json").write_text(json.dumps(record))
    scores = {"AP": ap, "AP50": 2 * ap, "per_class": {"cat": ap, "dog": math.nan}}
    (folder / "metrics.json").write_text(json.dumps({"bbox": scores, "images": 2}))
    kind = test.partition(":")[0]
    (folder / "detectron2" / f"{kind}_instances_results.json").write_text(json.dumps(list(detections)))
    return folder


def test_settings_scores_and_classes(data, tmp_path):
    folders = transfer(tmp_path / "a", data), transfer(tmp_path / "b", data, 3.5, init="results/soco", seed=1)
    a, b = compare.open_pair(str(folders[0]), "b", str(tmp_path))  # a path, a name under the results folder
    assert compare.settings(a, b).to_dict("index") == {
        "init": {"A": "scratch", "B": "results/soco"}, "seed": {"A": 0, "B": 1},
    }  # fmt: skip
    assert compare.scores(a, b).loc[("bbox", "AP50")].to_dict() == {"A": 2.0, "B": 7.0, "B - A": 5.0}
    assert compare.class_differences(a, b)["bbox"] == {"cat": 2.5, "dog": pytest.approx(math.nan, nan_ok=True)}


def test_runs_that_cannot_be_compared_are_refused(data, tmp_path):
    a = transfer(tmp_path / "a", data)
    other = transfer(tmp_path / "other", data.replace("coco", "voc"), benchmark="voc-c4")
    failed = transfer(tmp_path / "failed", data)
    failed.joinpath("metrics.json").unlink()
    pretraining = transfer(tmp_path / "p", data)
    record = json.loads((pretraining / "run.json").read_text())
    (pretraining / "run.json").write_text(json.dumps(record | {"kind": "pretrain"}))
    for b, message in {
        str(other): r"benchmark: 'coco-fpn-1x' in A, 'voc-c4' in B; test: .* in A, .* in B",
        str(failed): "B=.*failed is not finished",
        str(pretraining): "B=.*p is a pretrain run",
        "nowhere": "B=nowhere: no run folder or record of that name",
        "": "B names no run.*make compare A=",
    }.items():
        with pytest.raises(BookError, match=message):
            compare.open_pair(str(a), b, str(tmp_path))


def test_images_where_two_runs_differ_most(data, tmp_path):
    a = predictions.read(transfer(tmp_path / "a", data, detections=DETECTIONS))
    b = predictions.read(transfer(tmp_path / "b", data, detections=[DETECTIONS[0] | {"image_id": i} for i in (1, 2)]))
    # Of A's detections on image 1 the surer is wrong: F1 2/3 at 0.4. B finds both objects.
    assert compare.most_different(a, b, 5) == {
        2: ((0.0, 1.0), (1.0, 0.4)),
        1: ((pytest.approx(2 / 3), 0.4), (1.0, 0.4)),
    }
    assert list(compare.most_different(a, b, 1)) == [2]


def test_predictions_come_best_first(data, tmp_path):
    seen = predictions.read(transfer(tmp_path / "a", data, detections=DETECTIONS))
    assert [d["score"] for d in seen.detections] == [0.9, 0.4] and seen.classes == {7: "cat"}
    assert [d["score"] for d in seen.of_image(1, 0.5)] == [0.9] == [d["score"] for d in seen.of_image(1, 0.95)]
    assert seen.of_image(2, 0.5) == [] and set(seen.objects()) == {1, 2}
    assert seen.pixels(seen.truth["images"][1])[0, 0].tolist() == [80, 0, 0]  # RGB


def test_predictions_that_are_gone_are_named(data, tmp_path):
    folder = transfer(tmp_path / "a", data)
    (folder / "detectron2" / "coco_instances_results.json").unlink()
    with pytest.raises(BookError, match="coco_instances_results.json is gone"):
        predictions.read(folder)
    with pytest.raises(BookError, match="finish that transfer first"):
        predictions.read(tmp_path / "b")


def test_voc_truth_becomes_coco(tmp_path):
    root = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    (root / "ImageSets/Main/test.txt").write_text("000001\n")
    cv2.imwrite(str(root / "JPEGImages/000001.jpg"), np.zeros((50, 100, 3), np.uint8))
    (root / "Annotations/000001.xml").write_text(
        "<annotation><filename>000001.jpg</filename><size><width>100</width><height>50</height></size><object><name>dog</name>"
        "<pose>Left</pose><truncated>0</truncated><difficult>0</difficult>"
        "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object></annotation>"
    )
    found = [{"image_id": "000001", "category_id": 11, "bbox": [10, 10, 20, 20], "score": 1.0}]
    seen = predictions.read(transfer(tmp_path / "run", f"voc:{root}@test", detections=found, benchmark="voc-c4"))
    assert seen.truth["annotations"][0]["bbox"] == found[0]["bbox"] and seen.classes[11] == "dog"
    assert seen.pixels(seen.truth["images"][0]).shape == (50, 100, 3)


def test_eighty_classes_stay_readable():
    values = {f"class {i:02d}": float(i) for i in range(79)} | {"absent": math.nan}
    ax = class_bars({"bbox": values}, "title", "AP", most=40).axes[0]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert len(names) == 40 and names[0] == "class 78" and names[20] == "class 19" and names[-1] == "class 00"
    assert "39 classes" in ax.get_xlabel() and "1 without test objects" in ax.get_xlabel()


def pretraining(folder, **changes):
    """A finished pretraining's folder, as far as a comparison looks."""
    folder.mkdir(parents=True)
    config = to_dict(Pretrain("images", "proposals", profile="toy")) | changes
    record = {"name": folder.name, "kind": "pretrain", "config": config, "status": "done", "sessions": []}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.json").write_text(json.dumps({"loss": -3.0 - changes.get("seed", 0), "images_seen": 160}))
    return folder


def as_record(folder):
    """Leave the tracked record of a run alone, as on a fresh clone."""
    records.keep([Run.read(folder)], folder.parent)
    shutil.rmtree(folder)


def test_any_two_runs_as_text(data, tmp_path, capsys):
    as_record(pretraining(tmp_path / "one", overrides=["A=1", "B=1", "C=1"]))
    other = pretraining(tmp_path / "two", tau=0.98, seed=2, overrides=["A=1", "B=2", "C=1"])
    assert compare.main(["one", str(other), "--results", str(tmp_path)]) == compare.ALONE  # a record by its name alone
    said = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split()[1:] for line in said.splitlines()}
    assert rows["kind"] == ["pretrain", "pretrain"] and rows["images seen"] == ["seen", "160", "160"]
    assert "settings that differ: 3" in rows and rows["tau"] == ["0.99", "0.98"] and rows["seed"] == ["0", "2"]
    assert rows["overrides"] == ["B=1", "B=2"] and "A=1" not in said and "and 2 that both have" in said
    assert rows["loss"] == ["-3", "-5", "-2"] and rows["images_seen"] == ["160", "160", "+0"]
    assert any(line.startswith("no notebook of these two: A=one is a pretrain run") for line in rows)
    compare.main([str(transfer(tmp_path / "t", data)), str(other), "--results", str(tmp_path)])
    said = capsys.readouterr().out
    assert (
        "of those that both kinds have" in said
        and "bbox.AP50" in said
        and "per_class" not in said
        and "nan" not in said
    )


def test_two_transfers_with_detections_go_on_to_the_notebook(data, tmp_path, capsys):
    a, b = transfer(tmp_path / "a", data, 1.0), transfer(tmp_path / "b", data, 3.0, seed=1)
    assert compare.main([str(a), str(b)]) == 0
    assert "settings that differ: 1" in capsys.readouterr().out
    as_record(transfer(tmp_path / "c", data, 2.0))
    assert compare.main([str(a), "c", "--results", str(tmp_path)]) == compare.ALONE
    assert "B is a tracked record, which keeps no detections" in capsys.readouterr().out


def test_an_unfinished_run_is_shown_as_far_as_it_went(data, tmp_path, capsys):
    a, b = transfer(tmp_path / "a", data), transfer(tmp_path / "b", data)
    for folder in (a, b):
        (folder / "metrics.json").write_text('{"bbox": {"AP"')
    assert compare.main([str(a), str(b)]) == compare.ALONE
    said = capsys.readouterr().out
    assert (
        "failed: a/metrics.json is torn" in said
        and "settings that differ: none" in said
        and "neither run has metrics" in said
    )


def test_a_run_that_is_not_there_is_named(tmp_path, capsys):
    assert compare.main(["", "b"]) == 1 and "A names no run" in capsys.readouterr().err
    torn = pretraining(tmp_path / "torn")
    assert compare.main([str(torn), "trn", "--results", str(tmp_path)]) == 1
    assert "B=trn: no run folder or record of that name" in capsys.readouterr().err
    (torn / "run.json").write_text('{"name": ')
    assert compare.main([str(torn), str(torn)]) == 1 and "torn/run.json" in capsys.readouterr().err
