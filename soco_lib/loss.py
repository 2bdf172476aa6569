"""The object-level contrastive objective, Eqs. 5 and 6.

B images, K proposals an image, M <= B x K boxes that are present in both views of a pair, E embedding dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pair_loss(v: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """One pair of views: the weighted sum of -2 cos(v_i, target_i), Eq. 5's term.

    v, target: (M, E), target without gradient; weight: (M,), from `box_weights`. Returns a scalar in [-2, 2].
    """
    dtype = torch.promote_types(
        v.dtype, torch.float32
    )  # half precision would round the cosines of nearly equal vectors
    cosine = F.cosine_similarity(v.to(dtype), target.to(dtype), dim=-1)
    return -2 * (weight.to(dtype) * cosine).sum()


def box_weights(valid: Tensor) -> Tensor:
    """Weights that make a sum over boxes Eq. 6's mean over an image's boxes, then the mean over images.

    valid: (B, K) bool, the box is seen in both views. Returns (B, K): 1 / (B x boxes valid in this image), 0 where
    not valid, in float64. An image without any valid box adds nothing and still counts as an image.
    """
    return valid.double() / (valid.sum(1, keepdim=True).clamp(min=1) * len(valid))
