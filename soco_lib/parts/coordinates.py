"""Coordinates in full precision, whatever the type of the feature maps.

Under autocast Detectron2 casts boxes to the type of the network's output. bf16 holds whole numbers up to 256 exactly,
fp16 up to 2048: in a batch of 512 images a region would be pooled from another image, or from outside the batch, and
corners would move by up to 4 pixels at 1333. The maps and what is pooled from them keep their type.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import RoIPool

from detectron2.layers import ROIAlign
from detectron2.modeling import poolers
from detectron2.modeling.box_regression import Box2BoxTransformLinear

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
