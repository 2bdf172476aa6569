"""SoCo (Sec. 3): online and target network, projector, predictor and the symmetrised loss, whatever the views.

B images, K proposals an image, S view side in pixels, E embedding dimension, M boxes present in a view.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from soco_lib.config import Pretrain
from soco_lib.encoder import Encoder
from soco_lib.loss import box_weights, pair_loss


def mlp(d_in: int, hidden: int, d_out: int) -> nn.Sequential:
    """Projector and predictor alike: Linear, BN, ReLU, Linear (Sec. 4.1)."""
    return nn.Sequential(nn.Linear(d_in, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, d_out))


class Branch(nn.Module):
    """Encoder and projector: z = g(h), Eqs. 2-4."""

    def __init__(self, cfg: Pretrain):
        super().__init__()
        self.encoder = Encoder(cfg)
        self.projector = mlp(self.encoder.dim, cfg.hidden, cfg.embedding)

    def forward(self, images: Tensor, boxes: list[Tensor]) -> Tensor:
        """images (B, 3, S, S), boxes B tensors (m_i, 4) of this view. Returns (M, E)."""
        return self.projector(self.encoder(images, boxes))


class SoCo(nn.Module):
    """Online branch theta with predictor q, target branch xi = EMA(theta)."""

    def __init__(self, cfg: Pretrain):
        super().__init__()
        self.online = Branch(cfg)
        self.predictor = mlp(cfg.embedding, cfg.hidden, cfg.embedding)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    @torch.no_grad()
    def targets(self, images: list[Tensor], boxes: list[Tensor], valid: list[Tensor]) -> list[Tensor]:
        """z of every view, (M_j, E), without a graph. Arguments as in `forward`."""
        return [self.target(x, _present(b, k)) for x, b, k in zip(images, boxes, valid)]

    def forward(self, j: int, images: Tensor, boxes: Tensor, valid: list[Tensor], z: list[Tensor]) -> Tensor:
        """What view number `j` (0: V1) adds to each pair (V1, V_i) as the online network's view; their sum over j and pairs
        is the loss of Eqs. 5 and 6, symmetrised.

        images (B, 3, S_j, S_j) normalised, boxes (B, K, 4), both of view j; valid, z: of every view, (B, K) bool and (M_i, E).
        V1 is paired with each other view's target, another view with V1's; a box that either view of a pair lost is left out.
        Returns (P,) for P extra views. One view a call, so that a caller can go backward before the next view: the loss is a sum
        over online views, and only one view's activations are then held.
        """
        v = self.predictor(self.online(images, _present(boxes, valid[j])))
        terms = []
        for i in range(1, len(valid)):
            if j not in (0, i):
                terms.append(v.new_zeros((), dtype=torch.promote_types(v.dtype, torch.float32)))
                continue
            both, other = valid[0] & valid[i], i if j == 0 else 0
            weight = box_weights(both)[both]
            # rows of the (M, E) embeddings that belong to the pair
            terms.append(pair_loss(v[both[valid[j]]], z[other][both[valid[other]]], weight))
        return torch.stack(terms)

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """xi <- tau xi + (1 - tau) theta, for parameters; the target's BN keeps statistics of its own (method.md 3)."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), 1 - tau)


def _present(boxes: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
    """Boxes (B, K, 4) that are there, B tensors (m_i, 4)."""
    return boxes[valid].split(valid.sum(1).tolist())
