"""Weights out: torchvision's own models and MMDetection's recorded names judge, features and predictions are equal."""

import copy
import functools
import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import Bottleneck, ResNet

from soco_lib import BookError
from soco_lib.config import Pretrain, View
from soco_lib.detector import detector_config
from soco_lib.encoder import Encoder
from soco_lib.fields import to_dict
from soco_lib.runs import checkpoint
from soco_lib.weights.__main__ import main
from soco_lib.weights.export import export
from soco_lib.weights.foreign import LAYOUTS, one_convolution, ordered
from soco_lib.weights.key_report import OTHER_CLASSES
from soco_lib.weights.load import compare, load_into, read_weights

from detectron2.modeling import build_model  # isort: skip

MMDET = Path(__file__).parent / "data" / "mmdet-3.3.0.txt"
README = Path(__file__).parent.parent / "notebooks" / "README.md"
#: torchvision's ResNet-50 with narrow bottlenecks, pyramid and heads.
NARROW = ("MODEL.RESNETS.WIDTH_PER_GROUP=4", "MODEL.FPN.OUT_CHANNELS=16")
HEADS = ("MODEL.ROI_BOX_HEAD.CONV_DIM=16", "MODEL.ROI_BOX_HEAD.NUM_CONV=2", "MODEL.ROI_BOX_HEAD.FC_DIM=32",
         "MODEL.ROI_MASK_HEAD.CONV_DIM=16", "MODEL.ROI_MASK_HEAD.NUM_CONV=2")  # fmt: skip
ONE_STAGE = (*NARROW[:1], "MODEL.FPN.OUT_CHANNELS=32", "MODEL.RETINANET.NUM_CLASSES=3", "MODEL.RETINANET.NUM_CONVS=2")
CLASSES = 3
BN = nn.BatchNorm2d


def settings(**changes):
    base = dict(images="a", proposals="b", hidden=16, embedding=8, size=64, views=(View(64),))
    return Pretrain(**{**base, **changes})


def pretraining(folder, cfg, rename=()):
    """A run folder with an encoder's checkpoint, batch norms used; the encoder."""
    torch.manual_seed(0)
    encoder = Encoder(cfg).train()
    with torch.no_grad():
        encoder(torch.randn(2, 3, 64, 64), [torch.tensor([[2.0, 2, 60, 50]])] * 2)
    state = {f"online.encoder.{key}": value for key, value in encoder.state_dict().items()}
    for old, new in rename:
        state[new] = state.pop(old)
    folder.mkdir(exist_ok=True)
    checkpoint.save(folder, 1, to_dict(cfg), 3, model=state)
    return encoder.eval()


def finetuned(folder, name, overrides, **changes):
    """The folder of a transfer whose detector has used batch norms and predictions that differ; the detector."""
    torch.manual_seed(1)
    d2 = detector_config(name, overrides)
    model = build_model(d2).train()
    with torch.no_grad():
        model.backbone(torch.randn(4, 3, 128, 128))
        if hasattr(model, "roi_heads"):
            model.roi_heads.box_head(torch.randn(16, 16, 7, 7))
            model.roi_heads.mask_head.layers(torch.randn(8, 16, 14, 14))
            rpn, box = model.proposal_generator.rpn_head, model.roi_heads.box_predictor
            last = (rpn.objectness_logits, rpn.anchor_deltas, box.cls_score, box.bbox_pred)
            for layer in (*last, model.roi_heads.mask_head.predictor):
                layer.weight.mul_(20)
                layer.bias.normal_()
    (folder / "detectron2").mkdir(parents=True)
    (folder / "detectron2" / "config.yaml").write_text(d2.dump())
    torch.save({"model": model.state_dict()}, folder / "detectron2" / "model_final.pth")
    return model.eval()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A pretraining of the paper's detector, whole in size, and its encoder."""
    folder = tmp_path_factory.mktemp("full")
    return folder, pretraining(folder, settings())


@pytest.fixture(scope="module")
def mask_rcnn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    return folder, finetuned(folder, "mask-rcnn-r50-fpn", (*NARROW, *HEADS, f"MODEL.ROI_HEADS.NUM_CLASSES={CLASSES}"))


