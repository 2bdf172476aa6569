"""Watching a run: a figure that grows in JupyterLab, sparse plain lines under papermill."""

from __future__ import annotations

import time

import matplotlib.pyplot as plt
from IPython.display import display

from soco_lib.book.execute import headless
from soco_lib.figures import plots
from soco_lib.runs.folder import Run
from soco_lib.runs.launch import Launch, launch

#: Seconds between two updates of the figure, or two lines of text.
EVERY = {True: 10.0, False: 3.0}


def watch(run: Run, panels: dict, how: Launch = Launch(), reference=()) -> Run:
    """Start a pretraining or transfer and show how it goes; returns the finished run.

    reference: log rows drawn gray behind. A finished run is returned at once. JupyterLab's stop button, as Ctrl-C,
    asks the run to save and end. Raises BookError with the run's own message when it fails, Stopped when it was stopped.
    """
    if run.done:
        print(f"{run.name} is already done: showing its record")
        return run
    handle, shown, quiet = None, -float("inf"), headless()

    def show(text: str) -> None:
        nonlocal handle, shown
        step = text.startswith("step ")
        if step and time.monotonic() - shown < EVERY[quiet]:
            return
        shown = time.monotonic() if step else shown
        if quiet or not step:
            print(text, flush=True)
            return
        figure = plots.curves(run.rows(), panels, text, reference)
        handle = handle or display(display_id=True)
        handle.update(figure)
        plt.close(figure)

    launch(run, how, show)
    return Run.read(run.folder)
