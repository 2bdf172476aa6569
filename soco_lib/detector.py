"""Detectron2 detectors by name: the one place that says what a detector is, for pretraining and for transfer alike.

Here too is all that Detectron2 lacks for them: FCOS from a config, the C4 head's last norm, coordinates in float32.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr

import torch
from torch import Tensor, nn
from torchvision.ops import RoIPool

from soco_lib import BookError
from soco_lib.fields import one_of, require

logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # warns whenever fvcore is imported
with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")  # Detectron2 imports pkg_resources and torch.jit.script, both deprecated
    from detectron2 import model_zoo
    from detectron2.config import CfgNode
    from detectron2.layers import ROIAlign, get_norm
    from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, build_backbone, poolers
    from detectron2.modeling.backbone.fpn import LastLevelP6P7
    from detectron2.modeling.box_regression import Box2BoxTransformLinear
    from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
    from detectron2.modeling.roi_heads import Res5ROIHeads

logging.getLogger("fvcore.common.checkpoint").setLevel(logging.WARNING)

#: What every detector of the paper has (Sec. 4): nothing frozen, batch norm everywhere, torchvision's ResNet
#: (stride in the 3x3) and its input (RGB in 0..255, ImageNet mean and standard deviation).
COMMON = {
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.FPN.NORM": "BN",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
}
BOX_HEAD = {
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "BN",
    "MODEL.ROI_MASK_HEAD.NORM": "BN",
}


def _heads(channels: int, convolutions: int, width: int) -> dict:
    """Pyramid, box head and mask head of another size."""
    return {
        "MODEL.FPN.OUT_CHANNELS": channels,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": channels,
        "MODEL.ROI_BOX_HEAD.NUM_CONV": convolutions,
        "MODEL.ROI_BOX_HEAD.FC_DIM": width,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": channels,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": convolutions,
    }


#: A quarter of ResNet-50's width, the same depth.
_NARROW = {"MODEL.RESNETS.STEM_OUT_CHANNELS": 16, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
           "MODEL.RESNETS.WIDTH_PER_GROUP": 16}  # fmt: skip
#: The paper's structure at a size that two CPU cores train: ResNet-18, or 50 with a quarter of its width; the slim one
#: spends most of its time in the ResNet, as the full one does.
_R18_FPN = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64, **_heads(64, 2, 256)}
_NARROW_FPN, _SLIM_FPN = {**_NARROW, **_heads(64, 2, 256)}, {**_NARROW, **_heads(32, 1, 128)}
_NARROW_C4 = {**_NARROW, "MODEL.ROI_MASK_HEAD.CONV_DIM": 64}
_NARROW_ONE_STAGE = {**_NARROW_FPN, "MODEL.RETINANET.NUM_CONVS": 2}
_SLIM_ONE_STAGE = {**_SLIM_FPN, "MODEL.RETINANET.NUM_CONVS": 1}
_FCOS = {"MODEL.META_ARCHITECTURE": "FCOSFromConfig"}

_MASK_FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
_MASK_C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"
_BOX_C4 = "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml"
_RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"

#: name -> (Detectron2 model-zoo file, settings on top of COMMON); LVIS has a score threshold and sampler of its own
DETECTORS: dict[str, tuple[str, dict]] = {
    "mask-rcnn-r50-fpn": (_MASK_FPN, BOX_HEAD),
    "mask-rcnn-r101-fpn": ("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml", BOX_HEAD),
    "mask-rcnn-r50-fpn-lvis": ("LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", BOX_HEAD),
    "mask-rcnn-r50-c4": (_MASK_C4, {}),
    "faster-rcnn-r50-c4": (_BOX_C4, {}),
    "retinanet-r50-fpn": (_RETINANET, {}),
    "fcos-r50-fpn": (_RETINANET, _FCOS),
    "toy-mask-rcnn-r18-fpn": (_MASK_FPN, {**BOX_HEAD, **_R18_FPN}),
    "toy-mask-rcnn-narrow-r50-fpn": (_MASK_FPN, {**BOX_HEAD, **_NARROW_FPN}),
    "toy-mask-rcnn-slim-r50-fpn": (_MASK_FPN, {**BOX_HEAD, **_SLIM_FPN}),
    "toy-mask-rcnn-narrow-r50-c4": (_MASK_C4, _NARROW_C4),
    "toy-faster-rcnn-narrow-r50-c4": (_BOX_C4, _NARROW_C4),
    "toy-retinanet-narrow-r50-fpn": (_RETINANET, _NARROW_ONE_STAGE),
    "toy-fcos-narrow-r50-fpn": (_RETINANET, {**_NARROW_ONE_STAGE, **_FCOS}),
    "toy-retinanet-slim-r50-fpn": (_RETINANET, _SLIM_ONE_STAGE),
    "toy-fcos-slim-r50-fpn": (_RETINANET, {**_SLIM_ONE_STAGE, **_FCOS}),
}


def detector_config(name: str, overrides: tuple[str, ...] = ()) -> CfgNode:
    """The Detectron2 config of a named detector, or of any YAML file of Detectron2's model zoo, with COMMON applied.

    overrides: "KEY=value" in Detectron2's own names, applied last. Raises BookError for an unknown detector or key.
    """
    zoo_file, extra = DETECTORS.get(name, (name, {}))
    try:
        cfg = model_zoo.get_config(zoo_file)
    except RuntimeError:  # the zoo's own word for a file it lacks
        one_of("detector", name, DETECTORS)
    remedy = f"name a YAML file of the zoo, or one of {', '.join(DETECTORS)}"
    require(isinstance(cfg, CfgNode), f"detector={name!r} is a Python config: {remedy}")
    cfg.merge_from_list([x for item in {**COMMON, **extra}.items() for x in copy.deepcopy(item)])
    for item in overrides:
        key, separator, value = item.partition("=")
        require(bool(separator), f"detector override {item!r} must read KEY=value")
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            raise BookError(f"detector override {item!r} is not a setting of Detectron2: {error}"[:300]) from None
    sizes, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    for key, given in (("SIZES", sizes), ("ASPECT_RATIOS", ratios)):
        rows = isinstance(given, (list, tuple)) and all(isinstance(row, (list, tuple)) and row for row in given)
        good = rows and bool(given) and all(isinstance(x, (int, float)) and x > 0 for row in given for x in row)
        require(good, f"MODEL.ANCHOR_GENERATOR.{key}={given!r} must be lists of positive numbers, one or one a level")
    std = cfg.MODEL.PIXEL_STD
    good = len(std) == len(cfg.MODEL.PIXEL_MEAN) == 3 and all(isinstance(x, (int, float)) and x > 0 for x in std)
    require(good, f"MODEL.PIXEL_STD={std!r} must be three positive numbers, as many as MODEL.PIXEL_MEAN has")
    cfg.MODEL.DEVICE = "cpu"  # builders move modules themselves; our loops say where a model lives
    return cfg


def for_finetuning(d2: CfgNode, synchronised: bool) -> None:
    """Make a detector's config the fine-tuned one's (Sec. 4.2): a norm after a C4 head's res5, norms synchronised."""
    if d2.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and d2.MODEL.ROI_HEADS.NAME == "Res5ROIHeads":
        d2.MODEL.ROI_HEADS.NAME = "Res5ROIHeadsExtraNorm"
    if synchronised:
        for part in (d2.MODEL.RESNETS, d2.MODEL.FPN, d2.MODEL.ROI_BOX_HEAD, d2.MODEL.ROI_MASK_HEAD):
            part.NORM = "SyncBN" if part.NORM == "BN" else part.NORM


