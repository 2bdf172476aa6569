"""Weights for other programs, and from files of theirs that hold more than weights.

python -m soco_lib.weights export CHECKPOINT OUT.pth [--network target] [--layout detectron2|torchvision|soco]
python -m soco_lib.weights convert FILE OUT.safetensors --trust     a plain file of one that holds Python objects
"""

import argparse
import sys

from soco_lib import one_line_errors
from soco_lib.weights.export import WRITTEN, export
from soco_lib.weights.formats import convert, read, state_dicts


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command", metavar="export|convert")
    out = commands.add_parser("export", help="write a pretraining's weights for other programs")
    out.add_argument("file", help="a checkpoint or the run folder of a pretraining")
    out.add_argument("out", help="the .pth file to write")
    out.add_argument("--network", default="online", help="online (default) or target")
    out.add_argument("--layout", default="detectron2", help=f"{', '.join(WRITTEN)} (default: detectron2)")
    plain = commands.add_parser("convert", help="write a file's tensors alone")
    plain.add_argument("file", help="the file with Python objects in it")
    plain.add_argument("out", help="the .safetensors file to write")
    plain.add_argument("--trust", action="store_true", help="consent to running the code in the file")
    given = parser.parse_args(arguments)
    if given.command == "export":
        print(f"wrote {export(given.file, given.out, given.network, given.layout)}: {WRITTEN[given.layout]}")
        return
    written = convert(given.file, given.out, given.trust)
    counts = ", ".join(f"{len(v)} in {k or 'the top level'}" for k, v in state_dicts(read(written)).items())
    print(f"wrote {written}: tensors {counts}; nothing else of the file was kept")


if __name__ == "__main__":
    sys.exit(main())
