"""Explorers: what the controls draw, and that they do so in a real JupyterLab."""

import base64
import itertools
from types import SimpleNamespace

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from soco_lib.book import explore
from soco_lib.config import Pretrain, View
from soco_lib.data.sources import open_source
from soco_lib.encoder import Encoder
from soco_lib.features import probe
from soco_lib.runs.folder import Run
from soco_lib.scenes import write as scenes
from soco_lib.transfer import predictions
from soco_lib.transfer.datasets import LAYOUTS
from soco_lib.views import make_views, resize
from tests import browser
from tests.conftest import TINY_DETECTOR, TINY_PRETRAINING, TINY_TRANSFER

CFG = Pretrain("", "", size=64, views=(View(64), View(32, "V2")), detector="mask-rcnn-r50-fpn", overrides=TINY_DETECTOR)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return scenes.write_scenes(tmp_path_factory.mktemp("explored") / "scenes", 8, 4, workers=1, most=3, smallest=0.3)


def labelled(world, split="val"):
    return f"coco:{world}/annotations/instances_{split}.json@{world}/images"


class Watched:
    """An Explorer that was displayed: what stands in the page now, and how often it changed."""

    def __init__(self, explorer):
        self.explorer, self.now, self.count = explorer, explorer.outputs(), 0
        explorer.shown = [SimpleNamespace(update=lambda output, raw, at=at: self.put(at, output))
                          for at in range(len(self.now))]  # fmt: skip

    def put(self, at, output):
        self.now[at] = output
        self.count += 1

    def give(self, name, value):
        """Move a control; returns the new text and pictures."""
        self.explorer.controls[name].value = value
        return self.text, self.pictures

    @property
    def text(self):
        return self.now[0]["text/plain"]

    @property
    def pictures(self):
        return [output.get("image/png") for output in self.now[1:]]


def test_proposals_tell_what_is_kept_and_what_each_object_gets(world):
    source, opened = open_source(labelled(world)), {*plt.get_fignums()}
    seen = Watched(explore.proposals(source, live=True))
    first = seen.pictures
    assert "boxes" in seen.text and "best IoU" in seen.text
    text, pictures = seen.give("image", 1)
    assert source.keys[1] in text and pictures != first
    assert cv2.imdecode(np.frombuffer(base64.b64decode(pictures[0]), np.uint8), 1).std() > 10
    assert "64 boxes, 64 kept" in seen.give("generator", "random")[0]
    assert seen.give("seed", 1)[1] != pictures and seen.give("K", 2)[1] != pictures
    assert "1 boxes, 1 kept" in seen.give("generator", "whole")[0]
    seen.give("generator", "selective_search")
    assert seen.give("strategy", "single")[0] != seen.give("search_size", 64)[0]
    assert {*plt.get_fignums()} == opened  # no figure is left open, however often one is drawn


def test_images_without_labels_have_proposals_too_and_a_damaged_one_is_told_and_passed(pictures, tmp_path):
    for name in ("00.jpg", "01.jpg"):
        (tmp_path / name).write_bytes((pictures / name).read_bytes())
    (tmp_path / "00.jpg").write_bytes(b"no picture")
    seen = Watched(explore.proposals(open_source(f"folder:{tmp_path}"), live=True))
    assert "00.jpg" in seen.text and seen.pictures == [None]
    text, drawn = seen.give("image", 1)
    assert "IoU" not in text and drawn != [None]


def test_views_follow_their_controls(world):
    source = open_source(labelled(world))
    seen = Watched(explore.views(CFG, source, live=True))
    assert "levels in V1 to V3: box 1: P" in seen.text and seen.text.count("box") == 4
    first = seen.text, seen.pictures
    assert seen.give("photometry", False)[0] == first[0]  # the geometry stays
    assert seen.pictures != first[1]
    assert "V1 to V4" in seen.give("V4", True)[0] and "V1 to V3" in seen.give("V3_px", 0)[0]
    seen.give("crop_area", (0.04, 0.1))
    assert seen.give("crop_area", (0.9, 1.0))[0].count("dropped") == 0
    drawn = seen.pictures
    seen.explorer.buttons[0].click()
    assert seen.explorer.controls["draw"].value == 1 and seen.pictures != drawn
    assert seen.give("jitter", 1.0)[1] != drawn


