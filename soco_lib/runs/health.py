"""Is a run healthy? Spread and effective rank of the embeddings say what the loss cannot: whether they collapsed.

M embeddings of dimension E.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Below this spread the cosine of two objects is above 0.96 on average. The projector's batch norm spreads random
#: weights' embeddings to about 0.8 whatever the images, and a healthy toy run stays above 0.6: a young run gives no
#: false alarm.
COLLAPSED = 0.2
#: Above this cosine between the views of an object, mean over the boxes of every pair, nothing is left to learn.
AGREED = 0.995


def spread(z: Tensor) -> float:
    """Mean standard deviation of the normalised embeddings' components times sqrt(E): 0 collapsed, 1 uniform on the
    sphere.

    z: (M, E), M >= 2.
    """
    return float(F.normalize(z.float(), dim=1).std(0).mean() * z.shape[1] ** 0.5)


def effective_rank(z: Tensor) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values of z (M, E); in [1, min(M,
    E)].
    """
    p = torch.linalg.svdvals(z.float())
    p = p / p.sum().clamp(min=1e-12)
    return float(torch.exp(-(p * (p + 1e-12).log()).sum()))


def verdict(spread_now: float, pairs: Sequence[float]) -> str:
    """'' for a healthy run, else what is wrong and what to try. pairs: the loss of each pair of views, in [-4, 4].

    A spread that is NaN (a single embedding has none) is no verdict.
    """
    if spread_now < COLLAPSED:
        return f"COLLAPSE: spread {spread_now:.3f} < {COLLAPSED}; all objects embed alike (lower base_lr, or raise tau or batch)"
    cosine = -max(pairs) / 4
    if cosine > AGREED:
        return f"DEAD LOSS: cosine {cosine:.4f} between all views; the views are identical or a few vectors stand for all objects"
    return ""
