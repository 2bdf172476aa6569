"""Tables from run folders alone, beside the paper's rows; every row says at which scale it was earned.

    python -m soco_lib.tables 1 --results results --profile toy

prints Table 1 of the paper with all transfer runs under `results` that belong to it and leaves results/tables/table1.{csv,md,tex}.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from soco_lib import ROOT, benchmarks, locate, one_line_errors
from soco_lib.config import essence, one_of
from soco_lib.paper import paper_table
from soco_lib.results import Run

#: Column -> (task, key) in a transfer run's metrics; the paper's names of the same numbers.
METRICS = {
    "AP_bb": ("bbox", "AP"),
    "AP50_bb": ("bbox", "AP50"),
    "AP75_bb": ("bbox", "AP75"),
    "AP_mk": ("segm", "AP"),
    "AP50_mk": ("segm", "AP50"),
    "AP75_mk": ("segm", "AP75"),
}


@dataclass(frozen=True)
class Start:
    """What a transfer started from, and the row of the paper's tables that this repeats ("": none)."""

    label: str
    epochs: int | None = None
    row: str = ""


def start_of(config: dict) -> Start:
    """Scratch, a pretraining's run folder (by name) or another checkpoint (by file name), from a transfer's plain config."""
    if config["init"] == "scratch":
        return Start("Scratch", row="Scratch")
    path = locate(config["init"])
    folder = path if path.is_dir() else path.parent.parent  # results/NAME/checkpoints/FILE
    if not (folder / "run.json").is_file():
        return Start(path.name)
    run = Run.read(folder)
    pretrain, metrics = run.record["config"], run.metrics or {}
    if run.record["kind"] != "pretrain":
        return Start(path.name)
    epochs = None if pretrain["steps"] else round(pretrain["epochs"])
    # The paper's own: its settings but for epochs and views, views of its sizes, as many images as ImageNet's 1.28 million.
    recipes = {"paper", "epochs", "views", "detector=mask-rcnn-r50-c4"}
    changed = {word for word in pretrain["profile"].split(", ") if word not in recipes and word.partition("=")[0] not in recipes}
    sizes = {(224,): "SoCo", (224, 112): "SoCo", (224, 112, 192): "SoCo*"}  # (224,) is C4's
    enough = bool(epochs) and metrics.get("images_seen", 0) > 1.2e6 * epochs
    row = sizes.get(tuple(view["size"] for view in pretrain["views"]), "") if enough and not changed else ""
    return Start(f"SoCo ({run.name})", epochs, row)


def scale_of(config: dict) -> str:
    """The label of a transfer's scale: its profile, and whether it ran on other data than its benchmark's."""
    benchmark = benchmarks.BENCHMARKS.get(config.get("benchmark"))
    if benchmark is None:
        return config["profile"]
    usual = benchmark.settings if config["profile"].split(",")[0] == "paper" else benchmark.toy
    return config["profile"] + ", other data" * any(config[key] != usual[key] for key in ("train", "test"))


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


def write(stem: Path, frame: pd.DataFrame, parts: dict[str, pd.DataFrame], caption: str) -> None:
    """Write <stem>.csv (`frame`, all digits), <stem>.md and <stem>.tex (`parts`: title or "" -> printed table)."""
    frame.to_csv(stem.with_suffix(".csv"), index=False)
    pages, tex = [], []
    for title, part in parts.items():
        align = ["left"] * 3 + ["right"] * (len(part.columns) - 3)
        table = part.to_markdown(index=False, colalign=align, disable_numparse=True)
        pages += [f"**{title}**\n\n{table}" if title else table]
        tex += [part.to_latex(index=False, caption=f"{title}. {caption}" if title else caption, escape=True)]
    stem.with_suffix(".md").write_text("\n\n".join([*pages, caption]) + "\n")
    stem.with_suffix(".tex").write_text("\n".join(tex))


# --- a whole table of the paper ---------------------------------------------------------------------------------------

CELL = ["source", "scale", "pretraining", "epochs", "benchmark", "metric", "value", "sd", "n", "difference", "runs"]


def transfers(results: Path, table: str, profile: str = "all") -> list[Run]:
    """Transfer runs under `results` whose benchmark belongs to a table, by name; profile: first word of their scale, or all."""
    found = []
    for path in sorted(Path(results).glob("*/run.json")):
        run = Run.read(path.parent)
        config = run.record["config"]
        benchmark = benchmarks.BENCHMARKS.get(config.get("benchmark", "")) if run.record["kind"] == "transfer" else None
        if benchmark and benchmark.table == table and profile in ("all", config["profile"].split(",")[0]):
            found.append(run)
    return found


