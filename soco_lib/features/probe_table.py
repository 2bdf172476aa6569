"""Probes of several pretrainings as one table: `python -m soco_lib.features.probe_table OUT RUN...`.

RUN are folders that `make probe` scored; those that differ in their seed alone are one row. Their records are copied
beside the table.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from pathlib import Path

import pandas as pd
from scipy import stats

from soco_lib import one_line_errors
from soco_lib.config import Pretrain
from soco_lib.fields import essence, from_dict, require
from soco_lib.runs.files import writable
from soco_lib.runs.folder import Run, read_json, write_text

#: Score in the records -> its name in tables.
SCORES = {"knn": "k-NN", "linear": "linear"}
KEPT = ("run.json", "metrics.json", "log.jsonl", "probe.json")


def collect(folders: list[Path]) -> pd.DataFrame:
    """One row a run, its scores in percent: run, seed, alignment, scale, images_seen, classes, settings,
    <score>_random, <score>. Raises BookError for a run that is not done or not probed, and for different data.
    """
    rows, asked = [], set()
    for folder in folders:
        run = Run.read(folder)
        scored = run.folder / "probe.json"
        require(run.done and scored.exists(), f"{folder} is not finished or not probed: make probe INIT={folder}")
        cfg, probed = from_dict(Pretrain, run.record["config"]), read_json(scored)
        require(isinstance(probed, dict) and {"data", "fit", "random", "trained"} <= {*probed},
                f"{scored} is no probe's: make probe INIT={folder}")  # fmt: skip
        asked.add((probed["data"], probed["fit"]))
        row = {"run": run.name, "seed": cfg.seed, "alignment": cfg.alignment, "scale": cfg.profile}
        row |= {"images_seen": run.metrics["images_seen"], "classes": probed["trained"]["classes"]}
        row["settings"] = str({k: v for k, v in essence(run.record["config"]).items() if k != "seed"})
        for score in SCORES:
            row |= {f"{score}_random": 100 * probed["random"][score], score: 100 * probed["trained"][score]}
        rows.append(row)
    require(len(asked) == 1, f"the runs were probed on different data: {sorted(asked)}")
    return pd.DataFrame(rows)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row an experiment: its seeds, mean ± sd of random and trained weights, mean gain with its 95 % interval."""
    spread = lambda x: f"{x.mean():.1f} ± {x.std():.1f}" if len(x) > 1 else f"{x.mean():.1f}"
    rows = []
    for _, runs in frame.groupby("settings", sort=False):
        first = runs.iloc[0]
        row = {"alignment": first["alignment"], "scale": first["scale"], "images seen": first["images_seen"]}
        row["seeds"] = ", ".join(map(str, runs["seed"]))
        for score, name in SCORES.items():
            before = runs[f"{score}_random"]
            row |= {f"{name}, random weights": spread(before), name: spread(runs[score])}
            row[f"{name} gain"] = interval(runs[score] - before)
        rows.append(row)
    return pd.DataFrame(rows)


def interval(differences: pd.Series) -> str:
    """Mean of paired differences and, where they differ, its 95 % confidence interval (Student's t over seeds)."""
    mean = f"{differences.mean():+.1f}"
    if differences.nunique() < 2:
        return mean
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    return f"{mean} [{low:+.1f}, {high:+.1f}]"


def between(frame: pd.DataFrame) -> list[str]:
    """A sentence a score: the first experiment against each other one, paired over the seeds that both have."""
    groups = [runs.set_index("seed") for _, runs in frame.groupby("settings", sort=False)]
    lines = []
    for other in groups[1:]:
        names = f"{groups[0]['alignment'].iloc[0]} against {other['alignment'].iloc[0]}"
        for score, name in SCORES.items():
            gap = (groups[0][score] - other[score]).dropna()
            lines.append(f"{name}, {names}: {interval(gap)} points over {len(gap)} seeds")
    return lines


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of table.md, table.csv and the records")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of probed pretrainings")
    given = parser.parse_args(arguments)
    frame = collect(given.runs)
    with writable(given.out):
        for run, name in itertools.product(given.runs, KEPT):
            (given.out / run.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, given.out / run.name / name)
    write_text(given.out / "table.csv", frame.drop(columns="settings").to_csv(index=False))
    probed, classes = read_json(given.runs[0] / "probe.json"), frame["classes"].iloc[0]
    text = (
        f"{summary(frame).to_markdown(index=False, disable_numparse=True)}\n\n"
        f"Class-mean accuracy in percent over {classes} classes (chance {100 / classes:.1f}) on {probed['data']}, "
        f"learnt from {probed['fit'] or 'its other half'}; mean ± standard deviation over seeds; gain over random "
        "weights with its 95 % interval.\n"
    )
    text += "".join(f"\n- {line}" for line in between(frame)) + "\n"
    write_text(given.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
