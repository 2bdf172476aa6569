"""`make bench`: every benchmark, or those named, on IMAGES; tables are printed and kept in results/bench.

python -m tests.speed.bench views step --images folder:photos
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from soco_lib import ROOT, one_line_errors
from soco_lib.data.sources import open_source
from soco_lib.fields import one_of
from soco_lib.figures import speed
from soco_lib.tables import pages
from tests.speed.timing import Bench

NAMES = ("views", "step", "proposals", "store", "readers", "startup", "threads")
SCENES = "coco:data/scenes/annotations/instances_train.json"
LABELLED = ("coco_masks/instances_val.json", "coco_masks/images")


def default_images() -> str:
    """Labelled photographs below $SOCO_DATA where they are, else the embedded scenes."""
    beside = Path(os.environ.get("SOCO_DATA", "nowhere"))
    return f"coco:{LABELLED[0]}@{LABELLED[1]}" if (beside / LABELLED[0]).is_file() else SCENES


def goals(folder: Path) -> str:
    """Every goal of the records in a folder, and the machines, then each benchmark's tables, as Markdown."""
    found = speed.records(folder)
    machines = {
        f"{record['hardware']['cores']} x {record['hardware']['cpu']}, {record['measured']}"
        for record in found.values()
    }
    each = [f"\n{Bench.of(record).markdown(record['hardware'])}".replace("\n#", "\n##") for record in found.values()]
    first = f"{pages.markdown(speed.goals(found), 3)}\n\nMeasured by `make bench` on {'; '.join(sorted(machines))}.\n"
    return "".join([first, *each])


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    default = "labelled photographs if there, else the scenes"
    parser.add_argument("--images", default="", help=f"images, as for pretraining (default: {default})")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the records go to its folder bench")
    parser.add_argument(
        "--quick", action="store_true", help="a few images, once: to see that it runs; nothing is written"
    )
    given = parser.parse_args(arguments)
    for name in given.names:
        one_of("benchmark", name, NAMES)
    images = given.images or default_images()
    open_source(images)  # so that a wrong name is an error before minutes of timing
    folder = ROOT / given.results / "bench"
    for name in given.names or NAMES:
        print(f"bench-{name}: on {images}", flush=True)
        bench = importlib.import_module(f"tests.speed.bench_{name}").run(images, given.quick)
        print(bench.markdown() if given.quick else bench.write(folder), flush=True)
    if not given.quick:  # all that are recorded, also by earlier calls; `make gallery` takes it to the README
        (folder / "goals.md").write_text(goals(folder))


if __name__ == "__main__":
    sys.exit(main())
