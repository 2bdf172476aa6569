"""Detectron2 detectors by name: the one place that says what a detector is, for pretraining and for transfer alike."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from contextlib import redirect_stderr

from soco_lib import BookError
from soco_lib.fields import one_of, require

logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # warns whenever fvcore is imported
with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")  # Detectron2 imports pkg_resources and torch.jit.script, both deprecated
    import soco_lib.coordinates
    import soco_lib.fcos
    import soco_lib.res5

    from detectron2 import model_zoo
    from detectron2.config import CfgNode

logging.getLogger("fvcore.common.checkpoint").setLevel(logging.WARNING)

#: What every detector of the paper has (method.md 3 and 5): nothing frozen, batch norm everywhere, torchvision's ResNet
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
#: ResNet-18 and 64 pyramid channels: the paper's structure at a size that two CPU cores train.
TOY_FPN = {
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 64,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 256,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 64,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
}
#: A quarter of ResNet-50's width, the same depth.
NARROW_R50 = {
    **{k: v for k, v in TOY_FPN.items() if "RESNETS" not in k},
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 16,
}
#: The same with half of the pyramid's channels and one convolution a head: most of its time is still the ResNet's.
SLIM_R50 = {
    **NARROW_R50,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 128,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
}
NARROW_C4 = {k: v for k, v in NARROW_R50.items() if "RESNETS" in k} | {"MODEL.ROI_MASK_HEAD.CONV_DIM": 64}
NARROW_ONE_STAGE = {**NARROW_R50, "MODEL.RETINANET.NUM_CONVS": 2}
SLIM_ONE_STAGE = {**SLIM_R50, "MODEL.RETINANET.NUM_CONVS": 1}
FCOS = {"MODEL.META_ARCHITECTURE": "FCOSFromConfig"}

_MASK_FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
_MASK_C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"
_BOX_C4 = "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml"
_LVIS = "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
_RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"

#: name -> (Detectron2 model-zoo file, settings on top of COMMON)
DETECTORS: dict[str, tuple[str, dict]] = {
    "mask-rcnn-r50-fpn": (_MASK_FPN, BOX_HEAD),
    "mask-rcnn-r101-fpn": ("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml", BOX_HEAD),
    "mask-rcnn-r50-fpn-lvis": (_LVIS, BOX_HEAD),  # as the first, with LVIS's score threshold, detections and sampler
    "mask-rcnn-r50-c4": (_MASK_C4, {}),
    "faster-rcnn-r50-c4": (_BOX_C4, {}),
    "retinanet-r50-fpn": (_RETINANET, {}),
    "fcos-r50-fpn": (_RETINANET, FCOS),
    "toy-mask-rcnn-r18-fpn": (_MASK_FPN, {**BOX_HEAD, **TOY_FPN}),
    "toy-mask-rcnn-narrow-r50-fpn": (_MASK_FPN, {**BOX_HEAD, **NARROW_R50}),
    "toy-mask-rcnn-slim-r50-fpn": (_MASK_FPN, {**BOX_HEAD, **SLIM_R50}),
    "toy-mask-rcnn-narrow-r50-c4": (_MASK_C4, NARROW_C4),
    "toy-faster-rcnn-narrow-r50-c4": (_BOX_C4, NARROW_C4),
    "toy-retinanet-narrow-r50-fpn": (_RETINANET, NARROW_ONE_STAGE),
    "toy-fcos-narrow-r50-fpn": (_RETINANET, {**NARROW_ONE_STAGE, **FCOS}),
    "toy-retinanet-slim-r50-fpn": (_RETINANET, SLIM_ONE_STAGE),
    "toy-fcos-slim-r50-fpn": (_RETINANET, {**SLIM_ONE_STAGE, **FCOS}),
}


def detector_config(name: str, overrides: tuple[str, ...] = ()) -> CfgNode:
    """The Detectron2 config of a named detector, or of any YAML file of Detectron2's model zoo, with COMMON applied.

    overrides: "KEY=value" strings in Detectron2's own names, applied last. Raises BookError for an unknown detector
    (with the nearest name) or key.
    """
    zoo_file, extra = DETECTORS.get(name, (name, {}))
    try:
        cfg = model_zoo.get_config(zoo_file)
    except RuntimeError:  # the zoo's own word for a file it lacks
        one_of("detector", name, DETECTORS)
    known = ", ".join(DETECTORS)
    require(
        isinstance(cfg, CfgNode),
        f"detector={name!r} is a Python config: name a YAML file of the zoo, or one of {known}",
    )
    for key, value in {**COMMON, **extra}.items():
        cfg.merge_from_list([key, copy.deepcopy(value)])
    for item in overrides:
        key, separator, value = item.partition("=")
        require(bool(separator), f"detector override {item!r} must read KEY=value")
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            raise BookError(f"detector override {item!r} is not a setting of Detectron2's config: {error}") from None
    cfg.MODEL.DEVICE = "cpu"  # builders move modules themselves; our loops say where a model lives
    return cfg


def for_finetuning(d2: CfgNode, synchronised: bool) -> None:
    """Make a detector's config the one that is fine-tuned (Sec. 4.2): a norm after a C4 head's res5, all norms
    synchronised.
    """
    if d2.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and d2.MODEL.ROI_HEADS.NAME == "Res5ROIHeads":
        d2.MODEL.ROI_HEADS.NAME = "Res5ROIHeadsExtraNorm"
    if synchronised:
        for part in (d2.MODEL.RESNETS, d2.MODEL.FPN, d2.MODEL.ROI_BOX_HEAD, d2.MODEL.ROI_MASK_HEAD):
            part.NORM = "SyncBN" if part.NORM == "BN" else part.NORM
