"""What a detector gets wrong, by kind: the six kinds of TIDE (Bolya et al., ECCV 2020), counted and weighed by AP50.

A detection that COCO's matching at IoU 0.5 leaves without an object is one error; "own" and "other" are classes:

    localisation    0.1 <= IoU < 0.5 with an object of its own class      oracle: moved onto the object
    classification  IoU >= 0.5 with an object of another class            oracle: given the object's class
    duplicate       IoU >= 0.5 with an own object that is already found   oracle: removed
    background      IoU <= 0.1 with every object                          oracle: removed
    both            what remains: other class and badly placed            oracle: removed
    missed          an object that no localisation or classification oracle gives a detection    oracle: removed

The tests go down this list. An oracle makes a detection right only if its object is still free and no surer detection
of the same kind claims it; else it removes the detection. AP50 is COCOeval's (101 recall points, at most 100 detections
a class and image), also for VOC and LVIS data, whose own evaluators count differently. Crowd regions are no objects,
and a detection that COCOeval lets pass on one is no error. TIDE's own package, tidecv, is not used: it installs
opencv-python, which shadows the book's OpenCV, and 1.0.1 is its last release.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from soco_lib.fields import require

KINDS = ("localisation", "classification", "duplicate", "background", "both", "missed")
MATCH, BACKGROUND = 0.5, 0.1  # IoU
#: Larger sets are sampled: pycocotools walks over every (image, class) pair, seven times (COCO val2017 has 400,000).
PAIRS = 1_000_000


@dataclass(frozen=True)
class ErrorKinds:
    """Errors of one detector on one test set."""

    ap50: float  # percent, on the images looked at
    images: int  # looked at; fewer than the test set's where that is very large
    objects: int  # in them, without crowds
    detections: int  # that were judged, matched ones included
    counts: dict[str, int]  # kind -> errors
    gains: dict[str, float]  # kind -> points of AP50 that its oracle alone would add

    def to_dict(self) -> dict:
        """JSON-ready values."""
        return asdict(self)

    def reading(self) -> str:
        """One sentence: what would help most, and what is commonest."""
        if not sum(self.counts.values()):
            return f"AP50 {self.ap50:.1f}: no detection is wrong and no object is missed."
        gain, count = max(self.gains, key=self.gains.get), max(self.counts, key=self.counts.get)
        return (
            f"AP50 {self.ap50:.1f}: repairing every {gain} error alone would add {self.gains[gain]:.1f} points, the "
            f"most; the commonest kind is {count} ({self.counts[count]})."
        )


# --- COCO dictionaries ------------------------------------------------------------------------------------------------


def _index(truth: dict, boxes: list[dict]) -> COCO:
    """pycocotools' index of boxes on the images of `truth`; ids are positions + 1 (COCOeval takes 0 for "no match")."""
    made, names = COCO(), ("image_id", "category_id", "bbox")
    annotations = [
        {name: b[name] for name in names}
        | {"id": i, "score": b.get("score"), "area": b["bbox"][2] * b["bbox"][3], "iscrowd": int(b.get("iscrowd", 0))}
        for i, b in enumerate(boxes, start=1)
    ]
    made.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}
    made.createIndex()
    return made


