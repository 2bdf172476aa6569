"""A study's table beside the paper's, with what it cost and what the data supports; made from records alone
(study_rows.py).

    python -m soco_lib.tables.study_table [STUDY ...] --results results

makes results/tables/<study>-<profile>.{csv,md,tex,svg}. Where the runs are not, as on a fresh clone, the bytes are the
same.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from soco_lib import ROOT, one_line_errors
from soco_lib.fields import one_of
from soco_lib.figures import studies as study_figure
from soco_lib.runs import records
from soco_lib.studies import study as studies
from soco_lib.studies.study import Study
from soco_lib.tables import pages
from soco_lib.tables.study_rows import Row, collect, rows_of, unreadable
from soco_lib.transfer import benchmarks
from soco_lib.transfer.benchmarks import PROFILES


@dataclass(frozen=True)
class StudyReport:
    """What notebook 8 shows."""

    study: str
    profile: str


@dataclass(frozen=True)
class Built:
    """What was made of a study."""

    rows: list[Row]
    frame: pd.DataFrame  # see `table`
    page: str  # Markdown, without the figure
    figure: Path  # SVG


def paired(scores: dict[int, float], base: dict[int, float]) -> tuple[int, float, float, float]:
    """Differences to the base seed by seed: their number, mean, and the 95 % interval of the mean (Student's t; NaN for
    one).
    """
    both = [scores[seed] - base[seed] for seed in sorted({*scores} & {*base})]
    if len(both) < 2:
        return len(both), both[0] if both else math.nan, math.nan, math.nan
    from scipy import stats

    half = stats.t.ppf(0.975, len(both) - 1) * np.std(both, ddof=1) / math.sqrt(len(both))
    return len(both), float(np.mean(both)), float(np.mean(both) - half), float(np.mean(both) + half)


def costs(rows: list[Row]) -> pd.DataFrame:
    """A row a run, each once: variant, seed and records.COST."""
    found = {}
    for row in rows:
        for planned in row.runs:
            found.setdefault(
                planned.run.name, {"variant": row.variant.name, "seed": planned.cfg.seed, **records.cost(planned.run)}
            )
    spent = pd.DataFrame(found.values(), columns=["variant", "seed", *records.COST])
    return spent.astype({"images seen": "Int64", "processes": "Int64"})


def table(study: Study, profile: str, rows: list[Row]) -> pd.DataFrame:
    """A row a variant, benchmark and metric; percent.

    value, sd: mean and standard deviation over n seeds; change, low, high: the paired difference to the base over
    change_n seeds and its 95 % interval; paper, paper_change: the printed number ("NaN": it diverged) and its
    difference to the printed base; difference: ours minus the paper's, at the paper's scale only. Empty where there is
    no finished run or printed number.
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
            line |= {
                "value": values.mean() if len(values) else None,
                "sd": values.std(ddof=1) if len(values) > 1 else None,
            }
            line |= {"change": change, "low": low, "high": high, "change_n": number}
            line["paper"] = (
                "" if theirs is None else f"{theirs:.1f}" if theirs == theirs else "NaN"
            )  # it diverged there
            line["paper_change"] = None if None in (theirs, anchor) or row is base else theirs - anchor
            line["difference"] = (
                line["value"] - theirs if profile == "paper" and len(values) and theirs is not None else None
            )
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


def parts(
    study: Study, frame: pd.DataFrame, rows: list[Row], links: pages.Links | None = None
) -> dict[str, pd.DataFrame]:
    """The table as printed: title -> scores, and title -> differences to the base, of each benchmark.

    links: behind each of our scores stands then a link to the run of every seed.
    """
    row_of = {(row.variant.name, row.benchmark): row for row in rows}
    made = {}
    for name, lines in frame.groupby("benchmark", sort=False):
        scores, changes = {}, {}
        for line in lines.itertuples():
            row = scores.setdefault(line.variant, {"variant": line.variant, "n": line.n})
            seeds = links.seeds(row_of[line.variant, name].scored(line.metric)) if links else ""
            row |= {line.metric: _mean(line) + seeds, f"{line.metric}, paper": line.paper}
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


