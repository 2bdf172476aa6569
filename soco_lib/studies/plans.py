"""What a study's runs are, which of them exist and in which state. Nothing is started or written here."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
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
from soco_lib.runs.records import State, state_of
from soco_lib.studies.study import ImageList, Study, Variant
from soco_lib.transfer import benchmarks
from soco_lib.transfer.benchmarks import Transfer

KINDS = {"pretrain": Pretrain, "transfer": Transfer}


def of_another(run: Run, source: Run) -> bool:
    """Whether a transfer that names the finished pretraining `source` started from other weights: it is older than that
    run, or took one of its earlier checkpoints.
    """
    if not run.record["sessions"] or not source.record["sessions"]:
        return False
    began, made = (datetime.fromisoformat(each.record["sessions"][0]["start"]) for each in (run, source))
    try:
        step = read_json(run.folder / "key_report.json")["step"]
    except (BookError, KeyError, TypeError):  # a record has none
        step = None
    return began < made or (step is not None and step != records.numbers(source).get("steps"))


class Shelf:
    """The runs under a folder by what they are, whatever their names: a run can serve every study that asks for it.

    unreadable: (run.json, what is wrong with it). pattern: of the run.json files, from the folder.
    """

    def __init__(self, folder: Path, pattern: str = "*/run.json"):
        self.folder, self._runs = folder, defaultdict(list)
        runs, self.unreadable = records.read_all(folder.glob(pattern))
        for run in (run for run in runs if run.record["kind"] in KINDS):
            kind = run.record["kind"]
            try:
                self._runs[self._key(kind, from_dict(KINDS[kind], run.record["config"]))].append(run)
            except BookError as error:
                path = run.folder / "run.json"
                self.unreadable.append((path, f"{path} is of a configuration that this book does not have: {error}"))

    @staticmethod
    def _key(kind: str, cfg) -> tuple:
        # A transfer starts from a run folder, which has the same name wherever the results lie.
        start = Path(cfg.init).name if kind == "transfer" and cfg.init != "scratch" else ""
        return kind, start, identity(dataclasses.replace(cfg, init="") if start else cfg)

    def find(self, kind: str, cfg, name: str = "", source: Run | None = None) -> Run | None:
        """The run of configuration `cfg`: the one called `name` if there is one, else a finished one, else any.

        source: the finished pretraining that a transfer starts from; what started from another of its name is passed
        over.
        """
        runs = [
            run for run in self._runs.get(self._key(kind, cfg), ()) if source is None or not of_another(run, source)
        ]
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
    run: Run | None
    state: State

    def describe(self, own: str) -> str:
        """State, and whose run it is when it is not this study's."""
        return (self.state.text or self.state.word) + (f" ({self.name})" if self.name != own else "")


@dataclass
class Cell:
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


def _planned(shelf: Shelf, kind: str, cfg, name: str, source: Run | None = None) -> Planned:
    run = shelf.find(kind, cfg, name, source)
    return Planned(kind, run.name if run else name, cfg, run, state_of(run))


def make_cell(
    study: Study, variant: Variant, profile: str, seed: int, shelf: Shelf, scored: tuple[str, ...], numbers=None
) -> Cell:
    """What is there, and what is not, of a variant at a seed; its runs are this study's or any of the same
    configuration.
    """
    name = f"{study.name}-{variant.name}-{profile}-s{seed}"
    cfg = study.pretrain(variant, profile, seed)
    pretrain = cfg and _planned(shelf, "pretrain", cfg, name)
    made = Cell(variant, profile, seed, name, numbers, pretrain)
    start = inside(shelf.folder / pretrain.name) if pretrain else "scratch"
    waits = pretrain is not None and pretrain.state.word != "done"
    for benchmark in scored:
        cfg, own = study.finetune(benchmark, profile, seed, start), f"{name}-{benchmark}"
        missing = Planned("transfer", own, cfg, None, State("missing"))
        made.transfers[benchmark] = (
            missing if waits else _planned(shelf, "transfer", cfg, own, pretrain and pretrain.run)
        )
    return made


