"""A study's table and its notebook after its runs: `python -m soco_lib.book.study NAME --after STATUS`, of
`python -m soco_lib.studies`. Both show what there is, also after a variant that failed; not after a request to stop.
"""

from __future__ import annotations

import argparse
import sys

from soco_lib.book import execute
from soco_lib.studies.runner import FAILED
from soco_lib.tables.__main__ import main as tables


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: of the runs, or 1 where table or notebook cannot be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of a study")
    parser.add_argument("--profile", default="toy", help="toy or paper")
    parser.add_argument("--results", default="results", help="folder of the run folders")
    parser.add_argument("--after", type=int, default=0, help="exit status of its runs")
    given, wrong = parser.parse_args(arguments), 0
    if given.after in (0, FAILED):
        where, name = ["--results", given.results], f"study-{given.study}-{given.profile}"
        shown = ["-p", "study", given.study, "-p", "profile", given.profile]
        wrong = tables(["--studies", given.study, "--profile", given.profile, *where])
        wrong = wrong or execute.main(["notebooks/08_ablation.ipynb", "--run-name", name, *where, *shown])
    return wrong or given.after


if __name__ == "__main__":
    sys.exit(main())
