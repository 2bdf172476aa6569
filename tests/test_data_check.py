"""`make data-check` on small trees, against a small table."""

import json

import pytest

from soco_lib.transfer import benchmarks, check_data
from soco_lib.transfer.benchmarks import DATA, DataSet

TABLE = {
    "coco-train": DataSet(
        "coco:coco/annotations/a.json@coco/train", ("coco/annotations/a.json", "coco/train"), "site A", 3, 5
    ),
    "lvis-val": DataSet("lvis:lvis/b.json@coco", ("lvis/b.json", "coco/train", "coco/val"), "site B", 2, 1),
    "voc-test": DataSet("voc:VOC@test", ("VOC/JPEGImages", "VOC/Annotations", "VOC/ImageSets/Main"), "site C", 2),
    "pictures": DataSet("folder:pictures", ("pictures",), "site D", 2),
    "imagenet": DataSet("folder:imagenet/train", ("imagenet/train",), "site E", 3, folders=2),
    "scenes": DataSet("coco:data/scenes/x.json", ("data/scenes/x.json",), "make data"),  # no total: not counted
}


def write(root, *names, text=""):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """All of TABLE's data sets, whole."""
    monkeypatch.setenv("SOCO_DATA", str(tmp_path))
    monkeypatch.setattr(benchmarks, "DATA", TABLE)
    coco = {"images": [{"file_name": f"{i}.jpg"} for i in range(3)], "annotations": [{}] * 5, "categories": [{}]}
    lvis = {
        "images": [{"coco_url": f"http://x/{f}.jpg"} for f in ("train/0", "val/7")],
        "annotations": [{}],
        "categories": [{}],
    }
    write(tmp_path, "coco/annotations/a.json", text=json.dumps(coco))
    write(tmp_path, "lvis/b.json", text=json.dumps(lvis))
    write(tmp_path, *(f"coco/train/{i}.jpg" for i in range(3)), "coco/val/7.jpg")
    write(tmp_path, "pictures/a.JPG", "pictures/b.png", "pictures/notes.txt")
    write(tmp_path, "VOC/ImageSets/Main/test.txt", text="1\n2\n")
    write(tmp_path, *(f"VOC/{folder}" for i in (1, 2, 3) for folder in (f"JPEGImages/{i}.jpg", f"Annotations/{i}.xml")))
    write(tmp_path, *(f"imagenet/train/{name}.JPEG" for name in ("n01/a", "n01/b", "n02/c")))
    return tmp_path


def check(capsys, *names):
    """Exit status, {(data set, what): (found, verdict)} and the text below the table."""
    status = check_data.main(list(names))
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")][
        2:
    ]
    return status, {(row[0], row[1]): (int(row[2]), row[4]) for row in rows}, out.rpartition("|\n")[2]


def test_whole_trees_are_ok(tree, capsys):
    status, table, below = check(capsys)
    assert status == 0 and not below.strip() and {verdict for _, verdict in table.values()} == {"ok"}
    assert {key: found for key, (found, _) in table.items()} == {
        ("coco-train", "images"): 3, ("coco-train", "annotations"): 5,
        ("lvis-val", "images"): 2, ("lvis-val", "annotations"): 1,
        ("voc-test", "images"): 2, ("pictures", "images"): 2, ("imagenet", "images"): 3, ("imagenet", "folders"): 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    "gone, expected",
    [
        ("coco/train/0.jpg", {("coco-train", "images"): (2, "short"), ("lvis-val", "images"): (1, "short")}),
        (
            "coco/annotations/a.json",
            {("coco-train", "images"): (0, "missing"), ("coco-train", "annotations"): (0, "missing")},
        ),
        ("VOC/Annotations/2.xml", {("voc-test", "images"): (1, "short")}),
        ("VOC/ImageSets/Main/test.txt", {("voc-test", "images"): (0, "missing")}),
        ("pictures/b.png", {("pictures", "images"): (1, "short")}),
        ("imagenet/train/n02/c.JPEG", {("imagenet", "images"): (2, "short"), ("imagenet", "folders"): (1, "short")}),
    ],
)
def test_what_is_gone_is_found_and_the_tree_shown(tree, capsys, gone, expected):
    (tree / gone).unlink()
    status, table, below = check(capsys)
    assert status == 1 and {key: value for key, value in table.items() if value[1] != "ok"} == expected
    for name in {name for name, _ in expected}:
        assert name in below and TABLE[name].get in below and all(f"\n  {path}" in below for path in TABLE[name].paths)
    assert not any(TABLE[name].get in below for name in TABLE.keys() - {name for name, _ in expected})


def test_more_is_said_and_passes(tree, capsys):
    write(tree, "pictures/c.jpg")
    status, table, _ = check(capsys, "pictures")
    assert (status, table) == (0, {("pictures", "images"): (3, "more")})


def test_a_foreign_file_is_named(tree, capsys):
    write(tree, "coco/annotations/a.json", text="[]")
    status = check_data.main(["coco"])
    assert status == 1 and "a.json is no COCO annotation file" in capsys.readouterr().err


def test_names(monkeypatch, capsys):
    assert check_data.chosen(["voc2007"]) == ["voc2007-trainval", "voc2007-test"]
    assert check_data.chosen(["voc-c4"]) == ["voc2007-trainval", "voc2007-test", "voc2012-trainval"]
    assert check_data.chosen(["lvis-fpn-2x", "imagenet-train"]) == ["lvis-train", "lvis-val", "imagenet-train"]
    assert check_data.chosen([]) == [name for name in DATA if not name.startswith("scenes")]
    assert check_data.main(["coco-tain2017"]) == 1
    assert "did you mean 'coco-train2017'" in capsys.readouterr().err


def test_totals_are_those_of_the_published_files():
    assert {name: (d.images, d.annotations, d.folders) for name, d in DATA.items() if d.images} == {
        "coco-train2017": (118287, 860001, 0), "coco-val2017": (5000, 36781, 0), "coco-unlabeled2017": (123403, 0, 0),
        "voc2007-trainval": (5011, 0, 0), "voc2007-test": (4952, 0, 0), "voc2012-trainval": (11540, 0, 0),
        "lvis-train": (100170, 1270141, 0), "lvis-val": (19809, 244707, 0), "imagenet-train": (1281167, 0, 1000),
    }  # fmt: skip