def count_records(cell: Cell, told: Shelf) -> None:
    """Let finished records stand for runs that are not here: transfers, and a pretraining that no transfer waits for."""
    for planned in cell.transfers.values():
        if (
            not planned.state.final
            and (found := told.find("transfer", planned.cfg, planned.name))
            and state_of(found).final
        ):
            planned.run, planned.name, planned.state = found, found.name, state_of(found)
    source = cell.pretrain
    if source and not source.state.final and all(planned.state.final for planned in cell.transfers.values()):
        if (found := told.find("pretrain", source.cfg, source.name)) and state_of(found).final:
            source.run, source.name, source.state = found, found.name, state_of(found)


def image_count(cfg: Pretrain, study: Study) -> int:
    """Usable images: from the store, else from the images, else the known number. Raises BookError where there is none
    of them.
    """
    if cfg.proposals != "whole" and (locate(cfg.proposals) / "store.json").is_file():
        store = ProposalStore.open(cfg.proposals)
        return int(store.readable.sum())
    try:
        return len(open_source(cfg.images))
    except BookError:
        known = {data.spec: data.images for data in benchmarks.DATA.values()}
        lists = {f"list:{path}": from_dict(ImageList, fields) for path, fields in study.lists.items()}
        known |= {spec: asked.images or asked.known for spec, asked in lists.items()}
        if not known.get(cfg.images):
            raise
        return known[cfg.images]


def make(study: Study, profile: str, seeds: list[int], results: Path, world: int = 1, scored: tuple[str, ...] = (),
         variants: tuple[str, ...] = (), recorded: bool = False) -> list[Cell]:  # fmt: skip
    """All cells, seed by seed so that a study that is stopped has whole rounds; world: processes of a run; scored:
    benchmarks; recorded: tracked records count as runs.

    Raises BookError for an unknown name or a batch that this many processes cannot reach.
    """
    one_of("PROFILE", profile, benchmarks.PROFILES)
    require(
        bool(seeds) and len({*seeds}) == len(seeds),
        f"SEEDS={','.join(map(str, seeds))}: give each seed once, as SEEDS=0,1,2",
    )
    chosen = [study.variant(name) for name in variants] or study.variants
    shelf, told, counts, made = Shelf(results), Shelf(results, "studies/*/*/run.json"), {}, []
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
            made.append(make_cell(study, variant, profile, seed, shelf, scored or study.benchmarks, numbers))
            if recorded:
                count_records(made[-1], told)
    return made


# --- as text ----------------------------------------------------------------------------------------------------------


def _short(name: str, value) -> str:
    if name == "views":
        value = [
            f"{v['size']}" + (f" of {v['source']}" if v["source"] != "crop" else f" crop {v['scale']}") for v in value
        ]
    return f"{name}={', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"


def fields(cfg, base=None) -> str:
    """All fields of a configuration that its result depends on, or those that differ from `base`'s."""
    plain, hidden = to_dict(cfg), OPERATIONAL | {"profile", "seed"}
    shown = differences(to_dict(base), plain) if base is not None else plain
    return "; ".join(_short(name, plain[name]) for name in plain if name in shown and name not in hidden)


def frame(cells: list[Cell], study: Study, hours: list[float | None]) -> pd.DataFrame:
    """A row a cell."""
    base, rows = study.reference(cells[0].profile), []
    for cell, time in zip(cells, hours):
        row, differs = {"variant": cell.variant.name, "seed": cell.seed}, "random weights"
        row |= dict.fromkeys(("batch", "lr", "steps", "epochs", "pretraining"), "")
        if cell.pretrain:
            numbers, cfg = cell.numbers, cell.pretrain.cfg
            row |= {"batch": cfg.batch, "lr": f"{numbers.lr:g}", "steps": numbers.steps}
            row |= {
                "epochs": f"{numbers.steps / numbers.steps_per_epoch:g}",
                "pretraining": cell.pretrain.describe(cell.name),
            }
            differs = fields(cfg, base) or "(the base)"
        row |= {name: run.describe(f"{cell.name}-{name}") for name, run in cell.transfers.items()}
        rows.append(row | {"hours": "?" if time is None else f"{time:.2f}", "differs in": differs})
    return pd.DataFrame(rows)
