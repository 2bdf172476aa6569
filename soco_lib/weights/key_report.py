"""What becomes of every key of a detector and of a file: loaded, new, left behind or of another shape."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from soco_lib import BookError
from soco_lib.fields import require
from soco_lib.runs.folder import read_json

#: Parts that a pretraining may have trained. If it reached them, all their keys must come from it.
PRETRAINED = {"neck": r"backbone\.(fpn_(lateral|output)|simfp_)\d\.", "head": r"roi_heads\.(box_head|res5)\.",
              "regions": r"proposal_generator\.rpn_head\."}  # fmt: skip
#: Parts that no object-level pretraining trains: new in the detector, unless a trained detector brings them.
ALWAYS_NEW = {
    "region proposals": r"proposal_generator\.|anchor_generator\.",
    "predictor": r"roi_heads\.box_predictor\.|head\.",  # `head.` is RetinaNet's and FCOS's
    "mask head": r"roi_heads\.mask_(head|pooler)\.",
    "keypoint head": r"roi_heads\.keypoint_(head|pooler)\.",
    "semantic head": r"sem_seg_head\.",
    "extra levels": r"backbone\.top_block\.",
    "norm after res5": r"roi_heads\.res5\.norm\.",
    "input statistics": r"pixel_(mean|std)$",
}
#: Groups of the report, in the order of the data flow.
GROUPS = {
    "backbone stem": r"backbone\.(bottom_up\.)?stem\.",
    **{f"backbone res{i}": rf"(backbone\.(bottom_up\.)?|roi_heads\.)res{i}\." for i in range(2, 6)},
    "fpn": r"backbone\.(fpn_|simfp_|top_block)",
    "backbone": r"backbone\.",  # of another kind
    "region proposals": ALWAYS_NEW["region proposals"],
    "box head": r"roi_heads\.box_head\.",
    "predictor": ALWAYS_NEW["predictor"],
    **{name: ALWAYS_NEW[name] for name in ("mask head", "keypoint head", "semantic head")},
}
#: Layers with rows for each class: of another number of classes they are new.
CLASS_LAYERS = r"roi_heads\.(box_predictor\.(\d\.)?(cls_score|bbox_pred)|mask_head\.predictor)\.|head\.cls_score\."
OTHER_CLASSES = "class layers of another number of classes"
COUNTER = ".num_batches_tracked"  # of a batch norm: files older than torch 0.4.1 have none, frozen batch norms neither
ELSEWHERE = "(not in this detector)"
CLASSES = ("loaded", "new", "left_behind", "mismatched")


def _first_match(name: str, patterns: dict[str, str], default: str) -> str:
    return next((label for label, pattern in patterns.items() if re.match(pattern, name)), default)


def _no_counters(keys: Iterable[str]) -> bool:
    return not any(key.endswith(COUNTER) for key in keys)


def _without(name: str, keys: Collection[str], parts: dict[str, str] = PRETRAINED) -> str:
    """The one of `parts` that a key belongs to, if none of `keys` is of the same module; else ''."""
    for part, pattern in parts.items():
        if (module := re.match(pattern, name)) and not any(key.startswith(module.group()) for key in keys):
            return part
    return ""


def why_new(name: str, reach: tuple[str, ...], given: Collection[str]) -> str:
    """Class of a detector's key without weights; '' if the file should have had it.

    It should if its pretraining reached that part, or if it gives other keys (`given`, all of them) of the same module.
    """
    if not reach:
        return "not pretrained"
    if "regions" in reach and _without(name, given) == "regions":
        return ""
    if found := _without(name, given, ALWAYS_NEW):
        return found
    if name.endswith(COUNTER) and _no_counters(given):
        return "batch counters (the file has none)"
    part = _without(name, given)
    return f"{part} (not pretrained)" if part and part not in reach else ""


def why_left(name: str, own: Collection[str]) -> str:
    """Class of an encoder's key without place; '' where it should have one: the detector (keys `own`) has its part."""
    if name.endswith(COUNTER) and _no_counters(own):
        return f"batch counters {ELSEWHERE}"
    part = _without(name, own, PRETRAINED | ALWAYS_NEW)
    return f"{part} {ELSEWHERE}" if part else ""


def always_new(name: str) -> str:
    """Class of a key that a detector of another kind (pyramid or none) cannot take from a trained one; else ''."""
    part = _first_match(name, ALWAYS_NEW, "")
    return f"{part} {ELSEWHERE}" if part else ""


def of_other_classes(name: str, given: Sequence[int], own: Sequence[int]) -> bool:
    """Whether shapes of a layer, in the file and in the detector, differ in the number of classes alone."""
    return bool(re.match(CLASS_LAYERS, name)) and tuple(given[1:]) == tuple(own[1:])


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
        """Keys outside every expected class, which stop a run."""
        return {
            "new": [k for k, why in self.new.items() if not why],
            "left_behind": [k for k, why in self.left_behind.items() if not why],
            "mismatched": list(self.mismatched),
        }

    def check(self, remedy: str = "load a checkpoint of the same detector") -> None:
        """Raise BookError naming the unexplained keys, if there are any."""
        parts, bad = [], self.unexplained
        for keys, what in (
            ([f"{key} ({shapes})" for key, shapes in self.mismatched.items()], "of another shape"),
            (bad["new"], "of the detector without weights"),
            (bad["left_behind"], "of the file without a place in the detector"),
        ):
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            if keys:
                parts.append(f"{len(keys)} key{'s' * (len(keys) > 1)} {what}: {', '.join(keys[:3])}{more}")
        require(not parts, f"{self.source} does not fit: {'; '.join(parts)}: {remedy}")

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
        try:
            values = read_json(path)["keys"]
            return cls(**values | {name: tuple(values[name]) for name in ("reach", "loaded")})
        except (KeyError, TypeError):
            raise BookError(f"{path} is no key report: delete its run and run again") from None

    def frame(self):
        """pandas: one row a group of modules, one column a class, counts of keys."""
        import pandas as pd  # here, because training needs none

        counts = {label: Counter() for label in [*GROUPS, "pretraining only", "other"]}
        for name in CLASSES:
            for key in getattr(self, name):
                why = self.left_behind.get(key, "") if name == "left_behind" else ""
                only = bool(why) and not why.endswith(ELSEWHERE)
                counts["pretraining only" if only else _first_match(key, GROUPS, "other")][name] += 1
        rows = {label: [count[name] for name in CLASSES] for label, count in counts.items() if count}
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(CLASSES)).rename_axis("part")

    def summary(self) -> str:
        """One line with the counts of each class."""
        classes = lambda keys: ", ".join(sorted(set(keys.values()) - {""}))
        if not self.reach:
            return f"{self.source}: all {len(self.new)} keys of the detector are new"
        return (
            f"{self.source}: {len(self.loaded)} keys loaded ({', '.join(self.reach)}), "
            f"{len(self.new)} new ({classes(self.new)}), {len(self.left_behind)} left behind "
            f"({classes(self.left_behind) or 'none'}), {len(self.mismatched)} of another shape"
        )
