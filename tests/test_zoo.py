"""Detectron2's whole model zoo, its projects' configs and Python configs as detectors of this book.

A handful of configs is walked every time; SOCO_SLOW=1 walks all of them at full size, in an hour, and writes
results/tables/zoo.md (--cache-clear forgets the rows of an earlier walk).
"""

import importlib.util
import itertools
import math
import os
import re
from pathlib import Path

import pytest
import torch
from torch.nn import BatchNorm2d
from torch.nn.modules.batchnorm import _BatchNorm

from soco_lib import BookError, train
from soco_lib.config import Pretrain, View, plan
from soco_lib.dataset import ProposalViews, build_loader
from soco_lib.detector import architecture, backbone, detector_config, for_finetuning
from soco_lib.encoder import Encoder
from soco_lib.fields import to_dict
from soco_lib.parts import zoo
from soco_lib.runs import checkpoint, processes
from soco_lib.runs.folder import Run
from soco_lib.transfer import predict
from soco_lib.transfer import run as transfer
from soco_lib.transfer.batches import Samples, reach
from soco_lib.transfer.detectron import detectron_config, open_both, without
from soco_lib.weights.export import export
from soco_lib.weights.load import load_into, own_weights, read_weights
from tests.conftest import TINY_DETECTOR
from tests.test_train import with_
from tests.test_transfer import settings, write_coco
from tests.test_weights import inputs

from detectron2 import model_zoo  # isort: skip
from detectron2.layers import FrozenBatchNorm2d  # isort: skip
from detectron2.modeling import build_model  # isort: skip
from detectron2.solver import build_optimizer  # isort: skip
from detectron2.structures import Boxes  # isort: skip
from detectron2.utils.events import EventStorage  # isort: skip

CONFIGS = Path(model_zoo.__file__).parent / "configs"
#: All configs of detectors: not what they are made of, nor the same detectors on a few images.
ZOO = sorted(
    path.relative_to(CONFIGS).as_posix()
    for folder in CONFIGS.iterdir()
    if folder.is_dir() and folder.name not in ("common", "quick_schedules")
    for path in folder.glob("*.*")
    if path.suffix in (".yaml", ".py") and not path.name.startswith("Base-")
)
DEFORMABLE = [name for name in ZOO if "dconv" in name]
FOREIGN = ["Misc/mmdet_mask_rcnn_R_50_FPN_1x.py", "Misc/torchvision_imagenet_R_50.py"]
NARROW = TINY_DETECTOR[-3:]
LSJ, C4 = "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py", "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py"
REGNET = "new_baselines/mask_rcnn_regnety_4gf_dds_FPN_400ep_LSJ.py"
CASCADE, PANOPTIC = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
RPN, SEMANTIC = "COCO-Detection/rpn_R_50_C4_1x.yaml", "Misc/semantic_R_50_FPN_1x.yaml"
SMALL = {"stem_width": 8, "depth": 5, "w_a": 24, "w_0": 16, "w_m": 2.0, "group_width": 8}
SMALL_REGNET = (
    *(f"model.backbone.bottom_up.{key}={value}" for key, value in SMALL.items()),
    "model.roi_heads.box_head.conv_dims=[32]",
    "model.roi_heads.mask_head.conv_dims=[32,32]",
)
QUICK_RPN = ("model.proposal_generator.post_nms_topk=[50,20]", "model.roi_heads.box_predictor.test_topk_per_image=5")
#: What is trained every time -> how it is made smaller.
QUICK = {
    REGNET: SMALL_REGNET,
    PANOPTIC: TINY_DETECTOR,
    CASCADE: TINY_DETECTOR,
    "Misc/mask_rcnn_R_50_FPN_3x_syncbn.yaml": TINY_DETECTOR,
    "COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml": NARROW,
    RPN: NARROW,
}
#: What no override makes small enough: built, and its features compared.
BUILT = [LSJ, C4, "COCO-Detection/fcos_R_50_FPN_1x.py"]
NO_BOXES = ("semantic", "rpn_R", "fast_rcnn")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("rectangles")
    return {(split, "polygon"): write_coco(root, split, 4) for split in ("train", "val")}


