"""What a transfer is, the paper's benchmarks as data (benchmarks.yaml), and where their data lie.

`python -m soco_lib.transfer.benchmarks [NAME...]` prints make's targets of these, of all where none is named.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from soco_lib import locate, one_line_errors
from soco_lib.config import PRECISIONS, SIDES
from soco_lib.fields import MANY, SEEDS, TINY, from_dict, in_range, one_of, require, tidy
from soco_lib.runs.settings import changed
from soco_lib.transfer.datasets import LAYOUTS, usage

SOLVERS = ("sgd", "adamw")
REACHES = ("accumulate", "scale")
_CONTENT = yaml.safe_load(Path(__file__).with_name("benchmarks.yaml").read_text())
PROFILES = ("paper", "toy")
#: Limits, both allowed, of the numbers of a Transfer.
LIMITS = {
    "iterations": (1, MANY), "warmup": (0, MANY), "batch": (1, MANY), "micro_batch": (0, MANY), "lr": (TINY, 1e30),
    "momentum": (0, 0.99999), "weight_decay": (0, 1), "clip_gradients": (0, MANY), "max_size": SIDES,
    "test_size": SIDES, "precise_bn": (0, 10_000), "eval_every": (0, MANY), "labelled": (TINY, MANY),
    "seed": (0, SEEDS),
    "workers": (0, 1024), "log_every": (1, MANY), "save_every": (1, MANY), "keep": (1, MANY),
}  # fmt: skip


@dataclass(frozen=True)
class Transfer:
    """One fine-tuning and its evaluation; the defaults are Table 1's COCO 1x schedule with Mask R-CNN R50-FPN."""

    train: str  # see datasets.LAYOUTS; several sets are joined by +
    test: str
    init: str = "scratch"  # or a run folder or checkpoint of a pretraining
    benchmark: str = ""  # the paper's benchmark that these settings are of (see find); "": none
    network: str = "online"  # which of the checkpoint's networks: online or target
    detector: str = "mask-rcnn-r50-fpn"  # see detector.DETECTORS; or a config: a file of Detectron2's zoo, a path
    overrides: tuple[str, ...] = ()  # further Detectron2 "KEY=value" settings
    iterations: int = 90000
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)  # where the rate falls tenfold, as shares of the iterations
    warmup: int = 1000  # iterations
    batch: int = 16  # images an update, over all processes
    micro_batch: int = 0  # images a process holds at once; 0: its whole share of the batch
    reach: str = "accumulate"  # how fewer images at once follow the schedule: accumulate, or scale (linear rule)
    lr: float = 0.02
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 2.5e-5  # the paper's; Detectron2's own is 1e-4
    clip_gradients: float = 0.0  # largest gradient norm of a parameter; 0: no clipping
    min_sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # shorter side in training, drawn an image
    max_size: int = 1333  # longest side, training and test
    test_size: int = 800  # shorter side in the test
    precise_bn: int = 200  # iterations that measure batch statistics before each evaluation; 0: running averages
    eval_every: int = 0  # iterations; 0: only at the end
    labelled: float = 1.0  # training images drawn at random: a share up to 1, else a number (Table 8)
    precision: str = "fp32"  # bf16 and fp16 need a GPU
    seed: int = 0
    workers: int = 4  # loader processes a training process
    log_every: int = 20  # iterations
    save_every: int = 5000  # iterations
    keep: int = 2  # checkpoints kept beside the final one
    profile: str = "paper"  # the label that every table and figure of this run carries

    def __post_init__(self):
        tidy(self, "train", "test", "init")
        one_of("benchmark", self.benchmark, ("", *_CONTENT["benchmarks"]))
        one_of("network", self.network, ("online", "target"))
        one_of("optimizer", self.optimizer, SOLVERS)
        one_of("reach", self.reach, REACHES)
        one_of("precision", self.precision, PRECISIONS)
        in_range(self, LIMITS)
        sides = bool(self.min_sizes) and SIDES[0] <= min(self.min_sizes) and max(self.min_sizes) <= SIDES[1]
        require(sides, f"min_sizes={self.min_sizes} needs at least one side, each of {SIDES[0]} to {SIDES[1]} pixels")
        ordered = all(a < b for a, b in zip((0, *self.milestones), (*self.milestones, 1)))
        require(ordered, f"milestones={self.milestones} must rise inside (0, 1): they are shares of the iterations")


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataSet:
    """A data set that benchmarks name: how it is called, where it lies, where it comes from, what it must hold."""

    spec: str  # as TRAIN and TEST name it
    paths: tuple[str, ...]  # files and folders that must be there, relative to the checkout or SOCO_DATA
    get: str  # site or command that it comes from
    images: int = 0  # known totals; 0: not known
    annotations: int = 0
    folders: int = 0  # class folders

    @property
    def missing(self) -> list[str]:
        """The paths that are not there."""
        return [path for path in self.paths if not locate(path).exists()]


