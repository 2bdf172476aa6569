"""The paper's benchmarks as data: their settings in Detectron2's config, their toy forms, what a machine must have."""

import os
from types import SimpleNamespace

import pytest
import torch

from soco_lib import BookError
from soco_lib.config import Pretrain
from soco_lib.encoder import Encoder
from soco_lib.runs.settings import load
from soco_lib.studies import paper
from soco_lib.transfer import benchmarks
from soco_lib.transfer.benchmarks import BENCHMARKS, Transfer, find, split_sets
from soco_lib.transfer.detectron import DetectionData, detectron_config, open_both
from soco_lib.transfer.evaluate import evaluate
from soco_lib.weights.load import Weights, compare
from tests.conftest import TINY_DETECTOR
from tests.test_detection_data import write_coco

from detectron2.data import build_detection_train_loader  # isort: skip
from detectron2.modeling import build_model  # isort: skip
from detectron2.solver import build_optimizer  # isort: skip
from detectron2.utils.events import EventStorage  # isort: skip

FPN, C4 = "mask-rcnn-r50-fpn", "mask-rcnn-r50-c4"
SIDES, VOC_SIDES = (640, 672, 704, 736, 768, 800), (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
#: Sec. 4.2 and 4.5: table, detector, iterations, where the rate falls, rate, weight decay, sides in training, labelled
#: share
PAPER = {
    "coco-fpn-1x": ("1", FPN, 90000, (60000, 80000), 0.02, 2.5e-5, SIDES, 1.0),
    "coco-fpn-2x": ("1", FPN, 180000, (120000, 160000), 0.02, 2.5e-5, SIDES, 1.0),
    "coco-c4-1x": ("2", C4, 90000, (60000, 80000), 0.02, 2.5e-5, SIDES, 1.0),
    "coco-c4-2x": ("2", C4, 180000, (120000, 160000), 0.02, 2.5e-5, SIDES, 1.0),
    "voc-c4": ("3", "faster-rcnn-r50-c4", 24000, (18000, 22000), 0.02, 1e-4, VOC_SIDES, 1.0),
    "lvis-fpn-1x": ("6", "mask-rcnn-r50-fpn-lvis", 90000, (60000, 80000), 0.02, 2.5e-5, SIDES, 1.0),
    "lvis-fpn-2x": ("6", "mask-rcnn-r50-fpn-lvis", 180000, (120000, 160000), 0.02, 2.5e-5, SIDES, 1.0),
    "coco-retinanet-1x": ("7", "retinanet-r50-fpn", 90000, (60000, 80000), 0.01, 1e-4, SIDES, 1.0),
    "coco-fcos-1x": ("7", "fcos-r50-fpn", 90000, (60000, 80000), 0.01, 1e-4, SIDES, 1.0),
    "minicoco-5": ("8", FPN, 90000, (60000, 80000), 0.02, 2.5e-5, SIDES, 0.05),
    "minicoco-10": ("8", FPN, 90000, (60000, 80000), 0.02, 2.5e-5, SIDES, 0.1),
    "coco-fpn-4x": ("10", FPN, 360000, (240000, 320000), 0.02, 2.5e-5, SIDES, 1.0),
}


def data(classes=3, mask_format="polygon"):
    """A data set that nothing reads."""
    layout = SimpleNamespace(classes=tuple(map(str, range(classes))), mask_format=mask_format)
    return DetectionData(f"coco-{classes}", (1, 2), (layout,))


def config(cfg, folder, classes=3, mask_format="polygon", world=1):
    return detectron_config(cfg, data(classes, mask_format), data(classes, mask_format), folder, world)


def test_every_benchmark_of_the_paper_is_there():
    assert list(BENCHMARKS) == list(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_the_papers(name, tmp_path):
    table, detector, iterations, steps, lr, decay, sides, labelled = PAPER[name]
    cfg = benchmarks.settings(name)
    d2 = config(cfg, tmp_path)
    assert (find(name).table, cfg.detector, cfg.benchmark, cfg.profile, cfg.labelled) == (
        table,
        detector,
        name,
        "paper",
        labelled,
    )
    assert (d2.SOLVER.MAX_ITER, d2.SOLVER.STEPS, d2.SOLVER.BASE_LR, d2.SOLVER.WEIGHT_DECAY) == (
        iterations,
        steps,
        lr,
        decay,
    )
    assert (d2.SOLVER.IMS_PER_BATCH, d2.SOLVER.WARMUP_ITERS, d2.SOLVER.MOMENTUM, d2.SOLVER.GAMMA) == (
        16,
        1000,
        0.9,
        0.1,
    )
    assert (d2.INPUT.MIN_SIZE_TRAIN, d2.INPUT.MIN_SIZE_TEST, d2.INPUT.MAX_SIZE_TRAIN) == (sides, 800, 1333)
    assert d2.TEST.PRECISE_BN.ENABLED and d2.MODEL.BACKBONE.FREEZE_AT == 0 and d2.MODEL.RESNETS.NORM == "BN"
    assert (
        d2.INPUT.FORMAT == "RGB"
        and d2.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
        and not d2.MODEL.RESNETS.STRIDE_IN_1X1
    )


@pytest.mark.parametrize("name", PAPER)
def test_its_table_prints_its_metrics(name):
    benchmark = find(name)
    printed = paper.paper_table(benchmark.table)
    assert [metric for column, metric in printed.columns if column == benchmark.paper] == list(benchmark.metrics)
    assert benchmark.title and "\n" not in benchmark.title


def test_lvis_follows_the_release(tmp_path):
    d2 = config(benchmarks.settings("lvis-fpn-1x"), tmp_path, classes=1203)
    assert (d2.MODEL.ROI_HEADS.NUM_CLASSES, d2.MODEL.ROI_HEADS.SCORE_THRESH_TEST, d2.TEST.DETECTIONS_PER_IMAGE) == (
        1203,
        1e-4,
        300,
    )
    assert (d2.DATALOADER.SAMPLER_TRAIN, d2.DATALOADER.REPEAT_THRESHOLD) == ("RepeatFactorTrainingSampler", 0.001)
    assert d2.MODEL.ROI_BOX_HEAD.NUM_CONV == 4 and d2.MODEL.ROI_BOX_HEAD.NUM_FC == 1


def test_parameter_files_are_the_first_benchmark():
    for profile in ("paper", "toy"):
        assert load(Transfer, f"notebooks/params/transfer-{profile}.yaml") == benchmarks.settings(
            "coco-fpn-1x", profile
        )


def test_label_names_what_was_changed():
    assert benchmarks.settings("voc-c4", weight_decay=1e-4, lr=0.02, seed=4, train="coco:a.json").profile == "paper"
    assert benchmarks.settings("voc-c4", weight_decay=2.5e-5, batch=None).profile == "paper, weight_decay=2.5e-05"
    assert benchmarks.settings("voc-c4", "toy", iterations=4, min_sizes=[64]).profile == "toy, iterations=4"


def test_mistakes_are_named():
    with pytest.raises(BookError, match="did you mean 'coco-fpn-1x'"):
        find("coco-fnp-1x")
    with pytest.raises(BookError, match="profile='papre' is unknown; did you mean 'paper'"):
        benchmarks.settings("voc-c4", "papre")
    with pytest.raises(BookError, match="did you mean 'batch'"):
        benchmarks.settings("voc-c4", bacth=2)
    with pytest.raises(BookError, match="must read coco:.*joined by"):
        split_sets("voc:a@b + folder:c")
    assert split_sets("voc:a@b + voc:c+d@e+coco:f.json") == [("voc", "a@b"), ("voc", "c+d@e"), ("coco", "f.json")]


@pytest.mark.parametrize("name, site", [("coco-fpn-1x", "cocodataset.org"), ("voc-c4", "host.robots.ox.ac.uk"),
                                        ("lvis-fpn-1x", "lvisdataset.org")])  # fmt: skip
def test_missing_data_is_one_message_with_the_tree(name, site, tmp_path, monkeypatch):
    monkeypatch.setenv("SOCO_DATA", str(tmp_path))
    cfg = benchmarks.settings(name)
    with pytest.raises(BookError) as caught:
        open_both(cfg)
    message = str(caught.value)
    specs = {f"{kind}:{rest}" for kind, rest in split_sets(f"{cfg.train} + {cfg.test}")}
    wanted = [known for known in benchmarks.DATA.values() if known.spec in specs]
    assert (
        len(wanted) == len(specs) >= 2 and site in message and str(tmp_path) in message and "make data-check" in message
    )
    for path in {path for known in wanted for path in known.paths}:
        assert f"\n  {path}" in message


# --- detectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPER)
def test_toy_form_takes_any_number_of_classes(name, tmp_path):
    cfg = benchmarks.settings(name, "toy")
    model = build_model(config(cfg, tmp_path, classes=7, mask_format="polygon" if "mask" in cfg.detector else ""))
    head = model.head if hasattr(model, "head") else model.roi_heads.box_predictor
    shapes = {k: tuple(v.shape) for k, v in head.state_dict().items() if "cls_score.weight" in k}
    anchors = 9 if "retinanet" in name else 1
    assert [shape[0] for shape in shapes.values()] == [7 * anchors if hasattr(model, "head") else 7 + 1]
    assert cfg.iterations * cfg.batch <= 20000 and sum(p.numel() for p in model.parameters()) < 5e6


@pytest.mark.parametrize("detector", [C4, "faster-rcnn-r50-c4"])
def test_c4_is_fine_tuned_with_a_norm_that_pretraining_does_not_have(detector, tmp_path):
    tiny = TINY_DETECTOR[-3:]
    model = build_model(config(benchmarks.settings("coco-c4-1x", detector=detector, overrides=tiny), tmp_path))
    encoder = Encoder(Pretrain("a", "b", detector=detector, overrides=tiny)).state_dict()
    assert isinstance(model.roi_heads.res5.norm, torch.nn.BatchNorm2d) and not any("res5.norm" in k for k in encoder)
    report = compare(model, Weights(encoder, reach=("backbone", "head")))
    report.check()
    assert {k for k, why in report.new.items() if why == "norm after res5"} == {
        k for k in model.state_dict() if "res5.norm" in k
    }
    assert model.roi_heads.res5(torch.randn(2, 64, 4, 4)).shape == (2, 128, 2, 2)


@pytest.mark.parametrize(
    "name", ["coco-fpn-1x", "coco-c4-1x", "voc-c4", "lvis-fpn-1x", "coco-retinanet-1x", "coco-fcos-1x"]
)
def test_on_gpus_every_batch_norm_is_synchronised(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    parts = {"fpn": ("bottom_up.stem", "fpn_lateral2", "fpn_output5", "box_head.conv1", "mask_head.mask_fcn1"),
             "c4": ("backbone.stem", "roi_heads.res5.0", "roi_heads.res5.norm")}  # fmt: skip
    parts = parts.get(name.split("-")[1], ("bottom_up.stem", "fpn_lateral3"))
    for world, kind in ((1, torch.nn.BatchNorm2d), (2, torch.nn.SyncBatchNorm)):
        d2 = config(benchmarks.settings(name, "toy"), tmp_path, world=world).clone()
        d2.defrost()
        d2.MODEL.DEVICE = "cpu"
        modules = build_model(d2).named_modules()
        norms = {
            path: type(module) for path, module in modules if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        }
        assert set(norms.values()) == {kind} and all(any(part in path for path in norms) for part in parts)


@pytest.mark.parametrize("name", ["coco-fpn-1x", "coco-c4-1x", "coco-retinanet-1x", "coco-fcos-1x"])
def test_each_toy_detector_looks_at_one_small_image(name, tmp_path):
    model = build_model(config(benchmarks.settings(name, "toy"), tmp_path)).eval()
    with torch.no_grad():
        assert len(model([{"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}])) == 1


def test_fcos_head_has_groups_of_eight_channels(tmp_path):
    groups = {}
    for profile in ("paper", "toy"):
        model = build_model(config(benchmarks.settings("coco-fcos-1x", profile), tmp_path))
        groups[profile] = {
            (m.num_groups, m.num_channels) for m in model.head.modules() if isinstance(m, torch.nn.GroupNorm)
        }
    assert groups == {"paper": {(32, 256)}, "toy": {(4, 32)}}


# --- full size --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.environ.get("SOCO_SLOW"), reason="full size on a CPU: SOCO_SLOW=1 runs it")
def test_full_size_detector_takes_a_step_and_evaluates(tmp_path):
    train_set, test_set = write_coco(tmp_path, "a", 2), write_coco(tmp_path, "b", 1)
    cfg = benchmarks.settings("coco-fpn-1x", train=train_set, test=test_set, workers=0, min_sizes=(800,))
    train, test = open_both(cfg)
    d2 = detectron_config(cfg, train, test, tmp_path).clone()
    assert (d2.SOLVER.IMS_PER_BATCH, d2.SOLVER.BASE_LR, d2.SOLVER.STEPS, d2.SOLVER.MAX_ITER) == (
        16,
        0.02,
        (60000, 80000),
        90000,
    )
    d2.defrost()
    d2.SOLVER.IMS_PER_BATCH = 1  # what a CPU's memory holds: one step, not the schedule
    torch.manual_seed(0)
    model = build_model(d2)
    images = next(iter(build_detection_train_loader(d2)))
    assert [min(image["image"].shape[1:]) for image in images] == [800]
    optimizer = build_optimizer(d2, model)
    with EventStorage():
        loss = sum(model(images).values())
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss) and all(p.grad is not None for p in model.parameters() if p.requires_grad)
    found = evaluate(model.eval(), d2, test)
    assert set(found) == {"bbox", "segm"} and found["bbox"]["AP"] >= 0