def test_a_view_without_photometry_is_its_crop_as_it_was():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    made = make_views(np.random.default_rng(1), image, np.array([[0, 0, 30, 30]]), CFG)
    bare = [explore._uncoloured(image, view, CFG.size) for view in made]
    whole = resize(image, 64)
    assert (bare[0].image == (whole[:, ::-1] if made[0].flip else whole)).all()
    x1, y1, x2, y2 = made[1].crop
    crop = resize(whole[y1:y2, x1:x2], 64)
    assert (bare[1].image == (crop[:, ::-1] if made[1].flip else crop)).all()
    assert all((a.boxes == b.boxes).all() for a, b in zip(made, bare))


def test_a_box_is_seen_by_random_weights_and_by_two_runs(world, monkeypatch):
    monkeypatch.setattr(Run, "read", lambda folder: folder)
    monkeypatch.setattr(probe, "trained_encoder", lambda run: (CFG, Encoder(CFG), 7))
    torch.manual_seed(0)
    seen = Watched(explore.network(["a", "b"], labelled(world), 3, live=True))
    assert seen.explorer.controls["image"].max == 2 and "view's 64 x 64 pixels, " in seen.text
    first = seen.pictures
    assert None not in first and "box 19 19 45 45 " in seen.give("object", 0)[0] and seen.pictures != first
    seen.explorer.buttons[0].click()
    assert seen.pictures == first
    seen.give("object", 0)
    assert "widen x and y" in seen.give("x", (0.5, 0.52))[0] and seen.pictures == [None, None]
    other = Pretrain("", "", size=96, views=(View(96),), detector=CFG.detector, overrides=TINY_DETECTOR)
    runs = itertools.cycle([(CFG, Encoder(CFG), 7), (other, Encoder(other), 7)])
    monkeypatch.setattr(probe, "trained_encoder", lambda run: next(runs))
    assert "b sees images of 96 px, a of 64" in Watched(explore.network(["a", "b"], labelled(world))).text


