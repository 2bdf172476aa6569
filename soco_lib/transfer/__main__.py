"""`python -m soco_lib.transfer`: see run.py."""

import sys

from soco_lib.transfer.run import main

if __name__ == "__main__":
    sys.exit(main())
