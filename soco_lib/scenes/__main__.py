"""`python -m soco_lib.scenes`: see write.py."""

import sys

from soco_lib.scenes.write import main

if __name__ == "__main__":
    sys.exit(main())
