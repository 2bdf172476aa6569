"""Every table again, from records: the paper's, the studies', the claims, the trials.

    python -m soco_lib.tables [--studies labels alignment] [--results results] [--profile toy]

makes all that have runs or tracked records, or the tables and figures of the named studies alone; these are printed
where there is one profile. Needs neither data nor a GPU.
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
    parser.add_argument("--results", default="results", help="folder of the run folders")
    parser.add_argument("--profile", default="all", help="toy, paper or all")
    given = parser.parse_args(arguments)
    results, profiles = ROOT / given.results, PROFILES if given.profile == "all" else (given.profile,)
    rows, say = {}, lambda name: print(f"{given.results}/tables/{name}.md")
    for study in map(studies.read, given.studies or studies.names()):
        for profile in profiles:
            asked = given.studies and given.profile != "all"
            built = study_table.build(study, profile, results, only_begun=not asked)
            if built is None:
                continue
            figures.write(built.figure, study, built.rows, built.frame, profile)
            print(built.page, end="") if asked else say(f"{study.name}-{profile}")
            if profile == "toy":
                rows[study.name] = built.rows
    if given.studies:
        return
    for table in paper_tables.TABLES:
        if paper_tables.build(table, results, given.profile, only_ours=True):
            say(f"table{table}")
    claims.build(results, rows=rows)
    say("claims")
    if trials.build(results):
        say("trials")


if __name__ == "__main__":
    sys.exit(main())
