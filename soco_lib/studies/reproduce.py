"""Every study that the claims at toy scale need, one after the other.

python -m soco_lib.studies.reproduce [--plan] [--jobs 2]
"""

from __future__ import annotations

import argparse
import sys

from soco_lib import locate, one_line_errors
from soco_lib.runs.stop import STOPPED
from soco_lib.studies import runner

#: (study, seeds) in the order in which they run; the seeds that verdicts need come first, and what is there is not run
#: again. Those of `detectors` are the seeds of its tracked records (results/REGIME.md), so that --recorded finds them.
ORDER = (
    ("labels", "0,1,2"),
    ("alignment", "0,1,2"),
    ("labels", "0,1,2,3,4"),
    ("longer", "0,1,2,3,4"),
    ("detectors", "20,21,22"),
    ("proposals", "0,1,2"),
    ("momentum", "0,1,2"),
    ("viewsize", "0,1,2"),
    ("batchsize", "0,1,2"),
    ("photographs", "0,1,2,3,4"),
)
#: What the study on photographs needs, which a clone has not; its YAML file says where it comes from.
PHOTOGRAPHS = "data/people/test.json"


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line, whose options are passed on to each study; returns the first exit status that is not 0, or 143
    when stopped.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _, options = parser.parse_known_args(arguments)
    statuses = []
    for study, seeds in ORDER:
        if study == "photographs" and not locate(PHOTOGRAPHS).is_file():
            print("left out: photographs, whose data are not here (notebooks/studies/photographs.yaml names them)")
            continue
        print(f"== {study}, seeds {seeds}", flush=True)
        statuses.append(runner.main([study, "--profile", "toy", "--seeds", seeds, *options]))
        if statuses[-1] == STOPPED:
            return STOPPED
    return next(filter(None, statuses), 0)


if __name__ == "__main__":
    sys.exit(main())
