"""f^I and f^H of Eq. 1 as Detectron2's own modules under the detector's own parameter names.

N images, M boxes of all images, C channels, S view side in pixels, D object feature dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from soco_lib.config import Pretrain
from soco_lib.detector import backbone, begins_new, detector_config, region_proposals, roi_heads
from soco_lib.fields import require
from soco_lib.parts.pyramids import below, left_out, levels, pyramid
from soco_lib.parts.rois import Levels, RoIs
from soco_lib.runs.processes import send

from detectron2.modeling.backbone import Backbone, ViT
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes


def canonical_size(cfg: Pretrain) -> float:
    """Side in pixels above which a box goes to P4: the paper's 96 (Sec. 3.3, Scale-Aware Assignment), or FPN's 224."""
    return cfg.canonical if cfg.assignment == "scale" else 224.0


def assign_levels(boxes, cfg: Pretrain) -> Tensor:
    """Pyramid level of each box (N, 4) in view pixels, array or tensor: (N,) int64 in 2..5."""
    return assign_boxes_to_levels([Boxes(torch.as_tensor(boxes))], 2, 5, canonical_size(cfg), 4) + 2


class Encoder(nn.Module):
    """Image views and boxes to object features, h = f^H(RoIAlign(f^I(V), b)) (Eq. 1).

    Its modules are those of the detector `cfg.detector`, as far as the alignment reaches (config.ALIGNMENTS, Table 4).
    The three stages of Cascade R-CNN share one box head here, and so begin alike when they are fine-tuned: what sets
    them apart is how well their boxes fit, and boxes of a pretraining come from no earlier stage; were one stage alone
    pretrained, the others would begin at random behind it.
    """

    def __init__(self, cfg: Pretrain):
        super().__init__()
        d2, aligned = detector_config(cfg.detector, cfg.overrides), cfg.aligned
        self.backbone = backbone(d2, aligned.neck)
        refused = f"detector={cfg.detector!r} has no backbone that boxes can be pooled from: "
        require(isinstance(self.backbone, Backbone), f"{refused}it is no Backbone of Detectron2")
        self.below = below(self.backbone)
        if aligned.regions:
            self.proposal_generator = region_proposals(d2, self.backbone.output_shape())
            require(self.proposal_generator is not None, f"alignment={cfg.alignment!r}: {cfg.detector!r} has no RPN")
        self.neck = bool(self.below) and aligned.neck
        self.new = ["pyramid"] * (bool(self.below) and not self.neck) + begins_new(d2, aligned)
        if self.below:  # what is not pretrained is not kept, so that an export cannot claim it
            others = [name for name, _ in self.backbone.named_children() if name != self.below]
            for name in ["top_block"] * (not aligned.regions) if self.neck else others:
                delattr(self.backbone, name)
        shapes = levels(self.backbone) if self.neck else self.trunk.output_shape()
        if not aligned.neck:
            shapes = dict([max(shapes.items(), key=lambda item: item[1].stride)])
        self.levels = sorted(shapes)
        if self.neck and cfg.assignment == "fixed":
            self.levels = [f"p{cfg.fixed_level}"]
            require(self.levels[0] in shapes, f"fixed_level={cfg.fixed_level} is none of {', '.join(sorted(shapes))}")
        self.dim = shapes[self.levels[0]].channels
        strides = [shapes[name].stride for name in self.levels]
        even = len({shapes[name].channels for name in self.levels}) == 1 and all(strides)
        even = even and all(2 * stride == next_one for stride, next_one in zip(strides, strides[1:]))
        require(even, f"{refused}its maps {', '.join(self.levels)} differ in channels, or strides do not double")
        patch = self.trunk.patch_embed.proj.stride[0] if isinstance(self.trunk, ViT) else 1
        cut = [side for side in cfg.view_sizes if side % patch]
        require(not cut, f"views of {cut} pixels are cut by {cfg.detector}'s patches: take multiples of {patch}")
        pool = d2.MODEL.ROI_BOX_HEAD
        self.pooler = None
        if aligned.boxes:
            self.pooler = ROIPooler(
                output_size=pool.POOLER_RESOLUTION,
                scales=[1 / stride for stride in strides],
                sampling_ratio=pool.POOLER_SAMPLING_RATIO,
                pooler_type=pool.POOLER_TYPE,
                canonical_box_size=canonical_size(cfg),
                canonical_level=4,
            )
        self.roi_heads = nn.Module()
        built = roi_heads(d2, shapes) if aligned.head else None
        if hasattr(built, "res5"):
            self.roi_heads.res5, self.dim = built.res5, built.box_predictor.cls_score.in_features
        elif built is not None:
            require(hasattr(built, "box_head"), f"detector={cfg.detector!r} has RoI heads without a box head")
            head = built.box_head
            if isinstance(head, nn.ModuleList):  # Cascade R-CNN's
                head = nn.ModuleList([head[0]] * len(head))
            self.roi_heads.box_head = head
            self.dim = self.box_head.output_shape.channels

    def describe(self) -> str:
        """What of the detector is pretrained, and what is not, in one line."""
        parts = [f"backbone ({type(self.trunk).__name__})", *[f"pyramid ({' '.join(self.levels)})"] * self.neck]
        heads = [name.replace("_", " ") for name, _ in self.roi_heads.named_children()]
        shared = len(heads) and isinstance(next(self.roi_heads.children()), nn.ModuleList)
        heads = [f"{heads[0]}, one that all stages share"] if shared else heads
        regions = ["region proposals"] * hasattr(self, "proposal_generator")
        return f"pretrained: {', '.join(parts + heads + regions)}; begins new in the detector: {', '.join(self.new)}"

    @property
    def box_head(self) -> nn.Module:
        """The detector's, of Cascade R-CNN the one of all stages."""
        head = self.roi_heads.box_head
        return head[0] if isinstance(head, nn.ModuleList) else head

    @property
    def levels_of_boxes(self) -> Levels:
        """Which of `levels` a box is pooled from; of a whole-image network, which pools no box, a single one."""
        if self.pooler is None:
            return Levels(0, 0, 0.0)
        return Levels(self.pooler.min_level, self.pooler.max_level, self.pooler.canonical_box_size)

    @property
    def trunk(self) -> nn.Module:
        """The network below the pyramid, or the whole backbone: a ResNet, a RegNet, a ViT."""
        return getattr(self.backbone, self.below) if self.below else self.backbone

    def maps(self, images: Tensor, rois: RoIs | None = None) -> dict[str, Tensor]:
        """images (N, 3, S, S), normalised. Returns level name -> (N, C, h, w); of a pyramid with `rois` only those that
        they are pooled from: batch norms of the others see nothing of these images.
        """
        return pyramid(self.backbone, images, self._needed(rois)) if self.neck else self.trunk(images)

    def left_out(self, rois: RoIs) -> list[nn.Parameter]:
        """The weights of `levels` that `maps` with these rois does without; none where one level is fixed, whose
        pyramid's others are never trained.
        """
        if not self.neck or len(self.levels) == 1:
            return []
        unused = left_out(self.backbone, self._needed(rois))
        return [weight for part in unused for weight in part.parameters()]

    def _needed(self, rois: RoIs | None) -> list[str]:
        """The levels that have boxes, the coarsest if none has; []: all."""
        if rois is None:
            return []
        return [name for name, there in zip(self.levels, rois.reached) if there] or self.levels[-1:]

    def pool(self, maps: dict[str, Tensor], rois: RoIs) -> Tensor:
        """As Detectron2's ROIPooler, which would ask the device for the boxes of each level. Returns (M, C, s, s)."""
        parts = zip(self.levels, self.pooler.level_poolers, rois.rows.split(rois.counts))
        x = [align(maps[name], part) for name, align, part in parts if name in maps]
        return x[0] if rois.order is None else torch.cat(x).index_select(0, rois.order)

    def forward(self, images: Tensor, boxes: RoIs | Sequence[Tensor]) -> Tensor:
        """images (N, 3, S, S), normalised; boxes: `levels_of_boxes.rois` or N tensors (m_i, 4). Returns (M, D)."""
        return self.objects(self.maps(images), boxes)

    def objects(self, maps: dict[str, Tensor], boxes: RoIs | Sequence[Tensor]) -> Tensor:
        """`forward` from the images' maps on."""
        if self.pooler is None:
            return maps[self.levels[0]].mean((2, 3))
        if not isinstance(boxes, RoIs):
            boxes = self.levels_of_boxes.rois([b.cpu() for b in boxes]).moved(send(maps[self.levels[0]].device))
        x = self.pool(maps, boxes)
        if hasattr(self.roi_heads, "box_head"):
            return self.box_head(x)
        if hasattr(self.roi_heads, "res5"):
            x = self.roi_heads.res5(x)
        return x.mean((2, 3))