def few(name):
    """Overrides: as many regions of an image as a test can wait for."""
    if not name.endswith(".py"):
        return ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE=16",)
    return ("model.roi_heads.batch_size_per_image=16",) if detector_config(name).MODEL.ROI_HEADS.NAME else ()


def pretrain(cfg):
    """The encoder after two updates, and their losses."""
    process = processes.start()
    data, numbers = ProposalViews(cfg), plan(cfg, 12)
    trainer = train.Trainer(cfg, numbers, process)
    batches = iter(build_loader(data, numbers, 0, 0, False, trainer.model.count, 2))
    losses = [trainer.update(step, batches)["loss"].item() for step in range(2)]
    return trainer.model.online.encoder.eval(), losses


def state(encoder):
    return {f"online.encoder.{key}": value for key, value in encoder.state_dict().items()}


def save(encoder, cfg, folder):
    return checkpoint.save(folder, 2, to_dict(cfg), 1, model=state(encoder))


@torch.no_grad()
def difference(encoder, built):
    """The largest difference between the encoder's object features and those that the detector itself computes."""
    images, boxes = inputs(side=64)
    ours, maps, heads = encoder(images, boxes), built.backbone(images), getattr(built, "roi_heads", None)
    if heads is None or not hasattr(heads, "box_predictor"):
        return max((a - maps[name]).abs().max().item() for name, a in encoder.maps(images).items())
    pooled = [Boxes(b) for b in boxes]
    if hasattr(heads, "res5"):
        return (ours - heads._shared_roi_transform([maps["res4"]], pooled).mean((2, 3))).abs().max().item()
    pooled = heads.box_pooler([maps[name] for name in heads.box_in_features], pooled)
    stages = heads.box_head if isinstance(heads.box_head, torch.nn.ModuleList) else [heads.box_head]
    assert ours.std() > 1e-3, "features of zero would agree too"
    return max((ours - head(pooled)).abs().max().item() for head in stages)


