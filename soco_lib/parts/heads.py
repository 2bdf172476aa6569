"""Detector parts that Detectron2 lacks, in its registries: FCOS from a config, the C4 head's last norm."""

from __future__ import annotations

import math

from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, build_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.roi_heads import Res5ROIHeads


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
