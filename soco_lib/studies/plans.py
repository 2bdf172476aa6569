"""What a study's runs are, which of them exist and in which state. Nothing is started here."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pandas as pd

from soco_lib import ROOT, BookError, locate
from soco_lib.config import Plan, Pretrain, plan
from soco_lib.data.sources import open_source
from soco_lib.data.store import ProposalStore
from soco_lib.fields import OPERATIONAL, differences, from_dict, identity, one_of, require, to_dict
from soco_lib.runs import records
from soco_lib.runs.folder import Run, read_json
from soco_lib.runs.records import Record, state_of
from soco_lib.runs.settings import load
from soco_lib.studies.study import ImageList, Study, Variant
from soco_lib.transfer import benchmarks
from soco_lib.transfer.benchmarks import Transfer, base_profile

KINDS = {"pretrain": Pretrain, "transfer": Transfer}


def of_another(run: Run, source: Run) -> bool:
    """Whether a transfer that names the finished pretraining `source` started from other weights: it is older than that
    run, or took one of its earlier checkpoints.
    """
    if not run.record["sessions"] or not source.record["sessions"]:
        return False
    began, made = (datetime.fromisoformat(each.record["sessions"][0]["start"]) for each in (run, source))
    step = None  # records do not keep the report
    if not isinstance(run, Record) and (run.folder / "key_report.json").is_file():
        step = read_json(run.folder / "key_report.json").get("step")
    return began < made or (step is not None and step != records.numbers(source).get("steps"))


class RunIndex:
    """Runs by what they are, whatever their names: a run can serve every study that asks for it.

    unreadable: name -> what is wrong with the run or its configuration.
    """

    def __init__(self, results: Path, runs: Iterable[Run], unreadable: dict[str, str] | None = None):
        self.results, self.unreadable, self._runs = Path(results), dict(unreadable or {}), defaultdict(list)
        for run in (run for run in runs if run.record["kind"] in KINDS):
            kind = run.record["kind"]
            try:
                self._runs[self._key(kind, from_dict(KINDS[kind], run.record["config"]))].append(run)
            except BookError as error:
                where = f"{records.RUNS}, {run.name}," if isinstance(run, Record) else f"{run.name}/run.json"
                self.unreadable[run.name] = f"{where} is of a configuration that this book does not have: {error}"

    @classmethod
    def of_folders(cls, results: Path) -> RunIndex:
        """Of all run folders."""
        return cls(results, *records.read_all(Path(results)))

    @classmethod
    def of_records(cls, results: Path, study: str = "") -> RunIndex:
        """Of the tracked records, or of those that this study ("labels-toy") shows."""
        return cls(results, [run for run in records.tracked(results) if not study or study in run.record["studies"]])

    @staticmethod
    def _key(kind: str, cfg) -> tuple:
        # A transfer starts from a run folder, which has the same name wherever the results lie.
        start = Path(cfg.init).name if kind == "transfer" and cfg.init != "scratch" else ""
        return kind, start, identity(dataclasses.replace(cfg, init="") if start else cfg)

    def _own(self, init: str) -> str:
        """The run of these results that has the name of `init`."""
        return inside(self.results / Path(init).name)

    def find(self, kind: str, cfg, name: str = "", source: Run | None = None) -> Run | None:
        """The run of configuration `cfg`: the one called `name` if there is one, else a finished one, else any.

        source: the finished pretraining that a transfer starts from; a transfer that started from another pretraining
        of that name is passed over. Without it, one that starts from a file or folder that is no run of these results
        must name that very path: files are called alike.
        """
        runs = self._runs.get(self._key(kind, cfg), ())
        if kind == "transfer" and source is None and cfg.init not in ("scratch", self._own(cfg.init)):
            runs = [run for run in runs if run.record["config"]["init"] == cfg.init]
        runs = [run for run in runs if source is None or not of_another(run, source)]
        return min(runs, key=lambda run: (run.name != name, not state_of(run).final, run.name), default=None)

    def runs(self, kind: str) -> list[Run]:
        """All of a kind."""
        return [run for (is_of, *_), runs in self._runs.items() for run in runs if is_of == kind]

    def seeds(self) -> list[int]:
        """Of all runs here."""
        return sorted({run.record["config"]["seed"] for kind in KINDS for run in self.runs(kind)})


@dataclass
class Planned:
    """A run that is there or will be."""

    kind: str
    name: str  # that it has, or will have
    cfg: Pretrain | Transfer
    run: Run | None = None

    def __post_init__(self):
        self.state = state_of(self.run)

    def use(self, run: Run | None) -> None:
        """Let `run`, if any, be the run."""
        if run:
            self.run, self.name, self.state = run, run.name, state_of(run)

    def describe(self, own: str) -> str:
        """State, and whose run it is when it is not this study's."""
        return (self.state.text or self.state.word) + (f" ({self.name})" if self.name != own else "")


