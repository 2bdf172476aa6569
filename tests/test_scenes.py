"""Generated scenes: the same seed gives the same picture, and the annotations are exact."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from soco_lib import BookError
from soco_lib.scenes.objects import CATEGORIES
from soco_lib.scenes.picture import MIN_PIXELS, MIN_VISIBLE, draw_scene
from soco_lib.scenes.write import main, write_scenes


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(0, i, "train") for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "out", train=6, val=3, seed=5, workers=1)


def test_a_scene_depends_on_its_arguments_alone():
    first, again = draw_scene(3, 7, "val"), draw_scene(3, 7, "val")
    draw_scene(3, 8, "val")
    assert first.image.tobytes() == again.image.tobytes() and np.array_equal(first.masks, again.masks)
    threads = cv2.getNumThreads()
    for count in (1, 2):  # OpenCV's stackBlur depends on it
        cv2.setNumThreads(count)
        assert draw_scene(3, 7, "val").image.tobytes() == first.image.tobytes() and cv2.getNumThreads() == count
    cv2.setNumThreads(threads)
    for other in (draw_scene(4, 7, "val"), draw_scene(3, 6, "val"), draw_scene(3, 7, "train")):
        assert other.image.tobytes() != first.image.tobytes()


def test_masks_boxes_and_labels_agree(scenes):
    for scene in scenes:
        h, w = scene.image.shape[:2]
        n = len(scene.labels)
        assert 1 <= n <= 6 and scene.image.dtype == np.uint8
        assert scene.masks.shape == (n, h, w) and scene.masks.dtype == bool and scene.boxes.shape == (n, 4)
        assert scene.masks.sum(0).max() == 1  # visible parts never overlap
        assert scene.labels.min() >= 0 and scene.labels.max() < len(CATEGORIES)
        for mask, (x1, y1, x2, y2) in zip(scene.masks, scene.boxes.astype(int)):
            assert mask[y1:y2, x1:x2].sum() == mask.sum()
            assert mask[y1].any() and mask[y2 - 1].any() and mask[:, x1].any() and mask[:, x2 - 1].any()


def test_hidden_and_tiny_objects_are_left_out(scenes):
    visible = np.concatenate([s.visible for s in scenes])
    assert MIN_VISIBLE <= visible.min() < 0.7 and visible.max() == 1  # occlusion happens, within the rule
    assert min(s.masks.sum((1, 2)).min() for s in scenes) >= MIN_PIXELS


def test_scales_categories_and_formats_are_covered(scenes):
    areas = [np.prod(s.boxes[:, 2:] - s.boxes[:, :2], axis=1) / s.image[..., 0].size for s in scenes]
    sides = np.sqrt(np.concatenate(areas))
    assert sides.min() < 0.14 and sides.max() > 0.55 and 0.2 < np.median(sides) < 0.45
    assert len(CATEGORIES) >= 8 and set(np.concatenate([s.labels for s in scenes])) == set(range(len(CATEGORIES)))
    shapes = np.array([s.image.shape[:2] for s in scenes])
    assert (shapes[:, 0] > 1.2 * shapes[:, 1]).any() and (shapes[:, 1] > 1.2 * shapes[:, 0]).any()


@pytest.mark.parametrize("size", [(64, 96), (200, 200), (480, 700)])
def test_size_may_be_asked_for(size):
    assert draw_scene(0, 1, "train", size).image.shape == (*size, 3)


def test_objects_are_in_the_picture(scenes):
    """Just inside an object's edge the picture differs from just outside of it, in most places."""
    steps = []
    for scene in scenes[:20]:
        grey = cv2.GaussianBlur(scene.image, (0, 0), 1).astype(float)
        for mask in scene.masks.astype(np.uint8):
            inner = mask - cv2.erode(mask, np.ones((5, 5)))
            outer = cv2.dilate(mask, np.ones((5, 5))) - mask
            steps.append(np.abs(grey[inner > 0].mean(0) - grey[outer > 0].mean(0)).max())
    assert np.median(steps) > 15


def test_coco_files_hold_what_was_drawn(folder):
    for split, count in (("train", 6), ("val", 3)):
        coco = COCO(str(folder / "annotations" / f"instances_{split}.json"))
        assert {c["id"]: c["name"] for c in coco.cats.values()} == dict(enumerate(CATEGORIES, 1))
        assert len(coco.imgs) == count
        for image in coco.imgs.values():
            scene = draw_scene(5, image["id"] - 1, split)
            stored = cv2.imread(str(folder / "images" / image["file_name"]))[..., ::-1]
            assert stored.shape == scene.image.shape and np.abs(stored.astype(int) - scene.image).mean() < 6
            annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
            assert len(annotations) == len(scene.labels)
            for a, mask, box, label in zip(annotations, scene.masks, scene.boxes, scene.labels):
                assert isinstance(a["segmentation"]["counts"], str) and a["iscrowd"] == 0
                assert np.array_equal(rle.decode(a["segmentation"]).astype(bool), mask)
                assert a["area"] == mask.sum() and a["category_id"] == label + 1
                assert a["bbox"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def test_scene_i_is_the_same_in_a_longer_set_and_from_several_processes(folder, tmp_path):
    longer = write_scenes(tmp_path / "longer", train=70, val=3, seed=5, workers=2)
    for name in ("train/000001.jpg", "train/000006.jpg", "val/000003.jpg"):
        assert (longer / "images" / name).read_bytes() == (folder / "images" / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["longer"]  # nothing half-written is left


def test_writing_twice_does_nothing_and_other_parameters_are_refused(folder, capsys):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    main(["--out", str(folder), "--train", "6", "--val", "3", "--seed", "5"])
    assert "6 train and 3 val scenes" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(BookError, match="train=6, not 7.*delete the folder"):
        write_scenes(folder, train=7, val=3, seed=5)


def test_a_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(BookError, match="another folder"):
        write_scenes(tmp_path, train=1, val=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_scenes(tmp_path / "out", train=1, val=0, workers=1)
    assert not list(tmp_path.iterdir())


def test_unknown_split():
    with pytest.raises(BookError, match="train, val"):
        draw_scene(0, 0, "test")
