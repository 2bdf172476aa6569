"""Tables from run folders alone, beside the paper's rows; every row says at which scale it was earned.

    python -m soco_lib.tables.paper_tables 1 --results results --profile toy

prints Table 1 of the paper with all transfer runs under `results` that belong to it and leaves
results/tables/table1.{csv,md,tex}. Small records of these runs are kept in results/studies/table1 (records.py), and
where the runs are gone, as on a fresh clone, the same table is made from the records.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from soco_lib import ROOT, one_line_errors
from soco_lib.fields import essence, one_of
from soco_lib.runs import records
from soco_lib.runs.folder import Run
from soco_lib.runs.records import state_of
from soco_lib.studies.paper import paper_table
from soco_lib.tables import pages
from soco_lib.tables.starts import scale_of, source_of, start_of
from soco_lib.transfer import benchmarks

#: Column -> (task, key) in a transfer run's metrics; the paper's names of the same numbers.
METRICS = {
    "AP_bb": ("bbox", "AP"),
    "AP50_bb": ("bbox", "AP50"),
    "AP75_bb": ("bbox", "AP75"),
    "AP_mk": ("segm", "AP"),
    "AP50_mk": ("segm", "AP50"),
    "AP75_mk": ("segm", "AP75"),
}


def caption(runs: list[Run], table: str) -> str:
    """Says which rows are not comparable with the paper's, and why."""
    scales = sorted({scale_of(run.record["config"]) for run in runs} - {"paper"})
    small, changed = ([s for s in scales if s.startswith("paper,") == is_paper] for is_paper in (False, True))
    said = [] if scales else [f"Ours beside Table {table} of the paper."]
    if small:
        said.append(f"Rows of scale '{', '.join(small)}' are small runs on small data: they show that the book works and are not "
                    f"comparable with the rows of Table {table} of the paper.")  # fmt: skip
    if changed:
        said.append(f"Rows of scale '{'; '.join(changed)}' differ from the paper's setting in what is named.")
    return " ".join(said)


def write(stem: Path, frame: pd.DataFrame, parts: dict[str, pd.DataFrame], caption: str, page: str = "") -> None:
    """Write <stem>.csv (`frame`, all digits), <stem>.tex and <stem>.md (`parts`: title or "" -> printed table; or
    `page` instead).

    Raises BookError where nothing can be written.
    """
    shown = [
        f"**{title}**\n\n{pages.markdown(part, 3)}" if title else pages.markdown(part, 3)
        for title, part in parts.items()
    ]
    with records.writing(stem.parent):
        frame.to_csv(stem.with_suffix(".csv"), index=False)
        stem.with_suffix(".md").write_text((page or "\n\n".join([*shown, caption])) + "\n")
        stem.with_suffix(".tex").write_text(pages.latex(parts, caption))


# --- a whole table of the paper ---------------------------------------------------------------------------------------

CELL = ["source", "scale", "pretraining", "epochs", "benchmark", "metric", "value", "sd", "n", "difference", "state", "runs",
        "hardware", "minutes", "images_seen", "commit"]  # fmt: skip
#: Studies that have a table of their own (4, 5 and 9): their runs stand there.
STUDIES = ("alignment", "viewsize", "batchsize", "proposals", "momentum", "table9")


def transfers(known: dict[str, Run], results: Path, table: str, profile: str = "all") -> tuple[list[Run], list[str]]:
    """Transfer runs whose benchmark belongs to a table, by name, and a line on what is left out.

    profile: first word of their scale, or all. Left out are runs of the STUDIES, unless a recipe (pretrain-soco-...)
    has them too.
    """
    chosen, others = [], set()
    for name, run in sorted(known.items()):
        config = run.record["config"]
        benchmark = benchmarks.BENCHMARKS.get(config.get("benchmark", "")) if run.record["kind"] == "transfer" else None
        if benchmark and benchmark.table == table and profile in ("all", config["profile"].split(",")[0]):
            study = re.match(rf"({'|'.join(STUDIES)})-.+-s\d+-{benchmark.name}$", name)
            if study and not any(Path(results).glob(f"studies/pretrain-*/{name}")):
                others.add(study[1])
            else:
                chosen.append(run)
    return chosen, [f"runs of the stud{'ies' if others[1:] else 'y'} {', '.join(others)}, which stand in tables of their own"
                    for others in [sorted(others)] if others]  # fmt: skip


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
            extra = ", ".join(f"{k}={values.get(k)}" for k in differing)
            groups[scale, f"{label}, {extra}" if extra else label][benchmark].append(run)
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
        source = source_of(run.record["config"], known)
        for each in (source, run) if source else (run,):
            of = each.record["config"].get("benchmark") or "pretraining"
            made.setdefault(each.name, {"of": of, "seed": each.record["config"]["seed"], **records.cost(each)})
    frame = pd.DataFrame(made.values(), columns=["of", "seed", *records.COST])
    return frame.astype({"seed": "Int64", "processes": "Int64", "images seen": "Int64"})


