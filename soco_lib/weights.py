"""Pretrained weights into a detector, with every key accounted for; and out again as plain Detectron2 files.

`python -m soco_lib.weights export CHECKPOINT OUT.pth [--network target]`

The encoder's parameters already bear the detector's names (design.md 1), so loading is taking a subset of a state dict. A key is
loaded, new in the detector, left behind in the file, or an error: there is no fifth case and nothing is dropped unseen.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from soco_lib import BookError, checkpoint, locate
from soco_lib.config import one_of, require
from soco_lib.results import read_json

NETWORKS = ("online", "target")
#: What a pretraining trained of the detector, by its `alignment` (Table 4).
REACH = {"whole": ("backbone",), "c5": ("backbone",), "neck": ("backbone", "neck"), "head": ("backbone", "neck", "head")}
#: Parts that a pretraining may have trained. If it reached them, all their keys must come from it.
PRETRAINED = {"neck": r"backbone\.fpn_(lateral|output)\d\.", "head": r"roi_heads\.(box_head|res5)\."}
#: Parts that no object-level pretraining trains: always new in the detector.
ALWAYS_NEW = {
    "region proposals": r"proposal_generator\.|anchor_generator\.",
    "predictor": r"roi_heads\.box_predictor\.|head\.",  # `head.` is RetinaNet's and FCOS's
    "mask head": r"roi_heads\.mask_(head|pooler)\.",
    "extra levels": r"backbone\.top_block\.",
    "norm after res5": r"roi_heads\.res5\.norm\.",
    "input statistics": r"pixel_(mean|std)$",
}
#: Groups of the report, in the order of the data flow.
GROUPS = {
    "backbone stem": r"backbone\.(bottom_up\.)?stem\.",
    **{f"backbone res{i}": rf"(backbone\.(bottom_up\.)?|roi_heads\.)res{i}\." for i in range(2, 6)},
    "fpn": r"backbone\.(fpn_|top_block)",
    "region proposals": ALWAYS_NEW["region proposals"],
    "box head": r"roi_heads\.box_head\.",
    "predictor": ALWAYS_NEW["predictor"],
    "mask head": ALWAYS_NEW["mask head"],
}
CLASSES = ("loaded", "new", "left_behind", "mismatched")


def _first_match(name: str, patterns: dict[str, str], default: str) -> str:
    return next((label for label, pattern in patterns.items() if re.match(pattern, name)), default)


@dataclass(frozen=True)
class Weights:
    """Tensors for a detector and what is known about where they come from."""

    tensors: dict[str, Tensor]  # in the detector's names
    left: dict[str, str] = field(default_factory=dict)  # the file's other keys -> why they stay behind
    reach: tuple[str, ...] = ()  # the parts that were pretrained: backbone, neck, head
    source: str = "scratch"  # for people: file, step, network
    detector: str = ""  # the detector that was pretrained, if known
    step: int = 0  # updates of the pretraining


@dataclass(frozen=True)
class KeyReport:
    """Where every key of a detector comes from and where every key of a file goes. Names are sorted; see `check`."""

    source: str
    reach: tuple[str, ...]
    loaded: tuple[str, ...]
    new: dict[str, str]  # key of the detector without weights -> class; "" is unexpected
    left_behind: dict[str, str]  # key of the file without place -> class; "" is unexpected
    mismatched: dict[str, str]  # key of both -> "shape in the file, shape in the detector"

    @property
    def unexplained(self) -> dict[str, list[str]]:
        """Keys outside every expected class: those that stop a run."""
        return {
            "new": [k for k, why in self.new.items() if not why],
            "left_behind": [k for k, why in self.left_behind.items() if not why],
            "mismatched": list(self.mismatched),
        }

    def check(self, remedy: str = "load a checkpoint of the same detector") -> None:
        """Raise BookError naming the unexplained keys, if there are any."""
        texts = {
            "mismatched": "{} of another shape",
            "new": "{} of the detector without weights",
            "left_behind": "{} of the file without a place in the detector",
        }
        bad = {name: keys for name, keys in self.unexplained.items() if keys}
        parts = []
        for name, text in texts.items():
            if keys := bad.get(name):
                shown = [f"{k} ({self.mismatched[k]})" if name == "mismatched" else k for k in keys[:3]]
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                parts.append(f"{text.format(f'{len(keys)} key' + 's' * (len(keys) > 1))}: {', '.join(shown)}{more}")
        require(not bad, f"{self.source} does not fit: {'; '.join(parts)}: {remedy}")

    def to_dict(self) -> dict:
        """JSON: summary and counts, and under "keys" every name: what `read` reads."""
        return {
            "summary": self.summary(),
            "counts": {name: len(getattr(self, name)) for name in CLASSES},
            "unexplained": self.unexplained,
            "keys": asdict(self),
        }

    @classmethod
    def read(cls, path: Path) -> KeyReport:
        """The report that a run saved (to_dict as JSON)."""
        values = read_json(path)["keys"]
        values |= {name: tuple(values[name]) for name in ("reach", "loaded")}
        return cls(**values)

    def frame(self):
        """pandas: one row a group of modules, one column a class, counts of keys."""
        import pandas as pd  # here, because training needs none

        counts = {label: Counter() for label in [*GROUPS, "pretraining only", "other"]}
        for name in CLASSES:
            for key in getattr(self, name):
                outside = "pretraining only" if name == "left_behind" else "other"
                counts[_first_match(key, GROUPS, outside)][name] += 1
        rows = {label: [count[name] for name in CLASSES] for label, count in counts.items() if count}
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(CLASSES)).rename_axis("part")

    def summary(self) -> str:
        """One line with the counts of each class."""
        classes = lambda keys: ", ".join(sorted(set(keys.values()) - {""}))  # noqa: E731
        if not self.reach:
            return f"{self.source}: all {len(self.new)} keys of the detector are new"
        return (
            f"{self.source}: {len(self.loaded)} keys loaded ({', '.join(self.reach)}), "
            f"{len(self.new)} new ({classes(self.new)}), {len(self.left_behind)} left behind "
            f"({classes(self.left_behind) or 'none'}), {len(self.mismatched)} of another shape"
        )


# --- in ---------------------------------------------------------------------------------------------------------------


def checkpoint_file(path: str | Path) -> Path:
    """The file itself, or the newest checkpoint of a run folder. Raises BookError when there is none."""
    path = locate(path)
    require(path.exists(), f"init={path} does not exist: give a checkpoint, a run folder, or init=scratch")
    if not path.is_dir():
        return path
    found = checkpoint.paths(path)
    require(bool(found), f"{path} holds no checkpoints: finish that pretraining first, or give a checkpoint file")
    return found[-1]


def read_weights(path: str | Path, network: str = "online") -> Weights:
    """Weights of one network of a pretraining checkpoint (or of a run folder's newest) in the detector's names.

    Raises BookError for an unreadable or foreign file and for a key that no part of SoCo owns.
    """
    one_of("network", network, NETWORKS)
    file = checkpoint_file(path)
    state = checkpoint.read(file)
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
    cfg = state["config"]
    source = f"{file} ({network} network, step {state['step']})"
    return Weights(tensors, left, REACH[cfg["alignment"]], source, cfg["detector"], state["step"])


def encoder_weights(path: str | Path, network: str = "online") -> dict[str, Tensor]:
    """`read_weights(...).tensors`: detector's name -> tensor."""
    return read_weights(path, network).tensors


def _why_new(name: str, reach: tuple[str, ...]) -> str:
    """Class of a detector's key without weights; '' if a pretraining that reached so far should have had it."""
    if not reach:
        return "not pretrained"
    not_reached = {f"{part} (not pretrained)": pattern for part, pattern in PRETRAINED.items() if part not in reach}
    return _first_match(name, ALWAYS_NEW | not_reached, "")


def _why_left(name: str, detector: set[str]) -> str:
    """Class of an encoder's key without a place; '' if the detector has that part, so that the key should have one."""
    for part, pattern in PRETRAINED.items():
        level = re.match(pattern, name)
        if level and not any(key.startswith(level.group()) for key in detector):
            return f"{part} (not in this detector)"
    return ""


def placed(detector: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """The tensors under this detector's names: a C4 detector keeps in its RoI head the res5 that a whole ResNet ends with."""
    own = detector.state_dict()
    if any(key.startswith("backbone.res5.") for key in own) or not any(key.startswith("roi_heads.res5.") for key in own):
        return weights.tensors
    return {re.sub(r"^backbone\.res5\.", "roi_heads.res5.", key): value for key, value in weights.tensors.items()}


def compare(detector: nn.Module, weights: Weights) -> KeyReport:
    """Classify every key of both sides; loads nothing and never raises for a key (see KeyReport.check)."""
    own, given = detector.state_dict(), placed(detector, weights)
    both = own.keys() & given.keys()
    shape = lambda tensor: "x".join(map(str, tensor.shape)) or "scalar"  # noqa: E731
    differs = {k: f"{shape(given[k])} in the file, {shape(own[k])} in the detector"
               for k in sorted(both) if own[k].shape != given[k].shape}  # fmt: skip
    homeless = {k: _why_left(k, set(own)) for k in sorted(given.keys() - both)}
    return KeyReport(
        source=weights.source,
        reach=weights.reach,
        loaded=tuple(sorted(both - differs.keys())),
        new={k: _why_new(k, weights.reach) for k in sorted(own.keys() - both)},
        left_behind={**homeless, **dict(sorted(weights.left.items()))},
        mismatched=differs,
    )


def load_into(detector: nn.Module, weights: Weights, name: str = "") -> KeyReport:
    """Copy `weights` into `detector` (called `name` in messages). Raises BookError before touching it if a key is unexplained."""
    report = compare(detector, weights)
    report.check(remedy(weights, name))
    given = placed(detector, weights)
    detector.load_state_dict({k: given[k] for k in report.loaded}, strict=False)
    return report


def remedy(weights: Weights, name: str) -> str:
    """What to do about weights that do not fit the detector called `name`."""
    if weights.detector and name and weights.detector != name:
        return f"it was pretrained with detector={weights.detector!r}, not {name!r}: use that detector or pretrain this one"
    return "the file's keys were changed, or its settings (overrides, alignment) differ: use the detector as it was pretrained"


# --- out --------------------------------------------------------------------------------------------------------------


def export(path: str | Path, out: str | Path, network: str = "online") -> Path:
    """Write the encoder's weights as a file that plain Detectron2 reads as MODEL.WEIGHTS; returns its path."""
    weights = read_weights(path, network)
    out = Path(out).expanduser()
    require(out.suffix == ".pth", f"out={out} must end in .pth: Detectron2 tells formats by the ending")
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights.tensors, "__author__": "soco-book", "matching_heuristics": False}, out)
    return out


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command = parser.add_subparsers(required=True, metavar="export").add_parser("export", help="write a Detectron2 file")
    command.add_argument("checkpoint", help="a checkpoint or the run folder of a pretraining")
    command.add_argument("out", help="the .pth file to write")
    command.add_argument("--network", default="online", help="online (default) or target")
    given = parser.parse_args(arguments)
    try:
        print(f"wrote {export(given.checkpoint, given.out, given.network)}: set MODEL.WEIGHTS to it")
    except BookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
