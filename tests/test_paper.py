"""The paper's numbers: the CSV has the right shape, and every cell is what the paper's text prints."""

import csv
import math
import os
import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from soco_lib import ROOT, BookError
from soco_lib.studies.paper import paper_table, paper_value

CSV = ROOT / "soco_lib" / "studies" / "paper_tables.csv"
PAPER = Path(os.environ.get("SOCO_PAPER") or ROOT.parent / "shared" / "paper" / "soco_paper.txt")
BOX = ["AP_bb", "AP50_bb", "AP75_bb"]
FULL = BOX + ["AP_mk", "AP50_mk", "AP75_mk"]
SHORT = ["AP_bb", "AP_mk"]
IOU = {None: "", "₅₀": "50", "₇₅": "75"}
#: table: rows of the wide form, benchmarks and metrics in printed order
SHAPES = {
    "1": (16, ["coco-fpn-1x", "coco-fpn-2x"], FULL),
    "2": (13, ["coco-c4-1x", "coco-c4-2x"], FULL),
    "3": (16, ["voc-c4"], BOX),
    "4": (7, ["coco-fpn-1x"], SHORT),
    "5a": (5, ["coco-fpn-1x"], SHORT),
    "5b": (4, ["coco-fpn-1x"], SHORT),
    "5c": (7, ["coco-fpn-1x"], SHORT),
    "5d": (3, ["coco-fpn-1x"], SHORT),
    "6": (2, ["lvis-fpn-1x", "lvis-fpn-2x"], FULL),
    "7": (2, ["coco-retinanet-1x", "coco-fcos-1x"], BOX),
    "8": (4, ["minicoco-5", "minicoco-10"], FULL),
    "9": (4, ["coco-fpn-1x"], FULL),
    "10": (2, ["coco-fpn-4x"], FULL),
}


