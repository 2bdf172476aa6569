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

    def forward(self, images: list[Tensor], boxes: list[Tensor], valid: list[Tensor]) -> dict[str, Tensor]:
        """One list entry a view, V1 first: images (B, 3, S_v, S_v) normalised, boxes (B, K, 4), valid (B, K) bool.

        V1 sees every box; a box that V_j lost is dropped from the pair (V1, V_j).
        Returns loss (scalar, in [-4 P, 4 P] for P extra views), pairs ((P,), each with both directions) and
        embeddings (M_1, E), the target's of V1, detached.
        """
        inputs = [(x, b[k].split(k.sum(1).tolist())) for x, b, k in zip(images, boxes, valid)]
        v = [self.predictor(self.online(*view)) for view in inputs]
        with torch.no_grad():
            z = [self.target(*view) for view in inputs]
        pairs = []
        for j in range(1, len(inputs)):
            both = valid[0] & valid[j]
            weight = box_weights(both)[both]
            in_1, in_j = both[valid[0]], both[valid[j]]  # rows of the (M, E) embeddings that belong to the pair
            pairs.append(pair_loss(v[0][in_1], z[j][in_j], weight) + pair_loss(v[j][in_j], z[0][in_1], weight))
        pairs = torch.stack(pairs)
        return {"loss": pairs.sum(), "pairs": pairs.detach(), "embeddings": z[0].detach()}

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """xi <- tau xi + (1 - tau) theta, for parameters; the target's BN keeps statistics of its own (method.md 3)."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), 1 - tau)
