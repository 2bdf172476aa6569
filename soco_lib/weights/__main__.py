"""Weights for other programs, and from files of theirs that hold more than weights.

python -m soco_lib.weights export RUN OUT.pth [--network target] [--layout detectron2|torchvision|mmdet|...]
                                  [--what detector]                           a fine-tuned run's, whole
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
    out = commands.add_parser("export", help="write a run's weights for other programs")
    out.add_argument("file", help="a run folder, of a pretraining or a transfer, or a checkpoint")
    out.add_argument("out", help="the .pth file to write")
    out.add_argument("--network", default="online", help="online (default) or target")
    out.add_argument("--layout", default="detectron2", help=f"{', '.join(WRITTEN)} (default: detectron2)")
    out.add_argument("--what", default="encoder", help="encoder (default) or, of a transfer, the whole detector")
    out.add_argument("--any-shape", action="store_true", help="also what fits none of torchvision's own models")
    plain = commands.add_parser("convert", help="write a file's tensors alone")
    plain.add_argument("file", help="the file with Python objects in it")
    plain.add_argument("out", help="the .safetensors file to write")
    plain.add_argument("--trust", action="store_true", help="consent to running the code in the file")
    given = parser.parse_args(arguments)
    if given.command == "export":
        export(given.file, given.out, given.network, given.layout, given.what, given.any_shape)
        return
    written = convert(given.file, given.out, given.trust)
    counts = ", ".join(f"{len(v)} in {k or 'the top level'}" for k, v in state_dicts(read(written)).items())
    print(f"wrote {written}: tensors {counts}; nothing else of the file was kept")


if __name__ == "__main__":
    sys.exit(main())
