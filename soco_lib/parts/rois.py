"""Boxes as RoIAlign takes them, made on the CPU, so that no GPU is waited for. N images, M boxes of all images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from detectron2.modeling.poolers import assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes


class Movable:
    """A dataclass of tensors and lists of Movables."""

    def moved(self, move: Callable[[Tensor], Tensor]):
        """The same with every tensor moved: to pinned memory, to a device."""
        part = lambda x: move(x) if isinstance(x, Tensor) else [y.moved(move) for y in x] if isinstance(x, list) else x
        return type(self)(*map(part, vars(self).values()))


@dataclass(frozen=True)
class RoIs(Movable):
    """A batch's boxes as RoIAlign takes them, counted and sorted by level on the CPU: no GPU is waited for."""

    rows: Tensor  # (M, 5) float32, level after level: image number, x1 y1 x2 y2 in view pixels
    counts: tuple[int, ...]  # rows of each level
    order: Tensor | None  # (M,) int64: the row of each box, image after image; None: the rows are in this order
    reached: tuple[bool, ...]  # whether a level has rows, here or in another process that shares its batch norm


@dataclass(frozen=True)
class Levels:
    """Pyramid levels that boxes are pooled from, numbered and assigned as by Detectron2's ROIPooler."""

    lowest: int
    highest: int
    canonical: float  # side in pixels above which a box goes to level 4

    def rois(self, boxes: Sequence[Tensor]) -> RoIs:
        """Boxes of N images, N tensors (m_i, 4) on the CPU, x1 y1 x2 y2 in view pixels, for `Encoder.forward`."""
        rows, count = convert_boxes_to_pooler_format([Boxes(b) for b in boxes]), self.highest - self.lowest + 1
        if count == 1:
            return RoIs(rows, (len(rows),), None, (True,))
        level = assign_boxes_to_levels([Boxes(rows[:, 1:])], self.lowest, self.highest, self.canonical, 4)
        by_level = level.argsort(stable=True)
        counts = tuple(level.bincount(minlength=count).tolist())
        return RoIs(rows[by_level], counts, by_level.argsort(), tuple(map(bool, counts)))
