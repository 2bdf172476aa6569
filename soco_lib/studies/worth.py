"""Is it worth it on one's own data? Starts x shares of the labels x seeds, as a study that is made of arguments.

`write` checks all that it is given before anything runs, and leaves a file that `studies.read`, the runner and the
tables take like any other study.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from soco_lib import ROOT, BookError, locate
from soco_lib.config import Pretrain, plan
from soco_lib.data.proposals import ProposalConfig, propose
from soco_lib.data.sources import ImageSource, UnreadableImage, open_source
from soco_lib.data.store import ProposalStore
from soco_lib.detector import detector_config
from soco_lib.fields import one_of, require
from soco_lib.runs import machine, records
from soco_lib.runs.folder import Run, write_text
from soco_lib.runs.settings import parse_yaml
from soco_lib.studies import study as studies
from soco_lib.studies.plans import inside
from soco_lib.transfer import benchmarks
from soco_lib.transfer.benchmarks import PROFILES, Transfer
from soco_lib.transfer.detectron import DetectionData, boxes_and_masks, draw_images, open_both
from soco_lib.weights.load import compare, read_weights, remedy

from detectron2.modeling import build_model

#: Start that all others are compared with, and the one that is pretrained here.
SCRATCH, SOCO = "scratch", "soco"
#: Images of which proposals are timed for a plan.
TIMED = 8
#: At the paper's scale, for fewer images than ImageNet: at least so many updates an epoch, as long as a batch has at
#: least so many images, and the longer of the paper's two pretrainings (Sec. 4.1).
UPDATES, LEAST_BATCH, EPOCHS, IMAGENET = 32, 64, 400, 1_000_000
#: At the paper's scale, for fewer labelled images than COCO: VOC's 23 epochs (Sec. 4.2) of the whole set, within these
#: limits; a detector from scratch needs the least, COCO's 1x is the most.
VOC_EPOCHS, ITERATIONS = 23, (12_000, 90_000)


@dataclass(frozen=True)
class Asked:
    """What `make worth` is given, as text."""

    name: str
    train: str
    test: str
    images: str = ""  # needed by the start `soco`, as are the proposals
    proposals: str = ""
    fractions: str = "0.1,0.3,1"
    starts: str = f"{SCRATCH} {SOCO}"
    seeds: str = "0,1,2"
    profile: str = "toy"
    benchmark: str = "coco-fpn-1x"
    settings: str = "{}"  # fields of Pretrain, and of Transfer below `transfer`, in YAML

    @property
    def seed_list(self) -> list[int]:
        """Raises BookError for what is no list of seeds."""
        words = [word.strip() for word in self.seeds.split(",")]
        whole = all(word.isdigit() for word in words) and len({*words}) == len(words)
        require(whole, f"SEEDS={self.seeds} must be different whole numbers, as SEEDS=0,1,2")
        return [*map(int, words)]

    @property
    def shares(self) -> list[float]:
        """Ascending. Raises BookError for a share outside (0, 1] and where that of all labels is missing."""
        found = []
        for word in filter(None, map(str.strip, self.fractions.split(","))):
            try:
                found.append(float(word))
            except ValueError:
                raise BookError(f"FRACTIONS={self.fractions}: {word!r} is no number, as in 0.1,0.3,1") from None
            require(0 < found[-1] <= 1, f"FRACTIONS={self.fractions}: a share of the labels lies in (0, 1], not {word}")
        require(
            1 in found, f"FRACTIONS={self.fractions} lacks 1: scratch with all labels is what the others must reach"
        )
        require(len({*found}) == len(found), f"FRACTIONS={self.fractions}: give each share once")
        require(len(found) > 1, f"FRACTIONS={self.fractions}: give a share below 1 too, or no label could be saved")
        return sorted(found)

    def _check_run(self, word: str, run: Run) -> None:
        state, learnt = records.state_of(run), run.record["config"].get("train", "")
        require(state.word == "done", f"start {word!r} is not finished ({state.text}): finish that run first")
        known = learnt and {*benchmarks.split_sets(learnt)} & {*benchmarks.split_sets(self.train)}
        said = f"start {word!r} has learnt from all labels of TRAIN: it cannot tell what a share of them is worth"
        require(not known, f"{said}; give what it started from")

    def variants(self) -> dict[str, dict]:
        """Name of a start -> fields of its Variant. Raises BookError for a start that is not there or not known."""
        try:
            words = shlex.split(self.starts)
        except ValueError as error:
            raise BookError(f"STARTS={self.starts} cannot be taken apart ({error})") from None
        known = f"STARTS={self.starts}: give {SCRATCH}, {SOCO} (pretrained here), run folders and checkpoint files"
        require(len(words) > 1 and SCRATCH in words, f"{known}; {SCRATCH} and one other at least")
        require(len({*words}) == len(words), f"STARTS={self.starts}: give each start once")
        made = {SCRATCH: {"says": "random weights", "scratch": True}}
        for word in words:
            if word == SOCO:
                made[SOCO] = {"says": f"SoCo, pretrained on {self.images}"}
            elif word != SCRATCH:
                path = locate(word.rstrip("/"))
                require(path.exists(), f"start {word!r} is not there (looked for {path}): {known}")
                if (path / "run.json").is_file():
                    self._check_run(word, Run.read(path))
                parts = [path.name if path.is_dir() else path.stem, path.parent.name]
                name = re.sub(r"[^\w.+-]+", "-", parts[0] if parts[0] not in (*made, SOCO) else "-".join(parts[::-1]))
                require(name not in made, f"STARTS: two starts would be called {name!r}: rename one")
                made[name] = {"says": f"weights of {word}", "init": inside(path)}
        return made


# --- what is refused --------------------------------------------------------------------------------------------------


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shared(train: Iterable[str], test: Iterable[str]) -> list[str]:
    """Files of `test` whose content is that of a file of `train` too, under whatever name."""
    by_size, found = defaultdict(list), []
    for path in filter(os.path.isfile, train):
        by_size[os.path.getsize(path)].append(path)
    digests: dict[int, set[str]] = {}
    for path in filter(os.path.isfile, test):
        size = os.path.getsize(path)
        if size in by_size:
            digests[size] = digests.get(size) or {*map(_digest, by_size[size])}
            found += [path] if _digest(path) in digests[size] else []
    return found


def _check_apart(train: DetectionData, test: DetectionData) -> None:
    files = [[record["file_name"] for record in data.records] for data in (train, test)]
    both = shared(*files)
    what = "TRAIN and TEST are the same images"
    if len(both) < len(files[1]):
        what = f"{len(both)} of the {len(files[1])} images of TEST are in TRAIN too, e.g. {both and Path(both[0]).name}"
    require(not both, f"{what}: a score on images that were trained on says nothing of new ones; give others")


def _check_shares(asked: Asked, cfg: Transfer, train: DetectionData) -> None:
    """Raises BookError for a share whose draw leaves less than a batch of images with an object."""
    objects = {r["image_id"] for r in train.records if any(not a.get("iscrowd") for a in r["annotations"])}
    for share in asked.shares:
        for seed in asked.seed_list:
            drawn = draw_images(train.image_ids, share, seed) if round(share * len(train.image_ids)) else ()
            usable = len(objects.intersection(drawn))
            left = f"the share {share:g} of {len(train.image_ids)} images leaves {len(drawn)} (seed {seed})"
            require(usable > 0, f"FRACTIONS: {left}, without an object to learn: give a larger share")
            few = f"FRACTIONS: {left}, {usable} of them with an object: fewer than a batch of {cfg.batch}"
            require(usable >= cfg.batch, f"{few}; give a larger share or SET='transfer: {{batch: {max(usable, 2)}}}'")


def _check_start(name: str, init: str, cfg: Transfer, train: DetectionData) -> None:
    """Raises BookError for a checkpoint that the detector cannot start from, which its run would refuse hours later."""
    d2 = detector_config(cfg.detector, cfg.overrides)
    boxes_and_masks(d2, cfg.detector)
    d2.MODEL.DEVICE, d2.MODEL.MASK_ON = "cpu", d2.MODEL.MASK_ON and bool(train.mask_format)
    d2.MODEL.ROI_HEADS.NUM_CLASSES = d2.MODEL.RETINANET.NUM_CLASSES = len(train.classes)
    try:
        weights = read_weights(init, cfg.network)
        compare(build_model(d2), weights).check(remedy(weights, cfg.detector))
    except BookError as error:
        raise BookError(f"start {name}: {error}") from None


# --- the study --------------------------------------------------------------------------------------------------------


def paper_pretraining(images: int) -> dict:
    """Fields of a pretraining at the paper's scale on fewer images than ImageNet has: a smaller batch, more epochs."""
    if images >= IMAGENET:
        return {}
    batch = Pretrain("", "whole").batch
    while batch > LEAST_BATCH and images // batch < UPDATES:
        batch //= 2
    return {"batch": batch, "epochs": EPOCHS}


