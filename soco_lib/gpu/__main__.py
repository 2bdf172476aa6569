"""`python -m soco_lib.gpu`: see check.py."""

import sys

from soco_lib.gpu.check import main

if __name__ == "__main__":
    sys.exit(main())
