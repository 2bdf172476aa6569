"""Detectron2 detectors by name: the one place that says what a detector is, for pretraining and for transfer alike.

A detector is its settings, a CfgNode that Detectron2's `build_model` takes, whichever kind of config it comes from.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from contextlib import redirect_stderr

from torch import nn

from soco_lib import BookError, locate
from soco_lib.config import Alignment
from soco_lib.fields import one_of, require

logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # warns whenever fvcore is imported
with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")  # Detectron2 imports pkg_resources and torch.jit.script, both deprecated
    from soco_lib.parts import coordinates, heads, lazy, zoo  # noqa: F401 (what Detectron2 lacks, put in its place)

    from detectron2.config import CfgNode, get_cfg
    from detectron2.layers import DeformConv, ShapeSpec
    from detectron2.modeling import build_backbone, build_proposal_generator, build_roi_heads
    from detectron2.modeling.backbone import Backbone

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
    """The settings of a named detector, or of any config of Detectron2's model zoo or on disk, with COMMON applied.

    name: of DETECTORS; a zoo file's name; a path. overrides, applied last: "KEY=value" in Detectron2's own names, of a
    Python config "model.key=value" as LazyConfig.apply_overrides takes them; lazy.py says what COMMON is there. Raises
    BookError for an unknown detector or key, a config without a detector, and what this machine cannot run.
    """
    file, extra = DETECTORS.get(name, (name, {}))
    path, here = zoo.find(file), locate(file)
    if path is None and here.suffix in zoo.KINDS:
        raise BookError(f"detector={name!r}: there is no such config in Detectron2's zoo, and no file {here}")
    if path is None:
        one_of("detector", name, DETECTORS)
    python = path.suffix == ".py"
    cfg = get_cfg() if python else zoo.read(path)
    cfg.merge_from_list([x for item in {**COMMON, **extra}.items() for x in copy.deepcopy(item)])
    if python:
        lazy.describe(cfg, str(path) if path == here else file, overrides)
    else:
        _synchronise(cfg, "SyncBN", "BN")  # as those of a Python config: it is the run that says which are synchronised
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
    deformable = any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE) and not issubclass(DeformConv, nn.Module)
    need = f"detector={name!r} has deformable convolutions, which need the compiled part of Detectron2, not there"
    plain = "MODEL.RESNETS.DEFORM_ON_PER_STAGE=[False,False,False,False]"
    require(not deformable, f"{need}: build it from its source (make setup DETECTRON2=…), or override {plain}")
    cfg.MODEL.DEVICE = "cpu"  # builders move modules themselves; our loops say where a model lives
    return cfg


def architecture(d2: CfgNode) -> str:
    """The class of the whole detector: GeneralizedRCNN, RetinaNet, PanopticFPN, …"""
    return d2.MODEL.LAZY.ARCHITECTURE if is_lazy(d2) else d2.MODEL.META_ARCHITECTURE


def begins_new(d2: CfgNode, aligned: Alignment) -> list[str]:
    """What of a detector an alignment does not pretrain beside the backbone."""
    regions, boxes, semantic = "region proposals", "class and box layers", "semantic head"
    parts = {
        "GeneralizedRCNN": [regions, boxes],
        "PanopticFPN": [regions, boxes, semantic],
        "ProposalNetwork": [regions],
        "SemanticSegmentor": [semantic],
    }.get(architecture(d2), [boxes])
    own = [] if aligned.head or regions not in parts or boxes not in parts else ["box head"]
    more = [f"{kind.lower()} head" for kind in ("MASK", "KEYPOINT") if boxes in parts and d2.MODEL[f"{kind}_ON"]]
    return own + [part for part in parts if part != regions or not aligned.regions] + more


def is_lazy(d2: CfgNode) -> bool:
    """Whether a detector comes from a Python config."""
    return d2.MODEL.META_ARCHITECTURE == lazy.LazyModel.__name__


def backbone(d2: CfgNode, neck: bool = True) -> Backbone:
    """A detector's backbone; without neck one whose trunk goes to res5, wherever the detector has its own."""
    if is_lazy(d2):
        return lazy.part(d2, "backbone", whole_trunk=not neck)
    if not neck:
        d2.merge_from_list(["MODEL.RESNETS.OUT_FEATURES", ["res5"], "MODEL.FPN.IN_FEATURES", ["res5"]])
    return build_backbone(d2)


def roi_heads(d2: CfgNode, shapes: dict[str, ShapeSpec]) -> nn.Module | None:
    """A detector's RoI heads over maps of these shapes; None for one without, such as RetinaNet."""
    if is_lazy(d2):
        return lazy.part(d2, "roi_heads")
    return build_roi_heads(d2, shapes) if architecture(d2) in ("GeneralizedRCNN", "PanopticFPN") else None


def region_proposals(d2: CfgNode, shapes: dict[str, ShapeSpec]) -> nn.Module | None:
    """A detector's RPN over maps of these shapes; None for one without."""
    if is_lazy(d2):
        return lazy.part(d2, "proposal_generator")
    found = architecture(d2) in ("GeneralizedRCNN", "PanopticFPN", "ProposalNetwork")
    return build_proposal_generator(d2, shapes) if found else None


def for_finetuning(d2: CfgNode, synchronised: bool) -> None:
    """Make a detector's config the fine-tuned one's (Sec. 4.2): a norm after a C4 head's res5, norms synchronised."""
    if architecture(d2) == "GeneralizedRCNN" and d2.MODEL.ROI_HEADS.NAME == "Res5ROIHeads":
        d2.MODEL.ROI_HEADS.NAME = "Res5ROIHeadsExtraNorm"
    if synchronised:
        _synchronise(d2, "BN", "SyncBN")


def _synchronise(d2: CfgNode, old: str, new: str) -> None:
    for part in (d2.MODEL.RESNETS, d2.MODEL.FPN, d2.MODEL.ROI_BOX_HEAD, d2.MODEL.ROI_MASK_HEAD):
        part.NORM = new if part.NORM == old else part.NORM
