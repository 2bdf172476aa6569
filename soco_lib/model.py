"""SoCo (Sec. 3): online and target network, projector, predictor, and what each view adds to the loss.

B images, K proposals an image, S view side in pixels, E embedding dimension, M boxes present in a view.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from soco_lib.config import Pretrain
from soco_lib.encoder import Encoder
from soco_lib.loss import pair_loss
from soco_lib.parts.counted import Counted, Pair
from soco_lib.parts.regions import region_term
from soco_lib.parts.rois import RoIs


def mlp(d_in: int, hidden: int, d_out: int) -> nn.Sequential:
    """Projector and predictor alike: Linear, BN, ReLU, Linear (Sec. 4.1)."""
    layers = nn.Linear(d_in, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, d_out)
    return nn.Sequential(*layers)


class Network(nn.Module):
    """Encoder and projector, z = g(h) (Eqs. 2 to 4): the online network without its predictor, and the target."""

    def __init__(self, cfg: Pretrain):
        super().__init__()
        self.encoder = Encoder(cfg)
        self.projector = mlp(self.encoder.dim, cfg.hidden, cfg.embedding)

    def forward(self, images: Tensor, boxes: RoIs | Sequence[Tensor]) -> Tensor:
        """images and boxes of one view as the encoder takes them. Returns (M, E)."""
        maps = self.encoder.maps(images, boxes if isinstance(boxes, RoIs) else None)
        return self.projector(self.encoder.objects(maps, boxes))


class SoCo(nn.Module):
    """Online network theta with predictor q, target network xi = EMA(theta)."""

    def __init__(self, cfg: Pretrain):
        super().__init__()
        self.online = Network(cfg)
        self.predictor = mlp(cfg.embedding, cfg.hidden, cfg.embedding)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    @property
    def count(self) -> Callable[[list[Tensor], list[Tensor]], Counted]:
        """Counted.of for this network's pyramid, small enough to be sent to a loader's processes."""
        return functools.partial(Counted.of, self.online.encoder.levels_of_boxes)

    @torch.no_grad()
    def targets(self, images: list[Tensor], rois: list[RoIs]) -> list[Tensor]:
        """z of every view, (M_j, E), without a graph. images: (B, 3, S_j, S_j) normalised, one a view."""
        return [self.target(x, r) for x, r in zip(images, rois)]

    def forward(self, j: int, images: Tensor, rois: RoIs, pairs: list[Pair], z: list[Tensor],
                regions: list[Tensor] | None = None) -> Tensor:  # fmt: skip
        """What view number `j` (0: V1) adds to each pair (V1, V_i) as the online network's view: the sum over all j and
        pairs is loss.soco_loss. Returns (P,) for P extra views; with V1's `regions`, (P + 1,): last the RPN's loss.

        images (B, 3, S_j, S_j) normalised and rois of view j; z: `targets` of every view. One view a call, so that a
        caller can go backward before the next one and holds the activations of a single view.
        """
        encoder, of_all = self.online.encoder, regions is not None and j == 0  # an RPN reads every level
        maps = encoder.maps(images, None if of_all else rois)
        v = self.predictor(self.online.projector(encoder.objects(maps, rois)))
        none = v.new_zeros((), dtype=torch.promote_types(v.dtype, torch.float32))
        terms = [none] * len(pairs)
        for i, pair in enumerate(pairs, start=1):
            if j == 0:  # L: V1 online, V_i in the target network
                terms[i - 1] = pair_loss(v.index_select(0, pair.first), z[i].index_select(0, pair.other), pair.weight)
            elif j == i:  # L~: V_i online, V1 in the target network
                terms[i - 1] = pair_loss(v.index_select(0, pair.other), z[0].index_select(0, pair.first), pair.weight)
        if not of_all:  # processes wait for each weight's gradient, and LARS knows no weight without one
            terms[0] = terms[0] + 0 * sum(weight.sum() for weight in encoder.left_out(rois))
        if regions is not None:
            terms.append(region_term(encoder, maps, images.shape[-1], regions if j == 0 else None))
        return torch.stack(terms)

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """xi <- tau xi + (1 - tau) theta; batch norm's statistics stay the target's own (authors' release)."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), 1 - tau)
