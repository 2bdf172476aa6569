"""`make worth`: what pretraining is worth on one's own data, from a look at the data to one page.

    python -m soco_lib.book.worth --run mine --images folder:mine --train coco:a.json@mine --test coco:b.json@mine

checks what it is given (studies/worth.py), looks at the data, makes what is missing of the study by the runner, and
executes notebook 12 on what is there, also after a failed run (status 3) and a stop (143): the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from soco_lib import ROOT, one_line_errors
from soco_lib.book.execute import execute
from soco_lib.fields import require
from soco_lib.figures import odd_data
from soco_lib.runs.launch import Launch, add_options
from soco_lib.runs.stop import STOPPED
from soco_lib.studies import runner, worth

NOTEBOOK = "notebooks/12_worth.ipynb"


def _look(asked: worth.Asked, folder: Path) -> None:
    """The data check. Raises BookError where something is refused, after all of it was printed."""
    roles = {role: getattr(asked, role) for role in ("train", "test", "images")}
    words = [word for role, spec in roles.items() if spec for word in (f"--{role}", spec)]
    wrong = odd_data.main([*words, "--out", str(folder / "data-check")])
    require(not wrong, f"the data are refused (see above, and {folder}/data-check/index.html): mend them first")


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line, in which an empty value is the default; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fields = {field.name: field.default for field in dataclasses.fields(worth.Asked)[1:]}
    words = {"run": "name of the study (default: the proposals')", "jobs": "runs at a time"}
    for name in ("run", "jobs", *fields):
        names = (f"--{name}", f"--{name.upper()}")  # as make writes them
        parser.add_argument(*names, default="", help=words.get(name) or f"default: {fields[name]!r}")
    parser.add_argument("--results", default="results", help="folder of the run folders")
    parser.add_argument("--plan", action="store_true", help="print what would run and what it costs, and stop")
    add_options(parser)
    given = parser.parse_args(arguments)
    own = Path(given.proposals).name.removesuffix("-proposals") if given.images else ""
    missing = {name: "" for name, default in fields.items() if default is dataclasses.MISSING}
    asked = missing | {name: value for name in fields if (value := getattr(given, name))}
    asked = worth.Asked(given.run or own or "mine", **asked)
    folder, how = worth.folder_of(asked, given.results), Launch.of_arguments(given)
    file = folder / f"worth-{asked.name}.yaml"
    print(*worth.write(asked, file, how.world), sep="\n", flush=True)
    launch = [
        f"--{f.name}={value}" for f in dataclasses.fields(Launch) if (value := getattr(given, f.name)) is not None
    ]
    words = [str(file), "--profile", asked.profile, "--seeds", asked.seeds, "--results", given.results]
    words += ["--jobs", given.jobs or "1", "--launch", given.launch, *launch]
    if given.plan:
        return runner.main([*words, "--plan", "--measure"])
    _look(asked, folder)
    status = runner.main(words)
    if status in (0, runner.FAILED, STOPPED):
        execute(ROOT / NOTEBOOK, folder.name, {"study": str(file), "profile": asked.profile}, given.results)
    return status


if __name__ == "__main__":
    sys.exit(main())
