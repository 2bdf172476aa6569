"""Fine-tuning and evaluation on a data set of a few drawn rectangles."""

import json
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from soco_lib import BookError
from soco_lib.config import Pretrain, View
from soco_lib.fields import from_dict, to_dict
from soco_lib.figures.detections import decode_mask, draw_predictions
from soco_lib.model import SoCo
from soco_lib.runs import checkpoint
from soco_lib.runs.folder import Run, read_json
from soco_lib.transfer import run as transfer
from soco_lib.transfer.batches import Samples, reach
from soco_lib.transfer.benchmarks import Transfer
from soco_lib.transfer.detectron import detectron_config, draw_images, milestones, open_both, open_data
from soco_lib.transfer.evaluate import evaluate
from soco_lib.transfer.finetune import FineTuner
from tests.conftest import TINY_DETECTOR, Cut

from detectron2.structures import Boxes, Instances  # isort: skip

CLASSES = {3: "dark", 5: "bright"}  # ids with gaps, as COCO's are
TINY = (
    *TINY_DETECTOR,
    "MODEL.ROI_MASK_HEAD.CONV_DIM=16",
    "MODEL.ROI_MASK_HEAD.NUM_CONV=1",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE=16",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN=50",
    "MODEL.RPN.POST_NMS_TOPK_TEST=20",
)


def write_coco(root, split, count, masks="polygon", seed=0, heights=(72,)):
    """`count` pictures of rectangles, 96 pixels wide and of `heights` in turn, with a COCO file; returns its spec."""
    rng, images, annotations = np.random.default_rng(seed), [], []
    (root / "images").mkdir(parents=True, exist_ok=True)
    for i in range(1, count + 1):
        height = heights[i % len(heights)]
        picture = rng.integers(60, 120, (height, 96, 3), dtype=np.uint8)
        images.append({"id": 10 * i, "file_name": f"{split}{i}.jpg", "height": height, "width": 96})
        for x, (category, value) in zip((5, 50), ((3, 10), (5, 240))):
            w, h, y = (int(v) for v in rng.integers((20, 20, 5), (40, 40, 30)))
            picture[y : y + h, x : x + w] = value
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            found = {
                "id": len(annotations) + 1,
                "image_id": 10 * i,
                "category_id": category,
                "bbox": [x, y, w, h],
                "area": w * h,
            }
            if masks == "polygon":
                found["segmentation"] = polygon
            elif masks == "rle":
                code = rle.merge(rle.frPyObjects(polygon, height, 96))
                found["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
            annotations.append({**found, "iscrowd": 0})
        cv2.imwrite(str(root / "images" / f"{split}{i}.jpg"), picture)
    categories = [{"id": i, "name": name} for i, name in CLASSES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}-{masks}.json").write_text(json.dumps(content))
    return f"coco:{root / f'{split}-{masks}.json'}@{root / 'images'}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("rectangles")
    return {(split, masks): write_coco(root, split, 8 if split == "train" else 4, masks)
            for split in ("train", "val") for masks in ("polygon", "rle", "none")}  # fmt: skip


def settings(data, masks="polygon", **changes):
    base = dict(train=data["train", masks], test=data["val", masks], detector="mask-rcnn-r50-fpn", overrides=TINY)
    base |= dict(iterations=6, warmup=2, batch=2, min_sizes=(64,), max_size=128, test_size=64, precise_bn=1, workers=0)
    return Transfer(**{**base, "log_every": 2, "save_every": 2, "profile": "test", **changes})


def start(folder, name, cfg):
    return Run.start(name, "transfer", cfg, folder)


def losses(run):
    return [row["loss"] for row in run.rows()]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    run = start(tmp_path_factory.mktemp("results"), "scratch", settings(data, eval_every=4))
    assert transfer.main([str(run.folder)]) == 0
    return Run.read(run.folder)


def test_run_folder_tells_everything(finished):
    metrics, folder = finished.metrics, finished.folder
    assert finished.done and metrics["images"] == 4 and metrics["train_images"] == 8 and metrics["profile"] == "test"
    for task in ("bbox", "segm"):
        assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "per_class"} == set(metrics[task])
        assert 0 <= metrics[task]["AP"] <= 100 and list(metrics[task]["per_class"]) == list(CLASSES.values())
    rows = finished.rows()
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert {"loss", "loss_cls", "loss_mask", "loss_rpn_cls", "lr", "images_per_s", "seconds", "eta_s"} <= set(rows[0])
    assert "bbox_AP" not in rows[0] and "bbox_AP" in rows[1]
    assert rows[-1]["segm_AP"] == pytest.approx(metrics["segm"]["AP"], abs=1e-3)
    report = read_json(folder / "key_report.json")
    assert report["counts"]["loaded"] == 0 and report["counts"]["new"] > 100
    for name in ("config.yaml", "model_final.pth", "model_best.pth", "events.out.tfevents*"):
        assert list((folder / "detectron2").glob(name)), name
    assert (metrics["batch"], metrics["accumulate"], metrics["lr"], metrics["iterations"]) == (2, 1, 0.02, 6)


