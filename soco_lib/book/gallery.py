"""What README.md and results/README.md show comes from finished runs: `python -m soco_lib.book.gallery` copies it, with
the records that earned it.

results/gallery/views.png, curves.png, predictions.png    figures
                healthy-toy/                              run.json and log.jsonl of the pretraining: the reference curve
                table.md                                  the table, between markers of results/README.md
                voc-probe/                                made by `make probe-table`: a table there
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

#: Page -> name of a place in it, between two comments -> the file that fills it.
PLACES = {
    "README.md": {"headline": "headline.md"},
    "results/README.md": {
        "headline table": "headline.md",
        "quickstart table": "table.md",
        "probe table": "voc-probe/table.md",
    },
}
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


def shown(page: str, name: str) -> str:
    """A file of the gallery as a page shows it: its first paragraph in the README, all of it with links from there in
    results/README.md.
    """
    text = (ROOT / "results" / "gallery" / name).read_text()
    return text.split("\n\n")[0] + "\n" if page == "README.md" else text.replace("](results/", "](")


def collect(results: Path) -> None:
    """Copy the figures, tables and records. Raises BookError when a run that they are of is not finished."""
    missing = [source for source in FIGURES.values() if not (results / source).exists()]
    require(not missing, f"missing in {results}: {', '.join(missing)}; run `make quickstart` and `make claims` first")
    for name, source in FIGURES.items():
        target = ROOT / "results" / "gallery" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results / source, target)
    for page, places in PLACES.items():
        text = (ROOT / page).read_text()
        for place, name in places.items():
            begin, end = f"<!-- {place} -->\n", f"<!-- end of the {place} -->"
            head, rest = text.split(begin)
            text = f"{head}{begin}{shown(page, name)}{end}{rest.split(end)[1]}"
        (ROOT / page).write_text(text)


@one_line_errors
def main(_arguments: list[str] | None = None) -> None:
    """Command line."""
    collect(ROOT / "results")


if __name__ == "__main__":
    sys.exit(main())
