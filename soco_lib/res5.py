"""The C4 detector's RoI head with batch norm after its last block, as it is fine-tuned (Tables 2 and 3; MoCo's
detectors).
"""

from __future__ import annotations

from detectron2.layers import get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Detectron2's Res5ROIHeads, its res5 ending in a norm of the ResNet's kind: `roi_heads.res5.norm.*`.

    Pretraining has res5 alone (method.md 3), so the norm is always new in the detector.
    """

    @classmethod
    def _build_res5_block(cls, cfg):
        res5, channels = super()._build_res5_block(cfg)
        res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return res5, channels
