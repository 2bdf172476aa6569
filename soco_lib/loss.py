"""The object-level contrastive objective (Sec. 3.3): the whole, and the terms that a step adds up to it.

B images, K proposals an image, E embedding dimension, M <= B x K boxes that both views of a pair show.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def soco_loss(v: Sequence[Tensor], z: Sequence[Tensor], valid: Sequence[Tensor]) -> Tensor:
    """L^SoCo = L + L~: Eqs. 5 and 6, and the same with V_1 in the target network and the other views in the online one.

    An entry a view, V_1 first. v (B, K, E): the online network's q(g(h)); z (B, K, E): the target's g(h); valid (B, K)
    bool: the view shows the box (where not, any finite numbers). Returns a scalar in [-4, 4] times the extra views.
    SoCo.forward computes the same view by view.
    """
    cosine = lambda a, b: F.cosine_similarity(a, b, dim=-1)  # <a, b> / (|a| |b|), (B, K)
    stop_gradient = Tensor.detach
    loss = v[0].new_zeros(())
    for j in range(1, len(v)):  # V_2, V_3, ...
        L_i = -2 * cosine(v[0], stop_gradient(z[j]))  # Eq. 5: V_1 online, V_j's v' (or v'', ...) from the target
        L_i = L_i - 2 * cosine(v[j], stop_gradient(z[0]))  # the term of L~: V_j online, V_1 from the target
        both = valid[0] & valid[j]  # a box that either view lost is left out
        L = (L_i * both).sum(1) / both.sum(1).clamp(min=1)  # Eq. 6: the mean over an image's boxes
        loss = loss + L.mean()  # over images; one without any box in both views adds 0
    return loss


def pair_loss(v: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """One direction of one pair of views: the weighted sum of Eq. 5's -2 cos(v_i, target_i), in [-2, 2].

    v, target: (M, E), target without gradient; weight: (M,), from `box_weights`. Half precision would round the cosines
    of nearly equal vectors: float32 at least.
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    cosine = F.cosine_similarity(v.to(dtype), target.to(dtype), dim=-1)
    return -2 * (weight.to(dtype) * cosine).sum()


def box_weights(valid: Tensor) -> Tensor:
    """Weights that make a sum over boxes Eq. 6's mean over an image's boxes, then the mean over images.

    valid: (B, K) bool, the box is seen in both views. Returns (B, K) float64: 1 / (B x valid boxes of the image), 0
    where not valid. An image without any valid box adds nothing and still counts as an image.
    """
    return valid.double() / (valid.sum(1, keepdim=True).clamp(min=1) * len(valid))
