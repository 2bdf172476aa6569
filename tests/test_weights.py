"""Weights into a detector: every key accounted for, and the same features on both sides."""

import json

import pytest
import torch
import torchvision

from soco_lib import BookError
from soco_lib.config import Pretrain, View
from soco_lib.detector import detector_config
from soco_lib.encoder import Encoder
from soco_lib.fields import to_dict
from soco_lib.model import SoCo
from soco_lib.runs import checkpoint
from soco_lib.runs.folder import write_json
from soco_lib.weights.__main__ import main
from soco_lib.weights.export import export
from soco_lib.weights.load import KeyReport, Weights, compare, load_into, read_weights
from tests.conftest import TINY_DETECTOR

from detectron2.checkpoint import DetectionCheckpointer  # isort: skip
from detectron2.modeling import build_model  # isort: skip
from detectron2.structures import Boxes  # isort: skip

TINY_C4 = ("MODEL.RESNETS.STEM_OUT_CHANNELS=8", "MODEL.RESNETS.WIDTH_PER_GROUP=4", "MODEL.RESNETS.RES2_OUT_CHANNELS=16")
WIDER = ("MODEL.FPN.OUT_CHANNELS=32", *TINY_DETECTOR[1:])
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


def settings(**changes):
    base = dict(images="a", proposals="b", overrides=TINY_DETECTOR, hidden=16, embedding=8, size=64, views=(View(64),))
    return Pretrain(**{**base, **changes})


def detector(name="mask-rcnn-r50-fpn", overrides=TINY_DETECTOR, seed=1):
    torch.manual_seed(seed)
    return build_model(detector_config(name, overrides))


