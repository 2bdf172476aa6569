"""A study's missing runs, then its table and its notebook: `python -m soco_lib.book.study NAME`, with the options of
`python -m soco_lib.studies`. Both show what there is, also after a variant that failed or a request to stop.
"""

from __future__ import annotations

import sys

from soco_lib.book import execute
from soco_lib.runs.stop import STOPPED
from soco_lib.studies import runner
from soco_lib.tables.__main__ import main as tables


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: of the runs, or 1 where table or notebook cannot be made."""
    given, status = runner.parse(arguments), runner.main(arguments)
    if not given.plan and status in (0, runner.FAILED, STOPPED):
        where = ["--results", given.results]
        shown = ["-p", "study", given.study, "-p", "profile", given.profile]
        name = f"study-{given.study}-{given.profile}"
        wrong = tables(["--studies", given.study, "--profile", given.profile, *where])
        wrong = wrong or execute.main(["notebooks/08_ablation.ipynb", "--run-name", name, *where, *shown])
        if status == STOPPED:
            print("stopped, all is saved; the same command goes on")
        status = wrong or status
    return status


if __name__ == "__main__":
    sys.exit(main())
