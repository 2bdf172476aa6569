"""What a study is: one question, variants of one experiment, the benchmarks that score them. A YAML file each in
notebooks/studies.

`paper` and `toy` of a file are fields of config.Pretrain on top of notebooks/params/pretrain-<profile>.yaml, a
variant's on top of these; `transfer` holds fields of benchmarks.Transfer in the same way, on top of the benchmark's
own.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from soco_lib import ROOT, BookError, locate
from soco_lib.config import Pretrain
from soco_lib.data.proposals import ProposalConfig
from soco_lib.fields import from_dict, identity, one_of, require
from soco_lib.runs.settings import Loader, load
from soco_lib.studies.paper import paper_value
from soco_lib.transfer import benchmarks
from soco_lib.transfer.benchmarks import PROFILES, Transfer

FOLDER = ROOT / "notebooks" / "studies"
#: Arguments of write_scenes that a study may give.
SCENES = ("train", "val", "seed", "most", "smallest")
#: Fields of an experiment that the runner gives, so that no study may.
GIVEN = ("seed", "profile", "init", "benchmark")


@dataclass(frozen=True)
class ImageList:
    """A list file that is drawn from other sources when it is missing (Table 9's data)."""

    of: tuple[str, ...]  # sources, see sources.open_source
    images: int  # drawn without replacement; 0: all
    seed: int = 0
    known: int = 0  # how many that is, for a plan where the sources are not there


@dataclass(frozen=True)
class Variant:
    """One row of a study's table."""

    name: str
    says: str = ""  # one line
    row: str = ""  # of the paper's table; "": none
    epoch: int = 0  # of that row; 0: it has one or none
    only: tuple[str, ...] = ()  # benchmarks for which that row is this variant's; empty: all that have such a row
    scratch: bool = False  # random weights: nothing is pretrained, and the fields below are empty
    init: str = ""  # a run folder or checkpoint file that is there: nothing is pretrained either
    paper: dict = field(default_factory=dict)  # fields that differ from the study's at PROFILE=paper
    toy: dict = field(default_factory=dict)  # and at PROFILE=toy


@dataclass(frozen=True)
class Study:
    """Checked by `read`, which makes it."""

    name: str
    question: str
    benchmarks: tuple[str, ...]  # that score every variant
    metrics: tuple[str, ...]  # columns, the first one is read aloud
    baseline: str  # the variant that the others are compared with
    variants: tuple[Variant, ...]
    table: str = ""  # of the paper; "": each benchmark's own
    paper: dict = field(default_factory=dict)
    toy: dict = field(default_factory=dict)
    transfer: dict = field(default_factory=dict)  # paper and toy -> fields of Transfer
    stores: dict = field(default_factory=dict)  # store -> fields of ProposalConfig, or {imported: what made its boxes}
    lists: dict = field(default_factory=dict)  # list file -> fields of ImageList
    scenes: dict = field(default_factory=dict)  # folder -> arguments of scenes.write_scenes

    @property
    def tables(self) -> str:
        """The paper's tables that it repeats, as text; "" where it names none and no variant has a row there."""
        own = dict.fromkeys(benchmarks.find(name).table for name in self.benchmarks)
        return self.table or (", ".join(filter(None, own)) if any(v.row for v in self.variants) else "")

    def variant(self, name: str) -> Variant:
        """Raises BookError with the nearest known name."""
        one_of(f"variant of {self.name}", name, [v.name for v in self.variants])
        return next(v for v in self.variants if v.name == name)

    def pretrain(self, variant: Variant, profile: str, seed: int = 0) -> Pretrain | None:
        """The variant's pretraining, None where nothing is pretrained. Its label names what differs from the parameter
        file, in the order of Pretrain's fields: two studies that ask for the same experiment ask for the same
        configuration.
        """
        if variant.scratch or variant.init:
            return None
        changes = {**getattr(self, profile), **getattr(variant, profile), "seed": seed}
        ordered = {f.name: changes[f.name] for f in dataclasses.fields(Pretrain) if f.name in changes}
        return load(Pretrain, f"notebooks/params/pretrain-{profile}.yaml", **ordered)

    def reference(self, profile: str) -> Pretrain | None:
        """The pretraining that the variants' are described against: the base's, else the first one's, if any."""
        made = (self.pretrain(variant, profile) for variant in (self.variant(self.baseline), *self.variants))
        return next(filter(None, made), None)

    def proposed_by(self, cfg: Pretrain | None) -> str:
        """What makes the proposals of a pretraining: as an imported store's entry says, else ProposalConfig.generator;
        "" for None. A store that is not named is made by selective search.
        """
        if cfg is None or cfg.proposals == "whole":
            return cfg.proposals if cfg else ""
        fields = self.stores.get(cfg.proposals, {})
        return fields.get("imported") or from_dict(ProposalConfig, fields).generator

    def finetune(self, benchmark: str, profile: str, seed: int, init: str) -> Transfer:
        """The transfer that scores a pretraining (its run folder: init) on a benchmark."""
        return benchmarks.settings(benchmark, profile, **self.transfer.get(profile, {}), seed=seed, init=init)

    def printed(self, variant: Variant, benchmark: str, metric: str) -> float | None:
        """What the paper prints for the variant: percent, NaN where it diverged there, None where it prints nothing."""
        chosen = benchmarks.find(benchmark)
        table = self.table or chosen.table
        if not variant.row or metric not in chosen.metrics or (variant.only and benchmark not in variant.only):
            return None
        try:
            return paper_value(table, chosen.paper, variant.row, metric, variant.epoch or None)
        except BookError:  # that table has no such row: Table 8 has no detector from scratch
            return None


def names() -> list[str]:
    """All studies of the book."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


class _Strict(Loader):
    """YAML in which a name may stand once only: the plain loader keeps the last one and forgets the others."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            require(key.value not in seen, f"{key.value!r} stands there twice (line {line}): remove one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(name: str) -> Study:
    """The study of that name, or of a YAML file of one's own. Raises BookError, naming file and place, for anything
    wrong in it.
    """
    path = locate(name)
    if not str(name).endswith(".yaml"):
        one_of("study", name, names())
        path = FOLDER / f"{name}.yaml"
    require(path.is_file(), f"no study file {path}: known studies are {', '.join(names())}")
    try:
        return _checked(_build(path))
    except BookError as error:
        raise BookError(f"{path.name}: {error}") from None


def _build(path: Path) -> Study:
    try:
        content = yaml.load(path.read_text(), _Strict)
    except yaml.YAMLError as error:
        raise BookError(f"not YAML ({' '.join(str(error).split())})") from None
    complete = isinstance(content, dict) and isinstance(content.get("variants"), dict)
    require(complete, "needs `variants`, a name and fields each")
    variants = content["variants"].items()
    made = [from_dict(Variant, {"name": name, **(values or {})}, f"variant {name}") for name, values in variants]
    return from_dict(Study, {**content, "name": path.stem, "variants": made}, "study")


def _known_fields(where: str, values: dict, cls) -> None:
    require(isinstance(values, dict), f"{where}: expected fields, got {values!r}")
    for name in values:
        require(name not in GIVEN, f"{where}: {name} is given by the runner, not by a study")
        one_of(f"{where}: field", name, [f.name for f in dataclasses.fields(cls)])


def _known_row(study: Study, variant: Variant) -> None:
    """Raises BookError for a row that no table of the study's benchmarks (or of `only`) has."""
    wrong = []
    for chosen in map(benchmarks.find, variant.only or study.benchmarks):
        try:
            paper_value(study.table or chosen.table, chosen.paper, variant.row, study.metrics[0], variant.epoch or None)
            return
        except BookError as error:
            wrong.append(error)
    raise wrong[0]


def _checked(study: Study) -> Study:
    """The study, if all of it makes sense at both scales."""
    study.variant(study.baseline)
    require(any(not v.scratch for v in study.variants), "every variant is scratch: add one that is pretrained")
    for profile in PROFILES:
        _known_fields(profile, getattr(study, profile), Pretrain)
        _known_fields(f"transfer, {profile}", study.transfer.get(profile, {}), Transfer)
    for where, values in study.stores.items():
        if not (isinstance(values, dict) and values.keys() == {"imported"} and values["imported"]):
            from_dict(ProposalConfig, values, f"store {where}")
    for where, values in study.scenes.items():
        known = {"train", "val"} <= {*values} <= {*SCENES} if isinstance(values, dict) else False
        require(known, f"scenes {where}: {values!r} needs train and val, and may have {', '.join(SCENES[2:])}")
    for where, values in study.lists.items():
        from_dict(ImageList, values, f"list {where}")
    for benchmark, profile in itertools.product(study.benchmarks, PROFILES):
        for metric in study.metrics:
            one_of("metric", metric, benchmarks.find(benchmark).metrics)
        study.finetune(benchmark, profile, 0, "scratch")
    for variant in (variant for variant in study.variants if variant.row):
        _known_row(study, variant)
    for profile in PROFILES:
        same: dict[str, str] = {}
        for variant in sorted(study.variants, key=lambda v: v.name != study.baseline):
            where = f"variant {variant.name}, {profile}"
            if variant.scratch or variant.init:
                plain = not (variant.paper or variant.toy or (variant.scratch and variant.init))
                start = variant.init or "scratch"
                require(plain, f"{where}: {start} has no pretraining that fields could change")
                continue
            _known_fields(where, getattr(variant, profile), Pretrain)
            try:
                cfg = study.pretrain(variant, profile)
            except BookError as error:
                raise BookError(f"{where}: {error}") from None
            other = same.setdefault(identity(cfg), variant.name)
            twin = "the base" if other == study.baseline else f"variant {other}"
            require(other == variant.name, f"{where} equals {twin}: give it a field that differs, or remove it")
    return study