def table_cells(table: str, runs: list[Run], known: dict[str, Run] | None = None) -> tuple[pd.DataFrame, list[str]]:
    """A paper's table in long form, a row a cell (columns: CELL), and what was left out of it, a line each.

    source: paper (all printed rows) or ours; value: percent, ours the mean over n seeds with their standard deviation
    sd; difference: ours minus the paper's row that was repeated, at the paper's scale only; runs: one a seed, and what
    they cost. Cells without a finished run or printed number are NaN. known: runs by name, where the pretrainings'
    folders are not there.
    """
    known = known or {}
    members = [b for b in benchmarks.BENCHMARKS.values() if b.table == table]
    one_of("table", table, dict.fromkeys(b.table for b in benchmarks.BENCHMARKS.values()))
    printed = {
        (row, None if pd.isna(epochs) else int(epochs)): values
        for (row, epochs), values in paper_table(table).iterrows()
    }
    cells, notes = [], []
    for (row, epochs), values in printed.items():
        for b in members:
            base = dict(source="paper", scale="paper", pretraining=row, epochs=epochs, benchmark=b.name)
            cells += [base | {"metric": m, "value": values[b.paper, m]} for m in b.metrics]
    for (scale, label), of_benchmark in _grouped(runs, known).items():
        start = start_of(next(iter(of_benchmark.values()))[0].record["config"], known)
        theirs = printed.get((start.row, start.epochs)) if scale == "paper" else None
        for b in members:
            seeds, left = _one_a_seed(of_benchmark.get(b.name, []))
            notes += left
            done = [run for run in seeds.values() if state_of(run).word == "done"]
            spent = _spent([*seeds.values()], known)
            base = dict(
                source="ours", scale=scale, pretraining=label, epochs=start.epochs, benchmark=b.name, n=len(done)
            )
            base |= dict(state=records.by_state({seed: state_of(run).text for seed, run in seeds.items()}))
            base |= dict(runs=" ".join(run.name for run in seeds.values()), minutes=" ".join(spent["minutes"]))
            base |= dict(images_seen=" ".join(map(str, spent["images seen"].dropna())))
            base |= {name: "; ".join(spent[name].unique()) for name in ("hardware", "commit")}
            for m in b.metrics:
                task, key = METRICS[m]
                values = np.array([records.numbers(run).get(task, {}).get(key, np.nan) for run in done], float)
                mean, sd = (
                    (values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan)
                    if len(values)
                    else (np.nan, np.nan)
                )
                difference = np.nan if theirs is None else mean - theirs[b.paper, m]
                cells.append(base | dict(metric=m, value=mean, sd=sd, difference=difference))
    return pd.DataFrame(cells).reindex(columns=CELL).astype({"epochs": "Int64", "n": "Int64"}), notes


def table_parts(cells: pd.DataFrame, links: pages.Links | None = None,
                known: dict[str, Run] | None = None) -> dict[str, pd.DataFrame]:  # fmt: skip
    """The long form as printed: title -> one table a benchmark; our cells read mean ± sd (difference to the paper's
    row).

    links: behind each of our numbers stands then a link to the run of every seed (known: runs by name).
    """
    word = lambda form, number: "" if pd.isna(number) else form.format(number)
    parts = {}
    for name, part in cells.groupby("benchmark", sort=False):
        lines: dict[tuple, dict] = {}
        for cell in part.itertuples():
            begun = cell.runs.split() if cell.source == "ours" else []
            row = {
                "source": cell.source,
                "scale": cell.scale,
                "pretraining": cell.pretraining,
                "epochs": word("{}", cell.epochs),
            }
            line = lines.setdefault(tuple(row.values()), row | {"n": word("{}", cell.n) if begun else ""})
            text = word("{:.1f}", cell.value) + word(" ± {:.1f}", cell.sd) + word(" ({:+.1f})", cell.difference)
            seeds = {known[run].record["config"]["seed"]: run for run in begun} if links and text else {}
            line[cell.metric] = text + (links.seeds(seeds) if links else "")
            line["state"] = line.pop("state", cell.state if begun else "")  # stays the last column
        shown = pd.DataFrame(lines.values())
        parts[f"{name}: {benchmarks.BENCHMARKS[name].title}"] = (
            shown if any(shown["state"]) else shown.drop(columns="state")
        )
    return parts


def build(table: str, results: Path, profile: str = "all") -> str:
    """Write results/tables/table<N>.{csv,md,tex}, and records of its runs, and return the Markdown.

    Raises BookError for a table without benchmarks and a folder that cannot be written.
    """
    known, torn = records.found(results)
    runs, left = transfers(known, results, table, profile)
    cells, repeats = table_cells(table, runs, known)
    shown = _spent([known[name] for names in cells["runs"].dropna().unique() for name in names.split()], known)
    links = pages.Links({name: f"../studies/{_kept(known[name], results, table)}/{name}" for name in shown["run"]})
    said = (
        caption(runs, table)
        if runs
        else f"No transfer run of Table {table} at scale '{profile}' lies in {results.name}."
    )
    said += f" Left out: {'; '.join(left + repeats + torn)}." if left + repeats + torn else ""
    spent = {records.together(shown): shown} if len(shown) else {}
    linked = {title: part.assign(run=[links(name, name) for name in part["run"]]) for title, part in spent.items()}
    printed = [
        f"**{title}**\n\n{pages.markdown(part, 3)}"
        for title, part in (table_parts(cells, links, known) | linked).items()
    ]
    page = "\n\n".join([*printed, said, links.definitions()]).rstrip()
    write(results / "tables" / f"table{table}", cells, table_parts(cells) | spent, said, page)
    return page + "\n"


def _kept(run: Run, results: Path, table: str) -> str:
    """The folder of results/studies that holds the run's record, put there: a study's that has it already, else the
    table's own.
    """
    holders = [path.parent.name for path in sorted(results.glob(f"studies/*/{run.name}"))]
    folder = next((name for name in holders if not re.fullmatch(r"table\d+", name)), f"table{table}")
    with records.writing(results / "studies" / folder):
        records.keep(run, results / "studies" / folder)
    return folder


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="number of the paper's table")
    parser.add_argument("--results", default="results", help="folder of the run folders")
    parser.add_argument("--profile", default="all", help="scale of our rows: toy, paper or all")
    given = parser.parse_args(arguments)
    print(build(given.table, ROOT / given.results, given.profile), end="")


if __name__ == "__main__":
    sys.exit(main())
