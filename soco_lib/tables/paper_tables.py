"""The paper's Tables 1, 2, 3, 6, 7, 8 and 10 with all transfer runs and records that belong to them, and a few runs
beside the paper's rows (notebooks 4 and 5); every row says at which scale it was earned.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from soco_lib import BookError, locate
from soco_lib.config import ALIGNMENTS, Pretrain
from soco_lib.fields import OPERATIONAL, SUBJECT, differences, essence, one_of, to_dict
from soco_lib.runs import records
from soco_lib.runs.folder import Run
from soco_lib.runs.records import state_of
from soco_lib.runs.settings import load
from soco_lib.studies.paper import paper_table
from soco_lib.tables import pages
from soco_lib.transfer import benchmarks
from soco_lib.transfer.benchmarks import Benchmark, base_profile

#: Column -> (task, key) in a transfer run's metrics; the paper's names of the same numbers.
METRICS = {
    f"{ap}_{short}": (task, ap) for short, task in (("bb", "bbox"), ("mk", "segm")) for ap in ("AP", "AP50", "AP75")
}
#: The tables whose rows are pretrainings scored by benchmarks.
TABLES = tuple(dict.fromkeys(benchmark.table for benchmark in benchmarks.BENCHMARKS.values()))


# --- what a transfer started from, and at which scale it ran ----------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """What a transfer started from, and the row of the paper's tables that this repeats ("": none)."""

    label: str
    epochs: int | None = None
    row: str = ""


def source_of(config: dict, known: dict[str, Run] | None = None) -> Run | None:
    """The pretraining that a transfer with this plain config started from, by its run folder or a checkpoint in it;
    else None. known: runs by name, for a folder that is not there.
    """
    path = locate(config["init"])
    folders = [path, path.parent.parent] if path.parent.name == "checkpoints" else [path]
    for folder in folders:
        try:
            run = Run.read(folder)
        except BookError:
            run = (known or {}).get(folder.name)
        if run is not None and run.record["kind"] == "pretrain":
            return run
    return None


def start_of(config: dict, known: dict[str, Run] | None = None) -> Start:
    """Scratch, a pretraining (its run's name without -s<seed>: a row is for all seeds) or a checkpoint file, from a
    transfer's plain config.
    """
    if config["init"] == "scratch":
        return Start("Scratch", row="Scratch")
    run = source_of(config, known)
    if run is None:
        return Start(Path(config["init"]).name)
    ours = run.record["config"]
    epochs = None if ours["steps"] else round(ours["epochs"])
    row = ""
    # On as many images as ImageNet's 1.28 million, in the paper's setting but for epochs and views.
    if epochs and records.numbers(run).get("images_seen", 0) > 1.2e6 * epochs:
        setting = to_dict(load(Pretrain, "notebooks/params/pretrain-paper.yaml"))
        changed = {*differences(ours, setting)} - SUBJECT - OPERATIONAL - {"epochs", "views"}
        changed -= {"detector"} if ours["detector"] == "mask-rcnn-r50-c4" else set()
        sizes = {(224,): "SoCo", (224, 112): "SoCo", (224, 112, 192): "SoCo*"}  # (224,) is C4's
        row = "" if changed else sizes.get(tuple(view["size"] for view in ours["views"]), "")
    method = "SoCo" if ALIGNMENTS[ours["alignment"]].boxes else "whole image"
    return Start(f"{method} ({run.name.removesuffix('-s' + str(ours['seed']))})", epochs, row)


def scale_of(config: dict) -> str:
    """The label of a transfer's scale: its profile, and whether it ran on other data than its benchmark's."""
    benchmark = benchmarks.BENCHMARKS.get(config.get("benchmark"))
    if benchmark is None:
        return config["profile"]
    usual = benchmark.settings if base_profile(config["profile"]) == "paper" else benchmark.toy
    return config["profile"] + ", other data" * any(config[key] != usual[key] for key in ("train", "test"))


def caption(runs: list[Run], table: str) -> str:
    """Says which rows are not comparable with the paper's, and why."""
    scales = sorted({scale_of(run.record["config"]) for run in runs} - {"paper"})
    small = [scale for scale in scales if base_profile(scale) != "paper"]
    changed = [scale for scale in scales if scale not in small]
    said = [] if scales else [f"Ours beside Table {table} of the paper."]
    if small:
        said.append(f"Rows of scale '{', '.join(small)}' are small runs on small data: they show that the book works "
                    f"and are not comparable with the rows of Table {table} of the paper.")  # fmt: skip
    if changed:
        said.append(f"Rows of scale '{'; '.join(changed)}' differ from the paper's setting in what is named.")
    return " ".join(said)


