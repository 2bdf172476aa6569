"""Every setting that was tried before a setting was frozen and tested, with its figures, the failures too; from records
alone.

    python -m soco_lib.tables.trials --results results

Trials are runs in results/trials, made on development seeds and the development split. Their records are kept in
results/studies/trials, and results/tables/trials.md is made from these.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import pandas as pd

from soco_lib import ROOT, one_line_errors
from soco_lib.config import Pretrain
from soco_lib.fields import from_dict, load
from soco_lib.runs import records
from soco_lib.runs.folder import Run, read_json
from soco_lib.studies.plans import fields
from soco_lib.tables import pages
from soco_lib.transfer import benchmarks
from soco_lib.transfer.benchmarks import Transfer

#: The frozen setting that trials are described against.
PRETRAIN, BENCHMARK = "notebooks/params/pretrain-toy.yaml", "minicoco-10"


def collect(results: Path) -> Path:
    """Record the runs of results/trials; returns the records' folder."""
    folder = Path(results) / "studies" / "trials"
    for run in records.read_all((Path(results) / "trials").glob("*/run.json"))[0]:
        if run.record["sessions"]:
            with records.writing(folder):
                records.keep(run, folder)
    return folder


def _probe(run: Run) -> dict:
    path = run.folder / "probe.json"
    return read_json(path) if path.is_file() else {}


def pretrainings(runs: list[Run]) -> pd.DataFrame:
    """A row a pretraining: what differs from the frozen setting, its last loss, rank and probe, minutes."""
    frozen, lines = load(Pretrain, PRETRAIN), []
    for run in runs:
        cfg = from_dict(Pretrain, run.record["config"])
        rows, probed = run.rows(), _probe(run)
        last = rows[-1] if rows else {}
        line = {"trial": run.name, "differs from the frozen setting in": fields(cfg, frozen) or "(nothing)"}
        line["images seen"] = records.numbers(run).get("images_seen", "")
        line |= {"loss": last.get("loss"), "rank": last.get("effective_rank")}
        for name in ("random", "trained"):
            scores = probed.get(name)
            line[f"k-NN / linear, {name} (%)"] = (
                f"{scores['knn']:.1%} / {scores['linear']:.1%}".replace("%", "") if scores else ""
            )
        lines.append(line | {"minutes": f"{records.minutes(run)[0]:.1f}", "state": records.state_of(run).text})
    return pd.DataFrame(lines).round(2)


def transfers(runs: list[Run]) -> pd.DataFrame:
    """A row a transfer: where it starts, what differs from the frozen setting, AP as it rose, minutes."""
    frozen, lines = benchmarks.settings(BENCHMARK, "toy"), []
    for run in runs:
        cfg = from_dict(Transfer, run.record["config"])
        plain = dataclasses.replace(cfg, init=frozen.init, benchmark=frozen.benchmark)
        course = [f"{row['bbox_AP']:.2f} ({row['step']})" for row in run.rows() if "bbox_AP" in row]
        found = records.numbers(run)
        line = {"trial": run.name, "from": Path(cfg.init).name}
        line["differs from the frozen setting in"] = fields(plain, frozen) or "(nothing)"
        line |= {"AP_bb (iteration)": ", ".join(course), "AP50_bb": found.get("bbox", {}).get("AP50")}
        line |= {"AP_mk": found.get("segm", {}).get("AP")}
        lines.append(line | {"minutes": f"{records.minutes(run)[0]:.1f}", "state": records.state_of(run).text})
    return pd.DataFrame(lines).round(2)


def build(results: Path) -> str:
    """Write results/tables/trials.md from the records; returns it ("" where there is none)."""
    runs, wrong = records.read_all(collect(results).glob("*/run.json"))
    if not runs:
        return ""
    runs.sort(key=lambda run: run.record["sessions"][0]["start"])
    of_kind = {kind: [run for run in runs if run.record["kind"] == kind] for kind in ("pretrain", "transfer")}
    spent = pd.DataFrame([records.cost(run) for run in runs], columns=records.COST)
    page = [
        f"Every setting that was tried before one was frozen and tested: {len(runs)} runs in the order they began, on development seeds "
        "and development splits unless REGIME.md says otherwise; one seed each, so a small difference between two rows means nothing.",
        f"**Pretraining.** Loss: -4 is the least for each view beyond the first; rank: effective rank of the embeddings; k-NN and "
        f"linear: class of labelled objects from frozen features.\n\n{pages.markdown(pretrainings(of_kind['pretrain']))}",
        f"**Fine-tuning.**\n\n{pages.markdown(transfers(of_kind['transfer']))}",
        f"**{records.together(spent)}**\n\n{pages.markdown(spent)}",
        *(f"Left out: {said}." for _, said in wrong),
    ]
    path = Path(results) / "tables" / "trials.md"
    with records.writing(path.parent):
        path.write_text("\n\n".join(page) + "\n")
    return path.read_text()


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="results", help="folder of the run folders")
    print(build(ROOT / parser.parse_args(arguments).results) or "no trial has a record", end="")


if __name__ == "__main__":
    sys.exit(main())