def fine_tune(cfg, weights, folder):
    """Losses of two iterations."""
    train_set, test_set = open_both(cfg)
    d2 = detectron_config(cfg, train_set, test_set, folder)
    torch.manual_seed(0)
    model = build_model(d2)
    report = load_into(model, weights, cfg.detector)
    optimizer, losses = build_optimizer(d2, model), []
    with EventStorage():
        for images in itertools.islice(Samples(d2).loader(reach(cfg), workers=0), 2):
            loss = sum(model.train()(images).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return report, losses


def settled(own, name, overrides):
    """A pretraining of this detector whose two updates keep every number finite, on two images."""
    small = dict(batch=2, views=(View(64),), k=2, optimizer="adamw", base_lr=0.0064, channels_last=False)
    return with_(own, detector=name, overrides=overrides, assignment="detectron2", **small)


def into_its_detector(encoder, cfg):
    """A pretraining's weights, loaded whole into the detector of the same config; its features equal the encoder's."""
    weights = own_weights({"step": 2, "config": to_dict(cfg), "model": state(encoder)}, Path("here"), "online")
    built = build_model(detector_config(cfg.detector, cfg.overrides))
    report = load_into(built, weights, cfg.detector)
    assert set(report.loaded) == set(encoder.state_dict()) and "" not in report.new.values()
    apart = difference(encoder, built.eval())
    assert apart <= 1e-5
    return weights, apart


def walk(name, overrides, own, data, folder):
    """A config through pretraining, into its own detector and through fine-tuning: what a row of the table tells."""
    cfg = settled(own, name, overrides)
    encoder, losses = pretrain(cfg)
    weights, apart = into_its_detector(encoder, cfg)
    cfg = settings(data, detector=name, overrides=(*overrides, *few(name)), lr=1e-4, warmup=0, iterations=2)
    if any(kind in name for kind in NO_BOXES):
        with pytest.raises(BookError, match="finds no objects to be scored|takes its proposals from files") as error:
            fine_tune(cfg, weights, folder)
        tuned = "refused: it " + re.search("is a.*scored|takes.*files", str(error.value))[0]
    else:
        report, tuned = fine_tune(cfg, weights, folder)
        assert set(report.loaded) == set(encoder.state_dict()) and all(map(math.isfinite, tuned))
        tuned = "yes" + "".join(f", {part}" for part in re.findall("without its [a-z ]+", without(cfg)))
    assert all(map(math.isfinite, losses))
    return encoder.describe().split("; ")[0].removeprefix("pretrained: "), apart, losses, tuned


@pytest.mark.parametrize("name", QUICK)
def test_a_config_trains_and_gives_the_detectors_features(cfg, data, tmp_path, name):
    walk(name, QUICK[name], cfg, data, tmp_path)


@pytest.mark.parametrize("name", BUILT)
def test_a_config_gives_the_detectors_features(cfg, name):
    cfg = settled(cfg, name, ())
    torch.manual_seed(0)
    into_its_detector(Encoder(cfg).eval(), cfg)


SMALL_VIT = ("net.embed_dim=32", "net.depth=2", "net.num_heads=2", "net.window_block_indexes=[0]", "square_pad=0")


def test_vitdet_gives_the_detectors_features_or_names_the_package_that_it_needs(cfg):
    name = "common/models/mask_rcnn_vitdet.py"
    cfg = settled(cfg, name, tuple(f"model.backbone.{item}" for item in SMALL_VIT))
    if importlib.util.find_spec("timm") is None:
        with pytest.raises(BookError, match="cannot be built.*: install timm"):
            Encoder(cfg)
        return
    encoder = Encoder(cfg).eval()
    into_its_detector(encoder, cfg)
    assert "backbone (ViT), pyramid (p2 p3 p4 p5), box head" in encoder.describe()
    with pytest.raises(BookError, match=r"views of \[40\] pixels are cut.*multiples of 16"):
        Encoder(with_(cfg, views=(View(40),)))


@pytest.mark.parametrize("name", [*DEFORMABLE[:1], *FOREIGN])
def test_a_config_without_a_detector_that_can_run_here_is_refused(name):
    with pytest.raises(BookError, match="deformable convolutions.*override|describes no detector of Detectron2's"):
        Encoder(Pretrain("a", "b", detector=name))


def test_the_zoo_is_as_it_was_counted():
    assert len(ZOO) == 82 and len(DEFORMABLE) == 4 and {*QUICK, *FOREIGN} <= {*ZOO}


@pytest.mark.skipif(not os.environ.get("SOCO_SLOW"), reason="the whole zoo takes an hour: SOCO_SLOW=1 runs it")
@pytest.mark.parametrize("name", ZOO)
def test_the_whole_zoo(cfg, data, tmp_path, name, request):
    """A config a test, so that processes share them; the last one writes the table of all."""
    cache, expected = request.config.cache, name in DEFORMABLE + FOREIGN
    try:
        parts, apart, losses, tuned = walk(name, (), cfg, data, tmp_path)
        row = [f"| {name} | {parts} | {apart:.1g} | {losses[0]:.2f}, {losses[1]:.2f} | {tuned} |", ""]
    except BookError as error:
        row = ["", f"| {name} | {str(error).replace(name, '…')} |"]
    assert bool(row[1]) == expected, row[1]
    cache.set(f"zoo/{name}", row)
    rows = [cache.get(f"zoo/{each}", None) for each in ZOO]
    if all(rows):
        good, bad = ([line for line in lines if line] for lines in zip(*rows))
        TABLE.write_text(
            PAGE.format(all=len(ZOO), good=len(good), bad=len(bad), rows="\n".join(good), refused="\n".join(bad))
        )


TABLE = Path(__file__).parents[1] / "results" / "tables" / "zoo.md"
PAGE = """# Detectron2's model zoo

Of the {all} configs in the model zoo of the installed Detectron2, {good} are pretrained here at full size and {bad} refused in a sentence.
Two updates of two images in two views of 64 pixels, on a CPU; the loss at each lies between -4 and 4. Their weights are then loaded into
the detector of the same config, every key accounted for; *apart* is the largest difference between the encoder's object features and those
that this detector computes from the same boxes (its maps, where it has no box head). *Fine-tuned*: two iterations from these weights on a
drawn data set with boxes and masks, 16 regions an image. Base files, `common/` and `quick_schedules/` describe no other detectors.

Written by `SOCO_SLOW=1 pytest tests/test_zoo.py`.

| config | pretrained | apart | loss | fine-tuned |
|---|---|---|---|---|
{rows}

| config | refused |
|---|---|
{refused}
"""  # noqa: E501


# --- what is pretrained and fine-tuned --------------------------------------------------------------------------------


def test_a_python_configs_detector_is_as_the_book_has_them():
    """Nothing frozen, batch norm that no other process is asked for, strides in the 3x3, RGB."""
    d2 = detector_config(LSJ)
    model = build_model(d2)
    norms = [m for m in model.modules() if isinstance(m, (_BatchNorm, FrozenBatchNorm2d))]
    assert all(type(m) is BatchNorm2d for m in norms) and all(p.requires_grad for p in model.parameters())
    assert len(norms) == 53 + 8 + 4 + 4  # ResNet-50, pyramid, box head, mask head
    assert {block.conv1.stride + block.conv2.stride for block in (model.backbone.bottom_up.res3[0],)} == {(1, 1, 2, 2)}
    assert model.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert (d2.INPUT.FORMAT, model.input_format, d2.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION) == ("RGB", "RGB", 7)
    for_finetuning(d2, synchronised=True)
    norms = [m for m in build_model(d2).modules() if isinstance(m, _BatchNorm)]
    assert len(norms) == 69 and all(type(m) is torch.nn.SyncBatchNorm for m in norms)


def test_a_python_c4_detector_gets_its_last_norm_and_a_trunk_of_its_own():
    d2 = detector_config(C4)
    for_finetuning(d2, synchronised=False)
    d2.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        assert isinstance(build_model(d2).roi_heads.res5.norm, BatchNorm2d)
        keys = Encoder(Pretrain("a", "b", detector=C4, alignment="c5")).state_dict()
    assert any(key.startswith("backbone.res5.") for key in keys) and not any(key.startswith("roi_") for key in keys)


def test_overrides_of_a_python_config_have_the_last_word():
    d2 = detector_config(REGNET, (*SMALL_REGNET, "model.backbone.norm=GN", "model.pixel_mean=[1,2,3]"))
    assert list(d2.MODEL.PIXEL_MEAN) == [1, 2, 3]
    built = backbone(d2)
    assert isinstance(built.fpn_lateral2.norm, torch.nn.GroupNorm)
    assert isinstance(built.bottom_up.stem.bn, BatchNorm2d)


def test_cascades_stages_share_a_head_and_all_begin_with_it(cfg, tmp_path):
    cfg = with_(cfg, detector=CASCADE, overrides=TINY_DETECTOR)
    torch.manual_seed(0)
    encoder = Encoder(cfg)
    assert "one that all stages share" in encoder.describe()
    assert sum(1 for name, _ in encoder.named_parameters() if "box_head" in name and name.endswith("fc1.weight")) == 1
    save(encoder, cfg, tmp_path)
    export(tmp_path, tmp_path / "out.pth", say=lambda line: None)
    built = build_model(detector_config(CASCADE, TINY_DETECTOR))
    before = built.roi_heads.box_predictor[0].cls_score.weight.clone()
    load_into(built, read_weights(tmp_path), CASCADE)
    again = torch.load(tmp_path / "out.pth")["model"]
    for stage in range(3):
        name = f"roi_heads.box_head.{stage}.fc1.weight"
        assert torch.equal(built.state_dict()[name], encoder.box_head.fc1.weight) and torch.equal(
            again[name], encoder.box_head.fc1.weight
        )
    assert torch.equal(before, built.roi_heads.box_predictor[0].cls_score.weight)


@pytest.mark.parametrize(
    "name, overrides, layouts",
    [
        (CASCADE, TINY_DETECTOR, ("torchvision-detection", "mmdet", "soco")),
        (REGNET, SMALL_REGNET, ("torchvision-detection", "mmdet", "soco", "torchvision", "timm")),
    ],
)
def test_no_layout_but_detectron2s_takes_a_part_that_it_has_not(cfg, tmp_path, name, overrides, layouts):
    cfg = with_(cfg, detector=name, overrides=overrides)
    save(Encoder(cfg), cfg, tmp_path)
    for layout in layouts:
        with pytest.raises(BookError, match="has no place in") as error:
            export(tmp_path, tmp_path / "out.pth", layout=layout)
        assert str(error.value).count("\n") == 0


def test_what_is_pretrained_of_a_panoptic_and_a_semantic_config_is_said():
    say = lambda name, overrides: Encoder(Pretrain("a", "b", detector=name, overrides=overrides)).describe()
    panoptic, semantic = say(PANOPTIC, TINY_DETECTOR), say(SEMANTIC, (TINY_DETECTOR[0], *NARROW))
    assert "box head; begins new" in panoptic and panoptic.endswith("class and box layers, semantic head, mask head")
    assert "box head" not in semantic and semantic.endswith("begins new in the detector: semantic head")


def test_a_python_config_is_fine_tuned_and_detects_by_the_books_commands(data, tmp_path, capsys):
    cfg = settings(
        data, detector=REGNET, overrides=(*SMALL_REGNET, *few(REGNET), *QUICK_RPN), iterations=2, precise_bn=0
    )
    run = Run.start("tuned", "transfer", cfg, tmp_path)
    assert transfer.main([str(run.folder)]) == 0
    said = capsys.readouterr().out
    assert f"of {REGNET} is used its model alone: data, augmentation, schedule" in said
    images = data["val", "polygon"].partition(":")[2].partition("@")[2]
    wanted = predict.settings(model=str(run.folder), images=f"folder:{images}", score=0.0, workers=0)
    found = Run.start("found", "predict", wanted, tmp_path)
    assert predict.main([str(found.folder)]) == 0 and Run.read(found.folder).metrics["images"] == 8
    code = re.search(r"```python\n(.*?)```", (found.folder / "README.md").read_text(), re.DOTALL)[1]
    exec(code.replace("photo.jpg", f"{images}/val1.jpg"), names := {})
    assert "registers LazyModel" in code and names["instances"].has("pred_masks")
    export(run.folder, tmp_path / "encoder.pth", say=lambda line: None)
    assert {key.split(".")[0] for key in torch.load(tmp_path / "encoder.pth")["model"]} == {"backbone", "roi_heads"}


# --- configs by path --------------------------------------------------------------------------------------------------

PROJECT = """from detectron2.model_zoo import get_config
model = get_config("COCO-InstanceSegmentation/mask_rcnn_regnetx_4gf_dds_fpn_1x.py").model
model.backbone.bottom_up.update({small})
"""
POINT_REND = """_BASE_: {base}
INPUT: {{MASK_FORMAT: bitmask}}
MODEL:
  MASK_ON: true
  ROI_HEADS: {{NAME: PointRendROIHeads}}
  ROI_MASK_HEAD: {{NAME: PointRendMaskHead, POOLER_TYPE: "", FC_DIM: 64, NUM_FC: 1, POINT_HEAD_ON: true}}
  POINT_HEAD: {{FC_DIM: 32, NUM_FC: 1}}
"""


def test_a_python_config_by_its_path(cfg, tmp_path):
    (tmp_path / "own.py").write_text(PROJECT.format(small=SMALL))
    name = str(tmp_path / "own.py")
    d2 = detector_config(name)
    assert d2.MODEL.LAZY.FILE == name and architecture(d2) == "GeneralizedRCNN"
    assert Encoder(with_(cfg, detector=name, overrides=())).trunk.s4.b1.f.b.groups > 1
    (tmp_path / "config.yaml").write_text(d2.dump())
    assert zoo.read(tmp_path / "config.yaml").MODEL.LAZY == d2.MODEL.LAZY
    (tmp_path / "own.py").unlink()
    with pytest.raises(BookError, match="own.py.*is not there any more"):
        build_model(d2)


def test_an_installed_projects_yaml_config_by_its_path(cfg, data, tmp_path):
    (tmp_path / "point_rend.yaml").write_text(POINT_REND.format(base=CONFIGS / "Base-RCNN-FPN.yaml"))
    name = str(tmp_path / "point_rend.yaml")
    own = (*TINY_DETECTOR, "MODEL.ROI_MASK_HEAD.CONV_DIM=16")
    walk(name, own, cfg, data, tmp_path)


BROKEN = {
    "key.yaml": ("MODEL: {BACKBONEE: {NAME: x}}", "is no config of Detectron2.*BACKBONEE.*:"),
    "text.yaml": ("just text", "is no config of Detectron2"),
    "error.py": ("import nothing_such", "is no Python config of Detectron2.*nothing_such"),
    "none.py": ("data = dict(a=1)", r"describes no detector of Detectron2's \(its model has no backbone"),
    "maps.py": (
        "from detectron2.model_zoo import get_config\n"
        "model = get_config('COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py').model\n"
        "model.backbone.out_features = ['res3', 'res4']",
        "has no backbone that boxes can be pooled from: its maps res3, res4 differ in channels",
    ),
    "plain.py": (
        "from detectron2.config import LazyCall as L\nfrom torch import nn\n"
        "from detectron2.modeling.meta_arch import GeneralizedRCNN as G\n"
        "model = L(G)(backbone=L(nn.Identity)(), pixel_mean=[0, 0, 0], pixel_std=[1, 1, 1])",
        "has no backbone that boxes can be pooled from: it is no Backbone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("file", BROKEN)
def test_a_config_that_cannot_be_used_is_one_sentence(file, tmp_path):
    text, said = BROKEN[file]
    (tmp_path / file).write_text(text)
    with pytest.raises(BookError, match=said) as error:
        Encoder(Pretrain("a", "b", detector=str(tmp_path / file)))
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    "name, overrides, said",
    [
        ("COCO-Detection/nothing.yaml", (), "no such config in Detectron2's zoo, and no file .*nothing.yaml"),
        ("mask-rcnn-r50-fpm", (), "did you mean 'mask-rcnn-r50-fpn'"),
        (LSJ, ("MODEL.FPN.NORM=GN",), "of a Python config only model.… is used"),
        (LSJ, ("optimizer.lr=1",), "of a Python config only model.… is used"),
        (LSJ, ("model.backbone",), "must read KEY=value"),
        (LSJ, ("model.bakbone.norm=GN",), "is not a setting of .*: it has no model.bakbone"),
        (LSJ, ("model.backbone.norm=[",), "is not a setting of"),
        (
            LSJ,
            ("model.backbone.nrom=GN",),
            "cannot be built with overrides .*nrom.*look at their",
        ),
    ],
)
def test_a_config_or_override_that_is_not_there_is_one_sentence(name, overrides, said):
    with pytest.raises(BookError, match=said):
        Encoder(Pretrain("a", "b", detector=name, overrides=overrides))


def test_a_transfer_owns_the_number_of_classes(data, tmp_path):
    cfg = settings(data, detector=LSJ, overrides=("model.roi_heads.num_classes=7",))
    with pytest.raises(BookError, match="set the transfer's own field instead"):
        detectron_config(cfg, *open_both(cfg), tmp_path)


@pytest.mark.parametrize("name", ["COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.py", PANOPTIC.replace(".yaml", ".py")])
def test_heads_without_labels_are_left_out_and_that_is_said(name, data, tmp_path):
    cfg = settings(data, detector=name, overrides=())
    d2 = detectron_config(cfg, *open_both(cfg), tmp_path)
    assert re.search("without its (keypoint|semantic) head, for which the data have no labels", without(cfg))
    d2 = d2.clone()
    d2.defrost()
    d2.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        keys = build_model(d2).state_dict()
    assert not any("keypoint" in key or "sem_seg" in key for key in keys)
    assert keys["roi_heads.box_predictor.cls_score.weight"].shape[0] == 3