# --- a whole table of the paper ---------------------------------------------------------------------------------------

#: Columns of a table's long form.
CELL = ["source", "scale", "pretraining", "epochs", "benchmark", "metric", "value", "sd", "n", "difference", "state",
        "runs", "hardware", "minutes", "images_seen", "commit"]  # fmt: skip
#: Studies that have a table or a page of their own (4, 5 and 9, `make worth`): their runs stand there.
STUDIES = ("alignment", "viewsize", "batchsize", "proposals", "momentum", "table9", "worth")


def transfers(known: dict[str, Run], table: str, profile: str = "all") -> tuple[list[Run], list[str]]:
    """Transfer runs whose benchmark belongs to a table, by name, and a line on what is left out.

    profile: that their scale began with, or all. Left out are runs of the STUDIES, unless a recipe (pretrain-soco-...)
    has them too.
    """
    chosen, others = [], set()
    for name, run in sorted(known.items()):
        config = run.record["config"]
        benchmark = benchmarks.BENCHMARKS.get(config.get("benchmark", "")) if run.record["kind"] == "transfer" else None
        if benchmark and benchmark.table == table and profile in ("all", base_profile(config["profile"])):
            study = re.match(rf"({'|'.join(STUDIES)})-.+-s\d+-{benchmark.name}(-[\d.]+)?$", name)
            if study and not any(each.startswith("pretrain-") for each in run.record.get("studies", ())):
                others.add(study[1])
            else:
                chosen.append(run)
    named = f"stud{'ies' if len(others) > 1 else 'y'} {', '.join(sorted(others))}"
    return chosen, [f"runs of the {named}, which stand in tables of their own"] * bool(others)


def _settings(run: Run, known: dict[str, Run]) -> dict:
    """What a transfer was run with but for its seed; in place of the folder that it started from, what that was
    pretrained with.
    """
    plain = lambda run: {key: value for key, value in essence(run.record["config"]).items() if key != "seed"}
    source = source_of(run.record["config"], known)
    pretrained = {f"pretraining's {key}": value for key, value in plain(source).items()} if source else {}
    return {key: value for key, value in plain(run).items() if key != "init" or not source} | pretrained


def _grouped(runs: list[Run], known: dict[str, Run]) -> dict[tuple[str, str], dict[str, list[Run]]]:
    """(scale, pretraining) -> benchmark -> runs that differ in their seeds alone, their pretrainings' and their own.

    Where runs of one benchmark differ in more, the name of the pretraining is followed by what differs.
    """
    alike, groups = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for run in runs:
        config = run.record["config"]
        alike[scale_of(config), start_of(config, known).label, config["benchmark"]].append(run)
    for (scale, label, benchmark), members in alike.items():
        plain = [_settings(run, known) for run in members]
        differing = [key for key in plain[0] if any(each.get(key) != plain[0][key] for each in plain)]
        for run, values in zip(members, plain):
            extra = [f"{key}={values.get(key)}" for key in differing]
            groups[scale, ", ".join([label, *extra])][benchmark].append(run)
    return groups


def _one_a_seed(runs: list[Run]) -> tuple[dict[int, Run], list[str]]:
    """Seed -> its run, a finished one before others, and a line on each that repeats a seed."""
    kept, notes = {}, []
    for run in sorted(runs, key=lambda run: (state_of(run).word != "done", run.name)):
        seed = run.record["config"]["seed"]
        if seed in kept:
            notes.append(f"{run.name} repeats seed {seed} of {kept[seed].name}")
        kept.setdefault(seed, run)
    return dict(sorted(kept.items())), notes


def _spent(runs: list[Run], known: dict[str, Run]) -> pd.DataFrame:
    """A row a run, the pretrainings that they started from among them, each once: of, seed and records.COST."""
    made = {}
    for run in runs:
        for each in filter(None, (source_of(run.record["config"], known), run)):
            config = each.record["config"]
            about = {"of": config.get("benchmark") or "pretraining", "seed": config["seed"]}
            made.setdefault(each.name, about | records.cost(each))
    frame = pd.DataFrame(made.values(), columns=["of", "seed", *records.COST])
    return frame.astype({"seed": "Int64", "processes": "Int64", "images seen": "Int64"})


def paid(spent: pd.DataFrame) -> dict[str, str]:
    """A table of costs (records.COST) as the columns of one cell of a table's long form."""
    found = {"runs": " ".join(spent["run"]), "minutes": " ".join(spent["minutes"])}
    found["images_seen"] = " ".join(map(str, spent["images seen"].dropna()))
    return found | {name: "; ".join(spent[name].unique()) for name in ("hardware", "commit")}


