"""Pretrained weights out again, as files for plain Detectron2 and torchvision, and in the authors' own layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from soco_lib import BookError
from soco_lib.fields import one_of, require
from soco_lib.runs import checkpoint
from soco_lib.runs.files import replacing, writable
from soco_lib.weights.foreign import BACKBONE, LAYOUTS, RESNET, rename
from soco_lib.weights.load import NETWORKS, checkpoint_file, own_weights

#: What `export` writes, by the layout.
WRITTEN = {
    "detectron2": "set MODEL.WEIGHTS to it",
    "torchvision": "a state dict for torchvision's ResNet, without fc: load_state_dict(..., strict=False)",
    "soco": "both networks, projector and predictor under the authors' names",
}
#: A detector's ResNet, wherever it lies: below the FPN, as the whole backbone, its last stage in the RoI head.
_TRUNK = r"^(backbone\.bottom_up|backbone|roi_heads)\.(?=stem\.|res\d\.\d)"
_MLP = {"0": "linear1", "1": "bn1", "3": "linear2"}


def export(path: str | Path, out: str | Path, network: str = "online", layout: str = "detectron2") -> Path:
    """Write a pretraining's weights as a file for others; returns its path.

    layout: detectron2 (the encoder of `network`), torchvision (its ResNet alone) or soco (all, whatever `network`).
    """
    one_of("network", network, NETWORKS)
    one_of("layout", layout, WRITTEN)
    out = Path(out).expanduser()
    require(out.suffix == ".pth", f"out={out} must end in .pth: Detectron2 tells formats by the ending")
    file = checkpoint_file(path)
    state = checkpoint.read(file)
    tensors = own_weights(state, file, network).tensors  # the encoder's names are the detector's already
    if layout == "detectron2":
        content = {"model": dict(tensors), "__author__": "soco-book", "matching_heuristics": False}
    else:
        content = _torchvision(tensors) if layout == "torchvision" else _soco(state["model"])
    with writable(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out, "wb") as file:
        torch.save(content, file)
    return out


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in table.items()}


def _torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ResNet alone under torchvision's names, without fc. Raises BookError if res2 to res5 were not pretrained.

    Input as ours: RGB, ImageNet mean and std.
    """
    out = {}
    for key, value in tensors.items():
        if theirs := rename(re.sub(_TRUNK, BACKBONE, key), _inverse(RESNET)):
            out[theirs] = value
    missing = ", ".join(f"layer{i}" for i in range(1, 5) if not any(key.startswith(f"layer{i}.") for key in out))
    require(not missing, f"there is no whole ResNet to write: {missing} was not pretrained (alignment, overrides)")
    return out


def _soco(model: Mapping[str, Tensor]) -> dict:
    """A SoCo's whole state dict under the authors' names, for their converters. Raises BookError naming a key that has
    no place there.
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
            raise BookError(f"{key} has no place in the authors' layout: it is for Mask R-CNN with FPN (P2 to P5), C4")
        state[f"module.{theirs}"] = value
    return {"model": state}


def _soco_encoder(name: str, suffix: str) -> str | None:
    for prefix, table in LAYOUTS["soco-fpn"].parts.items():
        if theirs := rename(re.sub(_TRUNK, BACKBONE, name), _inverse(table)):
            return prefix.replace("{}", suffix) + theirs
    return None