def _grouped(runs: list[Run]) -> dict[tuple[str, str], dict[str, list[Run]]]:
    """(scale, pretraining) -> benchmark -> runs that differ in their seed alone.

    Where runs of one benchmark differ in more, the name of the pretraining is followed by what differs.
    """
    alike, groups = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for run in runs:
        config = run.record["config"]
        alike[scale_of(config), start_of(config).label, config["benchmark"]].append(run)
    for (scale, label, benchmark), members in alike.items():
        plain = [essence(run.record["config"]) for run in members]
        differing = [k for k in plain[0] if k != "seed" and any(p.get(k) != plain[0][k] for p in plain)]
        for run, values in zip(members, plain):
            extra = ", ".join(f"{k}={values.get(k)}" for k in differing)
            groups[scale, f"{label}, {extra}" if extra else label][benchmark].append(run)
    return groups


def _one_a_seed(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """The finished runs, one a seed, and a line on each of the others."""
    kept, notes = {}, []
    for run in runs:
        seed = run.record["config"]["seed"]
        if not run.done:
            notes.append(f"{run.name} is not finished ({run.record['status']})")
        elif seed in kept:
            notes.append(f"{run.name} repeats seed {seed} of {kept[seed].name}")
        else:
            kept[seed] = run
    return list(kept.values()), notes


def table_cells(table: str, runs: list[Run]) -> tuple[pd.DataFrame, list[str]]:
    """A paper's table in long form, a row a cell (columns: CELL), and what was left out of it, a line each.

    source: paper (all printed rows) or ours; value: percent, ours the mean over n seeds with their standard deviation sd;
    difference: ours minus the paper's row that was repeated, at the paper's scale only. Cells without a finished run or printed
    number are NaN.
    """
    members = [b for b in benchmarks.BENCHMARKS.values() if b.table == table]
    one_of("table", table, dict.fromkeys(b.table for b in benchmarks.BENCHMARKS.values()))
    printed = {(row, None if pd.isna(epochs) else int(epochs)): values for (row, epochs), values in paper_table(table).iterrows()}
    cells, notes = [], []
    for (row, epochs), values in printed.items():
        for b in members:
            base = dict(source="paper", scale="paper", pretraining=row, epochs=epochs, benchmark=b.name)
            cells += [base | {"metric": m, "value": values[b.paper, m]} for m in b.metrics]
    for (scale, label), of_benchmark in _grouped(runs).items():
        start = start_of(next(iter(of_benchmark.values()))[0].record["config"])
        theirs = printed.get((start.row, start.epochs)) if scale == "paper" else None
        for b in members:
            seeds, left = _one_a_seed(of_benchmark.get(b.name, []))
            notes += left
            base = dict(source="ours", scale=scale, pretraining=label, epochs=start.epochs, benchmark=b.name)
            base |= dict(n=len(seeds), runs=" ".join(run.name for run in seeds))
            for m in b.metrics:
                task, key = METRICS[m]
                values = np.array([run.metrics.get(task, {}).get(key, np.nan) for run in seeds], float)
                mean, sd = (values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan) if len(values) else (np.nan, np.nan)
                difference = np.nan if theirs is None else mean - theirs[b.paper, m]
                cells.append(base | dict(metric=m, value=mean, sd=sd, difference=difference))
    return pd.DataFrame(cells).reindex(columns=CELL).astype({"epochs": "Int64", "n": "Int64"}), notes


def table_parts(cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The long form as printed: title -> one table a benchmark; our cells read mean ± sd (difference to the paper's row)."""
    word = lambda form, number: "" if pd.isna(number) else form.format(number)  # noqa: E731
    parts = {}
    for name, part in cells.groupby("benchmark", sort=False):
        lines: dict[tuple, dict] = {}
        for cell in part.itertuples():
            row = {"source": cell.source, "scale": cell.scale, "pretraining": cell.pretraining, "epochs": word("{}", cell.epochs)}
            line = lines.setdefault(tuple(row.values()), row | {"n": word("{}", cell.n) if cell.runs else ""})
            line[cell.metric] = word("{:.1f}", cell.value) + word(" ± {:.1f}", cell.sd) + word(" ({:+.1f})", cell.difference)
        parts[f"{name}: {benchmarks.BENCHMARKS[name].title}"] = pd.DataFrame(lines.values())
    return parts


def build(table: str, results: Path, profile: str = "all") -> str:
    """Write results/tables/table<N>.{csv,md,tex} and return the Markdown. Raises BookError for a table without benchmarks."""
    runs = transfers(results, table, profile)
    cells, notes = table_cells(table, runs)
    said = caption(runs, table) if runs else f"No transfer run of Table {table} at scale '{profile}' lies in {results}."
    left = f" Left out: {'; '.join(notes)}." if notes else ""
    stem = Path(results) / "tables" / f"table{table}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    write(stem, cells, table_parts(cells), said + left)
    return stem.with_suffix(".md").read_text()


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