def split_sets(spec: str) -> list[tuple[str, str]]:
    """The sets of "KIND:REST + KIND:REST ...", as (kind, rest). Raises BookError for anything else."""
    sets = [part.partition(":") for part in re.split(r"\s*\+\s*(?=\w+:)", spec.strip())]
    for kind, _, rest in sets:
        require(kind in LAYOUTS and bool(rest), f"data {spec!r} must read {usage()}; several are joined by +")
    return [(kind, rest) for kind, _, rest in sets]


def data_tree(names: list[str]) -> str:
    """The expected folder tree of the named data sets, one path a line, and where each comes from."""
    where: dict[str, list[str]] = {}
    for name in names:
        where.setdefault(DATA[name].get, []).extend(DATA[name].paths)
    lines = []
    for get, paths in where.items():
        lines += [f"  {path}" if Path(path).suffix else f"  {path}/" for path in dict.fromkeys(paths)]
        lines.append(f"    from {get}")
    return "\n".join(lines)


def require_data(cfg: Transfer) -> None:
    """Raise one BookError with the expected folder tree and its source for a benchmark's missing data sets."""
    wanted = {f"{kind}:{rest}" for spec in (cfg.train, cfg.test) for kind, rest in split_sets(spec)}
    names = [name for name, data in DATA.items() if data.spec in wanted and data.missing]
    lacking = ", ".join(dict.fromkeys(path for name in names for path in DATA[name].missing))
    places = f"the checkout or in SOCO_DATA ({os.environ.get('SOCO_DATA', 'not set')})"
    require(
        not names,
        f"missing data ({', '.join(names)}): no {lacking} in {places}. Expected there:\n{data_tree(names)}\n"
        "Other data: TRAIN=... TEST=...; `make data-check` counts what is there",
    )


# --- benchmarks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """One of the paper's benchmarks: detector, data, schedule, metrics, and where the paper prints it."""

    name: str
    title: str  # one line
    table: str  # of the paper, as in paper_tables.csv; "": of none
    paper: str  # its name in that table
    metrics: tuple[str, ...]  # the table's, such as AP_bb
    settings: dict = field(repr=False)  # fields of Transfer at PROFILE=paper
    toy: dict = field(repr=False)  # and at PROFILE=toy

    def __post_init__(self):
        for profile, values in zip(PROFILES, (self.settings, self.toy)):
            cfg = from_dict(Transfer, values, f"benchmark {self.name}, {profile}")
            split_sets(cfg.train), split_sets(cfg.test)


def _read() -> tuple[dict[str, DataSet], dict[str, Benchmark]]:
    data = {name: from_dict(DataSet, values, f"data set {name}") for name, values in _CONTENT["data"].items()}
    made = {}
    for name, values in _CONTENT["benchmarks"].items():
        own = {"benchmark": name}
        both = {key: own | {"profile": profile} | values[key] for key, profile in zip(("settings", "toy"), PROFILES)}
        made[name] = Benchmark(name=name, **{"paper": name} | values | both | {"metrics": tuple(values["metrics"])})
    return data, made


#: Data sets that benchmarks name, and the benchmarks in the order of the paper's tables; name -> entry of
#: benchmarks.yaml.
DATA, BENCHMARKS = _read()


def find(name: str) -> Benchmark:
    """The benchmark of that name, or "NAME-SHARE", such as coco-fpn-1x-0.3: a benchmark on a share of its labels (above
    1: on so many images), which no table of the paper has. Raises BookError with the nearest known name.
    """
    part = re.fullmatch(r"(.+)-(\d+\.?\d*|\.\d+)", name)
    if name in BENCHMARKS or not part or part[1] not in BENCHMARKS:
        one_of("benchmark", name, BENCHMARKS)
        return BENCHMARKS[name]
    whole, labelled = BENCHMARKS[part[1]], {"labelled": part[2]}
    title = f"{whole.title}, {share_words(float(part[2]))}"
    both = {"settings": whole.settings | labelled, "toy": whole.toy | labelled}
    return replace(whole, name=name, title=title, table="", **both)


def share_words(labelled: float) -> str:
    """`Transfer.labelled` for people."""
    if labelled == 1:
        return "all labels"
    return f"{100 * labelled:.3g} % of the labels" if labelled < 1 else f"{labelled:g} labelled images"


def base_profile(label: str) -> str:
    """The parameter file's profile in the label that `changed` gives a run."""
    return label.partition(",")[0]


def settings(name: str, profile: str = "paper", **changes) -> Transfer:
    """The benchmark's settings at `profile` (paper or toy), `changes` on top (None: unchanged; as settings.changed)."""
    one_of("profile", profile, PROFILES)
    benchmark = find(name)
    return changed(Transfer, benchmark.settings if profile == "paper" else benchmark.toy, changes, f"benchmark {name}")


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    names = sys.argv[1:] if arguments is None else arguments
    print(*(f"benchmark-{find(name).name}" for name in names or BENCHMARKS))


if __name__ == "__main__":
    sys.exit(main())
