"""Bars of a detector's evaluation: classes and error kinds."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from soco_lib.figures.plots import COLOURS
from soco_lib.transfer.errors import KINDS, ErrorKinds

BOX, MASK = COLOURS[1], COLOURS[4]


def class_bars(values: dict[str, dict[str, float]], title: str, label: str, most: int = 40) -> Figure:
    """One horizontal bar a class, best first; values: task -> class -> number, the first task as bars, others as dots.

    With more than `most` classes the best and the worst halves of that number are shown. Classes without a number (no
    test object) are left out and counted.
    """
    (task, numbers), *others = values.items()
    known = sorted((name for name, value in numbers.items() if not math.isnan(value)), key=lambda name: -numbers[name])
    shown = known if len(known) <= most else known[: most // 2] + known[-(most // 2) :]
    figure, ax = plt.subplots(figsize=(7, 1.2 + 0.19 * max(len(shown), 4)), layout="constrained")
    ax.barh(range(len(shown)), [numbers[name] for name in shown], color=BOX, label=task)
    for (other, points), mark in zip(others, "od"):
        ax.plot([points.get(name, math.nan) for name in shown], range(len(shown)), mark, ms=4, color=MASK, label=other)
    ax.set_yticks(range(len(shown)), shown, fontsize=8)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.tick_params(axis="x", labelsize=8)
    ax.axvline(0, color="0.3", lw=0.8)
    ax.grid(axis="x", alpha=0.3)
    if len(shown) < len(known):
        ax.axhline(most // 2 - 0.5, color="0.3", ls=":")
    notes = [f"{len(known) - len(shown)} classes in between (dotted line) not shown"] if len(shown) < len(known) else []
    notes += [f"{len(numbers) - len(known)} without test objects"] if len(known) < len(numbers) else []
    ax.set_xlabel("; ".join([label, *notes]), fontsize=8)
    if others:
        ax.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def error_bars(kinds: dict[str, ErrorKinds], title: str) -> Figure:
    """How often each kind of error occurs, and what repairing it alone would add to AP50; kinds: name of a run -> its
    errors.
    """
    size = 9, 1.3 + 0.2 * len(KINDS) * (1 + len(kinds))
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    height = 0.8 / len(kinds)
    rows = np.arange(len(KINDS))
    for i, (name, found) in enumerate(kinds.items()):
        for ax, numbers, form in zip(axes, (found.counts, found.gains), ("{:.0f}", "{:.1f}")):
            values, shift = [numbers[kind] for kind in KINDS], (i - (len(kinds) - 1) / 2) * height
            bars = ax.barh(rows + shift, values, height, color=COLOURS[1 + 3 * i], label=name)
            ax.bar_label(bars, [form.format(value) for value in values], padding=2, fontsize=8)
    axes[0].set_yticks(rows, KINDS, fontsize=9)
    axes[0].invert_yaxis()
    for ax, name in zip(axes, ("errors", "AP50 gained if repaired alone (points)")):
        ax.set_title(name, fontsize=9)
        ax.margins(x=0.15)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", alpha=0.3)
    if len(kinds) > 1:
        axes[1].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