def paper_transfer(images: int) -> dict:
    """Fields of a transfer at the paper's scale for so many labelled images (the whole set)."""
    thousands = round(VOC_EPOCHS * images / Transfer("", "").batch, -3)
    return {"iterations": int(min(max(thousands, ITERATIONS[0]), ITERATIONS[1]))}


def _content(asked: Asked) -> dict:
    """The study as its file has it, without what the data decide."""
    wanted = parse_yaml(asked.settings, "SET")
    tuned = wanted.pop("transfer", {})
    require(isinstance(tuned, dict), "SET: `transfer` holds fields of the fine-tuning, as transfer: {iterations: 300}")
    one_of("BENCHMARK", asked.benchmark, benchmarks.BENCHMARKS)
    variants = asked.variants()
    pretrained = {"images": asked.images, "proposals": asked.proposals, **wanted} if SOCO in variants else {}
    unused = f"SET: {', '.join(wanted)} of a pretraining, but STARTS={asked.starts} has no {SOCO}"
    require(SOCO in variants or not wanted, f"{unused}: leave them out, or put those of fine-tuning below `transfer`")
    named = lambda share: asked.benchmark if share == 1 else f"{asked.benchmark}-{share:g}"
    return {
        "question": f"What is it worth on {asked.train} to start from {', '.join([*variants][1:])}?",
        "benchmarks": [named(share) for share in asked.shares],
        "metrics": [m for m in ("AP_bb", "AP50_bb", "AP_mk") if m in benchmarks.find(asked.benchmark).metrics],
        "baseline": SCRATCH,
        asked.profile: pretrained,
        "transfer": {asked.profile: {"train": asked.train, "test": asked.test, **tuned}},
        "variants": variants,
    }


