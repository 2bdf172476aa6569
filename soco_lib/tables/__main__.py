"""Tables from run folders and tracked records; needs neither data nor a GPU.

    python -m soco_lib.tables                                  every table that has runs or records
    python -m soco_lib.tables --studies labels --profile toy   a study's table, printed, and its figure
    python -m soco_lib.tables --tables 1 claims trials         printed: the paper's by number, claims, trials

Files go to tables/ in the results folder.
"""

import argparse
import sys

from soco_lib import ROOT, one_line_errors
from soco_lib.figures import studies as figures
from soco_lib.studies import study as studies
from soco_lib.tables import claims, paper_tables, study_table, trials
from soco_lib.transfer.benchmarks import PROFILES


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="*", default=[], help="these alone")
    parser.add_argument("--tables", nargs="*", default=[], help="these alone: a number, claims or trials")
    parser.add_argument("--results", default="results", help="folder of the run folders")
    parser.add_argument("--profile", default="all", help="scale of our rows: toy, paper or all")
    given = parser.parse_args(arguments)
    results, profiles = ROOT / given.results, PROFILES if given.profile == "all" else (given.profile,)
    every = not (given.studies or given.tables)
    rows = {}

    def say(name: str, page: str) -> None:
        print(f"{given.results}/tables/{name}.md" if every else page.rstrip("\n"))

    for study in map(studies.read, given.studies or every * studies.names()):
        for profile in profiles:
            asked = given.studies and given.profile != "all"
            if built := study_table.build(study, profile, results, only_begun=not asked):
                figures.write(built.figure, study, built.rows, built.frame, profile)
                say(f"{study.name}-{profile}", built.page)
                rows |= {study.name: built.rows} if profile == "toy" else {}
    for name in given.tables or every * (*paper_tables.TABLES, "claims", "trials"):
        if name == "claims":
            page = claims.build(results, rows=rows)[1]
        elif name == "trials":
            page = trials.build(results)
        else:
            page = paper_tables.build(name, results, given.profile, only_ours=every)
        if page or not every:
            say(name if name in ("claims", "trials") else f"table{name}", page or "no trial has a record")


if __name__ == "__main__":
    sys.exit(main())
