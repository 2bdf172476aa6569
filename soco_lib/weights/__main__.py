"""`python -m soco_lib.weights`: see load.py."""

import sys

from soco_lib.weights.load import main

if __name__ == "__main__":
    sys.exit(main())