#: A mean AP below this, in percent, says little of a pretraining.
FLOOR = 1.0


def reading(study: Study, frame: pd.DataFrame) -> str:
    """What the first metric supports, and no more."""
    said = []
    for name, lines in frame[frame["metric"] == study.metrics[0]].groupby("benchmark", sort=False):
        known = lines[lines["n"] > 0]
        if known.empty:
            said.append(f"{name}: no finished run; nothing can be said.")
            continue
        floor = f" No score reaches {FLOOR:g} point of AP: these detectors have hardly begun to learn, and whatever order their " \
                "pretrainings have here need not be the order of longer runs." if known["value"].max() < FLOOR else ""  # fmt: skip
        alone = [line.variant for line in lines.itertuples() if line.change_n == 1]
        told = {True: [], False: []}
        for line in lines[lines["change_n"] > 1].itertuples():
            sure = line.low > 0 or line.high < 0
            told[sure].append(
                f"{line.variant} ({line.change:+.2f}, {line.low:+.2f} to {line.high:+.2f}, {line.change_n} seeds)"
            )
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
        others = known[known["variant"] != study.baseline] if study.baseline not in without else known[:0]
        apart = list(others[others["change_n"] == 0]["variant"])
        text += f" Scored on no seed of its: {', '.join(apart)}." if apart else ""
        if len(others) and (known["n"].nunique() > 1 or (others["change_n"] != others["n"]).any()):
            text += " The means above are not all over the same seeds; the differences are."
        empty = not any((told[True], told[False], alone, without, apart))
        said.append(text + (" there is nothing to compare." if empty else "") + floor)
    return "\n\n".join(said)


def caption(study: Study, profile: str) -> str:
    """Says where the paper's numbers come from and at which scale ours were earned."""
    small = "small runs on small data, which show that the study works and are not comparable with the paper's"
    ours = "ours at the paper's setting" if profile == "paper" else f"ours at scale '{profile}': {small}"
    return (
        f"Study {study.name}: {study.question} Table {study.tables} of the paper; {ours}. "
        "Percent; mean ± standard deviation over n seeds."
    )


def build(study: Study, profile: str, results: Path) -> Built:
    """Record what there is and write results/tables/<study>-<profile>.{csv,md,tex,svg} from the records.

    Raises BookError for an unknown profile and a folder that cannot be written.
    """
    one_of("PROFILE", profile, PROFILES)
    rows = rows_of(study, profile, collect(study, profile, results))
    frame, spent, said = table(study, profile, rows), costs(rows), caption(study, profile)
    links = pages.Links({name: f"../studies/{study.name}-{profile}/{name}" for name in spent["run"]})
    paid, printed = records.together(spent), parts(study, frame, rows, links)
    page = [said, *(f"**{title}**\n\n{pages.markdown(part)}" for title, part in printed.items())]
    page += [f"**Reading.** {reading(study, frame)}"]
    linked = spent.assign(run=[links(name, name) for name in spent["run"]])
    page += [
        f"**{paid}**\n\n{pages.markdown(linked)}",
        *(f"Left out: {line}." for line in unreadable(study, profile, results)),
    ]
    stem = Path(results) / "tables" / f"{study.name}-{profile}"
    built = Built(rows, frame, "\n\n".join([*page, links.definitions()]).rstrip() + "\n", stem.with_suffix(".svg"))
    with records.writing(stem.parent):
        frame.to_csv(stem.with_suffix(".csv"), index=False)
        stem.with_suffix(".tex").write_text(pages.latex(parts(study, frame, rows) | {paid: spent}, said))
        study_figure.write(built.figure, study, rows, frame, profile)
        picture = f"![ours, ours against the base, and the paper's]({stem.name}.svg)"
        stem.with_suffix(".md").write_text("\n\n".join([said, picture, built.page.removeprefix(said).lstrip()]))
    return built


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
                print(build(study, profile, results).page, end="")
            elif any(row.cells for row in rows_of(study, profile, collect(study, profile, results))):
                build(study, profile, results)
                print(f"{given.results}/tables/{study.name}-{profile}.md")


if __name__ == "__main__":
    sys.exit(main())
