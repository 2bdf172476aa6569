"""A study's table beside the paper's, with what it cost and what its seeds support; from records alone, so that the
bytes are the same where the runs are not, as on a fresh clone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from soco_lib.fields import one_of
from soco_lib.runs import records
from soco_lib.studies import plans
from soco_lib.studies.study import Study
from soco_lib.tables import growth, pages
from soco_lib.tables.paper_tables import paid
from soco_lib.tables.stats import paired
from soco_lib.tables.study_rows import Row, rows_of
from soco_lib.transfer import benchmarks
from soco_lib.transfer.benchmarks import PROFILES

#: A mean AP below this, in percent, says little of a pretraining.
FLOOR = 1.0


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
    figure: Path  # the SVG file that the page in results/tables shows, which figures.studies draws


def costs(rows: list[Row]) -> pd.DataFrame:
    """A row a run, each once: variant, seed and records.COST."""
    found = {}
    for row in rows:
        for planned in row.runs:
            about = {"variant": row.variant.name, "seed": planned.cfg.seed}
            found.setdefault(planned.run.name, about | records.cost(planned.run))
    spent = pd.DataFrame(found.values(), columns=["variant", "seed", *records.COST])
    return spent.astype({"images seen": "Int64", "processes": "Int64"})


def table(study: Study, profile: str, rows: list[Row]) -> pd.DataFrame:
    """A row a variant, benchmark and metric; percent.

    value, sd: mean and standard deviation over n seeds; change, low, high: the paired difference to the base over
    change_n seeds and its 95 % interval; paper, paper_change: the printed number ("NaN": it diverged) and its
    difference to the printed base; difference: ours minus the paper's, at the paper's scale only. Empty where there is
    no finished run or printed number. proposals: what made them, in a study of which some were imported.
    """
    spent, lines = costs(rows), []
    imported = any("imported" in fields for fields in study.stores.values())
    for row in rows:
        base = next(r for r in rows if r.benchmark == row.benchmark and r.variant.name == study.baseline)
        mine = paid(spent[spent["run"].isin([planned.run.name for planned in row.runs])])
        for metric in (m for m in study.metrics if m in benchmarks.find(row.benchmark).metrics):
            change = paired(row.scores(metric), base.scores(metric) if row is not base else {})
            scores = pd.Series(row.scores(metric), dtype=float)
            theirs, anchor = (study.printed(r.variant, row.benchmark, metric) for r in (row, base))
            line = {"variant": row.variant.name, "benchmark": row.benchmark, "metric": metric, "n": len(scores)}
            if imported:
                line["proposals"] = study.proposed_by(study.pretrain(row.variant, profile))
            line |= {"value": scores.mean(), "sd": scores.std(), "change": change.mean, "low": change.low}
            line |= {"high": change.high, "change_n": change.n}
            line["paper"] = "" if theirs is None else f"{theirs:.1f}" if theirs == theirs else "NaN"  # it diverged
            line["paper_change"] = None if None in (theirs, anchor) or row is base else theirs - anchor
            line["difference"] = scores.mean() - theirs if profile == "paper" and theirs is not None else None
            lines.append(line | {"state": row.state} | mine)
    return pd.DataFrame(lines).round(4)


# --- as text ----------------------------------------------------------------------------------------------------------


def _number(form: str, *numbers: float) -> str:
    """Numbers as text, "" where the first is none."""
    return form.format(*numbers) if pd.notna(numbers[0]) else ""


def parts(study: Study, frame: pd.DataFrame, rows: list[Row], links: pages.Links) -> dict[str, pd.DataFrame]:
    """The table as printed: title -> scores, and title -> differences to the base, of each benchmark; behind each of
    our scores stands a link to the run of every seed.
    """
    row_of = {(row.variant.name, row.benchmark): row for row in rows}
    made = {}
    for name, lines in frame.groupby("benchmark", sort=False):
        scores, changes = {}, {}
        for line in lines.itertuples():
            mean = _number("{:.2f}", line.value) + _number(" ± {:.2f}", line.sd)
            mean += _number(" ({:+.1f})", line.difference)
            change = _number("{:+.2f}", line.change) + _number(" [{:+.2f}, {:+.2f}]", line.low, line.high)
            ours = row_of[line.variant, name]
            runs = {seed: ours.finished[seed].name for seed in ours.scores(line.metric)}
            row = scores.setdefault(line.variant, {"variant": line.variant})
            row |= {"proposals": line.proposals} if "proposals" in lines else {}
            row["n"] = line.n
            row |= {line.metric: mean + links.seeds(runs), f"{line.metric}, paper": line.paper}
            row["state"] = row.pop("state", line.state)  # stays the last column
            row = changes.setdefault(line.variant, {"variant": line.variant, "seeds": line.change_n})
            theirs = _number("{:+.1f}", line.paper_change)
            row |= {f"{line.metric} - base": change, f"{line.metric} - base, paper": theirs}
        made[f"{name}: {benchmarks.find(name).title}"] = pd.DataFrame(scores.values())
        changes.pop(study.baseline)
        if changes:
            made[f"{name}, against {study.baseline}: paired over seeds, 95 % interval"] = pd.DataFrame(changes.values())
    return made


def reading(study: Study, frame: pd.DataFrame) -> str:
    """What the first metric supports, and no more."""
    first = frame[frame["metric"] == study.metrics[0]]
    return "\n\n".join(_reading(study, name, lines) for name, lines in first.groupby("benchmark", sort=False))


def _reading(study: Study, benchmark: str, lines: pd.DataFrame) -> str:
    known, tested = lines[lines["n"] > 0], lines[lines["change_n"] > 1]
    if known.empty:
        return f"{benchmark}: no finished run; nothing can be said."
    told = {True: [], False: []}  # whether the interval leaves out 0
    for line in tested.itertuples():
        interval = f"{line.change:+.2f}, {line.low:+.2f} to {line.high:+.2f}, {line.change_n} seeds"
        told[line.low > 0 or line.high < 0].append(f"{line.variant} ({interval})")
    alone = list(lines.loc[lines["change_n"] == 1, "variant"])
    without = list(lines.loc[lines["n"] == 0, "variant"])
    others = known[known["variant"] != study.baseline] if study.baseline not in without else known[:0]
    apart = list(others.loc[others["change_n"] == 0, "variant"])
    said = [f"{benchmark}, {study.metrics[0]} against {study.baseline}:"]
    if told[True]:
        said.append(f"{', '.join(told[True])} differ{'s' * (len(told[True]) == 1)}.")
        if len(tested) > 1:
            said.append(f"Each of the {len(tested)} intervals is for itself: were there no effect, one of them would "
                        f"exclude 0 in {1 - 0.95 ** len(tested):.0%} of such studies.")  # fmt: skip
    said += [f"{words}: {', '.join(names)}." for words, names in (
        ("Not distinguishable from it", told[False]), ("One seed each, of which nothing can be said", alone),
        ("Without a score", without), ("Scored on no seed of its", apart)) if names]  # fmt: skip
    if len(others) and (known["n"].nunique() > 1 or (others["change_n"] != others["n"]).any()):
        said.append("The means above are not all over the same seeds; the differences are.")
    if tested.empty and not (alone or without or apart):
        said.append("there is nothing to compare.")
    if known["value"].max() < FLOOR:
        said.append(f"No score reaches {FLOOR:g} point of AP: these detectors have hardly begun to learn, and whatever "
                    "order their pretrainings have here need not be the order of longer runs.")  # fmt: skip
    return " ".join(said)


def caption(study: Study, profile: str) -> str:
    """Says where the paper's numbers come from and at which scale ours were earned."""
    small = "small runs on small data, which show that the study works and are not comparable with the paper's"
    ours = "ours at the paper's setting" if profile == "paper" else f"ours at scale '{profile}': {small}"
    beside = f"Table {study.tables} of the paper; " * bool(study.tables)
    return f"Study {study.name}: {study.question} {beside}{ours}. Percent; mean ± standard deviation over n seeds."


