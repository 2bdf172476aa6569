"""Counts images and annotations of the benchmarks' data against the known totals:

    python -m soco_lib.transfer.check_data [NAME ...]

A NAME is a data set of benchmarks.yaml (coco-train2017, voc2007-test, imagenet-train ...), the first letters of some
(coco, voc), or a benchmark (voc-c4: all that it needs); default: all. Exit status 1 if anything asked for is missing or
short.

The totals are those of the published files: COCO's instances_*.json and images, the VOC development kits' splits, LVIS
v1's lvis_v1_*.json and the images of ILSVRC 2012.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from soco_lib import BookError, locate, one_line_errors
from soco_lib.data.listings import is_image
from soco_lib.fields import one_of
from soco_lib.transfer import benchmarks
from soco_lib.transfer.benchmarks import DataSet, data_tree, split_sets
from soco_lib.transfer.datasets import LAYOUTS


@dataclass(frozen=True)
class Count:
    """One line of the table."""

    data: str
    what: str  # images, annotations or folders
    found: int
    expected: int

    @property
    def verdict(self) -> str:
        """ok, missing (nothing there), short, or more than there should be (another version, or further files)."""
        if not self.found:
            return "missing"
        return "ok" if self.found == self.expected else "short" if self.found < self.expected else "more"


def _files(folder: str | Path) -> int:
    """How many images lie directly in a folder."""
    return sum(map(is_image, os.listdir(folder))) if os.path.isdir(folder) else 0


def _count_folder(root: Path, classes: bool) -> dict[str, int]:
    """Images directly in a folder, or in its class folders, with the number of those that hold any."""
    if not classes:
        return {"images": _files(root)}
    counts = [_files(entry.path) for entry in os.scandir(root) if entry.is_dir()]
    return {"images": sum(counts), "folders": sum(count > 0 for count in counts)}


def count(name: str, data: DataSet) -> list[Count]:
    """What is there of one data set, beside each total that is known."""
    kind, _, rest = data.spec.partition(":")
    found = {}
    if not data.missing:
        try:
            found = LAYOUTS[kind].count(rest) if kind in LAYOUTS else _count_folder(locate(rest), data.folders > 0)
        except BookError as error:
            print(f"note: {error}", file=sys.stderr)
    expected = {what: getattr(data, what) for what in ("images", "annotations", "folders")}
    return [Count(name, what, found.get(what, 0), total) for what, total in expected.items() if total]


def chosen(names: list[str]) -> list[str]:
    """The data sets that the given names mean. Raises BookError for an unknown name, with the nearest."""
    counted = [name for name, data in benchmarks.DATA.items() if data.images]
    wanted = set() if names else set(counted)
    for name in names:
        if name in benchmarks.BENCHMARKS:
            paper = benchmarks.settings(name)
            specs = {f"{kind}:{rest}" for spec in (paper.train, paper.test) for kind, rest in split_sets(spec)}
            wanted |= {known for known in counted if benchmarks.DATA[known].spec in specs}
        elif begun := {known for known in counted if known.startswith(name)}:
            wanted |= begun
        else:
            one_of("data", name, (*counted, *benchmarks.BENCHMARKS))
    return [name for name in counted if name in wanted]


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets or benchmarks (default: all data sets)")
    names = chosen(parser.parse_args(arguments).names)
    counts = [line for name in names for line in count(name, benchmarks.DATA[name])]
    table = pd.DataFrame([(c.data, c.what, c.found, c.expected, c.verdict) for c in counts])
    print(table.to_markdown(index=False, headers=["data", "what", "found", "expected", "verdict"], intfmt=","))
    bad = list(dict.fromkeys(c.data for c in counts if c.verdict in ("missing", "short")))
    if bad:
        place = f"the checkout or below SOCO_DATA ({os.environ.get('SOCO_DATA', 'not set')})"
        print(f"\nmissing or short: {', '.join(bad)}. Expected in {place}:\n{data_tree(bad)}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