def test_done_run_is_left_alone(finished, capsys):
    before = (finished.folder / "metrics.json").stat().st_mtime_ns
    assert transfer.main([str(finished.folder)]) == 0
    assert "is done" in capsys.readouterr().out and (finished.folder / "metrics.json").stat().st_mtime_ns == before


def test_same_seed_same_numbers(finished, data, tmp_path):
    again = start(tmp_path, "again", settings(data, eval_every=4))
    assert transfer.main([str(again.folder)]) == 0
    assert losses(Run.read(again.folder)) == losses(finished)
    assert Run.read(again.folder).metrics["bbox"] == finished.metrics["bbox"]


def test_goes_on_after_an_interruption(data, tmp_path, monkeypatch, capsys):
    run = start(tmp_path, "cut", settings(data))
    whole_step = FineTuner.run_step

    def cut(self):
        if self.iter == 4:
            raise Cut
        whole_step(self)

    monkeypatch.setattr(FineTuner, "run_step", cut)
    with pytest.raises(Cut):
        transfer.main([str(run.folder)])
    assert Run.read(run.folder).record["status"] == "failed" and Run.read(run.folder).metrics is None
    monkeypatch.setattr(FineTuner, "run_step", whole_step)
    capsys.readouterr()
    assert transfer.main([str(run.folder)]) == 0
    out = capsys.readouterr().out
    assert "going on after step 4" in out and "step 6/6" in out and "step 2/6" not in out
    run = Run.read(run.folder)
    assert run.done and [row["step"] for row in run.rows()] == [2, 4, 6] and len(run.record["sessions"]) == 2
    assert run.rows()[-1]["lr"] < run.rows()[-2]["lr"], "the schedule goes on, it does not start again"


def test_from_a_pretraining(data, tmp_path, capsys):
    cfg = Pretrain("a", "b", overrides=TINY_DETECTOR, hidden=16, embedding=8, size=64, views=(View(64),))
    (tmp_path / "soco").mkdir()
    checkpoint.save(tmp_path / "soco", 3, to_dict(cfg), 1, model=SoCo(cfg).state_dict())
    run = start(tmp_path, "tuned", settings(data, init=str(tmp_path / "soco"), iterations=1))
    assert transfer.main([str(run.folder)]) == 0
    report = read_json(run.folder / "key_report.json")
    assert report["counts"]["loaded"] > 100 and report["step"] == 3 and not any(report["unexplained"].values())
    assert "keys loaded (backbone, neck, head)" in capsys.readouterr().out


def test_from_an_earlier_transfer(finished, data, tmp_path, capsys):
    """Its whole detector goes on; boxes without masks, and the same classes, leave only the mask head behind."""
    run = start(tmp_path, "on", settings(data, "none", init=str(finished.folder), iterations=2))
    assert transfer.main([str(run.folder)]) == 0
    report = read_json(run.folder / "key_report.json")
    assert report["counts"]["new"] == 0 and not any(report["unexplained"].values())
    assert set(report["keys"]["left_behind"].values()) == {"mask head (not in this detector)"}
    assert "predictor" in report["keys"]["reach"] and "model_final.pth" in capsys.readouterr().out


def test_renamed_key_stops_the_run_before_training(data, tmp_path, capsys):
    cfg = Pretrain("a", "b", overrides=TINY_DETECTOR, hidden=16, embedding=8, size=64, views=(View(64),))
    state = SoCo(cfg).state_dict()
    state["online.encoder.backbone.fpn_lateral2.wheight"] = state.pop("online.encoder.backbone.fpn_lateral2.weight")
    (tmp_path / "soco").mkdir()
    checkpoint.save(tmp_path / "soco", 3, to_dict(cfg), 1, model=state)
    run = start(tmp_path, "tuned", settings(data, init=str(tmp_path / "soco")))
    assert transfer.main([str(run.folder)]) == 1
    error = capsys.readouterr().err
    assert "fpn_lateral2.wheight" in error and "backbone.fpn_lateral2.weight" in error and error.count("\n") == 1
    assert not (run.folder / "log.jsonl").exists() and Run.read(run.folder).record["status"] == "failed"
    assert read_json(run.folder / "key_report.json")["unexplained"]["new"] == ["backbone.fpn_lateral2.weight"]


def test_non_finite_loss_names_the_step(data, tmp_path, capsys):
    run = start(tmp_path, "wild", settings(data, lr=1e12, warmup=0, iterations=20))
    assert transfer.main([str(run.folder)]) == 1
    error = capsys.readouterr().err
    assert "not finite at step" in error and "lower lr=" in error and error.count("\n") == 1
    assert Run.read(run.folder).record["status"] == "failed" and not (run.folder / "metrics.json").exists()


@pytest.mark.parametrize("masks, expected", [("polygon", "polygon"), ("rle", "bitmask"), ("none", "")])
def test_masks_follow_the_data(data, tmp_path, masks, expected):
    cfg = settings(data, masks)
    train, test = open_both(cfg)
    d2 = detectron_config(cfg, train, test, tmp_path)
    assert train.mask_format == expected and d2.MODEL.MASK_ON == bool(expected) and d2.MODEL.ROI_HEADS.NUM_CLASSES == 2
    instances = next(iter(Samples(d2).loader(reach(cfg), workers=0)))[0]["instances"]
    assert instances.has("gt_masks") == bool(expected) and len(instances) > 0


