"""A fine-tuned run on new images gives the detections of its own evaluation, and so does Detectron2 alone."""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools.coco import COCO

from soco_lib import BookError
from soco_lib.figures.detections import contact_sheet
from soco_lib.runs import session
from soco_lib.runs.folder import Run, read_json
from soco_lib.transfer import predict
from soco_lib.transfer import run as transfer
from tests.conftest import TINY_DETECTOR
from tests.test_detection_data import write_voc
from tests.test_transfer import CLASSES, TINY, settings, write_coco

ONE_STAGE = (
    *TINY_DETECTOR,
    "MODEL.RETINANET.NUM_CONVS=1",
    "MODEL.RETINANET.PRIOR_PROB=0.5",
)  # sure of itself, untrained
DETECTORS = {
    "mask": dict(detector="mask-rcnn-r50-fpn", overrides=TINY),
    "c4": dict(detector="faster-rcnn-r50-c4", overrides=(*TINY_DETECTOR[-3:], "MODEL.RPN.POST_NMS_TOPK_TEST=20")),
    "retinanet": dict(detector="retinanet-r50-fpn", overrides=ONE_STAGE, clip_gradients=1.0),
    "fcos": dict(detector="fcos-r50-fpn", overrides=ONE_STAGE, clip_gradients=1.0),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with rectangles in COCO and in VOC layout, of other sizes in the test."""
    root = tmp_path_factory.mktemp("world")
    write_coco(root, "train", 8)
    write_coco(root, "val", 4, heights=(72, 110, 50))
    write_voc(root / "voc", {"trainval": 6, "test": 4})
    return root


@pytest.fixture(scope="module")
def tuned(world):
    """Name -> folder of a transfer of that detector, two steps long; C4 in VOC layout."""
    made = {}

    def fine_tune(name):
        if name not in made:
            split = lambda part: f"coco:{world}/{part}-polygon.json@{world}/images"
            data = {("train", "polygon"): split("train"), ("val", "polygon"): split("val")}
            sets = dict(train=f"voc:{world}/voc@trainval", test=f"voc:{world}/voc@test") if name == "c4" else {}
            run = Run.start(
                name, "transfer", settings(data, iterations=2, **DETECTORS[name], **sets), world / "results"
            )
            assert transfer.main([str(run.folder)]) == 0
            made[name] = run.folder
        return made[name]

    return fine_tune


def detect(model, images, folder, name="new", **more):
    cfg = predict.settings(model=str(model), images=str(images), **{"score": 0.0, "workers": 0, **more})
    run = Run.start(name, "predict", cfg, folder)
    assert predict.main([str(run.folder)]) == 0
    return Run.read(run.folder)


def detections(run):
    """File name (no suffix) -> its detections."""
    images = {image["id"]: image["file_name"] for image in read_json(run.folder / "images.json")["images"]}
    found = {Path(name).stem: [] for name in images.values()}
    for row in read_json(run.folder / "detections.json", list):
        found[Path(images[row.pop("image_id")]).stem].append(row)
    return found


LOADED = """
import json
print(json.dumps([instances.pred_boxes.tensor.tolist(), instances.scores.tolist(), instances.pred_classes.tolist()]))
"""


@pytest.mark.parametrize("name", DETECTORS)
def test_detections_are_the_evaluations_and_those_of_detectron2_alone(world, tuned, tmp_path, name):
    folder, voc = tuned(name), name == "c4"
    images = f"voc:{world}/voc@test" if voc else f"coco:{world}/val-polygon.json@{world}/images"
    saved = read_json(folder / "detectron2" / f"{'voc' if voc else 'coco'}_instances_results.json", list)
    score = float(np.median([row["score"] for row in saved]))
    run = detect(folder, images, tmp_path, score=score)
    kept = [row for row in saved if row["score"] >= score]
    assert 4 < len(kept) < len(saved) and run.metrics["detections"] == len(kept)
    names = {10 * i: f"val{i}" for i in range(1, 5)}
    expected = {f"test_{i}" if voc else names[10 * i + 10]: [] for i in range(4)}
    for row in kept:
        expected[row["image_id"] if voc else names[row["image_id"]]].append(
            {k: v for k, v in row.items() if k != "image_id"}
        )
    assert detections(run) == expected
    assert ("segmentation" in kept[0]) == (name == "mask")
    # the lines of the README, in a fresh process
    readme = (run.folder / "README.md").read_text()
    assert ("import soco_lib" in readme) == (name in ("c4", "fcos"))
    one = world / ("voc/JPEGImages/test_1.jpg" if voc else "images/val1.jpg")
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1].replace("photo.jpg", str(one))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code + LOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    boxes, scores, classes = json.loads(done.stdout.splitlines()[-1])
    rows = [
        ([x, y, x + w, y + h], s, c)
        for (x, y, w, h), s, c in ((r["bbox"], r["score"], r["category_id"]) for r in expected[one.stem])
    ]
    ids = [category["id"] for category in read_json(run.folder / "images.json")["categories"]]
    alone = [(box, s, ids[c]) for box, s, c in zip(boxes, scores, classes) if s >= score]
    assert [c for *_, c in alone] == [c for *_, c in rows] and len(rows) > 0
    assert [s for _, s, _ in alone] == pytest.approx([s for _, s, _ in rows], abs=1e-5)
    assert np.array([b for b, *_ in alone]) == pytest.approx(np.array([b for b, *_ in rows]), abs=1e-3)


def test_every_kind_of_source_and_images_that_cannot_be_read(world, tuned, tmp_path, capsys):
    model, new = tuned("mask"), tmp_path / "new"
    new.mkdir()
    for i in (1, 2, 3):
        (new / f"val{i}.jpg").write_bytes((world / "images" / f"val{i}.jpg").read_bytes())
    plain = detect(model, f"folder:{new}", tmp_path, "plain", workers=1)
    assert plain.metrics["unreadable"] == 0 and (plain.folder / "unreadable.txt").read_text() == ""
    (new / "cut.jpg").write_bytes((new / "val1.jpg").read_bytes()[:700])
    (new / "text.png").write_text("no image")
    cv2.imwrite(str(new / "thin.png"), np.zeros((1, 3000, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
        for path in new.iterdir():
            archive.write(path, f"deep/{path.name}")
    capsys.readouterr()
    zipped = detect(model, f"zip:{tmp_path}/new.zip", tmp_path, "zipped")
    assert "3 of 6 images could not be read, see unreadable.txt; first deep/cut.jpg: " in capsys.readouterr().out
    lines = (zipped.folder / "unreadable.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["deep/cut.jpg", "deep/text.png", "deep/thin.png"]
    assert (zipped.metrics["images"], zipped.metrics["unreadable"]) == (3, 3)
    (new / "some.txt").write_text("val3.jpg\nval1.jpg\nval2.jpg\n")
    listed = detect(model, f"list:{new}/some.txt", tmp_path, "listed")
    assert detections(plain) == detections(zipped) == detections(listed) and any(detections(plain).values())

    counts = pd.read_csv(plain.folder / "counts.csv", index_col="class")
    opened = COCO(str(plain.folder / "images.json"))
    found = opened.loadRes(str(plain.folder / "detections.json"))
    assert (
        list(counts.index) == list(CLASSES.values()) and counts["detections"].sum() == plain.metrics["detections"] > 0
    )
    for identity, name in CLASSES.items():
        assert counts.loc[name, "detections"] == len(found.getAnnIds(catIds=[identity]))
        assert counts.loc[name, "images"] == len(found.getImgIds(catIds=[identity]))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "text.png").write_text("no image")
    run = Run.start(
        "bad", "predict", predict.settings(model=str(model), images=f"folder:{tmp_path}/bad", workers=0), tmp_path
    )
    assert predict.main([str(run.folder)]) == 1
    assert "none of the 1 images" in capsys.readouterr().err and Run.read(run.folder).record["status"] == "failed"


def test_contact_sheet_and_a_turned_photograph(world, tuned, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    turned = Image.open(world / "images" / "val1.jpg")
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(new / "turned.jpg", exif=exif, quality=95)
    turned.resize((960, 720)).save(new / "large.jpg")
    run = detect(tuned("mask"), f"folder:{new}", tmp_path)
    seen = predict.read(run.folder)
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in seen.truth["images"]}
    assert sizes["turned.jpg"] == turned.size
    assert all(seen.pixels(image).shape[:2] == sizes[image["file_name"]] for image in seen.truth["images"])
    figure = contact_sheet(seen, n=5, columns=2)
    titles = [ax.get_title() for ax in figure.axes]
    assert sorted(titles) == ["large.jpg", "turned.jpg"]
    large = figure.axes[titles.index("large.jpg")]
    assert large.images[0].get_array().shape[:2] == (480, 640) and large.get_xlim() == (-0.5, 959.5)
    assert len(large.texts) > 0 and "of 2 images" in figure.get_suptitle()


def test_two_processes_find_what_one_finds(world, tuned, tmp_path):
    images = f"coco:{world}/val-polygon.json@{world}/images"
    one = detect(tuned("mask"), images, tmp_path, "one")
    cfg = predict.settings(model=str(tuned("mask")), images=images, score=0.0, workers=0)
    run = Run.start("two", "predict", cfg, tmp_path)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=2",
    ]
    done = subprocess.run(
        [*command, "-m", "soco_lib.transfer.predict", str(run.folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = Run.read(run.folder)
    assert two.metrics["processes"] == 2 and detections(two) == detections(one)


def test_told_to_stop_and_run_again(world, tuned, tmp_path, monkeypatch, capsys):
    cfg = predict.settings(model=str(tuned("mask")), images=f"folder:{world}/images", workers=0, score=0.0)
    run, rows = Run.start("cut", "predict", cfg, tmp_path), predict.instances_to_coco_json
    with monkeypatch.context() as patch:
        patch.setattr(
            predict, "instances_to_coco_json", lambda *args: os.kill(os.getpid(), signal.SIGTERM) or rows(*args)
        )
        assert predict.main([str(run.folder)]) == session.STOPPED
    stopped = Run.read(run.folder)
    assert stopped.record["status"] == "stopped" and not stopped.done and "told to stop" in capsys.readouterr().err
    assert predict.main([str(run.folder)]) == 0 and Run.read(run.folder).metrics["images"] == 12
    monkeypatch.setattr(predict, "detector", None)  # nothing is done again
    assert predict.main([str(run.folder)]) == 0 and "is done" in capsys.readouterr().out


def test_what_is_refused(world, tuned, tmp_path):
    model, images = str(tuned("mask")), f"folder:{world}/images"
    for name, kind in (("soco", "pretrain"), ("look", "views"), ("begun", "transfer")):
        (tmp_path / name).mkdir()
        record = {"name": name, "kind": kind, "config": {}, "status": "stopped", "sessions": []}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    (tmp_path / "empty").mkdir()
    for given, message in (
        (dict(model=""), "MODEL= is empty"),
        (dict(model="results/nowhere"), "MODEL='results/nowhere': no run at .*give the folder of a finished transfer"),
        (
            dict(model=f"{tmp_path}/soco"),
            "of kind 'pretrain' and no fine-tuned detector: fine-tune it .make transfer INIT=",
        ),
        (dict(model=f"{tmp_path}/look"), "of kind 'views'.*give the folder of a finished transfer"),
        (dict(model=f"{tmp_path}/begun"), "is not finished .status: stopped.: finish"),
        (dict(score=1.01), r"SCORE=1.01 must lie in \[0, 1\]"),
        (dict(score=float("nan")), "score=nan must be a finite number"),
        (dict(images=""), "no images at ''"),
        (dict(images=f"folder:{tmp_path}/empty"), "no images in"),
        (dict(workers=-1), "workers=-1 may not be negative"),
        (dict(wrokers=1), "did you mean 'workers'"),
    ):
        with pytest.raises(BookError, match=message):
            predict.settings(**{"model": model, "images": images, **given})
    with pytest.raises(BookError, match="is not finished"):
        predict.read(tmp_path / "begun")


def test_other_images_or_weights_are_another_run(world, tuned, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    (new / "a.jpg").write_bytes((world / "images" / "val1.jpg").read_bytes())
    detect(tuned("mask"), f"folder:{new}", tmp_path)
    (new / "b.jpg").write_bytes((new / "a.jpg").read_bytes())
    with pytest.raises(BookError, match="another configuration .names: .* choose another run name"):
        detect(tuned("mask"), f"folder:{new}", tmp_path)


def test_classes_without_the_test_datas_file(world, tuned, tmp_path):
    record = read_json(tuned("mask") / "run.json")
    record["config"]["test"] = "coco:gone.json@gone"
    moved = Run(tuned("mask"), record)
    assert predict.detector(moved, predict.torch.device("cpu"))[2] == [
        {"id": 1, "name": "dark"},
        {"id": 2, "name": "bright"},
    ]