def readme(file):
    """The example of notebooks/README.md that reads `file`."""
    return next(part.split("```")[0] for part in README.read_text().split("```python\n")[1:] if file in part)


def written(path, nest="model"):
    return torch.load(path, weights_only=True)[nest]


# --- torchvision ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_torchvisions_mask_rcnn_takes_every_key_and_computes_the_same(full, tmp_path, capsys):
    run, encoder = full[0], copy.deepcopy(full[1])  # a step in training changes its running averages
    assert main(["export", str(run), str(tmp_path / "tv.pth"), "--layout", "torchvision-detection"]) == 0
    said = capsys.readouterr().out
    assert "all 392 keys have a place of their shape in torchvision's maskrcnn_resnet50_fpn_v2" in said
    assert "input: RGB, 0 to 255" in said and "in 0 to 1: mean [0.485, 0.456, 0.406]" in said
    state = written(tmp_path / "tv.pth")
    parts = ("backbone.", "roi_heads.box_head.")
    for name in ("maskrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2"):
        model = getattr(detection, name)(weights=None, weights_backbone=None).eval()
        keys = model.load_state_dict(state, strict=False)
        assert not keys.unexpected_keys and not [key for key in keys.missing_keys if key.startswith(parts)]
    for train in (False, True):  # True: the first step of a fine-tuning
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
        ours, theirs = encoder.train(train).maps(images), model.train(train).backbone(images)
        for level in range(4):
            assert torch.equal(ours[f"p{level + 2}"], theirs[str(level)]) and theirs[str(level)].std() > 1e-2
        pooled = torch.randn(4, 256, 7, 7)
        assert torch.equal(encoder.roi_heads.box_head(pooled), model.roi_heads.box_head(pooled))


@torch.no_grad()
def test_torchvisions_one_stage_detectors_take_pyramid_and_resnet(full, tmp_path, capsys):
    run, encoder = full
    for name in ("retinanet", "fcos"):
        export(run, tmp_path / "tv.pth", layout=f"torchvision-{name}")
        said = capsys.readouterr().out
        assert "norm_layer=BatchNorm2d" in said and "stay behind" in said and "roi_heads.box_head" in said
        model = getattr(detection, f"{name}_resnet50_fpn")(weights=None, weights_backbone=None)
        extra = model.backbone.fpn.extra_blocks
        model.backbone.fpn = torchvision.ops.FeaturePyramidNetwork([512, 1024, 2048], 256, extra, norm_layer=BN)
        keys = model.load_state_dict(written(tmp_path / "tv.pth"), strict=False)
        assert not keys.unexpected_keys
        assert all(key.startswith(("backbone.fpn.extra_blocks", "head.")) for key in keys.missing_keys)
    images = torch.randn(1, 3, 64, 64)
    ours, theirs = encoder.maps(images), model.eval().backbone(images)
    for level in range(3):
        assert torch.equal(ours[f"p{level + 3}"], theirs[str(level)])


STOCK = {
    "torchvision-detection": ("maskrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn",
                              "fasterrcnn_resnet50_fpn"),
    "torchvision-retinanet": ("retinanet_resnet50_fpn",),
    "torchvision-fcos": ("fcos_resnet50_fpn",),
}  # fmt: skip


@pytest.mark.parametrize(("layout", "name"), [(layout, name) for layout in STOCK for name in STOCK[layout]])
def test_every_key_of_torchvisions_own_detectors_is_known(layout, name):
    with torch.device("meta"):
        state = getattr(detection, name)(weights=None, weights_backbone=None).state_dict()
    row = LAYOUTS[layout]
    ours = {key: row.place(key, "online")[0] for key in state}
    assert None not in ours.values() and len(set(ours.values())) == len(state)
    back = {key for key, name in ours.items() if row.written(name) != key}
    assert all(re.search(r"box_head\.\d+\.(weight|bias)$", key) for key in back)  # numbered by the convolutions before


