"""Detectron2's whole model zoo, its projects' configs and Python configs as detectors of this book.

A handful of configs is walked every time; SOCO_SLOW=1 walks all of them at full size, in an hour, and writes
results/tables/zoo.md.
"""

import itertools
import math
import os
import re
from pathlib import Path

import pytest
import torch

from soco_lib import BookError, train
from soco_lib.config import Pretrain, View, plan
from soco_lib.dataset import ProposalViews, build_loader
from soco_lib.detector import detector_config
from soco_lib.encoder import Encoder
from soco_lib.fields import to_dict
from soco_lib.runs import checkpoint, processes
from soco_lib.transfer.batches import Samples, reach
from soco_lib.transfer.detectron import detectron_config, open_both, without
from soco_lib.weights.load import load_into, read_weights
from tests.conftest import TINY_DETECTOR
from tests.test_train import with_
from tests.test_transfer import settings, write_coco
from tests.test_weights import inputs

from detectron2 import model_zoo  # isort: skip
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


def save(encoder, cfg, folder):
    state = {f"online.encoder.{key}": value for key, value in encoder.state_dict().items()}
    return checkpoint.save(folder, 2, to_dict(cfg), 1, model=state)


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


def into_its_detector(encoder, cfg, folder):
    """A checkpoint's weights, loaded whole into the detector of the same config; its features equal the encoder's."""
    path = save(encoder, cfg, folder)
    weights = read_weights(path)
    path.unlink()
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
    weights, apart = into_its_detector(encoder, cfg, folder)
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
def test_a_config_gives_the_detectors_features(cfg, tmp_path, name):
    cfg = settled(cfg, name, ())
    torch.manual_seed(0)
    into_its_detector(Encoder(cfg).eval(), cfg, tmp_path)


@pytest.mark.parametrize("name", [*DEFORMABLE[:1], *FOREIGN])
def test_a_config_without_a_detector_that_can_run_here_is_refused(name):
    with pytest.raises(BookError, match="deformable convolutions.*override|describes no detector of Detectron2's"):
        Encoder(Pretrain("a", "b", detector=name))


def test_the_zoo_is_as_it_was_counted():
    assert len(ZOO) == 82 and len(DEFORMABLE) == 4 and {*QUICK, *FOREIGN} <= {*ZOO}


@pytest.mark.skipif(not os.environ.get("SOCO_SLOW"), reason="the whole zoo takes an hour: SOCO_SLOW=1 runs it")
def test_the_whole_zoo(cfg, data, tmp_path):
    rows, refused = [], []
    for name in ZOO:
        try:
            parts, apart, losses, tuned = walk(name, (), cfg, data, tmp_path)
            rows.append(f"| {name} | {parts} | {apart:.0e} | {losses[0]:.2f}, {losses[1]:.2f} | {tuned} |")
            print(rows[-1], flush=True)
        except BookError as error:
            refused.append(f"| {name} | {str(error).replace(name, '…')} |")
            print(refused[-1], flush=True)
    assert len(refused) == len(DEFORMABLE) + len(FOREIGN)
    page = PAGE.format(all=len(ZOO), good=len(rows), bad=len(refused), rows="\n".join(rows), refused="\n".join(refused))
    TABLE.write_text(page)


TABLE = Path(__file__).parents[1] / "results" / "tables" / "zoo.md"
PAGE = """# Detectron2's model zoo

Of the {all} configs in the model zoo of the installed Detectron2, {good} are pretrained here at full size and {bad} refused in a sentence.
Two updates of two images in two views of 64 pixels, on a CPU; the loss at each lies between -4 and 4. Their weights are then loaded into
the detector of the same config, every key accounted for; *apart* is the largest difference between the encoder's object features and those
that this detector computes from the same boxes (its maps, where it has no box head). *Fine-tuned*: two iterations from these weights on a
drawn data set with boxes and masks. Base files, `common/` and `quick_schedules/` describe no other detectors.

Written by `SOCO_SLOW=1 pytest tests/test_zoo.py`.

| config | pretrained | apart | loss | fine-tuned |
|---|---|---|---|---|
{rows}

| config | refused |
|---|---|
{refused}
"""  # noqa: E501
