"""Every setting that was tried before a setting was frozen and tested, with its figures, the failures too; from records
alone.

Trials are runs in results/trials, made on development seeds and the development split. Their records are kept in
results/trials.jsonl, and results/tables/trials.md is made from these.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from soco_lib.config import Pretrain
from soco_lib.fields import from_dict
from soco_lib.runs import records
from soco_lib.runs.records import Record
from soco_lib.runs.settings import load
from soco_lib.studies.plans import fields
from soco_lib.tables import pages
from soco_lib.transfer import benchmarks
from soco_lib.transfer.benchmarks import Transfer

#: The frozen setting that trials are described against.
PRETRAIN, BENCHMARK = "notebooks/params/pretrain-toy.yaml", "minicoco-10"


def _both(scores: dict | None) -> str:
    """Shares of a probe, k-NN's and the linear one's, as percent."""
    return f"{100 * scores['knn']:.1f} / {100 * scores['linear']:.1f}" if scores else ""


def pretraining(run: Record, frozen: Pretrain) -> dict:
    """A row of the table: what differs from the frozen setting, images seen, its last loss, rank and probe."""
    cfg, last, probed = from_dict(Pretrain, run.record["config"]), (run.rows() or [{}])[-1], run.record.get("probe", {})
    line = {"trial": run.name, "differs from the frozen setting in": fields(cfg, frozen) or "(nothing)"}
    line |= {"images seen": records.numbers(run).get("images_seen", "")}
    line |= {"loss": last.get("loss"), "rank": last.get("effective_rank")}
    return line | {f"k-NN / linear, {name} (%)": _both(probed.get(name)) for name in ("random", "trained")}


def transfer(run: Record, frozen: Transfer) -> dict:
    """A row of the table: where it starts, what differs from the frozen setting, AP as it rose."""
    cfg, found = from_dict(Transfer, run.record["config"]), records.numbers(run)
    plain = dataclasses.replace(cfg, init=frozen.init, benchmark=frozen.benchmark)
    course = [f"{row['bbox_AP']:.2f} ({row['step']})" for row in run.rows() if "bbox_AP" in row]
    line = {"trial": run.name, "from": Path(cfg.init).name}
    line |= {"differs from the frozen setting in": fields(plain, frozen) or "(nothing)"}
    line |= {"AP_bb (iteration)": ", ".join(course), "AP50_bb": found.get("bbox", {}).get("AP50")}
    return line | {"AP_mk": found.get("segm", {}).get("AP")}


def build(results: Path) -> str:
    """Keep the records of results/trials and write results/tables/trials.md from the records; returns it ("" where
    there is none).
    """
    there, wrong = records.read_all(Path(results) / "trials")
    records.keep([run for run in there if run.record["sessions"]], results, records.TRIALS)
    runs = sorted(records.tracked(results, records.TRIALS), key=lambda run: run.record["sessions"][0]["start"])
    if not runs:
        return ""
    spent = pd.DataFrame([records.cost(run) for run in runs], columns=records.COST)
    rows = {"pretrain": [], "transfer": []}
    frozen = {"pretrain": load(Pretrain, PRETRAIN), "transfer": benchmarks.settings(BENCHMARK, "toy")}
    for run, took in zip(runs, spent["minutes"]):
        kind = run.record["kind"]
        row = (pretraining if kind == "pretrain" else transfer)(run, frozen[kind])
        rows[kind].append(row | {"minutes": took.lstrip("≥"), "state": records.state_of(run).text})
    shown = {kind: pages.markdown(pd.DataFrame(lines).round(2)) for kind, lines in rows.items()}
    page = [
        f"Every setting that was tried before one was frozen and tested: {len(runs)} runs in the order they began, on "
        "development seeds and development splits unless REGIME.md says otherwise; one seed each, so a small "
        "difference between two rows means nothing.",
        "**Pretraining.** Loss: -4 is the least for each view beyond the first; rank: effective rank of the "
        f"embeddings; k-NN and linear: class of labelled objects from frozen features.\n\n{shown['pretrain']}",
        f"**Fine-tuning.**\n\n{shown['transfer']}",
        f"**{records.together(spent)}**\n\n{pages.markdown(spent)}",
        *(f"Left out: {said}." for said in wrong.values()),
    ]
    path = Path(results) / "tables" / "trials.md"
    with records.writing(path.parent):
        path.write_text("\n\n".join(page) + "\n")
    return path.read_text()
