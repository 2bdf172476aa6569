"""SoCo (Sec. 3): online and target network, projector, predictor, and what each view adds to the loss.

B images, K proposals an image, S view side in pixels, E embedding dimension, M boxes present in a view.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from soco_lib.config import Pretrain
from soco_lib.encoder import Encoder
from soco_lib.loss import box_weights, pair_loss
from soco_lib.parts.regions import region_term
from soco_lib.parts.rois import Levels, Movable, RoIs


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