class Oracle(torch.nn.Module):
    """Answers each image with its annotations."""

    def __init__(self, data):
        super().__init__()
        self.records = {record["image_id"]: record for record in data.records}

    def forward(self, batch):
        return [{"instances": self.answer(self.records[image["image_id"]])} for image in batch]

    def answer(self, record):
        found = Instances((record["height"], record["width"]))
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes, found.scores = Boxes(boxes), torch.linspace(1, 0.9, len(boxes))
        found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        masks = [decode_mask(a["segmentation"], record["height"], record["width"]) for a in record["annotations"]]
        found.pred_masks = torch.from_numpy(np.stack(masks))
        return found


class Mute(Oracle):
    """Answers with nothing."""

    def answer(self, record):
        return super().answer(record)[:0]


@pytest.mark.parametrize("masks", ["polygon", "rle"])
@pytest.mark.parametrize("model, ap", [(Oracle, 100.0), (Mute, 0.0)])
def test_evaluation_of_truth_and_of_nothing(data, tmp_path, masks, model, ap):
    cfg = settings(data, masks)
    train, test = open_both(cfg)
    found = evaluate(model(test), detectron_config(cfg, train, test, tmp_path), test)
    for task in ("bbox", "segm"):
        assert found[task]["AP"] == pytest.approx(ap)
        assert found[task]["per_class"] == pytest.approx(dict.fromkeys(CLASSES.values(), ap))


def test_paper_schedule():
    cfg = Transfer("coco:a.json@b", "coco:c.json@d")
    assert milestones(cfg) == (60000, 80000) and (cfg.batch, cfg.lr, cfg.warmup, cfg.weight_decay) == (
        16,
        0.02,
        1000,
        2.5e-5,
    )
    assert milestones(from_dict(Transfer, {**to_dict(cfg), "iterations": 180000})) == (120000, 160000)


def test_labelled_share_is_seeded_and_used(data, tmp_path):
    ids = tuple(range(100))
    assert len(draw_images(ids, 0.1, 0)) == 10 and draw_images(ids, 7, 0) == draw_images(ids, 7, 0) != draw_images(
        ids, 7, 1
    )
    assert draw_images(ids, 1, 0) == ids
    part = open_data(data["train", "polygon"], labelled=0.5)
    assert [record["image_id"] for record in part.records] == list(part.image_ids) and len(part.image_ids) == 4
    with pytest.raises(BookError, match="labelled=200 leaves 200 of 100"):
        draw_images(ids, 200, 0)


def test_bad_settings(data, tmp_path, capsys):
    for changes, message in (
        (dict(lr=0), "lr=0 must be positive"),
        (dict(milestones=(0.9, 0.5)), "milestones=.*must rise"),
        (dict(network="both"), "network='both' is unknown"),
        (dict(labelled=0), "labelled=0 must be positive"),
    ):
        with pytest.raises(BookError, match=message):
            settings(data, **changes)
    for changes, message in (
        (dict(test="folder:x"), "must read coco:"),
        (dict(test="coco:nowhere.json@x"), "no annotation file .*nowhere.json"),
        (dict(init="nowhere"), "nowhere does not exist"),
        (dict(overrides=("SOLVER.BASE_LR=1",)), "set the transfer's own field"),
        (dict(precision="bf16"), "needs a GPU"),
    ):
        if "precision" in changes and torch.cuda.is_available():
            continue
        run = start(tmp_path, f"bad-{list(changes)[0]}-{len(list(tmp_path.iterdir()))}", settings(data, **changes))
        assert transfer.main([str(run.folder)]) == 1
        error = capsys.readouterr().err
        assert re.search(message, error) and error.count("\n") == 1, error


def test_missing_image_is_named_before_training(data, tmp_path):
    spec = data["val", "polygon"]
    path = spec.removeprefix("coco:").partition("@")[0]
    content = json.loads(open(path).read())
    content["images"][2]["file_name"] = "gone.jpg"
    shutil.copytree(spec.partition("@")[2], tmp_path / "images")
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(BookError, match="1 of 4 images sampled.*gone.jpg"):
        open_data(f"coco:{tmp_path / 'a.json'}@{tmp_path / 'images'}")


def test_predictions_are_drawn(finished):
    figure = draw_predictions(finished.folder, n=3, seed=1)
    assert len(figure.axes) == 8
    with pytest.raises(BookError, match="finish"):
        draw_predictions(finished.folder / "detectron2", n=1)


def test_two_processes(data, tmp_path):
    run = start(tmp_path, "two", settings(data, iterations=2, precise_bn=0))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=2",
    ]
    done = subprocess.run(
        [*command, "-m", "soco_lib.transfer", str(run.folder)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 gloo processes" in done.stdout and done.stdout.count("step 2/2") == 2
    metrics = Run.read(run.folder).metrics
    assert metrics["processes"] == 2 and metrics["images"] == 4 and "AP" in metrics["segm"]