def build(study: Study, profile: str, results: Path, only_begun: bool = False) -> Built | None:
    """Keep the records of what runs there are and write results/tables/<study>-<profile>.{csv,md} from the records.

    only_begun: nothing is written, and None returned, where there is no run. Raises BookError for an unknown profile
    and a folder that cannot be written.
    """
    one_of("PROFILE", profile, PROFILES)
    plans.record(study, profile, results)
    rows = rows_of(study, profile, results)
    if only_begun and not any(row.cells for row in rows):
        return None
    frame, spent, said = table(study, profile, rows), costs(rows), caption(study, profile)
    links = pages.Links(spent["run"])
    shown = parts(study, frame, rows, links)
    linked = spent.assign(run=[links(name, name) for name in spent["run"]])
    page = [f"**{title}**\n\n{pages.markdown(part)}" for title, part in shown.items()]
    if len(grown := growth.scores(rows)):
        title = "Over images seen: percent, mean ± standard deviation (seeds); points a doubling, 95 % interval"
        page.append(f"**{title}**\n\n{pages.markdown(growth.table(grown))}")
    page += [f"**Reading.** {reading(study, frame)}", f"**{records.together(spent)}**\n\n{pages.markdown(linked)}"]
    page += [f"Left out: {line}." for line in plans.unreadable(study, profile, results)]
    page = "\n\n".join([*page, links.definitions()]).rstrip() + "\n"
    stem = Path(results) / "tables" / f"{study.name}-{profile}"
    with records.writing(stem.parent):
        frame.to_csv(stem.with_suffix(".csv"), index=False)
        picture = f"![ours, ours against the base, and the paper's]({stem.name}.svg)"
        stem.with_suffix(".md").write_text("\n\n".join([said, picture, page]))
    return Built(rows, frame, f"{said}\n\n{page}", stem.with_suffix(".svg"))
