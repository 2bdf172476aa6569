"""Region proposals that are pretrained with the objects (alignment "rpn"); not in the paper, off in its settings.

Detectron2's own RPN learns that every proposal of an image is an object, that all else is not, and each one's box. What
the store's filter left out counts as background: objects that are small or long in the image.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from soco_lib.parts.pyramids import with_top

from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage


def region_loss(rpn: RPN, maps: dict[str, Tensor], side: int, boxes: Sequence[Tensor]) -> Tensor:
    """The RPN's two losses on N square images of `side` pixels, added up as in fine-tuning: a scalar, float32 at least.

    maps: level name -> (N, C, h, w), all that the RPN reads; boxes: N tensors (m_i, 4), every proposal of the image,
    x1 y1 x2 y2 in its pixels, on any device (DDP moves what it is given). Which anchors of an image are looked at is
    drawn, from its boxes and their order alone, whoever else is in the batch.
    """
    features = [maps[name] for name in rpn.in_features]
    anchors, (scores, deltas), device = rpn.anchor_generator(features), rpn.rpn_head(features), features[0].device
    flat = lambda x, last: x.float().unflatten(1, (-1, last)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # (N, h w A, last)
    scores, deltas = [flat(x, 1)[..., 0] for x in scores], [flat(x, 4) for x in deltas]
    labels, matched = [], []
    with EventStorage(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        for own in boxes:
            torch.manual_seed(zlib.crc32(own.cpu().numpy().tobytes()))
            objects = Instances((side, side), gt_boxes=Boxes(own.to(device, non_blocking=True)))
            for found, these in zip((labels, matched), rpn.label_and_sample_anchors(anchors, [objects])):
                found += these
        return sum(rpn.losses(anchors, scores, labels, deltas, matched).values())


def region_term(encoder: nn.Module, maps: dict[str, Tensor], side: int, boxes: Sequence[Tensor] | None) -> Tensor:
    """`region_loss` of an encoder's RPN from its own maps, P6 added; 0 for a view without `boxes`, yet of every weight
    of the RPN: processes wait for each weight's gradient in the last view.
    """
    if boxes is None:
        return 0 * sum(weight.sum() for weight in encoder.proposal_generator.parameters())
    return region_loss(encoder.proposal_generator, with_top(encoder.backbone, maps), side, boxes)