@dataclass
class VariantRuns:
    """A variant at one seed: its pretraining and the transfers from it."""

    variant: Variant
    profile: str
    seed: int
    name: str
    numbers: Plan | None  # None where only records are read, and for scratch
    pretrain: Planned | None  # None for scratch
    transfers: dict[str, Planned] = field(default_factory=dict)

    @property
    def todo(self) -> list[Planned]:
        """What a runner would run."""
        if self.pretrain and self.pretrain.state.word == "diverged":
            return []
        return [run for run in self.runs if not run.state.final]

    @property
    def runs(self) -> list[Planned]:
        """The pretraining, if there is one, and the transfers."""
        return [run for run in (self.pretrain, *self.transfers.values()) if run]


def inside(folder: Path) -> str:
    """A run folder as a transfer's `init` names it: relative to the checkout where it lies there."""
    folder = folder.absolute()
    return folder.relative_to(ROOT).as_posix() if folder.is_relative_to(ROOT) else str(folder)


def find_runs(
    study: Study, variant: Variant, profile: str, seed: int, index: RunIndex, scored: Iterable[str], numbers=None
) -> VariantRuns:
    """What is there, and what is not, of a variant at a seed; its runs are this study's or any of the same
    configuration. scored: benchmarks.
    """
    made = VariantRuns(variant, profile, seed, f"{study.name}-{variant.name}-{profile}-s{seed}", numbers, None)
    if cfg := study.pretrain(variant, profile, seed):
        made.pretrain = Planned("pretrain", made.name, cfg)
        made.pretrain.use(index.find("pretrain", cfg, made.name))
    source = made.pretrain
    start = inside(index.results / source.name) if source else variant.init or "scratch"
    for benchmark in scored:
        name = f"{made.name}-{benchmark}"
        planned = Planned("transfer", name, study.finetune(benchmark, profile, seed, start))
        if source is None or source.state.word == "done":
            planned.use(index.find("transfer", planned.cfg, name, source and source.run))
        made.transfers[benchmark] = planned
    return made


def begun(study: Study, profile: str, index: RunIndex) -> list[VariantRuns]:
    """Every variant at every seed that has a run in the index, with its transfers to the study's benchmarks and to any
    other that the study was run with; what another study scored of the same pretraining is left out.
    """
    made = []
    for variant in study.variants:
        for seed in index.seeds():
            cfg = study.pretrain(variant, profile, seed)
            if cfg is None or index.find("pretrain", cfg):
                scored = dict.fromkeys([*study.benchmarks, *benchmarks.BENCHMARKS])
                made.append(find_runs(study, variant, profile, seed, index, scored))
    runs = {planned.name for each in made for planned in each.transfers.values() if planned.run}
    own = [name for name in benchmarks.BENCHMARKS if any(f"{each.name}-{name}" in runs for each in made)]
    for each in made:
        each.transfers = {name: each.transfers[name] for name in dict.fromkeys([*study.benchmarks, *own])}
    return [each for each in made if any(planned.run for planned in each.runs)]


def record(study: Study, profile: str, results: Path) -> None:
    """Keep the records of what run folders there are of a study (see records.keep)."""
    found = [planned.run for each in begun(study, profile, RunIndex.of_folders(results)) for planned in each.runs]
    records.keep(filter(None, found), results, study=f"{study.name}-{profile}")


def unreadable(study: Study, profile: str, results: Path) -> list[str]:
    """A line on each run folder or record of this study that cannot be read, unless a record stands for the folder."""
    kept = RunIndex.of_records(results, f"{study.name}-{profile}")
    own = f"{re.escape(study.name)}-.*-{profile}-s\\d+(-|$)"
    known = {run.name for kind in KINDS for run in kept.runs(kind)}
    folders = RunIndex.of_folders(results).unreadable
    return [*kept.unreadable.values(), *(said for name, said in folders.items()
                                         if re.match(own, name) and name not in known)]  # fmt: skip


def image_count(cfg: Pretrain, study: Study) -> int:
    """Usable images: from the store, else from the images, else the known number. Raises BookError where there is none
    of them.
    """
    if cfg.proposals != "whole" and (locate(cfg.proposals) / "store.json").is_file():
        return int(ProposalStore.open(cfg.proposals).readable.sum())
    try:
        return len(open_source(cfg.images))
    except BookError:
        known = {data.spec: data.images for data in benchmarks.DATA.values()}
        lists = {f"list:{path}": from_dict(ImageList, fields) for path, fields in study.lists.items()}
        known |= {spec: asked.images or asked.known for spec, asked in lists.items()}
        drawn = study.scenes.items()
        known |= {f"coco:{path}/annotations/instances_train.json": fields["train"] for path, fields in drawn}
        if not known.get(cfg.images):
            raise
        return known[cfg.images]


