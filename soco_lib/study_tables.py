"""A study's table beside the paper's, with what it cost and what the data supports; made from records alone (study_records.py).

    python -m soco_lib.study_tables [STUDY ...] --results results

makes results/tables/<study>-<profile>.{csv,md,tex}. Where the runs are not, as on a fresh clone, the bytes are the same.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from soco_lib import ROOT, benchmarks, one_line_errors, studies
from soco_lib.benchmarks import PROFILES
from soco_lib.config import one_of
from soco_lib.plans import Planned
from soco_lib.results import Run
from soco_lib.studies import Study
from soco_lib.study_records import Row, collect, rows_of


@dataclass(frozen=True)
class StudyReport:
    """What notebook 8 shows."""

    study: str
    profile: str


def paired(scores: dict[int, float], base: dict[int, float]) -> tuple[int, float, float, float]:
    """Differences to the base seed by seed: their number, mean, and the 95 % interval of the mean (Student's t; NaN for one)."""
    both = [scores[seed] - base[seed] for seed in sorted({*scores} & {*base})]
    if len(both) < 2:
        return len(both), both[0] if both else math.nan, math.nan, math.nan
    from scipy import stats

    half = stats.t.ppf(0.975, len(both) - 1) * np.std(both, ddof=1) / math.sqrt(len(both))
    return len(both), float(np.mean(both)), float(np.mean(both) - half), float(np.mean(both) + half)


def minutes(run: Run) -> tuple[float, bool]:
    """Of all sessions that have an end, and whether one has none (it was killed: nobody knows how long it took)."""
    known = [s for s in run.record["sessions"] if "end" in s]
    total = sum((datetime.fromisoformat(s["end"]) - datetime.fromisoformat(s["start"])).total_seconds() for s in known)
    return total / 60, len(known) < len(run.record["sessions"])


def cost(planned: Planned, variant: str) -> dict:
    """One run's cost and provenance."""
    seed = planned.cfg.seed
    run, metrics = planned.run, planned.run.metrics or {}
    last = (run.record["sessions"] or [{}])[-1]
    where, git, (time, more) = last.get("hardware", {}), last.get("git", {}), minutes(run)
    seen = metrics.get("images_seen") or metrics.get("iterations", 0) * metrics.get("batch", 0)
    return {
        "variant": variant,
        "seed": seed,
        "run": run.name,
        "state": planned.state.text or planned.state.word,
        "hardware": ", ".join(where.get("gpus") or [f"{where.get('cores')} x {where.get('cpu')}"]),
        "processes": last.get("processes"),
        "minutes": f"{'≥' * more}{time:.1f}",
        "images seen": seen or None,
        "commit": git.get("commit", "")[:10] + "+changes" * bool(git.get("dirty")),
    }


def costs(rows: list[Row]) -> pd.DataFrame:
    """A row a run, each once."""
    found = {}
    for row in rows:
        for planned in row.runs:
            found.setdefault(planned.run.name, cost(planned, row.variant.name))
    columns = ["variant", "seed", "run", "state", "hardware", "processes", "minutes", "images seen", "commit"]
    return pd.DataFrame(found.values(), columns=columns).astype({"images seen": "Int64", "processes": "Int64"})


def table(study: Study, profile: str, rows: list[Row]) -> pd.DataFrame:
    """A row a variant, benchmark and metric; percent.

    value, sd: mean and standard deviation over n seeds; change, low, high: the paired difference to the base over change_n seeds
    and its 95 % interval; paper, paper_change: the printed number ("NaN": it diverged) and its difference to the printed base;
    difference: ours minus the paper's, at the paper's scale only. Empty where there is no finished run or printed number.
    """
    spent, lines = costs(rows), []
    for row in rows:
        base = next(r for r in rows if r.benchmark == row.benchmark and r.variant.name == study.baseline)
        mine = spent[spent["run"].isin([planned.run.name for planned in row.runs])]
        for metric in (m for m in study.metrics if m in benchmarks.find(row.benchmark).metrics):
            scores = row.scores(metric)
            values = np.array(list(scores.values()))
            number, change, low, high = paired(scores, base.scores(metric)) if row is not base else (0, *[math.nan] * 3)
            theirs, anchor = (study.printed(r.variant, row.benchmark, metric) for r in (row, base))
            line = {"variant": row.variant.name, "benchmark": row.benchmark, "metric": metric, "n": len(values)}
            line |= {"value": values.mean() if len(values) else None, "sd": values.std(ddof=1) if len(values) > 1 else None}
            line |= {"change": change, "low": low, "high": high, "change_n": number}
            line["paper"] = "" if theirs is None else f"{theirs:.1f}" if theirs == theirs else "NaN"  # it diverged there
            line["paper_change"] = None if None in (theirs, anchor) or row is base else theirs - anchor
            line["difference"] = line["value"] - theirs if profile == "paper" and len(values) and theirs is not None else None
            line |= {"state": row.state, "runs": " ".join(mine["run"]), "minutes": " ".join(mine["minutes"])}
            line["images_seen"] = " ".join(map(str, mine["images seen"].dropna()))
            lines.append(line | {name: "; ".join(mine[name].unique()) for name in ("hardware", "commit")})
    return pd.DataFrame(lines).round(4)


# --- as text ----------------------------------------------------------------------------------------------------------


def _mean(line) -> str:
    """A cell of ours: mean ± sd (difference to the paper's)."""
    text = f"{line.value:.2f}" if pd.notna(line.value) else ""
    text += f" ± {line.sd:.2f}" if pd.notna(line.sd) else ""
    return text + (f" ({line.difference:+.1f})" if pd.notna(line.difference) else "")


def _change(line) -> str:
    text = f"{line.change:+.2f}" if pd.notna(line.change) else ""
    return text + (f" [{line.low:+.2f}, {line.high:+.2f}]" if pd.notna(line.low) else "")


def parts(study: Study, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The table as printed: title -> scores, and title -> differences to the base, of each benchmark."""
    made = {}
    for name, lines in frame.groupby("benchmark", sort=False):
        scores, changes = {}, {}
        for line in lines.itertuples():
            row = scores.setdefault(line.variant, {"variant": line.variant, "n": line.n})
            row |= {line.metric: _mean(line), f"{line.metric}, paper": line.paper}
            row["state"] = line.state
            row = changes.setdefault(line.variant, {"variant": line.variant, "seeds": line.change_n})
            theirs = f"{line.paper_change:+.1f}" if pd.notna(line.paper_change) else ""
            row |= {f"{line.metric} - base": _change(line), f"{line.metric} - base, paper": theirs}
        shown = [{**{k: v for k, v in row.items() if k != "state"}, "state": row["state"]} for row in scores.values()]
        made[f"{name}: {benchmarks.find(name).title}"] = pd.DataFrame(shown)
        changes.pop(study.baseline)
        if changes:
            made[f"{name}, against {study.baseline}: paired over seeds, 95 % interval"] = pd.DataFrame(changes.values())
    return made


def reading(study: Study, frame: pd.DataFrame) -> str:
    """What the first metric supports, and no more."""
    said = []
    for name, lines in frame[frame["metric"] == study.metrics[0]].groupby("benchmark", sort=False):
        known = lines[lines["n"] > 0]
        if known.empty:
            said.append(f"{name}: no finished run; nothing can be said.")
            continue
        alone = [line.variant for line in lines.itertuples() if line.change_n == 1]
        told = {True: [], False: []}
        for line in lines[lines["change_n"] > 1].itertuples():
            sure = line.low > 0 or line.high < 0
            told[sure].append(f"{line.variant} ({line.change:+.2f}, {line.low:+.2f} to {line.high:+.2f}, {line.change_n} seeds)")
        text = f"{name}, {study.metrics[0]} against {study.baseline}:"
        if told[True]:
            text += f" {', '.join(told[True])} differ{'s' * (len(told[True]) == 1)}."
            tests = len(told[True]) + len(told[False])
            chance = 1 - 0.95**tests
            text += f" Each of the {tests} intervals is for itself: were there no effect, one of them would exclude 0 in " \
                    f"{chance:.0%} of such studies." if tests > 1 else ""  # fmt: skip
        text += f" Not distinguishable from it: {', '.join(told[False])}." if told[False] else ""
        text += f" One seed each, of which nothing can be said: {', '.join(alone)}." if alone else ""
        without = [line.variant for line in lines.itertuples() if not line.n]
        text += f" Without a score: {', '.join(without)}." if without else ""
        empty = not any((told[True], told[False], alone, without))
        said.append(text + (" there is nothing to compare." if empty else ""))
    return "\n\n".join(said)


def caption(study: Study, profile: str) -> str:
    """Says where the paper's numbers come from and at which scale ours were earned."""
    small = "small runs on small data, which show that the study works and are not comparable with the paper's"
    ours = "ours at the paper's setting" if profile == "paper" else f"ours at scale '{profile}': {small}"
    return (
        f"Study {study.name}: {study.question} Table {study.tables} of the paper; {ours}. "
        "Percent; mean ± standard deviation over n seeds."
    )


def build(study: Study, profile: str, results: Path) -> str:
    """Record what there is, write results/tables/<study>-<profile>.{csv,md,tex} from the records and return the Markdown."""
    one_of("PROFILE", profile, PROFILES)
    folder = collect(study, profile, results)
    rows = rows_of(study, profile, folder)
    frame, spent = table(study, profile, rows), costs(rows)
    stem = Path(results) / "tables" / f"{study.name}-{profile}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(stem.with_suffix(".csv"), index=False)
    printed, said = parts(study, frame), caption(study, profile)
    tex = [part.to_latex(index=False, escape=True, caption=f"{title}. {said}") for title, part in printed.items()]
    stem.with_suffix(".tex").write_text("\n".join(tex))
    linked = spent.assign(run=[f"[{name}](../studies/{study.name}-{profile}/{name})" for name in spent["run"]])
    pages = [said]
    for title, part in (printed | {"Cost and provenance": linked}).items():
        pages += [f"**{title}**", part.astype(object).where(part.notna(), "").to_markdown(index=False, disable_numparse=True)]
    pages.insert(-2, f"**Reading.** {reading(study, frame)}")
    stem.with_suffix(".md").write_text("\n\n".join(pages) + "\n")
    return stem.with_suffix(".md").read_text()


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", help="default: all that have records or runs")
    parser.add_argument("--profile", default="all", help="toy, paper or all")
    parser.add_argument("--results", default="results", help="folder of the run folders")
    given = parser.parse_args(arguments)
    results, profiles = ROOT / given.results, PROFILES if given.profile == "all" else (given.profile,)
    for name in given.studies or studies.names():
        study = studies.read(name)
        for profile in profiles:
            if given.studies and given.profile != "all":
                print(build(study, profile, results), end="")
            elif any(row.cells for row in rows_of(study, profile, collect(study, profile, results))):
                build(study, profile, results)
                print(f"{given.results}/tables/{study.name}-{profile}.md")


if __name__ == "__main__":
    sys.exit(main())
