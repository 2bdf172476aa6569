"""The numbers the SoCo paper prints in Tables 1-10, read from `paper_tables.csv` beside this file.

Source: Wei, Gao, Wu, Hu, Lin, "Aligning Pretraining for Detection via Object-Level Contrastive Learning" (NeurIPS
2021). One line of the CSV is one printed cell, tables and rows in the paper's order:

- `table`: 1, 2, 3, 4, 5a, 5b, 5c, 5d, 6 ... 10; both halves of the split Table 3 are "3", both of Table 7 are "7"
- `benchmark`: what the pretrained network is finetuned on, e.g. coco-fpn-1x (Mask R-CNN R50-FPN, COCO, 1x schedule)
- `row`: the method without its citation number, or the variant; Table 4's rows add up ("+ head" keeps the rows above)
- `epoch`: pretraining epochs; empty where the table prints "-" or has no such column (4 and 5: all 100, Section 4.4)
- `metric`: average precision in percent, 0 to 100: box (`bb`) or mask (`mk`); AP50 and AP75 at IoU 0.50 and 0.75
- `value`: as printed, without Table 4's bracketed differences; empty where the paper prints "-", NaN where pretraining
diverged
"""

import difflib
from functools import cache
from pathlib import Path

import pandas as pd

from soco_lib import BookError

_CSV = Path(__file__).with_name("paper_tables.csv")


@cache
def _cells() -> pd.DataFrame:
    """The CSV as text, unaltered; shared by all callers, so never written to."""
    return pd.read_csv(_CSV, dtype=str, keep_default_na=False)


def _select(cells: pd.DataFrame, column: str, name: str, where: str) -> pd.DataFrame:
    """The cells whose `column` is `name`; an unknown name stops with the nearest known ones."""
    chosen = cells[cells[column] == str(name)]
    if chosen.empty:
        known = list(cells[column].unique())
        near = difflib.get_close_matches(str(name), known)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(map(repr, known))}"
        hint = "leave it out" if known == [""] else hint
        raise BookError(f"{where} has no {column} {str(name)!r}; {hint}")
    return chosen


def paper_table(table: str) -> pd.DataFrame:
    """One table in wide form: index (row, epoch), columns (benchmark, metric), both in the paper's order.

    Values are float percent; a cell printed "-" and a diverged one are both NaN here (`paper_value` tells them apart).
    Epochs are nullable integers. Raises BookError for an unknown table.
    """
    cells = _select(_cells(), "table", table, "the paper")
    rows, columns = ["row", "epoch"], ["benchmark", "metric"]
    epochs = pd.to_numeric(cells["epoch"]).astype("Int64")
    values = cells["value"].replace("", "NaN").astype(float)
    return cells.assign(epoch=epochs, value=values).set_index(rows + columns)["value"].unstack(columns, sort=False)


@cache
def paper_value(table: str, benchmark: str, row: str, metric: str, epoch: int | None = None) -> float | None:
    """One printed number, in percent: None where the paper prints "-", NaN where it prints NaN.

    `epoch` may be left out where the row stands in the table with one epoch only (or none).
    Raises BookError naming the nearest known name for an unknown one, or the epochs to choose from.
    """
    cells = _select(_cells(), "table", table, "the paper")
    cells = _select(cells, "benchmark", benchmark, f"Table {table}")
    cells = _select(cells, "row", row, f"Table {table}")
    cells = _select(cells, "metric", metric, f"Table {table}")
    if epoch is not None:
        cells = _select(cells, "epoch", epoch, f"Table {table}, row {row!r}")
    if len(cells) > 1:
        raise BookError(f"Table {table} has several rows {row!r}; give epoch={' or '.join(cells['epoch'])}")
    text = cells["value"].item()
    return float(text) if text else None