def write(folder, cfg, rename=None, step=7):
    """A pretraining's checkpoint in a run folder, with keys renamed old -> new."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    state = SoCo(cfg).state_dict()
    state |= {k: v + 1 for k, v in state.items() if k.startswith("target.")}  # else a copy of the online network
    for old, new in (rename or {}).items():
        state[new] = state.pop(old)
    return checkpoint.save(folder, step, to_dict(cfg), 3, model=state)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    write(folder, settings())
    return folder


def test_every_key_has_a_class(run_folder):
    model, weights = detector(), read_weights(run_folder)
    report = load_into(model, weights)
    own = model.state_dict()
    assert set(report.loaded) | set(report.new) == set(own)
    assert not set(report.loaded) & set(report.new) and not report.mismatched
    assert set(report.new.values()) == {"region proposals", "predictor", "mask head"}
    assert set(report.left_behind.values()) == {"projector", "predictor", "target network"}
    stored = checkpoint.read(checkpoint.paths(run_folder)[-1])["model"]
    assert len(report.loaded) + len(report.left_behind) == len(stored)
    for name in report.loaded:
        assert torch.equal(own[name], stored[f"online.encoder.{name}"])


def test_backbone_fpn_and_box_head_are_loaded_whole(run_folder):
    frame = compare(detector(), read_weights(run_folder)).frame()
    pretrained = frame.loc[["backbone stem", *(f"backbone res{i}" for i in range(2, 6)), "fpn", "box head"]]
    assert (pretrained["loaded"] > 0).all() and not pretrained[["new", "left_behind", "mismatched"]].to_numpy().any()
    assert (frame.loc[["region proposals", "predictor", "mask head"], "loaded"] == 0).all()
    assert "other" not in frame.index


def test_report_survives_its_file(run_folder, tmp_path):
    report = compare(detector(), read_weights(run_folder))
    write_json(tmp_path / "key_report.json", report.to_dict())
    assert KeyReport.read(tmp_path / "key_report.json") == report
    assert json.loads((tmp_path / "key_report.json").read_text())["counts"]["loaded"] == len(report.loaded)


def test_target_network(run_folder, tmp_path):
    state = checkpoint.read(checkpoint.paths(run_folder)[-1])["model"]
    name = "backbone.bottom_up.stem.conv1.weight"
    assert torch.equal(read_weights(run_folder, "target").tensors[name], state[f"target.encoder.{name}"])
    assert "online network" in read_weights(run_folder, "target").left.values()
    with pytest.raises(BookError, match="network='momentum'.*online, target"):
        read_weights(run_folder, "momentum")


@pytest.mark.parametrize(
    "old, new",
    [
        ("online.encoder.backbone.fpn_lateral3.weight", "online.encoder.backbone.fpn_lateral3.wheight"),
        ("online.encoder.roi_heads.box_head.fc1.weight", "online.encoder.roi_heads.box_head.fc7.weight"),
        ("online.projector.0.weight", "online.projektor.0.weight"),
        ("predictor.0.weight", "predicter.0.weight"),
    ],
)
def test_renamed_key_stops_with_its_name(tmp_path, old, new):
    write(tmp_path, settings(), {old: new})
    model = detector()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(BookError) as caught:
        load_into(model, read_weights(tmp_path), "mask-rcnn-r50-fpn")
    message = str(caught.value)
    assert new.removeprefix("online.encoder.") in message and "\n" not in message
    if "encoder" in old:
        assert old.removeprefix("online.encoder.") in message
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "a refused file must change nothing"


def test_other_architecture_is_one_line(run_folder):
    other = detector(overrides=(*TINY_DETECTOR, "MODEL.RESNETS.RES2_OUT_CHANNELS=32"))
    with pytest.raises(BookError, match=r"\d+ keys of another shape: backbone.*\(.* in the file, .* in the detector\)"):
        load_into(other, read_weights(run_folder))
    with pytest.raises(
        BookError, match="pretrained with detector='mask-rcnn-r50-fpn', not 'mask-rcnn-r50-c4'"
    ) as caught:
        wide = (*TINY_C4[:-1], "MODEL.RESNETS.RES2_OUT_CHANNELS=32")
        load_into(detector("mask-rcnn-r50-c4", wide), read_weights(run_folder), "mask-rcnn-r50-c4")
    assert "\n" not in str(caught.value)


def test_fpn_and_c4_serve_one_another_with_the_whole_resnet(tmp_path, run_folder):
    c4, fpn = detector("mask-rcnn-r50-c4", TINY_C4), detector(overrides=(*TINY_DETECTOR, *TINY_C4))
    source = read_weights(run_folder)
    report = load_into(c4, source)
    ours = {key for key in source.tensors if key.startswith("backbone.bottom_up.")}
    renamed = {key.replace("backbone.bottom_up.res5", "roi_heads.res5").replace("bottom_up.", "") for key in ours}
    assert set(report.loaded) == renamed and any("res5" in key for key in renamed)
    assert torch.equal(
        c4.state_dict()["roi_heads.res5.0.conv1.weight"], source.tensors["backbone.bottom_up.res5.0.conv1.weight"]
    )
    assert {"neck (not in this detector)", "head (not in this detector)"} <= set(report.left_behind.values())
    write(tmp_path, settings(detector="mask-rcnn-r50-c4", overrides=TINY_C4))
    report = load_into(fpn, read_weights(tmp_path))
    assert {key for key in report.loaded} == {key for key in fpn.state_dict() if key.startswith("backbone.bottom_up.")}
    assert {"neck (not pretrained)", "head (not pretrained)"} <= set(report.new.values()) and report.reach == (
        "backbone",
    )


@pytest.mark.parametrize(
    "alignment, new",
    [
        ("neck", {"head (not pretrained)"}),
        ("c5", {"neck (not pretrained)", "head (not pretrained)"}),
    ],
)
def test_reach_comes_from_the_checkpoint(tmp_path, alignment, new):
    write(tmp_path, settings(alignment=alignment))
    report = load_into(detector(), read_weights(tmp_path))
    assert set(report.new.values()) == {"region proposals", "predictor", "mask head"} | new
    assert all(("fpn" in name) == (why == "neck (not pretrained)") for name, why in report.new.items() if "fpn" in name)


def test_c4_loads_res5_into_its_head(tmp_path):
    for alignment in ("head", "c5"):
        write(tmp_path / alignment, settings(detector="mask-rcnn-r50-c4", overrides=TINY_C4, alignment=alignment))
        report = load_into(detector("mask-rcnn-r50-c4", TINY_C4), read_weights(tmp_path / alignment))
        assert any(name.startswith("roi_heads.res5.2.") for name in report.loaded)
        assert set(report.new.values()) == {"region proposals", "predictor", "mask head"}


def test_one_stage_detector_takes_backbone_and_fpn(run_folder):
    report = load_into(detector(RETINANET, TINY_DETECTOR[:1] + TINY_C4), read_weights(run_folder), RETINANET)
    assert set(report.new.values()) == {"extra levels", "predictor"}
    homeless = {name: why for name, why in report.left_behind.items() if "not in this detector" in why}
    assert {why for why in homeless.values()} == {"neck (not in this detector)", "head (not in this detector)"}
    assert all("fpn_lateral2" in n or "fpn_output2" in n or "box_head" in n for n in homeless)


def test_scratch_is_all_new():
    report = compare(detector(), Weights({}))
    report.check()
    assert not report.loaded and len(report.new) == len(detector().state_dict()) and "all" in report.summary()


def test_missing_files(tmp_path):
    with pytest.raises(BookError, match="does not exist.*init=scratch"):
        read_weights(tmp_path / "nowhere")
    with pytest.raises(BookError, match="holds no checkpoints"):
        read_weights(tmp_path)
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(BookError, match="torn.pt cannot be read"):
        read_weights(tmp_path / "torn.pt")


def test_export_is_read_by_plain_detectron2(run_folder, tmp_path, capsys):
    assert main(["export", str(run_folder), str(tmp_path / "out" / "soco.pth")]) == 0
    model = detector()
    checkpointer, seen = DetectionCheckpointer(model), []
    checkpointer._log_incompatible_keys = seen.append
    checkpointer.load(str(tmp_path / "out" / "soco.pth"))
    report = compare(detector(), read_weights(run_folder))
    assert not seen[0].unexpected_keys and not seen[0].incorrect_shapes and set(seen[0].missing_keys) <= set(report.new)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in read_weights(run_folder).tensors.items())
    with pytest.raises(BookError, match="must end in .pth"):
        export(run_folder, tmp_path / "soco.bin")
    assert main(["export", str(tmp_path / "nowhere"), str(tmp_path / "a.pth")]) == 1
    assert "does not exist" in capsys.readouterr().err


TRUNK_ONLY = ("MODEL.FPN.OUT_CHANNELS=16", "MODEL.ROI_BOX_HEAD.CONV_DIM=16", "MODEL.ROI_BOX_HEAD.FC_DIM=16")


@torch.no_grad()
@pytest.mark.parametrize(
    "depth, detector_name, overrides, alignment",
    [
        (18, "toy-mask-rcnn-r18-fpn", TRUNK_ONLY, "c5"),
        (50, "mask-rcnn-r50-fpn", TRUNK_ONLY, "c5"),
        (50, "mask-rcnn-r50-c4", (), "head"),
    ],
)
def test_export_to_torchvision(depth, detector_name, overrides, alignment, tmp_path):
    cfg = settings(detector=detector_name, overrides=overrides, alignment=alignment)
    torch.manual_seed(0)
    model = SoCo(cfg).train()
    model.online.encoder(*inputs())
    run = checkpoint.save(tmp_path, 1, to_dict(cfg), 3, model=model.state_dict())
    assert main(["export", str(run), str(tmp_path / "resnet.pth"), "--layout", "torchvision"]) == 0

    theirs = getattr(torchvision.models, f"resnet{depth}")().eval()
    keys = theirs.load_state_dict(torch.load(tmp_path / "resnet.pth", weights_only=True), strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"] and not keys.unexpected_keys
    encoder = model.online.encoder.double().eval()
    theirs, images = theirs.double(), inputs()[0].double()
    ours = encoder.trunk(images)["res5"] if alignment == "c5" else encoder.roi_heads.res5(encoder.trunk(images)["res4"])
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        images = getattr(theirs, name)(images)
    torch.testing.assert_close(ours, images, atol=1e-5, rtol=0)
    assert images.std() > 1e-2

    back, weights = read_weights(tmp_path / "resnet.pth"), read_weights(run)
    assert len(back.tensors) == sum("res" in k or "stem" in k for k in weights.tensors) and not back.left
    for key, value in back.tensors.items():
        names = [key, key.replace("backbone.", "backbone.bottom_up."), key.replace("backbone.res5", "roi_heads.res5")]
        assert torch.equal(value, next(weights.tensors[name] for name in names if name in weights.tensors))


SOCO_NAMES = {
    "module.encoder.conv1.weight": "online.encoder.backbone.bottom_up.stem.conv1.weight",
    "module.encoder_k.layer3.0.downsample.1.weight": "target.encoder.backbone.bottom_up.res4.0.shortcut.norm.weight",
    "module.neck.lateral_convs.0.conv.weight": "online.encoder.backbone.fpn_lateral2.weight",
    "module.neck_k.fpn_convs.3.bn.running_var": "target.encoder.backbone.fpn_output5.norm.running_var",
    "module.head.conv1.weight": "online.encoder.roi_heads.box_head.conv1.weight",
    "module.head.bn1.bias": "online.encoder.roi_heads.box_head.conv1.norm.bias",
    "module.head_k.fc1.weight": "target.encoder.roi_heads.box_head.fc1.weight",
    "module.projector.linear1.weight": "online.projector.0.weight",
    "module.projector_k.bn1.running_mean": "target.projector.1.running_mean",
    "module.predictor.linear2.bias": "predictor.3.bias",
}


def test_export_to_the_authors_layout_and_back(run_folder, tmp_path):
    assert main(["export", str(run_folder), str(tmp_path / "soco.pth"), "--layout", "soco"]) == 0
    ours = checkpoint.read(checkpoint.paths(run_folder)[-1])["model"]
    theirs = torch.load(tmp_path / "soco.pth", weights_only=True)["model"]
    assert len(theirs) == len(ours)
    for name, key in SOCO_NAMES.items():
        assert torch.equal(theirs[name], ours[key]), name
    for network in ("online", "target"):
        weights, back = read_weights(run_folder, network), read_weights(tmp_path / "soco.pth", network)
        model = detector()
        report = load_into(model, back)
        assert set(report.loaded) == set(weights.tensors) and set(report.new) == set(compare(model, weights).new)
        assert set(back.left.values()) == {
            "projector",
            "predictor",
            "target network" if network == "online" else "online network",
        }
        assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.tensors.items())


def test_c4_in_the_authors_layout(tmp_path):
    run = write(tmp_path, settings(detector="mask-rcnn-r50-c4", overrides=TINY_C4))
    export(run, tmp_path / "c4.pth", layout="soco")
    model, weights = detector("mask-rcnn-r50-c4", TINY_C4), read_weights(run)
    assert set(load_into(model, read_weights(tmp_path / "c4.pth")).loaded) == set(weights.tensors)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.tensors.items())


def test_what_cannot_be_exported_is_named(run_folder, tmp_path):
    with pytest.raises(BookError, match="layout='caffe' is unknown .known: detectron2, torchvision, "):
        export(run_folder, tmp_path / "a.pth", layout="caffe")
    fpn = "online.encoder.backbone.fpn_lateral"
    run = write(tmp_path, settings(), {f"{fpn}3.weight": f"{fpn}9.weight"})
    with pytest.raises(BookError, match=f"{fpn}9.weight has no place in the authors' layout"):
        export(run, tmp_path / "a.pth", layout="soco")
    run = write(tmp_path / "stem", settings(detector="mask-rcnn-r50-c4", overrides=TINY_C4, alignment="neck"))
    with pytest.raises(BookError, match="no whole ResNet to write: layer4 was not pretrained"):
        export(run, tmp_path / "a.pth", layout="torchvision")
    assert not (tmp_path / "a.pth").exists()


# --- the same image and boxes through the encoder and through the detector --------------------------------------------


def inputs(side=96, count=2, boxes=5):
    g = torch.Generator().manual_seed(3)
    low, high = (
        torch.rand(count, boxes, 2, generator=g) * side / 2,
        side / 2 + torch.rand(count, boxes, 2, generator=g) * side / 2,
    )
    return torch.randn(count, 3, side, side, generator=g), list(torch.cat([low, high], -1))


def pair(cfg, tmp_path):
    """The encoder of a checkpoint and the detector that was loaded from it, both with used batch-norm statistics."""
    torch.manual_seed(0)
    model = SoCo(cfg).train()
    images, boxes = inputs()
    for _ in range(2):
        model.online.encoder(images, boxes)
    path = checkpoint.save(tmp_path, 1, to_dict(cfg), 3, model=model.state_dict())
    built = detector(cfg.detector, cfg.overrides)
    load_into(built, read_weights(path), cfg.detector)
    return model.online.encoder.eval(), built.eval()


@torch.no_grad()
def test_fpn_features_equal_the_detectors(tmp_path):
    encoder, built = pair(settings(assignment="detectron2"), tmp_path)
    images, boxes = inputs()
    ours, theirs = encoder.maps(images), built.backbone(images)
    assert set(ours) == {"p2", "p3", "p4", "p5"}
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)
    heads = built.roi_heads
    pooled = heads.box_pooler([theirs[name] for name in heads.box_in_features], [Boxes(b) for b in boxes])
    ours_pooled = encoder.pooler([ours[name] for name in encoder.levels], [Boxes(b) for b in boxes])
    torch.testing.assert_close(ours_pooled, pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder(images, boxes), heads.box_head(pooled), atol=1e-5, rtol=0)
    assert encoder(images, boxes).std() > 1e-3, "features of zero would agree too"


@torch.no_grad()
def test_c4_features_equal_the_detectors(tmp_path):
    cfg = settings(detector="mask-rcnn-r50-c4", overrides=TINY_C4, assignment="detectron2")
    encoder, built = pair(cfg, tmp_path)
    images, boxes = inputs()
    ours, theirs = encoder.maps(images), built.backbone(images)
    torch.testing.assert_close(ours["res4"], theirs["res4"], atol=1e-5, rtol=0)
    shared = built.roi_heads._shared_roi_transform([theirs["res4"]], [Boxes(b) for b in boxes])
    torch.testing.assert_close(encoder(images, boxes), shared.mean((2, 3)), atol=1e-5, rtol=0)
    assert isinstance(encoder, Encoder)


@torch.no_grad()
@pytest.mark.parametrize("name", ["retinanet-r50-fpn", "fcos-r50-fpn"])
@pytest.mark.parametrize("source", ["itself", "mask-rcnn-r50-fpn"])
def test_one_stage_features_equal_the_detectors(name, source, tmp_path):
    """Table 7: backbone and FPN, pretrained as this detector or as Mask R-CNN (whose P2 and box head then have no
    place).
    """
    overrides = ("MODEL.FPN.OUT_CHANNELS=32", *TINY_C4)  # FCOS's group norms need 32 channels
    cfg = settings(
        detector=name if source == "itself" else source, overrides=overrides if source == "itself" else WIDER
    )
    encoder, _ = pair(cfg, tmp_path)
    built = detector(name, overrides)
    report = load_into(built, read_weights(tmp_path), name)
    assert set(report.new.values()) == {"extra levels", "predictor"}
    built.eval()
    images, _ = inputs(side=128)
    for level, value in built.backbone.bottom_up(images).items():
        torch.testing.assert_close(encoder.trunk(images)[level], value, atol=1e-5, rtol=0)
    ours, theirs = encoder.maps(images), built.backbone(images)
    assert {"p3", "p4", "p5"} == set(ours) & set(theirs)
    for level in ("p3", "p4", "p5"):
        torch.testing.assert_close(ours[level], theirs[level], atol=1e-5, rtol=0)
        assert ours[level].std() > 1e-3