# --- parts that Detectron2 lacks ------------------------------------------------------------------------------------


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """The C4 detector's RoI head as it is fine-tuned (Tables 2 and 3; MoCo's detectors): its res5 ends in a norm of the
    ResNet's kind, `roi_heads.res5.norm.*`. Pretraining has res5 alone, so that norm is always new in the detector.
    """

    @classmethod
    def _build_res5_block(cls, cfg):
        res5, channels = super()._build_res5_block(cfg)
        res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return res5, channels


def _group_norm(channels: int) -> nn.GroupNorm:
    """Eight channels a group, as Detectron2's "GN" has at 256: its 32 groups would leave a narrow head one channel
    each, of which a small image's P7 has a single value.
    """
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)


@META_ARCH_REGISTRY.register()
def FCOSFromConfig(cfg: CfgNode) -> FCOS:
    """The model of Detectron2's Python config `fcos_R_50_FPN_1x.py`, with a RetinaNet's backbone, input and classes.

    Its P6 and P7 come from P5, not C5; its head has group norm; its scores are sqrt(class x centerness).
    """
    backbone = build_backbone(cfg)
    retinanet, channels, shapes = cfg.MODEL.RETINANET, cfg.MODEL.FPN.OUT_CHANNELS, backbone.output_shape()
    backbone.top_block = LastLevelP6P7(channels, channels, in_feature="p5")
    head = FCOSHead(
        input_shape=[shapes[name] for name in retinanet.IN_FEATURES],
        conv_dims=[channels] * retinanet.NUM_CONVS,
        num_classes=retinanet.NUM_CLASSES,
        prior_prob=retinanet.PRIOR_PROB,
        norm=_group_norm,
    )
    return FCOS(
        backbone=backbone,
        head=head,
        head_in_features=retinanet.IN_FEATURES,
        num_classes=retinanet.NUM_CLASSES,
        test_score_thresh=0.2,
        test_nms_thresh=0.6,
        max_detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )


# --- coordinates in full precision, whatever the type of the feature maps ---------------------------------------------
# Under autocast Detectron2 casts boxes to the type of the network's output. bf16 holds whole numbers up to 256 exactly,
# fp16 up to 2048: in a batch of 512 images a region would be pooled from another image, or from outside the batch, and
# corners would move by up to 4 pixels at 1333. The maps and what is pooled from them keep their type.

_apply_deltas = Box2BoxTransformLinear.apply_deltas


def _exact(x: Tensor) -> torch.dtype:
    """float32, or float64 where x is."""
    return torch.promote_types(x.dtype, torch.float32)


def _exactly(pool: Callable) -> Callable:
    """A pooler's `forward` in float32: maps (N, C, h, w); rois (M, 5): image number in 0..N-1, x1 y1 x2 y2 in input
    pixels. Returns (M, C, S, S) of the maps' type.
    """
    return lambda self, maps, rois: pool(self, maps.to(_exact(maps)), rois.to(_exact(maps))).to(maps.dtype)


def _apply_linear_deltas(self: Box2BoxTransformLinear, deltas: Tensor, boxes: Tensor) -> Tensor:
    """FCOS's boxes from its deltas (N, k x 4) and points (N, 4), as Detectron2 does it for its other detectors."""
    return _apply_deltas(self, deltas.to(_exact(deltas)), boxes)


ROIAlign.forward = _exactly(ROIAlign.forward)  # every pooler's, those of masks' targets too
poolers.RoIPool = type("RoIPool", (RoIPool,), {"forward": _exactly(RoIPool.forward)})
Box2BoxTransformLinear.apply_deltas = _apply_linear_deltas
