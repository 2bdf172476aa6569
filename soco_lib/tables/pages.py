"""Tables as people read them: Markdown with links to the runs."""

from __future__ import annotations

import re

import pandas as pd


def cell(value):
    """A value for a cell: a `|` in text would begin another one, and `<b>` would be a tag."""
    return re.sub(r"<(?=[A-Za-z/!])", "&lt;", value.replace("|", r"\|")) if isinstance(value, str) else value


def markdown(part: pd.DataFrame, left: int | None = None) -> str:
    """A printed table; its first `left` columns are aligned to the left and the others to the right (None: all as they
    come).
    """
    align = None if left is None else ["left"] * left + ["right"] * (len(part.columns) - left)
    filled = part.astype(object).where(part.notna(), "").map(cell).rename(columns=cell)
    return filled.to_markdown(index=False, colalign=align, disable_numparse=True)


class Links:
    """Reference links of a Markdown page, whose source stays readable: [text][3] in it, and at its end a line
    `[3]: target "title"` with the run's name, which `make show RUN=name` prints.
    """

    def __init__(self, names):
        self.numbers = {name: i for i, name in enumerate(names, start=1)}

    def __call__(self, text: str, run: str) -> str:
        """The text, linked to a run that has a number here."""
        return f"[{text}][{self.numbers[run]}]" if run in self.numbers else text

    def seeds(self, runs: dict[int, str]) -> str:
        """A link for each seed -> run, to stand behind a number; "" for none."""
        return "".join(f" {self(f's{seed}', run)}" for seed, run in runs.items())

    def definitions(self) -> str:
        """The lines at the page's end."""
        return "\n".join(f'[{i}]: ../runs.jsonl "make show RUN={name}"' for name, i in self.numbers.items())
