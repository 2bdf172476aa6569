"""Pretrained weights out again: as files for plain Detectron2 and torchvision, and in the authors' own layout."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from soco_lib import BookError
from soco_lib.weights.foreign import LAYOUTS, RESNET, rename

#: A detector's ResNet, wherever it lies (method.md 3): below the FPN, as the whole backbone, its last stage in the RoI
#: head.
_TRUNK = r"^(backbone\.bottom_up|backbone|roi_heads)\.(?=stem\.|res\d\.\d)"
_MLP = {"0": "linear1", "1": "bn1", "3": "linear2"}


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in table.items()}


def detectron2(tensors: Mapping[str, Tensor]) -> dict:
    """What plain Detectron2 reads as MODEL.WEIGHTS: the encoder's names are the detector's already."""
    return {"model": dict(tensors), "__author__": "soco-book", "matching_heuristics": False}


def torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ResNet alone as torchvision's state dict: every key of its ResNet but fc.weight and fc.bias; neck and head
    are left out.

    Input as ours: RGB, ImageNet mean and std. Raises BookError if the pretraining had no whole ResNet (res2 to res5).
    """
    out = {}
    for key, value in tensors.items():
        name, below = re.subn(_TRUNK, "", key)
        if below and (theirs := rename(name, _inverse(RESNET))):
            out[theirs] = value
    if missing := [f"layer{i}" for i in range(1, 5) if not any(key.startswith(f"layer{i}.") for key in out)]:
        raise BookError(
            f"there is no whole ResNet to write: {', '.join(missing)} was not pretrained (alignment, overrides)"
        )
    return out


def soco(model: Mapping[str, Tensor]) -> dict:
    """A pretraining's whole model (both networks, projector, predictor) under the authors' names, for their converters.

    model: state dict of soco.SoCo. Raises BookError naming a key that has no place there.
    """
    state = {}
    for key, value in model.items():
        owner, _, rest = key.partition(".")
        part, _, name = (owner, "", rest) if owner == "predictor" else rest.partition(".")
        suffix = "_k" if owner == "target" else ""
        if part == "encoder":
            theirs = _soco_encoder(name, suffix)
        elif theirs := rename(name, _MLP):
            theirs = f"{part}{suffix}.{theirs}"
        if not theirs:
            raise BookError(
                f"{key} has no place in the authors' layout: it is for Mask R-CNN with FPN (P2 to P5) or C4"
            )
        state[f"module.{theirs}"] = value
    return {"model": state}


def _soco_encoder(name: str, suffix: str) -> str | None:
    canonical = re.sub(_TRUNK, "backbone.", name)
    for prefix, table, ours in LAYOUTS["soco-fpn"].parts:
        if canonical.startswith(ours) and (theirs := rename(canonical[len(ours) :], _inverse(table))):
            return prefix.replace("{}", suffix) + theirs
    return None