def read_csv() -> list[dict[str, str]]:
    with open(CSV, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def printed_rows(text: str) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """(table, row, epoch, [(metric, value)]) for every row of numbers in the paper's text, in the order of the CSV.

    Table rows are the tab-separated lines after a caption "Table N:"; a line of running text ends the table.
    Two tables printed side by side (3 and 7) are read left one first.
    """
    found, head, right = [], [], []
    table = part = ""
    for line in [*text.splitlines(), "the end"]:
        cells = [cell.strip() for cell in line.split("\t")]
        if caption := re.match(r"Table (\d+):", line):
            table, part, head = caption[1], "", []
        elif table == "5" and (caption := re.match(r"\(([a-d])\) Study", line)):
            part, head = caption[1], []
        elif table and len(cells) > 1 and not any(re.match(r"\d+\.\d|NaN", cell) for cell in cells[1:]):
            above = head or [""] * len(cells)  # a heading of two lines: the lower one wins where it says something
            head = [metric_name(low) or high for low, high in zip(cells, above)]
        elif table and len(cells) > 1:
            assert len(cells) == len(head), line
            starts = [i for i, name in enumerate(head) if name in ("Method", "Methods")] or [0]
            cut = starts[1] if len(starts) > 1 else len(head)
            found.append(read_row(table + part, head[:cut], cells[:cut]))
            right += [read_row(table + part, head[cut:], cells[cut:])] if cut < len(head) else []
        elif line.strip():
            found, right, table = found + right, [], ""
    return found


def metric_name(heading: str) -> str:
    """`AP ^{bb} ₅₀` is AP50_bb; other headings stay."""
    printed = re.fullmatch(r"AP \^\{(bb|mk)\} ?(₅₀|₇₅)?", heading)
    return f"AP{IOU[printed[2]]}_{printed[1]}" if printed else heading


def read_row(table: str, head: list[str], cells: list[str]) -> tuple[str, str, str, list[tuple[str, str]]]:
    numbers = [(name, re.sub(r" \(.*\)", "", cell)) for name, cell in zip(head, cells) if name in FULL]
    epoch = cells[head.index("Epoch")] if "Epoch" in head else "-"
    ticked = [name for name, cell in zip(head, cells) if cell == "✓"]
    if table == "4":
        assert ticked == head[: len(ticked)], "the components add up from left to right"
    row = {
        "4": ("+ " if len(ticked) > 1 else "") + "".join(ticked[-1:]),
        "5a": f"view {cells[0]}",
        "5b": f"batch {cells[0]}",
        "5c": f"K={cells[2]} {' '.join(ticked)}",
        "5d": f"tau={cells[0]}",
    }.get(table, re.sub(r" (?=[_^])| \[\d+\]", "", cells[0]))
    return table, row.casefold(), epoch, numbers


def stored_rows(lines: list[dict[str, str]]) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """The CSV in the form of `printed_rows`: neighbours of one row become one printed row."""
    groups = groupby(lines, key=lambda line: (line["table"], line["row"].casefold(), line["epoch"] or "-"))
    return [(*key, [(line["metric"], line["value"] or "-") for line in group]) for key, group in groups]


@pytest.fixture(scope="module")
def text() -> str:
    if not PAPER.is_file():
        pytest.skip(f"no text of the paper at {PAPER}; set SOCO_PAPER to compare every digit with it")
    return PAPER.read_text(encoding="utf-8")


def test_every_printed_number_is_stored_once_and_in_order(text):
    printed, stored = printed_rows(text), stored_rows(read_csv())
    for theirs, ours in zip(printed, stored):
        assert ours == theirs
    assert len(stored) == len(printed)


def test_every_changed_digit_is_noticed(text):
    """The comparison above is worth something: no cell can change without it."""
    printed, lines = printed_rows(text), read_csv()
    following = dict(zip("0123456789", "1234567890"))
    for i, line in enumerate(lines):
        value = line["value"]
        wrong = [value[:k] + following[d] + value[k + 1 :] for k, d in enumerate(value) if d in following]
        for changed in wrong or ["" if value else "NaN"]:
            assert stored_rows([*lines[:i], line | {"value": changed}, *lines[i + 1 :]]) != printed, (line, changed)


def test_table_4_differences_follow_from_its_values(text):
    """The brackets of Table 4 are not stored: each is the value minus the first row's."""
    values = paper_table("4")["coco-fpn-1x"]
    gains = (values - values.iloc[0]).iloc[1:].round(1).to_numpy().ravel()
    section = text[text.index("Table 4:") : text.index("Table 5:")]
    assert [float(gain) for gain in re.findall(r"\(\+(.*?)\)", section)] == gains.tolist()


def test_csv_columns_and_keys():
    lines = read_csv()
    assert list(lines[0]) == ["table", "benchmark", "row", "epoch", "metric", "value"]
    keys = Counter(tuple(line.values())[:-1] for line in lines)
    assert [key for key, times in keys.items() if times > 1] == []
    assert all(re.fullmatch(r"|NaN|\d\d\.\d", line["value"]) for line in lines)
    assert all(re.fullmatch(r"|\d+", line["epoch"]) for line in lines)
    assert [table for table, _ in groupby(line["table"] for line in lines)] == list(SHAPES)


@pytest.mark.parametrize("table", SHAPES)
def test_shape(table):
    rows, benchmarks, metrics = SHAPES[table]
    wide = paper_table(table)
    assert len(wide) == rows
    assert list(wide.columns) == [(benchmark, metric) for benchmark in benchmarks for metric in metrics]
    assert sum(line["table"] == table for line in read_csv()) == wide.size, "each row has a cell in each column"
    order = list(dict.fromkeys((line["row"], line["epoch"]) for line in read_csv() if line["table"] == table))
    index = wide.index.to_frame().astype({"epoch": "string"}).fillna("")
    assert list(index.itertuples(index=False, name=None)) == order


@pytest.mark.parametrize(
    ("table", "benchmark", "row", "epoch", "metric", "value"),
    [
        ("1", "coco-fpn-1x", "Scratch", None, "AP_bb", 31.0),
        ("1", "coco-fpn-1x", "SoCo*", 400, "AP_bb", 43.2),
        ("1", "coco-fpn-2x", "SoCo*", None, "AP_mk", 39.6),
        ("1", "coco-fpn-2x", "DetCon_B", 1000, "AP50_bb", None),
        ("2", "coco-c4-1x", "SimSiam", 200, "AP75_mk", 36.7),
        ("3", "voc-c4", "ReSim-FPN", 200, "AP75_bb", 65.9),
        ("4", "coco-fpn-1x", "+ head", None, "AP_bb", 41.2),
        ("5c", "coco-fpn-1x", "K=8 random", None, "AP_mk", math.nan),
        ("6", "lvis-fpn-2x", "SoCo*", 400, "AP_bb", 28.3),
        ("7", "coco-fcos-1x", "SoCo*", 400, "AP_bb", 37.4),
        ("8", "minicoco-10", "SoCo", 100, "AP_mk", 26.1),
        ("9", "coco-fpn-1x", "COCO train set + unlabeled set", 530, "AP_bb", 40.6),
        ("10", "coco-fpn-4x", "Supervised", 90, "AP75_mk", 40.5),
    ],
)
def test_cells_read_by_eye(table, benchmark, row, epoch, metric, value):
    found = paper_value(table, benchmark, row, metric, epoch)
    assert found is None if value is None else found == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("metric", SHORT)
def test_the_default_setting_reads_the_same_in_every_table(metric):
    same = [("1", "SoCo", 100), ("4", "+ multi view", None), ("5a", "view 112", None), ("5b", "batch 2048", None)]
    same += [("5c", "K=4 selective search", None), ("5d", "tau=0.99", None), ("9", "ImageNet", 100)]
    assert len({paper_value(table, "coco-fpn-1x", row, metric, epoch) for table, row, epoch in same}) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("11", "coco-fpn-1x", "SoCo", "AP_bb"), "no table '11'; did you mean '1'?"),
        (("1", "coco-fpn1x", "SoCo", "AP_bb"), "no benchmark 'coco-fpn1x'; did you mean 'coco-fpn-1x'"),
        (("1", "coco-fpn-1x", "MoCov2", "AP_bb"), "no row 'MoCov2'; did you mean 'MoCo v2'"),
        (("1", "coco-fpn-1x", "Rotation", "AP_bb"), "no row 'Rotation'; known: 'Scratch', 'Supervised'"),
        (("1", "coco-fpn-1x", "SoCo*", "APbb"), "no metric 'APbb'; did you mean 'AP_bb'"),
        (("1", "coco-fpn-1x", "SoCo", "AP_bb"), "several rows 'SoCo'; give epoch=100 or 400"),
        (("1", "coco-fpn-1x", "SoCo", "AP_bb", 401), "row 'SoCo' has no epoch '401'; did you mean '400'"),
        (("1", "coco-fpn-1x", "Scratch", "AP_bb", 90), "no epoch '90'; leave it out"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(asked, message):
    with pytest.raises(BookError, match=re.escape(message)):
        paper_value(*asked)


def test_an_unknown_table_is_named():
    with pytest.raises(BookError, match="no table '5'"):
        paper_table("5")
