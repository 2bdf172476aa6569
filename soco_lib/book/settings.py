"""Whether a pretraining may be set so, asked before its proposals are made.

python -m soco_lib.book.settings FILE '{name: value, ...}'
"""

from __future__ import annotations

import sys

from soco_lib import one_line_errors
from soco_lib.config import Pretrain
from soco_lib.fields import load, parse_yaml, with_values


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    file, text = sys.argv[1:] if arguments is None else arguments
    load(Pretrain, file, **with_values(parse_yaml(text, f"SET={text[1:-1]!r}"), "SET"))


if __name__ == "__main__":
    sys.exit(main())