@torch.no_grad()
def test_a_detector_predicts_the_same_in_torchvision(mask_rcnn, tmp_path, monkeypatch):
    """Ten images: boxes, classes, scores and masks, once torchvision pools and places anchors as Detectron2 does."""
    run, ours = mask_rcnn
    export(run, tmp_path / "tv.pth", layout="torchvision-detection", what="detector", any_shape=True)
    resnet = ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=4)
    levels = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    model = detection.MaskRCNN(
        BackboneWithFPN(resnet, levels, [256, 512, 1024, 2048], 16, norm_layer=BN),
        rpn_head=RPNHead(16, 3),
        box_head=FastRCNNConvFCHead((16, 7, 7), [16] * 2, [32], norm_layer=BN),
        box_predictor=FastRCNNPredictor(32, CLASSES + 1),
        mask_head=MaskRCNNHeads(16, [16] * 2, 1, norm_layer=BN),
        mask_predictor=MaskRCNNPredictor(16, 16, CLASSES + 1),
        min_size=128, max_size=256,
    ).eval()  # fmt: skip
    model.load_state_dict(written(tmp_path / "tv.pth"))
    monkeypatch.setattr(torchvision.ops.poolers, "roi_align", torchvision.ops.poolers.roi_align)  # put back afterwards
    lines = "torchvision.ops.poolers" + readme("detector.pth").split("torchvision.ops.poolers", 1)[1]
    exec(lines, {"functools": functools, "model": model, "torch": torch, "torchvision": torchvision})
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        noise = torch.rand(1, 3, 8, 12, generator=generator) * 255
        image = nn.functional.interpolate(noise, size=(128, 192), mode="bilinear")[0]
        a, b = ours([{"image": image, "height": 128, "width": 192}])[0]["instances"], model([image / 255])[0]
        assert len(a) == len(b["boxes"]) > 50 and torch.equal(a.pred_classes + 1, b["labels"])
        torch.testing.assert_close(a.scores, b["scores"], atol=1e-5, rtol=0)
        torch.testing.assert_close(a.pred_boxes.tensor, b["boxes"], atol=1e-3, rtol=0)
        assert (a.pred_masks == (b["masks"][:, 0] >= 0.5)).float().mean() > 0.999