def write(asked: Asked, path: Path, world: int = 1) -> list[str]:
    """Check the arguments and the data that they name, and write the study's file; returns lines on the images to
    pretrain on: how long their proposals take, and whether test images are among them. world: processes of a run.

    Raises BookError, in a sentence, before anything runs: for a missing TRAIN or TEST, the same images in both, an
    unknown or unfit start, a share that leaves too little to learn, a batch larger than the set of images.
    """
    form = "as coco:JSON@IMAGES, voc:ROOT@SPLIT or lvis:JSON@IMAGES"
    require(bool(asked.train.strip()), f"TRAIN= is missing: name labelled images to learn from, {form}")
    require(
        bool(asked.test.strip()), f"TEST= is missing: name labelled images to score on, others than TRAIN's, {form}"
    )
    one_of("PROFILE", asked.profile, PROFILES)
    content, seeds = _content(asked), asked.seed_list
    pretrains, tuned = SOCO in content["variants"], content["transfer"][asked.profile]
    needed = f"IMAGES= is missing: name images to pretrain on, as folder:PATH, or leave {SOCO} out of STARTS"
    require(not pretrains or bool(asked.images.strip()), needed)
    cfg = benchmarks.settings(asked.benchmark, asked.profile, **tuned)
    train, test = open_both(cfg)
    _check_apart(train, test)
    if not train.mask_format or not test.mask_format:
        content["metrics"] = [metric for metric in content["metrics"] if not metric.endswith("mk")]
    if asked.profile == "paper":
        tuned |= paper_transfer(len(train.image_ids)) | tuned
    _check_shares(asked, cfg, train)
    for name, variant in content["variants"].items():
        if "init" in variant:
            _check_start(name, variant["init"], cfg, train)
    source = open_source(asked.images) if pretrains else None
    if source and asked.profile == "paper":
        content["paper"] = paper_pretraining(len(source)) | content["paper"]
    with records.writing(path.parent):
        write_text(path, f"# `make worth`; made anew by it.\n{yaml.safe_dump(content, sort_keys=False, width=120)}")
    study = studies.read(str(path))
    if source is None:
        return []
    plan(study.pretrain(study.variant(SOCO), asked.profile, seeds[0]), len(source), world)
    return [line for line in (_proposals(asked, source), _seen(source, test)) if line]


def _seen(source: ImageSource, test: DetectionData) -> str:
    """A line on test images among those to pretrain on, "" for none."""
    known = {os.path.join(source.root.resolve(), key) for key in source.keys} if source.root.is_dir() else set()
    count = sum(os.path.realpath(record["file_name"]) in known for record in test.records)
    said = f"{count} of {len(test.image_ids)} test images are among IMAGES: pretraining sees them, without labels"
    return said if count else ""


def _proposals(asked: Asked, source: ImageSource) -> str:
    """How long the proposals of IMAGES will take on this machine's cores, from a few that are made here."""
    there = (locate(asked.proposals) / "store.json").is_file()
    if there:
        ProposalStore.open(asked.proposals).check(source)
    if there or asked.proposals == "whole":
        return f"proposals: {asked.proposals}, which are there"
    took, config = [], ProposalConfig()
    for index in range(0, len(source), -(-len(source) // TIMED)):
        try:
            image = source.load(index)
        except UnreadableImage:
            continue
        began = time.perf_counter()
        propose(image, source.keys[index], config)
        took.append(time.perf_counter() - began)
    cores = machine.cores()
    minutes = len(source) * sum(took) / max(len(took), 1) / cores / 60
    return (
        f"proposals: of {len(source)} images, about {minutes:.1f} minutes on {cores} cores, from {len(took)} made here"
    )


def folder_of(asked: Asked, results: Path) -> Path:
    """Where the study's file and page go. Raises BookError for a name that no folder can have."""
    allowed = f"RUN={asked.name} is no name: use letters, digits and _ - . +"
    require(bool(re.fullmatch(r"\w[\w.+-]*", asked.name)), allowed)
    return ROOT / results / f"worth-{asked.name}-{asked.profile}"
