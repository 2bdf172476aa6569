"""Detectron2's pyramids for views of any side, without the levels that no box is pooled from.

N images, C channels, S view side in pixels.
"""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, SimpleFeaturePyramid

#: A pyramid, and what it calls the network below it.
PYRAMIDS = {FPN: "bottom_up", SimpleFeaturePyramid: "net"}


def below(backbone: nn.Module) -> str:
    """The name of the network below a pyramid; "" for a backbone that is none."""
    return next((name for kind, name in PYRAMIDS.items() if isinstance(backbone, kind)), "")


def levels(backbone: FPN | SimpleFeaturePyramid) -> dict[str, ShapeSpec]:
    """The pyramid's levels, finest first, without those of its top block (Sec. 3.3: no P6)."""
    count = len(backbone.in_features if isinstance(backbone, FPN) else backbone.stages)
    return dict(list(backbone.output_shape().items())[:count])


def pyramid(backbone: FPN | SimpleFeaturePyramid, x: Tensor, needed: Collection[str] = ()) -> dict[str, Tensor]:
    """The pyramid's `forward`, but that FPN's top-down map takes the lateral map's size where Detectron2 doubles it.

    x: (N, 3, S, S); needed: names of `levels`, at least one; (): all. Returns level name ->
    (N, C, ceil(S / stride), ceil(S / stride)) of those needed. Equal to `backbone(x)` wherever S is a multiple of the
    largest stride; 112 is not.
    """
    if isinstance(backbone, SimpleFeaturePyramid):
        x = backbone.net(x)[backbone.in_feature]
        stages = zip(levels(backbone), backbone.stages)
        return {name: stage(x) for name, stage in stages if not needed or name in needed}
    bottom_up, features, top_down = backbone.bottom_up(x), {}, None
    for name, source, lateral, output in _steps(backbone, needed):
        side = lateral(bottom_up[source])
        top_down = side if top_down is None else side + F.interpolate(top_down, size=side.shape[-2:], mode="nearest")
        if not needed or name in needed:
            features[name] = output(top_down)
    return features


def left_out(backbone: FPN | SimpleFeaturePyramid, needed: Collection[str]) -> list[nn.Module]:
    """What `pyramid` of the levels `needed` does not compute, of all it has for `levels`."""
    if isinstance(backbone, SimpleFeaturePyramid):
        return [stage for name, stage in zip(levels(backbone), backbone.stages) if name not in needed]
    names = list(levels(backbone))[::-1]
    outputs = [output for name, output in zip(names, backbone.output_convs) if name not in needed]
    return outputs + list(backbone.lateral_convs)[len(_steps(backbone, needed)) :]


def _steps(backbone: FPN, needed: Collection[str]) -> list[tuple[str, str, nn.Module, nn.Module]]:
    """Level, its map of the network below, lateral and output convolution, coarsest first, to the finest `needed`."""
    names = list(levels(backbone))[::-1]
    count = max(names.index(name) for name in needed or names) + 1
    return list(zip(names, backbone.in_features[::-1], backbone.lateral_convs, backbone.output_convs))[:count]


def with_top(backbone: nn.Module, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """`pyramid`'s maps and those of the top block above them, P6 for an RPN; the maps of a backbone without one."""
    top = getattr(backbone, "top_block", None)
    if top is None:
        return maps
    above = list(backbone.output_shape())[len(maps) :]
    return {**maps, **dict(zip(above, top(maps[top.in_feature])))}
