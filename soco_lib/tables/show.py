"""One run, as text: settings that differ from its scale's, state, sessions, metrics, the end of its log.

    python -m soco_lib.tables.show labels-soco-toy-s0-minicoco-10 --results results

prints a run folder under the results (also by its path), else a line of runs.jsonl or trials.jsonl (`make show
RUN=name`).
"""

from __future__ import annotations

import argparse
import sys

import pandas as pd

from soco_lib import ROOT, BookError, one_line_errors
from soco_lib.fields import from_dict
from soco_lib.runs import records
from soco_lib.runs.folder import Run
from soco_lib.studies.plans import KINDS, defaults, fields

#: Rows of a log that are shown.
LAST = 5


def settings(run: Run) -> str:
    """What differs from the parameter file or benchmark at the run's scale; all settings where there is none."""
    kind, config = run.record["kind"], run.record["config"]
    if kind not in KINDS:
        return "\n".join(f"{name}: {value}" for name, value in config.items())
    cfg = from_dict(KINDS[kind], config)
    try:
        base = defaults(cfg)
    except BookError:  # a parameter file of one's own
        base = None
    return f"seed={cfg.seed}; {fields(cfg, base)}".removesuffix("; ")


def text(run: Run) -> str:
    """The whole page."""
    lines = lambda frame: frame.astype(object).where(frame.notna(), "").to_string(index=False)
    record, log = run.record, pd.DataFrame(run.rows()[-LAST:])
    where = "a tracked record" if isinstance(run, records.Record) else str(run.folder)
    studies = f", shown by {', '.join(record['studies'])}" if record.get("studies") else ""
    scale = record["config"].get("profile", "")
    parts = [f"{run.name}: {record['kind']}{f', scale {scale!r}' if scale else ''}, {where}{studies}"]
    parts.append(
        f"state: {records.state_of(run).text or records.state_of(run).word}; identity {record.get('identity')}"
    )
    parts.append(f"settings that differ from the scale's own\n{settings(run) or '(none)'}")
    sessions = [
        {
            "start": each.get("start"), "minutes": round(records.minutes(each), 1), "processes": each.get("processes"),
            "hardware": records.hardware(each), "commit": records.commit(each), "error": each.get("error", ""),
        }
        for each in record["sessions"]
    ]  # fmt: skip
    if sessions:
        parts.append(f"sessions\n{lines(pd.DataFrame(sessions))}")
    numbers = {"metrics": records.numbers(run), "probe": record.get("probe", {})}
    for title, values in numbers.items():
        if values:
            flat = pd.json_normalize(values).iloc[0]
            parts.append(f"{title}\n" + "\n".join(f"{name}  {value}" for name, value in flat.items()))
    if len(log):
        parts.append(f"last rows of the log\n{lines(log)}")
    return "\n\n".join(parts)


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="name of a run or of a tracked record")
    parser.add_argument("--results", default="results", help="folder of the run folders")
    given = parser.parse_args(arguments)
    print(text(records.named("RUN", given.run, ROOT / given.results)))


if __name__ == "__main__":
    sys.exit(main())
