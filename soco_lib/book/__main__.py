"""`python -m soco_lib.book`: see execute.py."""

import sys

from soco_lib.book.execute import main

if __name__ == "__main__":
    sys.exit(main())
