"""Every notebook, executed once in its smallest form, each on what the one before it made."""

import json
import re

import nbformat
import pytest

from soco_lib import ROOT
from soco_lib.book.execute import NotebookFailed, execute
from soco_lib.data import interchange
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import build_store
from soco_lib.runs.folder import Run
from soco_lib.scenes import write as scenes
from soco_lib.tables import claims
from tests.conftest import TINY_PRETRAINING, TINY_TRANSFER

SMALL_MODEL = TINY_PRETRAINING | {"log_every": 2, "save_every": 4}
SMALL_TRANSFER = TINY_TRANSFER | {"iterations": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twelve scenes and an empty results folder."""
    folder = tmp_path_factory.mktemp("book")
    scenes.write_scenes(folder / "scenes", 12, 6, workers=1)
    return folder


def data(world, split):
    return f"coco:{world}/scenes/annotations/instances_{split}.json@{world}/scenes/images"


def run(world, notebook, name, **params):
    execute(
        ROOT / "notebooks" / notebook, name, params | {"results": str(world / "results")}, results=world / "results"
    )
    folder = world / "results" / name
    page = (folder / notebook.replace(".ipynb", ".html")).read_text()
    assert "data:image/png;base64" in page and "Traceback" not in page
    made = nbformat.read(folder / notebook, as_version=4)
    assert "widgets" not in made.metadata  # nobody could move them, and a page would fetch their scripts
    explored = [cell for cell in made.cells if re.search(r"^explore\.", cell.source, re.MULTILINE)]
    assert all({"display_data"} == {output.output_type for output in cell.outputs} for cell in explored)
    assert all(any("image/png" in output.data for output in cell.outputs) for cell in explored)
    return Run.read(folder)


def test_0_method(world):
    made = run(world, "00_method.ipynb", "method")  # needs no data: a photograph that scikit-image brings
    assert made.done and made.metrics["loss"] == pytest.approx(made.metrics["loss_by_hand"], abs=1e-6)
    assert made.metrics["first_side"] == {"2": 8, "3": 48, "4": 96, "5": 192}
    assert {"views.png", "schedules.png", "levels.png"} <= {path.name for path in made.folder.iterdir()}


def test_1_proposals(world):
    made = run(
        world, "01_proposals.ipynb", "p", images=data(world, "train"), proposals=f"{world}/proposals", workers=1, show=2
    )
    assert made.done and made.metrics["images"] == 12 and made.metrics["recall"]["recall_50"] > 0.5


def test_1_proposals_that_something_else_made(world):
    images, (store, file) = data(world, "train"), (f"{world}/imported", world / "boxes.json")
    interchange.export_boxes(build_store(open_source(images), ProposalConfig("random"), f"{world}/random"), file)
    interchange.import_boxes(file, open_source(images), store)
    made = run(world, "01_proposals.ipynb", "i", images=images, proposals=store, generator="found", show=1)
    assert made.done and made.metrics["made_with"]["generator"] == "imported" and made.metrics["boxes"] == 12 * 64


def test_2_views(world):
    made = run(
        world, "02_views.ipynb", "v", images=data(world, "train"), proposals=f"{world}/proposals", pictures=1, draws=1
    )
    assert made.done and made.metrics["survival"][0] == 1.0


def test_3_pretrain(world):
    given = {"images": data(world, "train"), "proposals": f"{world}/proposals", "overrides": SMALL_MODEL}
    made = run(world, "03_pretrain.ipynb", "soco", **given)
    assert made.done and made.metrics["images_seen"] == 16


def test_4_transfer_from_scratch_and_from_the_pretraining(world):
    given = {"train": data(world, "train"), "test": data(world, "train"), "overrides": SMALL_TRANSFER}
    assert run(world, "04_transfer.ipynb", "plain", **given).done  # the parameter file's settings
    given |= {"test": data(world, "val"), "benchmark": "coco-fpn-1x"}
    scratch = run(world, "04_transfer.ipynb", "scratch", **given)
    page = (scratch.folder / "04_transfer.html").read_text()
    assert "31.0 (-3" in page and "small runs on small data" in page  # the paper's Scratch and the difference
    assert {"curves.png", "classes.png", "predictions.png", "errors.png"} <= {
        path.name for path in scratch.folder.iterdir()
    }
    errors = json.loads((scratch.folder / "errors.json").read_text())
    assert errors["images"] == 6 and errors["counts"]["missed"] <= errors["objects"]
    made = run(world, "04_transfer.ipynb", "transfer", init=f"{world}/results/soco", **given)
    report = json.loads((made.folder / "key_report.json").read_text())
    assert made.done and report["unexplained"] == {"new": [], "left_behind": [], "mismatched": []}
    assert {"bbox", "segm"} <= made.metrics.keys()


def test_5_report(world):
    made = run(world, "05_report.ipynb", "report", runs=["scratch", "transfer"], show=1)
    table = (made.folder / "table.md").read_text()
    assert "Scratch" in table and "SoCo (soco)" in table and "43.0" in table and "not comparable" in table
    assert len(made.metrics["rows"]) == 6


def test_7_compare(world):
    made = run(world, "07_compare.ipynb", "comparison", run_a=f"{world}/results/scratch", run_b="transfer", show=2)
    assert made.done and {"bbox_AP", "segm_AP75"} <= made.metrics["difference"].keys()
    assert set(made.metrics["errors"]) == {"A", "B"} and len(made.metrics["classes"]["bbox"]) == 10
    page = (made.folder / "07_compare.html").read_text()
    assert "init" in page and "B is better on" in page
    with pytest.raises(NotebookFailed, match="cannot be compared \\(test: .*_train.json.* in A, "):
        run(world, "07_compare.ipynb", "refused", run_a="plain", run_b="scratch")


def test_10_claims(world):
    made = run(
        world, "10_claims.ipynb", "claims", data=data(world, "val"), pretrained=f"{world}/results/soco", images=6
    )
    assert {"nearest.png", "similarity.png"} <= {path.name for path in made.folder.iterdir()}
    assert made.metrics["verdicts"] == {"not run": len(claims.read())} and len(made.metrics["agreement"]) == 2
    page = (made.folder / "10_claims.html").read_text()
    assert "of the same class" in page and "has no finished run" in page


def test_11_predict(world):
    new = f"folder:{world}/scenes/images/val"
    made = run(world, "11_predict.ipynb", "new", model=f"{world}/results/scratch", images=new, score=0.0, show=2)
    assert made.done and made.metrics["images"] == 6 and made.metrics["detections"] > 0
    assert {"contact_sheet.png", "counts.csv", "counts.png", "README.md"} <= {
        path.name for path in made.folder.iterdir()
    }
