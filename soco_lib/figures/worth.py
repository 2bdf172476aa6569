"""Figures of notebook 12: label-efficiency curves, classes, and what two starts detect on the same images."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from soco_lib import BookError
from soco_lib.figures import claims, detections
from soco_lib.figures.studies import LINES
from soco_lib.tables.study_table import FLOOR
from soco_lib.tables.worth import Worth, share_of
from soco_lib.transfer import predictions
from soco_lib.transfer.benchmarks import share_words
from soco_lib.transfer.compare import most_different

#: Classes of which gains are drawn: those that change most, by so many points of AP at least.
CLASSES, CHANGE = 24, 0.05


def curves(found: Worth) -> Figure:
    """claims.labels, with scratch's score with all labels as a dashed line, and on it the interval of the labels that
    each start needs: a bar, cut at the borders, and a mark where the mean reaches the line.
    """
    figure = claims.labels(found.rows, found.metric, found.profile)
    left, right = figure.axes
    left.set_ylim(0, max(left.get_ylim()[1], FLOOR))  # a difference of nothing is not drawn large
    right.set_ylim(min(right.get_ylim()[0], -FLOOR / 2), max(right.get_ylim()[1], FLOOR / 2))
    if math.isnan(found.goal):
        return figure
    left.axhline(found.goal, color=LINES[0], lw=1, ls="--", zorder=0)
    beside = dict(transform=left.get_yaxis_transform(), fontsize=8, color="0.3", va="center")
    left.text(1.01, found.goal, "scratch,\nall labels", **beside)
    ends = left.get_xlim()
    inside = lambda share: min(max(share * found.labelled, ends[0]), ends[1])
    for i, name in enumerate(found.starts, start=1):
        saved = found.saved[name]
        if not math.isnan(saved.low):
            left.hlines(found.goal, inside(saved.low), inside(saved.high), color=LINES[i], lw=6, alpha=0.3, zorder=0)
        if math.isfinite(saved.share):
            left.plot(inside(saved.share), found.goal, "D", ms=6, mfc="none", color=LINES[i])
    return figure


def classes(found: Worth, start: str) -> tuple[pd.DataFrame, Figure] | None:
    """Gains of a start over scratch by class (and by size), at the share where it differs most: claims.changes' frame
    and its figure, of the CLASSES that change most; None where no class changes.
    """
    row = found.clearest(start)
    frame = claims.changes(found.rows, start, found.study.baseline, row.benchmark) if row else pd.DataFrame()
    if frame.empty or frame["change"].abs().max() < CHANGE:
        return None
    sized = frame["name"].str.endswith(" objects")
    most = frame[~sized & (frame["change"].abs() >= CHANGE)].sort_values("change", key=abs, ascending=False)[:CLASSES]
    title = f"{start} minus scratch, {share_words(share_of(row.benchmark))}"
    title += f", {len(most)} of {(~sized).sum()} classes" * bool(len(most) < (~sized).sum())
    return frame, claims.draw_changes(pd.concat([most, frame[sized]]), title)


def side_by_side(found: Worth, start: str, show: int) -> Figure | str:
    """What scratch and a start detect where they differ most, at the share and the seed of `classes`; or a line
    that says why not.
    """
    row = found.clearest(start)
    if row is None:
        return f"{start} and scratch have no finished run of the same seed."
    base = next(r for r in found.rows if (r.variant.name, r.benchmark) == (found.study.baseline, row.benchmark))
    seed = min({*row.finished} & {*base.finished})
    try:
        a, b = (predictions.read(each.finished[seed].run.folder) for each in (base, row))
        figure = detections.draw_both(a, b, most_different(a, b, show), ("scratch", start))
    except (BookError, OSError) as error:
        return f"No pictures: {error}"
    share = share_words(share_of(row.benchmark))
    figure.suptitle(f"scratch and {start}, both with {share}, seed {seed} ({found.profile} scale)", fontsize=10)
    return figure
