"""What a start saves in labels, against random weights; from the records of a study that studies/worth.py made.

A start saves labels if it reaches, with a share of them, the score that scratch has with all. Its difference to that
score is taken seed by seed at every share, with the wider of the two intervals of stats.py, and interpolated on the
logarithm of the share: where the mean stays at 0 or above is the share that is needed, and the two ends of the interval
give its ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from soco_lib.runs import records
from soco_lib.studies import plans
from soco_lib.studies.study import Study
from soco_lib.tables import pages, study_table
from soco_lib.tables.stats import FEWEST, bootstrap, paired
from soco_lib.tables.study_rows import Row, rows_of
from soco_lib.tables.study_table import FLOOR
from soco_lib.transfer import benchmarks

SAVES, MORE, SAME = "saves labels", "needs more labels", "not distinguishable"
LOW, UNRUN = "nothing to reach", "not run"


@dataclass(frozen=True)
class Saved:
    """How many labels one start needs to score as scratch with all. Shares lie in (0, 1]; inf: none is enough."""

    n: int  # seeds, the fewest of a share
    least: float  # share that was tried: needed shares are at most that where they equal it
    share: float  # needed, by the mean; NaN: nothing can be said
    low: float  # 95 % interval of it; NaN with fewer than two seeds
    high: float
    verdict: str

    def percent(self, share: float) -> str:
        """A share as text."""
        if math.isnan(share):
            return ""
        if math.isinf(share):
            return "> 100 %"
        return f"{'≤ ' * (share == self.least)}{100 * share:.0f} %"

    @property
    def interval(self) -> str:
        return "" if math.isnan(self.low) else f"{self.percent(self.low)} to {self.percent(self.high)}"


def crossing(shares: Sequence[float], values: Sequence[float], stays: bool = True) -> float:
    """The share from which on `values`, at ascending shares, stay at 0 or above (stays=False: at which they first are),
    linear between two shares in their logarithms; inf where there is none, the least share where it is all of them.
    """
    above = [value >= 0 for value in values]
    if stays:
        first = len(above) - (above[::-1].index(False) if False in above else len(above))
    else:
        first = above.index(True) if True in above else len(above)
    if first == len(above):
        return math.inf
    if first == 0 or values[first] == 0:
        return shares[first]
    before, after = values[first - 1], values[first]
    steps = math.log(shares[first] / shares[first - 1]) * -before / (after - before)
    return shares[first - 1] * math.exp(steps)


def labels_saved(scores: Mapping[float, Mapping[int, float]], goal: Mapping[int, float]) -> Saved:
    """scores: share -> seed -> score of a start; goal: seed -> scratch's with all labels; points of AP."""
    found = {share: paired(seeds, goal) for share, seeds in sorted(scores.items())}
    found = {share: change for share, change in found.items() if change.n}
    if not found:
        return Saved(0, math.nan, math.nan, math.nan, math.nan, UNRUN)
    shares, n, low, high = [*found], min(change.n for change in found.values()), math.nan, math.nan
    if n > 1:
        narrow = [bootstrap([*change.values.values()]) for change in found.values()]
        most = [max(change.high, end) for change, (_, end) in zip(found.values(), narrow)]
        least = [min(change.low, end) for change, (end, _) in zip(found.values(), narrow)]
        low, high = crossing(shares, most, stays=False), crossing(shares, least)
    if sum(goal.values()) / len(goal) < FLOOR:
        return Saved(n, shares[0], math.nan, math.nan, math.nan, LOW)
    word = SAVES if high < 1 else MORE if math.isinf(low) else SAME
    if n < FEWEST or 1 not in shares:
        word = SAME
    return Saved(n, shares[0], crossing(shares, [change.mean for change in found.values()]), low, high, word)


def share_of(benchmark: str) -> float:
    """The share of the labels of a study's benchmark."""
    return float(benchmarks.find(benchmark).settings.get("labelled", 1))


