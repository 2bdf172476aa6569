"""Pretrained weights into a detector, ours and other methods', with every key accounted for.

The encoder's parameters already bear the detector's names, so that loading is taking a subset of a state dict. A key is
loaded, new in the detector, left behind in the file, or an error; none is dropped unseen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from soco_lib import locate
from soco_lib.config import ALIGNMENTS
from soco_lib.fields import one_of, require
from soco_lib.runs import checkpoint
from soco_lib.weights import formats
from soco_lib.weights.foreign import translate
from soco_lib.weights.key_report import KeyReport, why_left, why_new

NETWORKS = ("online", "target")


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


def checkpoint_file(path: str | Path) -> Path:
    """The file itself, or the newest checkpoint of a run folder. Raises BookError when there is none."""
    path = locate(path)
    require(path.exists(), f"init={path} does not exist: give a checkpoint, a run folder, or init=scratch")
    if not path.is_dir():
        return path
    found = checkpoint.paths(path)
    require(bool(found), f"{path} holds no checkpoints: finish that pretraining first, or give a checkpoint file")
    return found[-1]


def read_weights(path: str | Path, network: str = "online", layout: str = "") -> Weights:
    """Weights of one network of a checkpoint in the detector's names: a pretraining's (or its run folder's newest), or
    another method's, in any layout of foreign.LAYOUTS, found by its keys unless `layout` names it.

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
    source = f"{file} ({row.what}{f', {network} network' if len(row.networks) > 1 else ''})"
    read_as = f"it was read as layout {row.name!r} (soco_lib/weights/foreign.py)"
    remedy = f"{read_as}: its keys were changed, or the detector's networks are others"
    return Weights(found.tensors, found.left, found.reach, source, remedy=remedy)


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
        moves[r"^(backbone|roi_heads)\.(?=(stem|res\d)\.)"] = "backbone.bottom_up."
    elif has("roi_heads.res5.") and not has("backbone.res5."):
        moves[r"^backbone\.(bottom_up\.)?(?=res5\.)"] = "roi_heads."
        moves[r"^backbone\.bottom_up\."] = "backbone."
    tensors = weights.tensors
    for pattern, new in moves.items():
        tensors = {re.sub(pattern, new, key): value for key, value in tensors.items()}
    return tensors


def compare(detector: nn.Module, weights: Weights) -> KeyReport:
    """Classify every key of both sides; loads nothing and never raises for a key (see KeyReport.check)."""
    own, given = detector.state_dict(), placed(detector, weights)
    both = own.keys() & given.keys()
    shape = lambda tensor: "x".join(map(str, tensor.shape)) or "scalar"
    others = [k for k in sorted(both) if own[k].shape != given[k].shape]
    differs = {k: f"{shape(given[k])} in the file, {shape(own[k])} in the detector" for k in others}
    homeless = {k: why_left(k, own.keys()) for k in sorted(given.keys() - both)}
    reach = weights.reach
    if any(k.startswith("roi_heads.res5.") for k in weights.tensors.keys() - given.keys()):
        reach = ("backbone",)  # a C4 detector's head is here the last stage of a backbone, whose neck and head are new
    return KeyReport(
        source=weights.source,
        reach=reach,
        loaded=tuple(sorted(both - differs.keys())),
        new={k: why_new(k, reach, given.keys()) for k in sorted(own.keys() - both)},
        left_behind={**homeless, **dict(sorted(weights.left.items()))},
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
