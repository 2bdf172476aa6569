"""Tables as people read them: Markdown with links to the runs, LaTeX without."""

from __future__ import annotations

import pandas as pd


def _filled(part: pd.DataFrame) -> pd.DataFrame:
    return part.astype(object).where(part.notna(), "")


def markdown(part: pd.DataFrame, left: int | None = None) -> str:
    """A printed table; its first `left` columns are aligned to the left and the others to the right (None: all as they
    come).
    """
    align = None if left is None else ["left"] * left + ["right"] * (len(part.columns) - left)
    return _filled(part).to_markdown(index=False, colalign=align, disable_numparse=True)


def latex(parts: dict[str, pd.DataFrame], caption: str) -> str:
    """Printed tables, title or "" -> table, each with its title and the caption."""
    titled = {f"{title}. {caption}" if title else caption: part for title, part in parts.items()}
    made = [_filled(part).to_latex(index=False, escape=True, caption=said) for said, part in titled.items()]
    return "\n".join(made).replace("≥", r"$\geq$")


class Links:
    """Reference links of a Markdown page, whose source stays readable: [text][3] in it, and a line `[3]: target` at its
    end.
    """

    def __init__(self, targets: dict[str, str]):
        """targets: run's name -> where it lies, seen from the page."""
        self.targets, self.numbers = targets, {name: i for i, name in enumerate(targets, start=1)}

    def __call__(self, text: str, run: str) -> str:
        """The text, linked where the run has a target."""
        return f"[{text}][{self.numbers[run]}]" if run in self.numbers else text

    def seeds(self, runs: dict[int, str]) -> str:
        """A link for each seed -> run, to stand behind a number; "" for none."""
        return "".join(f" {self(f's{seed}', run)}" for seed, run in runs.items())

    def definitions(self) -> str:
        """The lines at the page's end."""
        return "\n".join(f"[{self.numbers[name]}]: {target}" for name, target in self.targets.items())
