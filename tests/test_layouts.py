"""A new data layout is one class: here a made-up one, which trains, is scored, and whose predictions are read."""

import csv
from pathlib import Path

import pytest

from soco_lib import BookError
from soco_lib.runs.folder import Run
from soco_lib.transfer import check_data, predictions, run
from soco_lib.transfer.benchmarks import DataSet, Transfer, split_sets
from soco_lib.transfer.datasets import LAYOUTS, DataLayout
from soco_lib.transfer.errors import error_kinds
from tests.test_detection_data import HEIGHT, NAMES, WIDTH, objects, picture
from tests.test_transfer import TINY


@pytest.fixture
def lines():
    """The layout "lines:FILE.csv": an image name, a class and x, y, w, h a line; images lie beside the file."""

    class Lines(DataLayout):
        kind, form = "lines", "FILE.csv"

        def read(self, rest):
            self.source = Path(rest)
            self.root = self.source.parent
            rows = list(csv.reader(self.source.open()))
            self.classes = tuple(sorted({row[1] for row in rows}))
            found = {}
            for name, word, *box in rows:
                item = {"bbox": [float(v) for v in box], "bbox_mode": 1, "category_id": self.classes.index(word)}
                found.setdefault(name, []).append(item)
            self._records = [
                {
                    "file_name": f"{self.root / name}",
                    "image_id": i,
                    "height": HEIGHT,
                    "width": WIDTH,
                    "annotations": items,
                }
                for i, (name, items) in enumerate(found.items())
            ]
            return self.truth()

        def records(self, name=""):
            return self._records

        @classmethod
        def count(cls, rest):
            return {"images": len({row[0] for row in csv.reader(open(rest))})}

    yield Lines
    del LAYOUTS["lines"]


@pytest.fixture
def data(lines, tmp_path):
    """(training, test) specs in it."""
    specs = []
    for split, count in (("train", 6), ("test", 3)):
        rows = []
        for i, boxes in enumerate(objects(count, count)):
            picture(tmp_path / split / f"{i}.png", boxes)
            rows += [f"{i}.png,{NAMES[category]},{','.join(map(str, box))}\n" for category, box in boxes]
        (tmp_path / split / "boxes.csv").write_text("".join(rows))
        specs.append(f"lines:{tmp_path / split / 'boxes.csv'}")
    return specs


def test_one_class_trains_is_scored_and_is_read_again(data, tmp_path):
    cfg = Transfer(
        *data, detector="mask-rcnn-r50-fpn", overrides=TINY, iterations=2, warmup=1, batch=2, min_sizes=(64,),
        max_size=128, test_size=64, precise_bn=1, workers=0, log_every=1, profile="test",
    )  # fmt: skip
    folder = Run.start("lines", "transfer", cfg, tmp_path / "results").folder
    assert run.main([str(folder)]) == 0
    metrics = Run.read(folder).metrics
    assert list(metrics["bbox"]["per_class"]) == ["chair", "dog"] and "segm" not in metrics
    seen = predictions.read(folder)
    assert len(seen.detections) > 0 and seen.classes == {0: "chair", 1: "dog"}
    assert seen.pixels(seen.truth["images"][0]).shape == (HEIGHT, WIDTH, 3)
    assert error_kinds(seen.truth, seen.detections).objects == 6


def test_it_is_counted_and_named(data):
    found = check_data.count("made up", DataSet(data[1], (data[1].removeprefix("lines:"),), "here", images=4))
    assert [(line.found, line.verdict) for line in found] == [(3, "short")]
    with pytest.raises(BookError, match=r"must read coco:.*, lines:FILE.csv; several"):
        split_sets("line:x.csv")