def test_the_readmes_example_for_torchvision_runs(full, tmp_path, monkeypatch, capsys):
    block = readme("soco-torchvision.pth")
    monkeypatch.chdir(tmp_path)
    export(full[0], tmp_path / "soco-torchvision.pth", layout="torchvision-detection")
    target = {"boxes": torch.tensor([[4.0, 4, 40, 50]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 64, 64, dtype=torch.uint8)
    small = functools.partial(detection.maskrcnn_resnet50_fpn_v2, min_size=64, max_size=64)
    monkeypatch.setattr(detection, "maskrcnn_resnet50_fpn_v2", small)
    exec(block, {"batches": [([torch.rand(3, 64, 64)], [target])]})


# --- MMDetection and timm ---------------------------------------------------------------------------------------------


def recorded(section):
    """Names -> shapes of a section of the recorded list."""
    part = MMDET.read_text().split(f"[{section}]")[1].split("# [")[0]
    rows = (line.rsplit(" ", 1) for line in part.splitlines()[1:])
    return {name: () if size == "scalar" else tuple(map(int, size.split("x"))) for name, size in rows}


@pytest.mark.parametrize("layout", ["mmdet", "mmdet-retinanet"])
def test_mmdetections_names_and_shapes(layout):
    """The whole of our detector is there under MMDetection's recorded names, in its shapes, and nothing else."""
    name = {"mmdet": "mask-rcnn-r50-fpn", "mmdet-retinanet": "retinanet-r50-fpn"}[layout]
    overrides = () if layout == "mmdet" else ("MODEL.FPN.NORM=",)
    d2 = detector_config(name, overrides)
    d2.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        own = build_model(d2).state_dict()
    row, theirs = LAYOUTS[layout], recorded(layout)
    bare = {re.sub(r"^backbone\.bottom_up\.", "backbone.", key): tuple(value.shape) for key, value in own.items()}
    mine = {row.written(key): shape for key, shape in bare.items()}
    assert None not in mine
    mine = {key: shape for key, shape in mine.items() if layout == "mmdet" or not key.startswith("backbone.")}
    assert mine == theirs
    assert {row.place(key, "online")[0] for key in theirs} <= set(bare)


def test_mmdetection_is_told_the_input(full, tmp_path, capsys):
    export(full[0], tmp_path / "mm.pth", layout="mmdet")
    assert "bgr_to_rgb=True; backbone: style='pytorch'" in capsys.readouterr().out
    meta = torch.load(tmp_path / "mm.pth", weights_only=True)["meta"]
    assert meta["input"] == "RGB" and meta["pixel_mean"] == [123.675, 116.28, 103.53] and meta["stride_in"] == "3x3"
    state, theirs = written(tmp_path / "mm.pth", "state_dict"), recorded("mmdet")
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        key: shape for key, shape in theirs.items() if re.match(r"backbone|neck|roi_head\.bbox_head\.shared", key)
    }


def test_timms_resnet_takes_it(full, tmp_path):
    export(full[0], tmp_path / "timm.pth", layout="timm")
    state = written(tmp_path / "timm.pth", "state_dict")
    try:
        import timm

        own = timm.create_model("resnet50").state_dict()
    except ImportError:  # timm's ResNet has torchvision's names
        own = torchvision.models.resnet50().state_dict()
    assert {key: value.shape for key, value in own.items() if not key.startswith("fc.")} == {
        key: value.shape for key, value in state.items()
    }


# --- round trips ------------------------------------------------------------------------------------------------------

TRIPS = {
    "detectron2": ("mask-rcnn-r50-fpn", (*NARROW, *HEADS)),
    "torchvision-detection": ("mask-rcnn-r50-fpn", (*NARROW, *HEADS)),
    "mmdet": ("mask-rcnn-r50-fpn", (*NARROW, *HEADS)),
    "torchvision-retinanet": ("retinanet-r50-fpn", ONE_STAGE),
    "mmdet-retinanet": ("retinanet-r50-fpn", ONE_STAGE),
    "torchvision-fcos": ("fcos-r50-fpn", ONE_STAGE),
}


@pytest.mark.parametrize("layout", TRIPS)
def test_a_detector_leaves_and_comes_back_whole(layout, tmp_path, mask_rcnn):
    name, overrides = TRIPS[layout]
    if name == "mask-rcnn-r50-fpn":
        run, model = mask_rcnn
        overrides = (*overrides, f"MODEL.ROI_HEADS.NUM_CLASSES={CLASSES}")
    else:
        run, model = tmp_path / "run", finetuned(tmp_path / "run", name, overrides)
    export(run, tmp_path / "out.pth", layout=layout, what="detector", any_shape=True)
    other = build_model(detector_config(name, overrides))
    report = load_into(other, read_weights(tmp_path / "out.pth"))
    assert not report.new and not report.left_behind and not report.mismatched
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    state = content.get("state_dict") or content["model"]
    old = next(
        key for key in state if key.endswith("rpn_head.objectness_logits.bias") or "cls" in key and "bias" in key
    )
    state[old.replace("bias", "bios")] = state.pop(old)
    torch.save(content, tmp_path / "renamed.pth")
    with pytest.raises(BookError, match=re.escape(old.replace("bias", "bios"))):
        load_into(other, read_weights(tmp_path / "renamed.pth"))


@pytest.mark.parametrize("layout", ["torchvision-detection", "torchvision-retinanet", "torchvision-fcos", "mmdet"])
def test_an_encoder_leaves_and_comes_back(layout, tmp_path):
    cfg = settings(overrides=(*NARROW, *HEADS))
    encoder = pretraining(tmp_path, cfg)
    export(tmp_path, tmp_path / "out.pth", layout=layout, any_shape=True)
    detector = build_model(detector_config(cfg.detector, cfg.overrides))
    back = read_weights(tmp_path / "out.pth")
    if layout in ("torchvision-detection", "mmdet"):
        assert set(load_into(detector, back).loaded) == set(encoder.state_dict())
        assert all(torch.equal(value, detector.state_dict()[key]) for key, value in encoder.state_dict().items())
    else:
        assert {key.split(".")[1] for key in back.tensors if "fpn" in key} == {
            f"fpn_{kind}{level}" for kind in ("lateral", "output") for level in (3, 4, 5)
        }


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named(tmp_path, mask_rcnn, capsys):
    cfg = settings(overrides=(*NARROW, *HEADS))
    pretraining(tmp_path / "a", cfg)
    with pytest.raises(BookError, match=r"do not fit torchvision's maskrcnn_resnet50_fpn_v2\(num_classes=91\): \S+ "
                                        r"\(\S+ in the file, \S+ there\); --any-shape"):  # fmt: skip
        export(tmp_path / "a", tmp_path / "a.pth", layout="torchvision-detection")
    with pytest.raises(BookError, match="holds no detector: fine-tune it"):
        export(tmp_path / "a", tmp_path / "a.pth", what="detector")
    pyramid = "online.encoder.backbone.fpn_lateral3.weight"
    pretraining(tmp_path / "b", cfg, [(pyramid, pyramid.replace("3", "9"))])
    for layout in ("torchvision-detection", "mmdet"):
        with pytest.raises(BookError, match=r"backbone.fpn_lateral9.weight has no place in layout"):
            export(tmp_path / "b", tmp_path / "a.pth", layout=layout)
    pretraining(tmp_path / "c", settings(overrides=NARROW, alignment="c5"))
    with pytest.raises(BookError, match=r"no whole pyramid to write: .*layout=torchvision writes the ResNet alone"):
        export(tmp_path / "c", tmp_path / "a.pth", layout="torchvision-detection")
    with pytest.raises(BookError, match="what=detector needs another layout"):
        export(mask_rcnn[0], tmp_path / "a.pth", layout="timm", what="detector")
    with pytest.raises(BookError, match="layout soco is of a pretraining"):
        export(mask_rcnn[0], tmp_path / "a.pth", layout="soco")
    with pytest.raises(BookError, match="holds one network"):
        export(mask_rcnn[0], tmp_path / "a.pth", network="target")
    assert not (tmp_path / "a.pth").exists()


# --- a trained detector as the start ----------------------------------------------------------------------------------


def test_a_transfer_starts_from_an_earlier_one(mask_rcnn):
    run, model = mask_rcnn
    same = build_model(detector_config("mask-rcnn-r50-fpn", (*NARROW, *HEADS, "MODEL.ROI_HEADS.NUM_CLASSES=3")))
    report = load_into(same, read_weights(run))
    assert set(report.loaded) == set(model.state_dict()) and "mask head" in report.reach
    others = build_model(detector_config("mask-rcnn-r50-fpn", (*NARROW, *HEADS, "MODEL.ROI_HEADS.NUM_CLASSES=5")))
    report = load_into(others, read_weights(run))
    layers = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")
    assert report.new == {f"roi_heads.{layer}.{leaf}": OTHER_CLASSES for layer in layers for leaf in ("weight", "bias")}
    assert OTHER_CLASSES in report.summary() and set(report.left_behind.values()) == {OTHER_CLASSES}
    boxes = build_model(detector_config("mask-rcnn-r50-fpn", (*NARROW, *HEADS, "MODEL.MASK_ON=False")))
    assert "mask head (not in this detector)" in compare(boxes, read_weights(run)).left_behind.values()


def test_a_trained_c4_detector_and_one_with_a_pyramid_give_each_other_their_resnet(mask_rcnn, tmp_path):
    d2 = detector_config("mask-rcnn-r50-c4", (NARROW[0], "MODEL.ROI_HEADS.NAME=Res5ROIHeadsExtraNorm"))
    c4 = build_model(d2)
    (tmp_path / "detectron2").mkdir()
    torch.save({"model": c4.state_dict()}, tmp_path / "detectron2" / "model_final.pth")
    again = build_model(d2)
    assert set(load_into(again, read_weights(tmp_path)).loaded) == set(c4.state_dict())
    for detector, source in ((mask_rcnn[1], tmp_path), (again, mask_rcnn[0])):
        report = compare(detector, read_weights(source))
        assert not any(report.unexplained.values()) and {key.split(".")[-5:][0] for key in report.loaded}
        assert {"region proposals", "predictor", "mask head"} <= set(report.new.values())
        assert sum("res5" in key for key in report.loaded) == sum(
            "bottom_up.res5" in k for k in mask_rcnn[1].state_dict()
        )


@torch.no_grad()
def test_a_detector_of_detectron2s_zoo_has_its_input_converted(tmp_path):
    """BGR images with other statistics and no norm in pyramid and heads; the same features of the same image."""
    import pickle

    plain = ("MODEL.FPN.NORM=", "MODEL.ROI_BOX_HEAD.NORM=", "MODEL.ROI_MASK_HEAD.NORM=")
    caffe = ("MODEL.RESNETS.NORM=FrozenBN", "MODEL.RESNETS.STRIDE_IN_1X1=True")
    zoo = ("INPUT.FORMAT=BGR", "MODEL.PIXEL_MEAN=[103.53,116.28,123.675]", "MODEL.PIXEL_STD=[1.0,1.0,1.0]")
    torch.manual_seed(0)
    theirs = build_model(detector_config("mask-rcnn-r50-fpn", (*NARROW, *HEADS, *plain, *caffe, *zoo))).eval()
    theirs.backbone.bottom_up.stem.conv1.weight.mul_(0.02)
    content = {"model": {k: v.numpy() for k, v in theirs.state_dict().items()}, "__author__": "Detectron2 Model Zoo"}
    content["model"]["proposal_generator.anchor_generator.cell_anchors.0"] = torch.ones(3, 4).numpy()
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content))
    weights = read_weights(tmp_path / "model_final.pkl")
    assert "BGR images, mean 103.53, 116.28, 123.675, std 1, 1, 1" in weights.source
    assert "STRIDE_IN_1X1" in weights.source and set(weights.left.values()) == {"anchors"}
    ours = build_model(detector_config("mask-rcnn-r50-fpn", (*NARROW, *HEADS, *plain, *caffe))).eval()
    report = load_into(ours, weights)
    assert not report.new and set(report.left_behind.values()) == {"anchors"}
    rgb = torch.rand(1, 3, 64, 64) * 255
    normalised = lambda model, image: (image - model.pixel_mean) / model.pixel_std
    a, b = ours.backbone(normalised(ours, rgb)), theirs.backbone(normalised(theirs, rgb.flip(1)))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-4, rtol=1e-4)
        assert a[name].std() > 1e-2
    grey = build_model(
        detector_config("mask-rcnn-r50-fpn", (*NARROW, *HEADS, *plain, *caffe, "MODEL.PIXEL_MEAN=[9,9,9]"))
    )
    with pytest.raises(BookError, match=r"pixel mean .* there, .* here: override MODEL.PIXEL_MEAN"):
        load_into(grey, weights)
    with pytest.raises(BookError, match="no norm in pyramid and heads: give overrides"):
        load_into(build_model(detector_config("mask-rcnn-r50-fpn", (*NARROW, *HEADS))), weights)


def test_rows_of_classes_and_anchors_are_turned_both_ways():
    box = {
        "roi_heads.box_predictor.cls_score.bias": torch.arange(4.0),
        "roi_heads.box_predictor.bbox_pred.bias": torch.ones(12),
    }
    there = ordered(box, "background first", back=True)
    assert there["roi_heads.box_predictor.cls_score.bias"].tolist() == [3, 0, 1, 2]  # Detectron2's background is last
    assert len(there["roi_heads.box_predictor.bbox_pred.bias"]) == 16
    again = ordered(there, "background first")
    assert all(torch.equal(again[key], value) for key, value in box.items())
    turned = ordered({"head.cls_score.bias": torch.arange(9)}, "ratios first")["head.cls_score.bias"]
    assert turned.tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    name = "proposal_generator.rpn_head.conv.weight"
    numbered = one_convolution({name: torch.ones(1)}, numbered=True)
    assert list(numbered) == [name.replace("conv.", "conv.conv0.")] and list(one_convolution(numbered)) == [name]
