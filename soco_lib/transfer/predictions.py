"""What a finished transfer detected, beside the ground truth: read from its run folder and test data alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from soco_lib import BookError
from soco_lib.data.decoding import decode
from soco_lib.fields import require
from soco_lib.runs.folder import Run, read_json
from soco_lib.transfer.benchmarks import split_sets
from soco_lib.transfer.datasets import LAYOUTS


@dataclass(frozen=True)
class Predictions:
    """Detections of one run on its test data."""

    run: Run = field(repr=False)
    root: Path  # folder of the test images
    truth: dict = field(repr=False)  # COCO dictionary: images, annotations, categories
    detections: list[dict] = field(repr=False)  # best first: image_id, category_id, bbox (x y w h), score, segmentation

    @property
    def classes(self) -> dict[int, str]:
        """Category id -> name."""
        return {category["id"]: category["name"] for category in self.truth["categories"]}

    @property
    def label(self) -> str:
        """A figure's title: run, scale, start."""
        config = self.run.record["config"]
        return f"{self.run.name} ({config['profile']} scale), from {config['init']}"

    def of_image(self, image: int, score: float, most: int = 10) -> list[dict]:
        """At most `most` detections scored `score` or more; where none is so sure, the best one."""
        mine = [d for d in self.detections if d["image_id"] == image]
        return [d for d in mine if d["score"] >= score][:most] or mine[:1]

    def objects(self) -> dict[int, list[dict]]:
        """Image id -> its objects, without crowds."""
        found = defaultdict(list)
        for annotation in self.truth["annotations"]:
            if not annotation.get("iscrowd"):
                found[annotation["image_id"]].append(annotation)
        return found

    def pixels(self, image: dict) -> np.ndarray:
        """A test image as (H, W, 3) uint8 RGB, as its boxes are for it. Raises BookError when it cannot be read."""
        path = self.root / image["file_name"]
        try:
            return decode(path.read_bytes(), lambda: (image["width"], image["height"]))
        except (OSError, BookError) as error:
            raise BookError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def test_set(run: Run) -> tuple[str, str]:
    """Kind and rest of a transfer's (first) test set. Raises BookError where its record names none."""
    named = run.record["config"].get("test")
    require(isinstance(named, str), f"{run.folder}/run.json names no test data: give the folder of a transfer")
    return split_sets(named)[0]


def read(folder: str | Path) -> Predictions:
    """The saved detections of a finished transfer beside its test data's ground truth.

    Raises BookError when the run is not finished or its detections or test data are gone.
    """
    folder = Path(folder)
    require((folder / "metrics.json").is_file(), f"{folder} is no finished run: finish that transfer first")
    run = Run.read(folder)
    kind, rest = test_set(run)
    path = folder / "detectron2" / LAYOUTS[kind].predictions
    require(
        path.is_file(), f"{path} is gone: the run's detections are needed; delete {folder} and run that transfer again"
    )
    layout = LAYOUTS[kind](rest)
    return Predictions(run, layout.root, layout.truth(), sorted(read_json(path, list), key=lambda d: -d["score"]))
