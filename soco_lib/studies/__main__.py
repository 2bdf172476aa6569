"""`python -m soco_lib.studies`: see runner.py."""

import sys

from soco_lib.studies.runner import main

if __name__ == "__main__":
    sys.exit(main())