def _judge(truth: dict, detections: list[dict]) -> tuple[float, list[dict]]:
    """AP50 in percent (0 without objects) and COCOeval's records of all (image, class) pairs that hold anything."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        judge = COCOeval(_index(truth, truth["annotations"]), _index(truth, detections), "bbox")
        judge.params.iouThrs, judge.params.maxDets = np.array([MATCH]), [100]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"]
    precision = precision[precision > -1]  # classes without objects
    return 100 * float(precision.mean()) if precision.size else 0.0, [record for record in judge.evalImgs if record]


def _restrict(truth: dict, detections: list[dict], pairs: int) -> tuple[dict, list[dict]]:
    """At most `pairs` / classes of the images, with their objects and the detections that can be judged.

    In LVIS an image is labelled for some classes only, and for some of them not every object: what is not labelled
    completely is neither right nor wrong and is left out.
    """
    images, most = truth["images"], max(1, pairs // len(truth["categories"]))
    if len(images) > most:
        images = [images[i] for i in sorted(np.random.default_rng(0).choice(len(images), most, replace=False))]
    kept = {image["id"] for image in images}
    objects = [a for a in truth["annotations"] if a["image_id"] in kept]
    unknown = {d["image_id"] for d in detections} - {image["id"] for image in truth["images"]}
    count, some = len(unknown), sorted(unknown)[:3]
    require(
        not count, f"{count} images of the detections are not in the test data, e.g. {some}: give their own test set"
    )
    detections = [d for d in detections if d["image_id"] in kept]
    if any("neg_category_ids" in image for image in images):
        labelled = {(image["id"], c) for image in images for c in image.get("neg_category_ids", ())}
        labelled |= {(a["image_id"], a["category_id"]) for a in objects}
        labelled -= {(image["id"], c) for image in images for c in image.get("not_exhaustive_category_ids", ())}
        complete = lambda items: [x for x in items if (x["image_id"], x["category_id"]) in labelled]
        objects, detections = complete(objects), complete(detections)
    return truth | {"images": images, "annotations": objects}, detections


# --- kinds ------------------------------------------------------------------------------------------------------------


def _kind(iou: np.ndarray, same: np.ndarray) -> tuple[str, int]:
    """Kind of an unmatched detection and the object it claims (-1: none).

    iou (N,) with the image's N objects; same (N,): they are of its class.
    """
    own, other = np.where(same, iou, 0.0), np.where(same, 0.0, iou)
    if not len(iou):
        return "background", -1
    if BACKGROUND <= own.max() < MATCH:
        return "localisation", int(own.argmax())
    if other.max() >= MATCH:
        return "classification", int(other.argmax())
    if own.max() >= MATCH:
        return "duplicate", -1
    return ("background" if iou.max() <= BACKGROUND else "both"), -1


def _wrong(truth: dict, detections: list[dict], records: list[dict]) -> tuple[dict[int, tuple[str, int]], set[int]]:
    """Wrong detections, position -> (kind, position of the object claimed or -1); positions of the objects found."""
    found, unmatched = set(), defaultdict(list)
    for record in records:
        found |= {int(i) - 1 for i, m in zip(record["gtIds"], record["gtMatches"][0]) if m}
        for i, match, ignored in zip(record["dtIds"], record["dtMatches"][0], record["dtIgnore"][0]):
            if not match and not ignored:
                unmatched[record["image_id"]].append(i - 1)
    objects = defaultdict(list)
    for i, item in enumerate(truth["annotations"]):
        if not item.get("iscrowd"):
            objects[item["image_id"]].append(i)
    wrong = {}
    for image, rows in unmatched.items():
        there = objects[image]
        classes = np.array([truth["annotations"][i]["category_id"] for i in there])
        boxes = [np.array([items[i]["bbox"] for i in which], np.float64).reshape(-1, 4)
                 for items, which in ((detections, rows), (truth["annotations"], there))]  # fmt: skip
        ious = mask.iou(*boxes, [0] * len(there)) if there else np.zeros((len(rows), 0))
        for row, iou in zip(rows, ious):
            kind, target = _kind(iou, classes == detections[row]["category_id"])
            wrong[row] = kind, there[target] if target >= 0 else -1
    return wrong, found


def _repair(kind: str, truth: dict, detections: list[dict], wrong: dict, winners: dict) -> tuple[dict, list[dict]]:
    """Objects and detections after the oracle of one kind; winners: kind -> {object: the detection it goes to}."""
    if kind == "missed":
        found = [a for i, a in enumerate(truth["annotations"]) if i not in winners["missed"]]
        return truth | {"annotations": found}, detections
    repaired = []
    for i, item in enumerate(detections):
        its_kind, target = wrong.get(i, ("", -1))
        if its_kind != kind:
            repaired.append(item)
        elif winners[kind].get(target) == i:
            repaired.append(item | {key: truth["annotations"][target][key] for key in ("bbox", "category_id")})
    return truth, repaired


def error_kinds(truth: dict, detections: list[dict], pairs: int = PAIRS) -> ErrorKinds:
    """Errors of `detections` (COCO results: image_id, category_id, bbox x y w h, score) against a COCO dictionary.

    pairs: images x classes to look at; a larger set is sampled, always alike. Raises BookError for detections on images
    that are not in `truth`.
    """
    truth, detections = _restrict(truth, detections, pairs)
    ap50, records = _judge(truth, detections)
    wrong, winners = _errors(truth, detections, records)
    objects = sum(not a.get("iscrowd") for a in truth["annotations"])
    counts = dict.fromkeys(KINDS, 0) | Counter(kind for kind, _ in wrong.values())
    counts["missed"] = len(winners["missed"])
    repaired = lambda kind: _judge(*_repair(kind, truth, detections, wrong, winners))[0]
    gains = {kind: repaired(kind) - ap50 if counts[kind] else 0.0 for kind in KINDS}
    judged = sum(len(record["dtIds"]) for record in records)
    return ErrorKinds(ap50, len(truth["images"]), objects, judged, counts, gains)


def mistakes(truth: dict, detections: list[dict], image: int) -> tuple[list[dict], list[dict]]:
    """The wrong ones of `detections` in one image, by its id, and the objects missed there, each with its `kind`."""
    here = lambda items: [item for item in items if item["image_id"] == image]
    alone = {"images": [i for i in truth["images"] if i["id"] == image], "annotations": here(truth["annotations"])}
    alone, detections = _restrict(truth | alone, here(detections), PAIRS)
    wrong, winners = _errors(alone, detections, _judge(alone, detections)[1])
    missed = [alone["annotations"][i] | {"kind": "missed"} for i in sorted(winners["missed"])]
    return [detections[i] | {"kind": kind} for i, (kind, _) in sorted(wrong.items())], missed


def _errors(truth: dict, detections: list[dict], records: list[dict]) -> tuple[dict, dict]:
    """Wrong detections as of `_wrong`; kind -> {object: the detection its oracle goes to}, -1 where it is missed."""
    wrong, found = _wrong(truth, detections, records)
    winners: dict[str, dict[int, int]] = {kind: {} for kind in KINDS}
    for i in sorted(wrong, key=lambda i: -detections[i]["score"]):
        kind, target = wrong[i]
        if target >= 0 and target not in found:
            winners[kind].setdefault(target, i)
    objects = {i for i, a in enumerate(truth["annotations"]) if not a.get("iscrowd")}
    claimed = winners["localisation"].keys() | winners["classification"].keys()
    winners["missed"] = dict.fromkeys(objects - found - claimed, -1)
    return wrong, winners


def image_scores(truth: dict, detections: list[dict]) -> dict[int, tuple[float, float]]:
    """How well each image with objects is detected: image id -> (best F1 over all score thresholds, that threshold).

    F1, 0 to 1, is 2 found / (detections + objects) at IoU 0.5, over all classes together; a detection on a crowd region
    counts neither way. Where nothing is found the threshold is the best detection's score, or 1 without any.
    """
    kept, detections = _restrict(truth, detections, len(truth["images"]) * len(truth["categories"]))
    objects, seen = defaultdict(int), defaultdict(list)
    for record in _judge(kept, detections)[1]:
        objects[record["image_id"]] += int((record["gtIgnore"] == 0).sum())
        for score, match, ignored in zip(record["dtScores"], record["dtMatches"][0], record["dtIgnore"][0]):
            if not ignored:
                seen[record["image_id"]].append((score, match > 0))
    best = {}
    for image in (image for image, count in objects.items() if count):
        ranked = sorted(seen[image], key=lambda pair: -pair[0])
        f1 = 2 * np.cumsum([hit for _, hit in ranked]) / (np.arange(1, len(ranked) + 1) + objects[image])
        best[image] = (float(f1.max()), ranked[int(f1.argmax())][0]) if ranked else (0.0, 1.0)
    return best