@dataclass(frozen=True)
class Worth:
    """What notebook 12 shows of a study."""

    study: Study
    profile: str
    rows: list[Row]
    frame: pd.DataFrame  # see study_table.table
    saved: dict[str, Saved]  # start -> labels that it needs; scratch's own first

    @property
    def metric(self) -> str:
        return self.study.metrics[0]

    @property
    def starts(self) -> list[str]:
        """All but scratch."""
        return [*self.saved][1:]

    @property
    def goal(self) -> float:
        """Scratch's mean score with all labels; NaN: not run."""
        line = self._line(self.study.baseline, 1.0)
        return math.nan if line is None else line.value

    @property
    def labelled(self) -> int:
        """Labelled images, of which shares are taken; 0: no run says."""
        ends = [end for row in self.rows if share_of(row.benchmark) == 1 for end in row.finished.values()]
        return records.numbers(ends[0].run)["train_images"] if ends else 0

    @property
    def missing(self) -> int:
        """Fine-tunings that are not finished, of every start at every seed that any start was begun with."""
        seeds = {seed for row in self.rows for seed in row.cells}
        return sum(seed not in row.cells or not row.outcome(seed).state.final for row in self.rows for seed in seeds)

    def _line(self, start: str, share: float):
        lines = self.frame[(self.frame["variant"] == start) & (self.frame["metric"] == self.metric)]
        found = [line for line in lines.itertuples() if share_of(line.benchmark) == share and line.n]
        return found[0] if found else None

    def clearest(self, start: str) -> Row | None:
        """The row of a start at the share with the largest mean difference to scratch."""
        lines = self.frame[(self.frame["variant"] == start) & (self.frame["metric"] == self.metric)]
        lines = lines[lines["change_n"] > 0]
        if lines.empty:
            return None
        best = lines.loc[lines["change"].abs().idxmax(), "benchmark"]
        return next(row for row in self.rows if (row.variant.name, row.benchmark) == (start, best))

    # --- as text ------------------------------------------------------------------------------------------------------

    def answer(self) -> str:
        """The question's answer, start by start, and no more than the seeds support."""
        if math.isnan(self.goal):
            return f"**No answer yet.** Scratch with all labels has no finished run; {self.missing} runs are to do."
        said = [f"Scratch with all {self.labelled} labelled images reaches **{self.goal:.2f}** {self.metric}."]
        own = self.saved[self.study.baseline]
        if own.n >= FEWEST and own.low < 1 and self.goal >= FLOOR:
            said[0] += (
                f" From {own.percent(own.low)} of them on, fewer cannot be told from all: of what a start is said "
            )
            said[0] += "to save, only what lies below is due to the start."
        said += [f"**{name}: {self.saved[name].verdict}.** {self._said(self.saved[name])}" for name in self.starts]
        return "\n\n".join([*said, *[f"Each of the {len(said) - 1} intervals is for itself."] * (len(said) > 2)])

    def _said(self, found: Saved) -> str:
        if found.verdict == UNRUN:
            return "No run of it is finished."
        if found.verdict == LOW:
            return f"Scratch has not reached {FLOOR:g} point of AP: it has hardly begun to learn, and what others do "\
                   "as early says nothing about labels."  # fmt: skip
        mean = "By the mean it does not reach that score with all labels either"
        if math.isfinite(found.share):
            images = f"{found.percent(found.share)} of the labels ({found.share * self.labelled:.0f} images)"
            mean = f"By the mean it reaches that score with {images}"
        if found.n < 2:
            return f"{mean}; of one seed nothing can be said."
        few = f"; a verdict needs {FEWEST} seeds" * (found.n < FEWEST)
        return f"{mean}; 95 % interval {found.interval}, {found.n} seeds{few}."

    def table(self) -> pd.DataFrame:
        """A row a start: labels needed, saved, and the verdict."""
        lines = []
        for name, found in self.saved.items():
            line = {"start": name, "seeds": found.n, "labels needed": found.percent(found.share)}
            line |= {"95 % interval": found.interval, "labels saved": ""}
            if found.verdict == SAVES:
                line["labels saved"] = "≥ " * (found.share == found.least) + f"{100 * (1 - found.share):.0f} %"
            lines.append(line | {"verdict": "the measure" if name == self.study.baseline else found.verdict})
        return pd.DataFrame(lines)

    def scores(self) -> str:
        """Mean scores, and paired differences to scratch with the same labels, as two tables in Markdown."""
        values, changes = [], []
        for name in self.saved:
            value, change = {"start": name}, {"start": name}
            for share in sorted(map(share_of, self.study.benchmarks)):
                line, head = self._line(name, share), benchmarks.share_words(share)
                value[head] = change[head] = ""
                if line is not None:
                    value[head] = f"{line.value:.2f}" + (f" ± {line.sd:.2f}" if line.n > 1 else "")
                    change[head] = f"{line.change:+.2f}" if line.change_n else ""
                    change[head] += f" [{line.low:+.2f}, {line.high:+.2f}]" if line.change_n > 1 else ""
            values.append(value)
            changes.append(change)
        seeds = ", ".join(map(str, sorted({seed for row in self.rows for seed in row.finished})))
        tables = {f"{self.metric} (%), mean ± standard deviation, seeds {seeds or 'none'}": values}
        tables |= {"minus scratch with the same labels, Student's 95 % interval": changes[1:]}
        shown = {title: pages.markdown(pd.DataFrame(lines), left=1) for title, lines in tables.items()}
        return "\n\n".join(f"**{title}**\n\n{text}" for title, text in shown.items())

    def cost(self) -> pd.DataFrame:
        """A row a start: runs and minutes ("≥": a session was killed, and nobody knows its time), and on what."""
        spent, lines = study_table.costs(self.rows), []
        pretrained = spent["run"].isin([run.name for row in self.rows for run in row.runs if run.kind == "pretrain"])
        for name in self.saved:
            mine, line = spent["variant"] == name, {"start": name}
            for word, kind in (("pretraining", pretrained), ("fine-tuning", ~pretrained)):
                part = spent.loc[mine & kind, "minutes"]
                least = "≥" * bool(part.str.startswith("≥").any())
                minutes = f"{least}{part.str.lstrip('≥').astype(float).sum():.1f} minutes"
                line[word] = f"{len(part)} run{'s' * (len(part) != 1)}, {minutes}" if len(part) else ""
            if self.study.variant(name).init:
                line["pretraining"] = "elsewhere"
            lines.append(line | {"hardware": "; ".join(filter(None, spent.loc[mine, "hardware"].unique()))})
        return pd.DataFrame(lines)

    def next_steps(self) -> list[str]:
        """What to do about it, the most urgent first."""
        verdicts = {self.saved[name].verdict for name in self.starts}
        seeds = min(found.n for found in self.saved.values())
        ends = [row.outcome(seed) for row in self.rows for seed in row.cells]
        failed = ", ".join(sorted({end.name for end in ends if end.state.word == "failed"}))
        least = min(map(share_of, self.study.benchmarks))
        enough = any(self.saved[name].share == least for name in self.starts)
        steps = {
            f"Mend what failed ({failed}; `make show RUN=…` says why), then run the same command again.": failed,
            "Run the same command again: it makes what is missing.": not failed and (self.missing or not seeds),
            "Train longer or on larger images before asking again, as `SET='transfer: {iterations: 6000, min_sizes: ["
            "128], max_size: 192, test_size: 128}'`, or with `PROFILE=paper` on GPUs. The more classes and the fewer "
            "objects of each, the more of both it takes.": LOW in verdicts,
            f"Give {FEWEST} seeds or five, SEEDS={','.join(map(str, range(FEWEST)))}: what is there is not run again. "
            "Student's factor is 12.7 for two seeds, 4.3 for three, 2.8 for five.": SAME in verdicts and seeds < FEWEST,
            "Where a start is not distinguishable, four times as many seeds halve its interval; if they do not "
            "settle it either, label more instead.": SAME in verdicts and seeds >= FEWEST,
            f"The least share was enough: add some below {least:g} to FRACTIONS.": SAVES in verdicts and enough,
            "Take the start that saves labels, `make transfer INIT=…`, and label first for classes above that gain "
            "least.": SAVES in verdicts,
            "Leave a start alone that needs more labels than scratch, or pretrain longer, on images closer to yours.":
            MORE in verdicts,
            "All of this is at toy scale, a narrow network on small images, and need not hold for the detector you "
            "will use: `PROFILE=paper PLAN=1` says what it costs to ask that one.": self.profile != "paper",
        }  # fmt: skip
        return [step for step, due in steps.items() if due]


def build(study: Study, profile: str, results: Path) -> Worth:
    """Keep the records of what runs there are, and read all from the records."""
    plans.record(study, profile, results)
    rows = rows_of(study, profile, results)
    names, metric = [variant.name for variant in study.variants], study.metrics[0]
    names.sort(key=lambda name: name != study.baseline)
    scores: dict[str, dict[float, dict[int, float]]] = {name: {} for name in names}
    for row in rows:
        scores[row.variant.name][share_of(row.benchmark)] = row.scores(metric)
    goal = scores[study.baseline].get(1.0, {})
    saved = {name: labels_saved(scores[name] if goal else {}, goal) for name in names}
    return Worth(study, profile, rows, study_table.table(study, profile, rows), saved)
