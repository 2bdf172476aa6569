"""Weights into a detector: a pretraining's, a fine-tuned detector's, other methods'; with every key accounted for.

The encoder's parameters already bear the detector's names, so that loading is taking a subset of a state dict. A key is
loaded, new in the detector, left behind in the file, or an error; none is dropped unseen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from soco_lib import locate
from soco_lib.config import ALIGNMENTS
from soco_lib.fields import one_of, require
from soco_lib.runs import checkpoint
from soco_lib.weights import formats
from soco_lib.weights.foreign import translate
from soco_lib.weights.key_report import OTHER_CLASSES, KeyReport, always_new, of_other_classes, why_left, why_new

NETWORKS = ("online", "target")
FINETUNED = "detectron2/model_final.pth"  # of a finished transfer's folder
STEM = "stem.conv1.weight"


@dataclass(frozen=True)
class Weights:
    """Tensors for a detector and what is known about where they come from."""

    tensors: dict[str, Tensor]  # in the detector's names
    left: dict[str, str] = field(default_factory=dict)  # the file's other keys -> why they stay behind
    reach: tuple[str, ...] = ()  # the parts that were pretrained: backbone, neck, head
    source: str = "scratch"  # for people: file, step, network
    detector: str = ""  # the detector that was pretrained, if known
    step: int = 0  # updates of the pretraining
    remedy: str = ""  # what to do if they do not fit; "": by `detector`
    pixels: tuple[Sequence[float], Sequence[float]] | None = None  # mean and std of their input, if other than ours


def checkpoint_file(path: str | Path) -> Path:
    """The file itself, or of a run folder a pretraining's newest checkpoint or a finished transfer's detector.

    Raises BookError when there is none.
    """
    require(path != "", "init is empty: give a pretraining's run folder, a checkpoint, or init=scratch")
    path = locate(path)
    require(path.exists(), f"init={path} does not exist: give a checkpoint, a run folder, or init=scratch")
    if not path.is_dir():
        return path
    if (path / FINETUNED).is_file():
        return path / FINETUNED
    found = checkpoint.paths(path)
    require(bool(found), f"{path} holds no checkpoints: finish that run first, or give a checkpoint file")
    return found[-1]


def read_weights(path: str | Path, network: str = "online", layout: str = "") -> Weights:
    """Weights of one network of a checkpoint in the detector's names: a run's (see checkpoint_file), or another
    method's, in any layout of foreign.LAYOUTS, found by its keys unless `layout` names it.

    Raises BookError for an unreadable file or one of no known layout; a single unknown key is the key report's to tell.
    """
    one_of("network", network, NETWORKS)
    file = checkpoint_file(path)
    content = formats.read(file)
    if content.get("format") == checkpoint.FORMAT:
        return own_weights(content, file, network)
    found = translate(content, file, network, layout)
    checkpoint.check_numbers(found.tensors, file)
    row = found.layout
    said = [row.what, *([f"{network} network"] if len(row.networks) > 1 else []), *_input(found.pixels)]
    source = f"{file} ({'; '.join(said)})"
    read_as = f"it was read as layout {row.name!r} (soco_lib/weights/foreign.py)"
    remedy = f"{read_as}: its keys were changed, or the detector's networks are others"
    if found.pixels:
        remedy += (
            f"; a detector of the zoo has no norm in pyramid and heads: give overrides of its config ({ZOO_OVERRIDES})"
        )
    return Weights(found.tensors, found.left, found.reach, source, remedy=remedy, pixels=found.pixels)


ZOO_OVERRIDES = (
    "MODEL.FPN.NORM=, MODEL.ROI_BOX_HEAD.NORM=, MODEL.ROI_BOX_HEAD.NUM_CONV=0, MODEL.ROI_BOX_HEAD.NUM_FC=2, "
    "MODEL.ROI_MASK_HEAD.NORM="
)


def _input(pixels: tuple[Sequence[float], Sequence[float]] | None) -> list[str]:
    """What is said about weights of another input than ours."""
    if not pixels:
        return []
    (mean, std), order = pixels, "BGR" if pixels[0][0] < pixels[0][2] else "RGB"
    stride = "; strides lie in its 1x1 convolutions, which MODEL.RESNETS.STRIDE_IN_1X1=True in overrides gives"
    show = lambda numbers: ", ".join(f"{x:g}" for x in numbers)
    said = (
        f"trained on {order} images, mean {show(mean)}, std {show(std)}: the stem is converted to this detector's input"
    )
    return [said + (stride if set(std) == {1.0} else "")]


def own_weights(state: dict, file: Path, network: str) -> Weights:
    """Weights of a pretraining's checkpoint; a key that no part of SoCo owns is left behind unexplained."""
    checkpoint.check_parts(state, file, {"step": int, "config": Mapping, "model": Mapping})
    cfg = state["config"]
    known = cfg.get("alignment") in ALIGNMENTS and isinstance(cfg.get("detector"), str)
    require(known, f"{file} holds no pretraining (its config names no alignment and detector): take one that does")
    checkpoint.check_numbers(state["model"], file)
    tensors, left = {}, {}
    for key, value in state["model"].items():
        owner, _, rest = key.partition(".")
        part, _, name = rest.partition(".")
        if owner == network and part == "encoder":
            tensors[name] = value
        elif owner == "predictor":
            left[key] = "predictor"
        elif owner in NETWORKS and part in ("encoder", "projector"):
            left[key] = "projector" if owner == network else f"{owner} network"
        else:
            left[key] = ""
    source = f"{file} ({network} network, step {state['step']})"
    return Weights(tensors, left, ALIGNMENTS[cfg["alignment"]].parts, source, cfg["detector"], state["step"])


