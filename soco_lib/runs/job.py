"""One run in a process of its own, as a study's runner starts it: `python -m soco_lib.runs.job RUN_FOLDER`.

It has its own environment (devices, threads, SLURM's variables), and it ends with whoever started it: when its standard
input closes, or upon SIGTERM, it stops the run's processes, which save, or cancels the SLURM job.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from soco_lib import BookError
from soco_lib.runs import session
from soco_lib.runs.folder import Run
from soco_lib.runs.launch import LAUNCHERS, launch


def _end_with_parent() -> None:
    while os.read(0, 1):  # "" once whoever started this is gone; sys.stdin's lock would abort the interpreter's end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _stop(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the way out waits for the run to save
    sys.exit(session.STOPPED)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 1 after one line that says what failed, or session.STOPPED."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local")
    parser.add_argument("--partition", default="")
    parser.add_argument("--minutes", type=int, default=240)
    parser.add_argument("--cpus", type=int, default=0)
    given = vars(parser.parse_args(arguments))
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run = Run.read(given.pop("folder"))
        launch(run, given.pop("gpus"), lambda line: print(line, flush=True), **given)
    except BookError as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
