"""Is a run healthy? Spread and effective rank of the embeddings say what the loss cannot: whether they collapsed.

M embeddings of dimension E.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Below this spread the embeddings of different objects are nearly one vector.
COLLAPSED = 0.05


def spread(z: Tensor) -> float:
    """Mean standard deviation of the normalised embeddings' components times sqrt(E): 0 collapsed, 1 uniform on the sphere.

    z: (M, E), M >= 2.
    """
    return float(F.normalize(z.float(), dim=1).std(0).mean() * z.shape[1] ** 0.5)


def effective_rank(z: Tensor) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values of z (M, E); in [1, min(M, E)]."""
    p = torch.linalg.svdvals(z.float())
    p = p / p.sum().clamp(min=1e-12)
    return float(torch.exp(-(p * (p + 1e-12).log()).sum()))


def verdict(spread_now: float) -> str:
    """'' for a healthy spread, else what is wrong and what to try."""
    if spread_now >= COLLAPSED:
        return ""
    return f"COLLAPSE: spread {spread_now:.3f} < {COLLAPSED}; all objects embed alike (lower base_lr, or raise tau or batch)"
