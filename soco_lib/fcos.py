"""FCOS from a CfgNode: Detectron2 ships it for its Python configs only; the layers and the settings are Detectron2's
own.
"""

from __future__ import annotations

import math

from torch.nn import GroupNorm

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead


def _group_norm(channels: int) -> GroupNorm:
    """Detectron2's "GN" at 256 channels. Its 32 groups would leave a narrow head one channel each, of which P7 of a
    small image has one value: nothing to normalise.
    """
    return GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)


@META_ARCH_REGISTRY.register()
def FCOSFromConfig(cfg: CfgNode) -> FCOS:
    """The model of Detectron2's `fcos_R_50_FPN_1x.py`, with backbone, input and class count from a RetinaNet-style
    config.

    Its P6 and P7 come from P5, not C5; its head has group norm, eight channels a group whatever the width (32 groups of
    256); its scores are sqrt(class x centerness).
    """
    backbone = build_backbone(cfg)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    backbone.top_block = LastLevelP6P7(channels, channels, in_feature="p5")
    levels = cfg.MODEL.RETINANET.IN_FEATURES
    shapes = backbone.output_shape()
    head = FCOSHead(
        input_shape=[shapes[name] for name in levels],
        conv_dims=[channels] * cfg.MODEL.RETINANET.NUM_CONVS,
        num_classes=cfg.MODEL.RETINANET.NUM_CLASSES,
        prior_prob=cfg.MODEL.RETINANET.PRIOR_PROB,
        norm=_group_norm,
    )
    return FCOS(
        backbone=backbone,
        head=head,
        head_in_features=levels,
        num_classes=cfg.MODEL.RETINANET.NUM_CLASSES,
        test_score_thresh=0.2,
        test_nms_thresh=0.6,
        max_detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )
