"""What a step needs to know of a batch's boxes, counted on the CPU. B images, K proposals an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from soco_lib.loss import box_weights
from soco_lib.parts.rois import Levels, Movable, RoIs


@dataclass(frozen=True)
class Pair(Movable):
    """The P boxes that V1 and another view both show, with their weights in Eq. 6."""

    first: Tensor  # (P,) int64: their rows among V1's embeddings
    other: Tensor  # (P,) int64: their rows among the other view's
    weight: Tensor  # (P,) float64

    @classmethod
    def of(cls, first: Tensor, other: Tensor) -> Pair:
        """first, other: (B, K) bool on the CPU: the box is in V1, in the other view."""
        both = first & other
        row = lambda valid: (valid.flatten().cumsum(0) - 1)[both.flatten()]
        return cls(row(first), row(other), box_weights(both)[both])


@dataclass(frozen=True)
class Counted(Movable):
    """All that a step needs to know of a batch's boxes, made on the CPU with the batch, so that no GPU is asked."""

    rois: list[RoIs]  # one a view
    pairs: list[Pair]  # one each view after V1

    @classmethod
    def of(cls, levels: Levels, boxes: list[Tensor], valid: list[Tensor]) -> Counted:
        """boxes (B, K, 4) and flags (B, K) of every view, CPU tensors."""
        present = [b[v].split(v.sum(1).tolist()) for b, v in zip(boxes, valid)]
        return cls([levels.rois(b) for b in present], [Pair.of(valid[0], v) for v in valid[1:]])

    def reaching(self, agree: Callable[[list[bool]], list[bool]]) -> Counted:
        """The same with every view's levels in `reached` as `agree` answers to all of them, one view after another."""
        agreed = iter(agree([flag for rois in self.rois for flag in rois.reached]))
        rois = [dataclasses.replace(x, reached=tuple(next(agreed) for _ in x.reached)) for x in self.rois]
        return dataclasses.replace(self, rois=rois)
