"""f^I and f^H of Eq. 1 as Detectron2's own modules under the detector's own parameter names.

N images, M boxes of all images, C channels, S view side in pixels, D object feature dimension.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from soco_lib.config import Pretrain, require
from soco_lib.detector import detector_config

from detectron2.modeling import build_backbone, build_roi_heads  # noqa: E402  (soco_lib.detector silences its imports)
from detectron2.modeling.backbone import FPN
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes

#: Eq. 1 of the FPN paper: a box of 224 pixels, ImageNet's pretraining size, goes to P4.
DETECTRON2_CANONICAL = 224.0


def canonical_size(cfg: Pretrain) -> float:
    """Side in pixels above which a box goes to P4: the paper's 96 (Sec. 3.3, Scale-Aware Assignment) or Detectron2's 224."""
    return cfg.canonical if cfg.assignment == "scale" else DETECTRON2_CANONICAL


def assign_levels(boxes, cfg: Pretrain, lowest: int = 2, highest: int = 5) -> Tensor:
    """Pyramid level of each box: boxes (N, 4) in view pixels, array or tensor. Returns (N,) int64 in lowest..highest."""
    return assign_boxes_to_levels([Boxes(torch.as_tensor(boxes))], lowest, highest, canonical_size(cfg), 4) + lowest


def pyramid(fpn: FPN, x: Tensor) -> dict[str, Tensor]:
    """`FPN.forward` for any view side: the top-down map takes the lateral map's size where Detectron2 doubles it.

    x: (N, 3, S, S). Returns level name -> (N, C, ceil(S / stride), ceil(S / stride)), without the extra levels of a top
    block (Sec. 3.3: P6 is not used). Equal to `fpn(x)` wherever S is a multiple of the largest stride; 112 is not.
    """
    bottom_up = fpn.bottom_up(x)
    names = [f"p{name[3:]}" for name in fpn.in_features][::-1]
    features, top_down = {}, None
    for name, source, lateral, output in zip(names, fpn.in_features[::-1], fpn.lateral_convs, fpn.output_convs):
        side = lateral(bottom_up[source])
        top_down = side if top_down is None else side + F.interpolate(top_down, size=side.shape[-2:], mode="nearest")
        features[name] = output(top_down)
    return features


class Encoder(nn.Module):
    """Image views and boxes to object features, h = f^H(RoIAlign(f^I(V), b)) (Eq. 1).

    Everything is what `detector_config(cfg.detector)` describes; `cfg.alignment` says how far it reaches (Table 4):
    whole (global mean of the last stage) < c5 (RoIAlign on it, mean) < neck (RoIAlign on FPN, mean) < head (box head or res5).
    """

    def __init__(self, cfg: Pretrain):
        super().__init__()
        d2 = detector_config(cfg.detector, cfg.overrides)
        if cfg.alignment in ("whole", "c5"):
            d2.merge_from_list(["MODEL.RESNETS.OUT_FEATURES", ["res5"], "MODEL.FPN.IN_FEATURES", ["res5"]])
        self.backbone = build_backbone(d2)
        self.neck = isinstance(self.backbone, FPN) and cfg.alignment in ("neck", "head")
        if isinstance(self.backbone, FPN):  # what is not pretrained is not kept, so that an export cannot claim it
            unused = ["top_block"] if self.neck else [n for n, _ in self.backbone.named_children() if n != "bottom_up"]
            for name in unused:
                delattr(self.backbone, name)
        shapes = self.trunk.output_shape()
        if self.neck:
            shapes = {f"p{name[3:]}": self.backbone.output_shape()[f"p{name[3:]}"] for name in self.backbone.in_features}
        self.levels = sorted(shapes)
        if self.neck and cfg.assignment == "fixed":
            self.levels = [f"p{cfg.fixed_level}"]
            require(self.levels[0] in shapes, f"fixed_level={cfg.fixed_level} is none of {', '.join(sorted(shapes))}")
        self.dim = shapes[self.levels[0]].channels
        self.pooler = None if cfg.alignment == "whole" else self._build_pooler(cfg, d2, shapes)
        self.roi_heads = nn.Module()
        if cfg.alignment == "head" and d2.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
            built = build_roi_heads(d2, shapes)
            if hasattr(built, "res5"):
                self.roi_heads.res5, self.dim = built.res5, built.box_predictor.cls_score.in_features
            else:
                self.roi_heads.box_head, self.dim = built.box_head, built.box_head.output_shape.channels

    @property
    def trunk(self) -> nn.Module:
        """The ResNet."""
        return self.backbone.bottom_up if isinstance(self.backbone, FPN) else self.backbone

    def _build_pooler(self, cfg: Pretrain, d2, shapes) -> ROIPooler:
        head = d2.MODEL.ROI_BOX_HEAD
        return ROIPooler(
            output_size=head.POOLER_RESOLUTION,
            scales=[1 / shapes[name].stride for name in self.levels],
            sampling_ratio=head.POOLER_SAMPLING_RATIO,
            pooler_type=head.POOLER_TYPE,
            canonical_box_size=canonical_size(cfg),
            canonical_level=4,
        )

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """images (N, 3, S, S), normalised. Returns level name -> (N, C, h, w)."""
        return pyramid(self.backbone, images) if self.neck else self.trunk(images)

    def forward(self, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """images (N, 3, S, S), normalised; boxes: N tensors (m_i, 4), x1 y1 x2 y2 in view pixels. Returns (M, D)."""
        maps = self.maps(images)
        if self.pooler is None:
            return maps["res5"].mean((2, 3))
        x = self.pooler([maps[name] for name in self.levels], [Boxes(b) for b in boxes])
        if hasattr(self.roi_heads, "box_head"):
            return self.roi_heads.box_head(x)
        if hasattr(self.roi_heads, "res5"):
            x = self.roi_heads.res5(x)
        return x.mean((2, 3))


def recompute(trunk: nn.Module, names: Sequence[str]) -> None:
    """Keep no activations inside these stages of a ResNet for backward, which computes them again: the same gradients and
    statistics, less memory, more time. Raises BookError for a stage that the trunk does not have.
    """
    for name in names:
        stage = getattr(trunk, name, None)
        require(stage is not None, f"recompute={name!r}: this detector's backbone has no such stage")
        contexts = functools.partial(_contexts, stage)
        stage.forward = functools.partial(
            checkpoint, stage.forward, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )


def _contexts(stage: nn.Module):
    """Of the first computation and of the second one."""
    return contextlib.nullcontext(), _statistics_seen(stage)


@contextlib.contextmanager
def _statistics_seen(stage: nn.Module) -> Iterator[None]:
    """Within, batch norm counts nothing towards its running statistics: it has seen this batch."""
    norms = [m for m in stage.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # and not eval(): it normalises by the batch, as it did
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            norm.num_batches_tracked -= 1