def test_detections_of_two_runs_by_score_class_and_error(world, monkeypatch):
    layout = LAYOUTS["coco"](labelled(world).removeprefix("coco:"))
    truth, first = layout.truth(), layout.truth()["annotations"][0]
    right = {key: first[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
    runs = {
        name: predictions.Predictions(SimpleNamespace(name=name), layout.root, truth, found)
        for name, found in {"a": [right], "b": [right | {"score": 0.8, "bbox": [0, 0, 9, 9]}]}.items()
    }
    monkeypatch.setattr(Run, "read", lambda folder: SimpleNamespace(record={"kind": "transfer"}, folder=folder.name))
    monkeypatch.setattr(predictions, "read", runs.__getitem__)
    titles = []
    monkeypatch.setattr(plt.Axes, "set_title", lambda ax, title, **_: titles.append(title))
    seen = Watched(explore.detections("a", "b", live=True))
    assert titles[1:] == ["a: 1 detection", "b: 1 detection"]
    count = len([a for a in truth["annotations"] if a["image_id"] == first["image_id"]])
    assert titles[0] == f"ground truth: {count} object{'s' * (count != 1)}"
    for name, value, wanted in (
        ("score", 0.85, ["a: 1 detection", "b: 0 detections"]),
        ("only_errors", True, [f"a: 0 wrong detections, {count - 1} missed", f"b: 0 wrong detections, {count} missed"]),
        ("score", 0.5, [f"a: 0 wrong detections, {count - 1} missed", f"b: 1 wrong detection, {count} missed"]),
    ):
        titles.clear()
        seen.give(name, value)
        assert titles[1:] == wanted
    others = [identity for identity in runs["a"].classes if identity != first["category_id"]]
    titles.clear()
    seen.give("only", others[0])
    assert titles[2].startswith("b: 0 wrong detections")
    runs.update(b=predictions.Predictions(runs["b"].run, layout.root, truth | {"images": truth["images"][1:]}, []))
    assert "have different images" in Watched(explore.detections("a", "b")).text


def test_missing_data_are_told_in_the_output(tmp_path):
    for explorer, said in (
        (explore.network([], "coco:x.json"), "make quickstart"),
        (explore.detections(f"{tmp_path}/gone"), "gone"),
        (explore.network([f"{tmp_path}/gone"], "coco:x.json"), "x.json"),
    ):
        outputs = explorer.outputs()
        assert len(outputs) == 1 and said in outputs[0]["text/plain"]


def test_no_control_is_made_where_nobody_can_move_one(world, monkeypatch):
    monkeypatch.setenv("SOCO_HEADLESS", "1")
    explorer = explore.proposals(open_source(labelled(world)))
    assert not explorer.controls and "image/png" in explorer.outputs()[1]


# --- in JupyterLab ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with browser.lab(tmp_path_factory.mktemp("lab"), width=1400) as opened:
        opened.complaints = []
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("console", lambda said: said.type == "error" and opened.complaints.append(said.text))
        yield opened


@pytest.fixture(scope="module")
def book(lab, world, tmp_path_factory):
    """Opens a notebook of the book on the scenes, runs it whole, returns its explorer."""
    folder = tmp_path_factory.mktemp("results")
    data = {"images": labelled(world, "train"), "proposals": str(folder / "proposals")}
    scored = {"train": labelled(world, "train"), "test": labelled(world)}
    given = {
        "01_proposals": {**data, "workers": 1, "show": 2},
        "02_views": {**data, "pictures": 1, "draws": 1},
        "03_pretrain": {**data, "overrides": TINY_PRETRAINING},
        "04_transfer": {**scored, "overrides": TINY_TRANSFER},
        "10_claims": {"data": labelled(world), "pretrained": str(folder / "03_pretrain"), "images": 4},
    }

    def run(name):
        page = lab.open(name, run_name=name, results=str(folder), **given[name])
        page.run_all()
        page.ended(5 * browser.SLOW)
        assert page.errors() == []
        return page

    return run


def explored(page, function):
    """The cell of an explorer, and a function that gives its pictures."""
    cell = page.page.locator(".jp-CodeCell", has_text=f"explore.{function}(")
    images = cell.locator(".jp-RenderedImage img")
    images.first.wait_for()
    cell.scroll_into_view_if_needed()
    return cell, lambda: images.evaluate_all("all => all.map(image => image.src)")


def press(page, cell, picture, control, key):
    """Move a control, by its description, with a key, or choose `key` from a list; the picture must change."""
    before = picture()
    row = cell.locator(".jupyter-widgets", has=page.page.get_by_text(control, exact=True)).last
    widget = row.locator(".noUi-handle, input, select").first
    if widget.evaluate("widget => widget.tagName") == "SELECT":  # a letter typed there is one of Lab's shortcuts
        widget.select_option(key)
    else:
        widget.focus()
        page.page.keyboard.press(key)
    page.until(lambda: picture() != before)


@pytest.mark.parametrize(("name", "function", "moves"), [
    ("01_proposals", "proposals", [("image", "ArrowRight"), ("K", "ArrowRight"), ("generator", "random")]),
    ("02_views", "views", [("image", "ArrowRight"), ("photometry", "Space"), ("V3 px", "ArrowLeft")]),
    ("04_transfer", "detections", [("image", "ArrowRight"), ("score", "Home"), ("only errors", "Space")]),
    ("10_claims", "network", [("image", "ArrowRight"), ("object", "ArrowDown"), ("x", "ArrowRight")]),
])  # fmt: skip
def test_a_control_moved_by_keyboard_changes_the_picture(book, lab, tmp_path, name, function, moves):
    if name == "10_claims":
        book("03_pretrain")
    page = book(name)
    cell, picture = explored(page, function)
    for control, key in moves:
        press(page, cell, picture, control, key)
    if function in ("views", "network"):
        before = picture()
        cell.get_by_role("button", name="next").click()
        page.until(lambda: picture() != before)
    page.picture(tmp_path / f"{name}.png")
    assert page.errors() == [] and lab.complaints == []