def table_cells(table: str, runs: list[Run], known: dict[str, Run] | None = None) -> tuple[pd.DataFrame, list[str]]:
    """A paper's table in long form, a row a cell (columns: CELL), and what was left out of it, a line each.

    source: paper (all printed rows) or ours; value: percent, ours the mean over n seeds with their standard deviation
    sd; difference: ours minus the paper's row that was repeated, at the paper's scale only; runs: one a seed; minutes,
    hardware and commit: of these and their pretrainings. Cells without a finished run or printed number are NaN. known:
    runs by name, where the pretrainings' folders are not there.
    """
    known, cells, notes = known or {}, [], []
    one_of("table", table, TABLES)
    members = [benchmark for benchmark in benchmarks.BENCHMARKS.values() if benchmark.table == table]
    printed = {(row, None if pd.isna(epochs) else int(epochs)): values
               for (row, epochs), values in paper_table(table).iterrows()}  # fmt: skip
    for (row, epochs), values in printed.items():
        for b in members:
            base = dict(source="paper", scale="paper", pretraining=row, epochs=epochs, benchmark=b.name)
            cells += [base | {"metric": metric, "value": values[b.paper, metric]} for metric in b.metrics]
    for (scale, label), of_benchmark in _grouped(runs, known).items():
        start = start_of(next(iter(of_benchmark.values()))[0].record["config"], known)
        theirs = printed.get((start.row, start.epochs)) if scale == "paper" else None
        for b in members:
            seeds, left = _one_a_seed(of_benchmark.get(b.name, []))
            notes += left
            done = [run for run in seeds.values() if state_of(run).word == "done"]
            base = dict(source="ours", scale=scale, pretraining=label, epochs=start.epochs, benchmark=b.name)
            base |= paid(_spent([*seeds.values()], known)) | {"runs": " ".join(run.name for run in seeds.values())}
            base |= dict(n=len(done), state=records.by_state({seed: state_of(run).text for seed, run in seeds.items()}))
            for metric in b.metrics:
                task, key = METRICS[metric]
                values = pd.Series([records.numbers(run).get(task, {}).get(key) for run in done], dtype=float)
                mean = values.mean(skipna=False)
                difference = np.nan if theirs is None else mean - theirs[b.paper, metric]
                line = dict(metric=metric, value=mean, sd=values.std(skipna=False), difference=difference)
                cells.append(base | line)
    return pd.DataFrame(cells).reindex(columns=CELL).astype({"epochs": "Int64", "n": "Int64"}), notes


def table_parts(
    cells: pd.DataFrame, links: pages.Links | None = None, known: dict[str, Run] | None = None
) -> dict[str, pd.DataFrame]:
    """The long form as printed: title -> one table a benchmark; our cells read mean ± sd (difference to the paper's
    row). links: behind each of our numbers stands then a link to the run of every seed (known: runs by name).
    """
    word = lambda form, number: "" if pd.isna(number) else form.format(number)
    parts = {}
    for name, part in cells.groupby("benchmark", sort=False):
        lines: dict[tuple, dict] = {}
        for cell in part.itertuples():
            begun = cell.runs.split() if cell.source == "ours" else []
            row = {"source": cell.source, "scale": cell.scale, "pretraining": cell.pretraining}
            row["epochs"] = word("{}", cell.epochs)
            line = lines.setdefault(tuple(row.values()), row | {"n": word("{}", cell.n) if begun else ""})
            text = word("{:.1f}", cell.value) + word(" ± {:.1f}", cell.sd) + word(" ({:+.1f})", cell.difference)
            seeds = {known[run].record["config"]["seed"]: run for run in begun} if links and text else {}
            line[cell.metric] = text + (links.seeds(seeds) if links else "")
            line["state"] = line.pop("state", cell.state if begun else "")  # stays the last column
        shown = pd.DataFrame(lines.values())
        title = f"{name}: {benchmarks.BENCHMARKS[name].title}"
        parts[title] = shown if any(shown["state"]) else shown.drop(columns="state")
    return parts