def placed(detector: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """The tensors under this detector's names: a whole ResNet lies below the FPN in an FPN detector, and a C4 detector
    keeps its res5 in the RoI head, so that a pretraining for one serves the other.
    """
    own = detector.state_dict()
    has = lambda prefix: any(key.startswith(prefix) for key in own)
    moves = {}
    if has("backbone.bottom_up."):
        moves[r"^(backbone|roi_heads)\.(?=stem\.|res\d\.\d)"] = "backbone.bottom_up."
    elif has("roi_heads.res5.") and not has("backbone.res5."):
        moves[r"^backbone\.(bottom_up\.)?(?=res5\.\d)"] = "roi_heads."
        moves[r"^backbone\.bottom_up\."] = "backbone."
    tensors = weights.tensors
    for pattern, new in moves.items():
        tensors = {re.sub(pattern, new, key): value for key, value in tensors.items()}
    if weights.pixels and hasattr(detector, "pixel_mean"):
        stems = [key for key in tensors if key.endswith(STEM)]
        tensors |= {key: _of_our_input(tensors[key], weights, detector) for key in stems}
    return tensors


def _of_our_input(stem: Tensor, weights: Weights, detector: nn.Module) -> Tensor:
    """The first convolution (O, 3, k, k) for this detector's images, equal up to rounding: zero, with which it pads, is
    the mean on both sides. Raises BookError where the means are others, which no such weights make good.
    """
    (mean, std), (our_mean, our_std) = (
        [torch.as_tensor(numbers).flatten().float() for numbers in pair]
        for pair in (weights.pixels, (detector.pixel_mean.cpu(), detector.pixel_std.cpu()))
    )
    if (mean[0] < mean[2]) != (our_mean[0] < our_mean[2]):
        stem, mean, std = stem.flip(1), mean.flip(0), std.flip(0)
    numbers = mean.tolist()
    require(
        torch.allclose(mean, our_mean, atol=0.5),
        f"{weights.source}: pixel mean {numbers} there, {our_mean.tolist()} here: override MODEL.PIXEL_MEAN={numbers}",
    )
    return stem * (our_std / std)[:, None, None]


def compare(detector: nn.Module, weights: Weights) -> KeyReport:
    """Classify every key of both sides; loads nothing and never raises for a key (see KeyReport.check)."""
    own, given = detector.state_dict(), placed(detector, weights)
    pyramids = [any(key.startswith("backbone.fpn_") for key in keys) for keys in (own, given)]
    apart = {k: label for k in given if pyramids[0] != pyramids[1] and (label := always_new(k))}
    given = {k: value for k, value in given.items() if k not in apart}
    both = own.keys() & given.keys()
    shape = lambda tensor: "x".join(map(str, tensor.shape)) or "scalar"
    others = [k for k in sorted(both) if own[k].shape != given[k].shape]
    classes = {k: OTHER_CLASSES for k in others if of_other_classes(k, given[k].shape, own[k].shape)}
    others = [k for k in others if k not in classes]
    differs = {k: f"{shape(given[k])} in the file, {shape(own[k])} in the detector" for k in others}
    homeless = {k: why_left(k, own.keys()) for k in sorted(given.keys() - both)}
    reach = weights.reach
    if any(k.startswith("roi_heads.res5.") for k in weights.tensors.keys() - given.keys()):
        reach = ("backbone",)  # a C4 detector's head is here the last stage of a backbone, whose neck and head are new
    return KeyReport(
        source=weights.source,
        reach=reach,
        loaded=tuple(sorted(both - differs.keys() - classes.keys())),
        new={k: why_new(k, reach, given.keys()) for k in sorted(own.keys() - both)} | classes,
        left_behind={**homeless, **classes, **apart, **dict(sorted(weights.left.items()))},
        mismatched=differs,
    )


def load_into(detector: nn.Module, weights: Weights, name: str = "") -> KeyReport:
    """Copy `weights` into `detector`, called `name`. Raises BookError for an unexplained key before touching it."""
    report = compare(detector, weights)
    report.check(remedy(weights, name))
    given = placed(detector, weights)
    detector.load_state_dict({k: given[k] for k in report.loaded}, strict=False)
    return report


def remedy(weights: Weights, name: str) -> str:
    """What to do about weights that do not fit the detector called `name`."""
    if weights.remedy:
        return weights.remedy
    pretrained = f"it was pretrained with detector={weights.detector!r}"
    if weights.detector and name and weights.detector != name:
        return f"{pretrained}, not {name!r}: use that detector or pretrain this one"
    differ = "the file's keys were changed, or its settings (overrides, alignment) differ"
    return f"{differ}: use the detector as it was pretrained"
