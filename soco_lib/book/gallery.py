"""What the README shows, copied from finished runs with their records: `python -m soco_lib.book.gallery`.

results/gallery/views.png, curves.png, predictions.png    figures
                healthy-toy/                              run.json and log.jsonl of the pretraining: the reference curve
                table.md                                  the table, also between the README's markers
                voc-probe/                                made by `make probe-table`: a table there
                speed.md                                  of `make bench`: a table there
                headline.md, labels.png, …                of `make claims`
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from soco_lib import ROOT, one_line_errors
from soco_lib.config import Pretrain
from soco_lib.fields import SUBJECT, essence, require, to_dict
from soco_lib.runs.folder import Run

#: Name of a place in the README, between two comments -> the file that fills it.
PLACES = {"headline": "headline.md", "quickstart table": "table.md", "probe table": "voc-probe/table.md",
          "speed table": "speed.md"}  # fmt: skip
#: The reference that notebook 3 draws behind a toy run.
HEALTHY = ROOT / "results" / "gallery" / "healthy-toy"
FIGURES = {
    "views.png": "quickstart-views/views_1.png",
    "proposals.png": "quickstart-proposals/proposals.png",
    "curves.png": "quickstart-soco/curves.png",
    "predictions.png": "quickstart-report/predictions-quickstart-transfer.png",
    "table.md": "quickstart-report/table.md",
    "healthy-toy/run.json": "quickstart-soco/run.json",
    "healthy-toy/log.jsonl": "quickstart-soco/log.jsonl",
    "healthy-toy/metrics.json": "quickstart-soco/metrics.json",
    "report.json": "quickstart-report/run.json",
    "speed.md": "bench/goals.md",
    "headline.md": "tables/headline.md",
    "verdicts.png": "claims/verdicts.png",
    "labels.png": "claims/labels.png",
    "longer.png": "claims/iterations-longer.png",
    "nearest.png": "claims/nearest.png",
    "similarity.png": "claims/similarity.png",
}


def reference(cfg: Pretrain) -> list[dict]:
    """Log rows of the tracked healthy run if it had the settings of `cfg`, on whatever images; else []."""
    if not (HEALTHY / "run.json").exists():
        return []
    run = Run.read(HEALTHY)
    settings = lambda values: {k: v for k, v in essence(values).items() if k not in SUBJECT - {"profile"}}
    return run.rows() if settings(run.record["config"]) == settings(to_dict(cfg)) else []


def collect(results: Path) -> None:
    """Copy the figures, tables and records. Raises BookError when a run that they are of is not finished."""
    missing = [source for source in FIGURES.values() if not (results / source).exists()]
    require(not missing, f"missing in {results}: {', '.join(missing)}; run `make quickstart` and `make claims` first")
    for name, source in FIGURES.items():
        target = ROOT / "results" / "gallery" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results / source, target)
    readme = ROOT / "README.md"
    text = readme.read_text()
    for place, name in PLACES.items():
        begin, end = f"<!-- {place} -->\n", f"<!-- end of the {place} -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}{(ROOT / 'results' / 'gallery' / name).read_text()}{end}{rest.split(end)[1]}"
    readme.write_text(text)


@one_line_errors
def main(_arguments: list[str] | None = None) -> None:
    """Command line."""
    collect(ROOT / "results")


if __name__ == "__main__":
    sys.exit(main())