def build(table: str, results: Path, profile: str = "all", only_ours: bool = False) -> str:
    """Write results/tables/table<N>.{csv,md}, keep the records of its runs, and return the Markdown.

    only_ours: nothing is written, and "" returned, where no run belongs to the table. Raises BookError for a table
    without benchmarks and a folder that cannot be written.
    """
    known, torn = records.found(results)
    runs, left = transfers(known, table, profile)
    if only_ours and not runs:
        return ""
    cells, repeats = table_cells(table, runs, known)
    spent = _spent([known[name] for names in cells["runs"].dropna().unique() for name in names.split()], known)
    records.keep([known[name] for name in spent["run"]], results)
    links, notes = pages.Links(spent["run"]), left + repeats + torn
    said = f"No transfer run of Table {table} at scale '{profile}' lies in {results.name}."
    said = (caption(runs, table) if runs else said) + f" Left out: {'; '.join(notes)}." * bool(notes)
    parts = table_parts(cells, links, known)
    if len(spent):
        parts[records.together(spent)] = spent.assign(run=[links(name, name) for name in spent["run"]])
    printed = [f"**{title}**\n\n{pages.markdown(part, 3)}" for title, part in parts.items()]
    page = "\n\n".join([*printed, said, links.definitions()]).rstrip() + "\n"
    stem = Path(results) / "tables" / f"table{table}"
    with records.writing(stem.parent):
        cells.to_csv(stem.with_suffix(".csv"), index=False)
        stem.with_suffix(".md").write_text(page)
    return page


# --- a few runs beside the paper's rows -------------------------------------------------------------------------------

#: Rows of the paper that one run is put beside.
PAPER_ROWS = ("Scratch", "Supervised", "SoCo", "SoCo*")


@dataclass(frozen=True)
class Report:
    """What a report shows."""

    runs: tuple[str, ...]  # transfer run folders
    table: str  # of the paper
    benchmark: str  # column group of that table
    paper_rows: tuple[str, ...]  # rows of the paper to stand beside ours


def beside_paper(runs: list[Run], table: str, benchmark: str, rows) -> pd.DataFrame:
    """Our runs, then the named rows of the paper's table; a cell without a finished run is empty (NaN).

    Columns: scale, pretraining, run, seed and the METRICS in percent.
    """
    lines = []
    for run in runs:
        config, found = run.record["config"], run.metrics or {}
        line = {"scale": scale_of(config), "pretraining": start_of(config).label, "run": run.name}
        scores = {column: found.get(task, {}).get(key) for column, (task, key) in METRICS.items()}
        lines.append(line | {"seed": config["seed"]} | scores)
    for (name, epochs), cells in paper_table(table)[benchmark].iterrows():
        if name in rows:
            label = f"{name}, {epochs} epochs" if pd.notna(epochs) else name
            lines.append({"scale": "paper", "pretraining": label, "run": f"paper, Table {table}", **cells})
    return pd.DataFrame(lines).reindex(columns=["scale", "pretraining", "run", "seed", *METRICS])


def against_paper(run: Run, benchmark: Benchmark) -> pd.DataFrame:
    """One run above the paper's rows of its benchmark, printed: theirs with ours minus theirs in brackets."""
    frame = beside_paper([run], benchmark.table, benchmark.paper, PAPER_ROWS).set_index(["scale", "pretraining"])
    ours, metrics = frame.iloc[0], list(benchmark.metrics)
    printed = frame[metrics].astype(object)
    for i, (_, row) in enumerate(frame.iterrows()):
        difference = {m: f" ({ours[m] - row[m]:+.1f})" if i and pd.notna(ours[m]) else "" for m in metrics}
        printed.iloc[i] = ["" if pd.isna(row[m]) else f"{row[m]:.1f}{difference[m]}" for m in metrics]
    return printed


def write_report(stem: Path, frame: pd.DataFrame, said: str) -> str:
    """Write beside_paper's table as <stem>.csv (all digits) and <stem>.md (one decimal, with the caption `said`);
    returns the Markdown.
    """
    formats = dict.fromkeys(METRICS, "{:.1f}") | {"seed": "{:.0f}"}
    shown = frame.assign(**{name: [form.format(value) if pd.notna(value) else "" for value in frame[name]]
                            for name, form in formats.items()})  # fmt: skip
    page = f"{pages.markdown(shown, 3)}\n\n{said}\n"
    with records.writing(stem.parent):
        frame.to_csv(stem.with_suffix(".csv"), index=False)
        stem.with_suffix(".md").write_text(page)
    return page


def reading(runs: list[Run]) -> str:
    """What the rows say, and no more: one difference of one seed is not evidence."""
    if missing := ", ".join(run.name for run in runs if not run.metrics):
        return f"Unfinished: {missing}. Nothing can be said yet."
    a, b = (run.metrics["bbox"]["AP"] for run in (runs[0], runs[-1]))
    names = [start_of(run.record["config"]).label for run in (runs[0], runs[-1])]
    return (
        f"AP^bb {b:.2f} from {names[1]} against {a:.2f} from {names[0]}: a difference of {b - a:+.2f}, from one seed "
        f"each at {runs[0].record['config']['profile']} scale. Fine-tuning seeds alone move such numbers by as much or "
        "more; only repeated seeds can tell whether pretraining helped here."
    )