def make(study: Study, profile: str, seeds: list[int], results: Path, world: int = 1, scored: tuple[str, ...] = (),
         variants: tuple[str, ...] = (), recorded: bool = False) -> list[VariantRuns]:  # fmt: skip
    """All variants at all seeds, seed by seed so that a study that is stopped has whole rounds; world: processes of a
    run; scored: benchmarks, ("none",) for the pretrainings alone; recorded: finished records stand for runs that are
    not here (of a pretraining only where no transfer waits for it).

    Raises BookError for an unknown name or a batch that this many processes cannot reach.
    """
    one_of("PROFILE", profile, benchmarks.PROFILES)
    scored = () if scored == ("none",) else scored or study.benchmarks
    once = bool(seeds) and len({*seeds}) == len(seeds)
    require(once, f"SEEDS={','.join(map(str, seeds))}: give each seed once, as SEEDS=0,1,2")
    chosen, counts, made = [study.variant(name) for name in variants] or study.variants, {}, []
    index, kept = RunIndex.of_folders(results), RunIndex.of_records(results)
    for seed in seeds:
        for variant in chosen:
            cfg, numbers = study.pretrain(variant, profile, seed), None
            if cfg:
                data = (cfg.images, cfg.proposals)
                counts[data] = counts.get(data) or image_count(cfg, study)
                try:
                    numbers = plan(cfg, counts[data], world)
                except BookError as error:
                    raise BookError(f"{study.name}, variant {variant.name}: {error}") from None
            runs = find_runs(study, variant, profile, seed, index, scored, numbers)
            for planned in [*runs.transfers.values(), runs.pretrain] if recorded else ():
                waits = planned is runs.pretrain and not all(run.state.final for run in runs.transfers.values())
                if planned and not planned.state.final and not waits:
                    there = kept.find(planned.kind, planned.cfg, planned.name)
                    planned.use(there if state_of(there).final else None)
            made.append(runs)
    return made


# --- as text ----------------------------------------------------------------------------------------------------------


def _short(name: str, value) -> str:
    if name == "views":
        shown = lambda view: f"crop {view['scale']}" if view["source"] == "crop" else f"of {view['source']}"
        value = [f"{view['size']} {shown(view)}" for view in value]
    return f"{name}={', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"


def fields(cfg, base=None) -> str:
    """All fields of a configuration that its result depends on, or those that differ from `base`'s."""
    plain, hidden = to_dict(cfg), OPERATIONAL | {"profile", "seed"}
    shown = differences(to_dict(base), plain) if base is not None else plain
    return "; ".join(_short(name, plain[name]) for name in plain if name in shown and name not in hidden)


def defaults(cfg) -> Pretrain | Transfer:
    """The settings of the parameter file or benchmark, at its scale, that a configuration was made from."""
    profile, name = base_profile(cfg.profile), getattr(cfg, "benchmark", "")
    if name in benchmarks.BENCHMARKS:
        return benchmarks.settings(name, profile)
    kind = "transfer" if isinstance(cfg, Transfer) else "pretrain"
    return load(type(cfg), f"notebooks/params/{kind}-{profile}.yaml")


def frame(planned: list[VariantRuns], study: Study, hours: list[float | None]) -> pd.DataFrame:
    """A row a variant and seed."""
    base, rows = study.reference(planned[0].profile), []
    for each, time in zip(planned, hours):
        row, differs = {"variant": each.variant.name, "seed": each.seed}, each.variant.init or "random weights"
        row |= dict.fromkeys(("batch", "lr", "steps", "epochs", "pretraining"), "")
        if each.pretrain:
            numbers, cfg = each.numbers, each.pretrain.cfg
            row |= {"batch": cfg.batch, "lr": f"{numbers.lr:g}", "steps": numbers.steps}
            row |= {"epochs": f"{numbers.steps / numbers.steps_per_epoch:g}"}
            row |= {"pretraining": each.pretrain.describe(each.name)}
            differs = fields(cfg, base) or "(the base)"
        row |= {name: run.describe(f"{each.name}-{name}") for name, run in each.transfers.items()}
        rows.append(row | {"hours": "?" if time is None else f"{time:.2f}", "differs in": differs})
    return pd.DataFrame(rows)
