"""Geometry proved with drawn pictures and with torchvision; photometry against torchvision; the statistics of the draws."""

import cv2
import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from soco_lib import views
from soco_lib.config import Pretrain, View
from soco_lib.views import FIRST, SECOND, make_views

CFG = Pretrain("a", "b", jitter_p=0.0)
STAR = Pretrain("a", "b", jitter_p=0.0, views=(View(224), View(112, "V2"), View(192)))


@pytest.fixture
def plain(monkeypatch):
    """No photometry: pixels keep their colours."""
    monkeypatch.setattr(views, "photometry", lambda rng, image, branch: image)


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(1)
    return cv2.resize(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)


def test_a_marker_stays_inside_its_box(plain):
    """A red disc in the middle of a blue box, green elsewhere: red only inside the mapped box, blue nowhere outside."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        image = np.full((180, 260, 3), (0, 255, 0), np.uint8)
        x, y, w, h = rng.integers(20, 120), rng.integers(20, 70), rng.integers(50, 100), rng.integers(50, 90)
        image[y : y + h, x : x + w] = (0, 0, 255)
        cv2.circle(image, (int(x + w // 2), int(y + h // 2)), 14, (255, 0, 0), -1)
        for view in make_views(rng, image, np.array([[x, y, x + w, y + h]], np.float32), STAR):
            blue, red = view.image[..., 2] > 200, view.image[..., 0] > 200
            if not view.valid[0]:
                assert not red.any()
                continue
            x1, y1, x2, y2 = view.boxes[0]
            seen = np.argwhere(blue | red)[:, ::-1]
            assert (seen.min(0) >= np.floor([x1, y1]) - 1).all() and (seen.max(0) <= np.ceil([x2, y2]) + 1).all()
            assert np.abs(seen.min(0) - [x1, y1]).max() <= 2.5 and np.abs(seen.max(0) + 1 - [x2, y2]).max() <= 2.5


def test_asymmetric_marker_is_flipped_with_its_view(plain):
    """White left half, black right half: a flipped view has them the other way."""
    image = np.zeros((100, 100, 3), np.uint8)
    image[:, :50] = 255
    for seed in range(20):
        view = make_views(np.random.default_rng(seed), image, np.array([[0, 0, 50, 100]], np.float32), CFG)[0]
        assert (view.image[:, :100].mean() > 200) != view.flip
        assert view.boxes[0].tolist() == ([112, 0, 224, 224] if view.flip else [0, 0, 112, 224])


def by_torchvision(boxes, size, crop, side, out, flip):
    """The same chain in torchvision's transforms on bounding boxes."""
    b = tv_tensors.BoundingBoxes(torch.from_numpy(boxes).double(), format="XYXY", canvas_size=size[::-1])
    with torch.no_grad():
        b = F.resize(b, [side, side])
        b = F.resized_crop(b, crop[1], crop[0], crop[3] - crop[1], crop[2] - crop[0], [out, out])
        b = F.horizontal_flip(b) if flip else b
    return F.clamp_bounding_boxes(b).numpy()


def test_geometry_of_10000_views_equals_torchvisions(plain):
    rng, image, checked = np.random.default_rng(0), np.zeros((48, 64, 3), np.uint8), 0
    while checked < 10_000:
        low = rng.uniform(0, 0.6, (4, 2))
        boxes = (np.concatenate([low, low + rng.uniform(0.1, 0.4, (4, 2))], 1) * [64, 48, 64, 48]).astype(np.float32)
        for view in make_views(rng, image, boxes, STAR):
            expected = by_torchvision(boxes, (64, 48), view.crop, 224, view.image.shape[0], view.flip)
            assert np.abs(view.boxes - expected)[view.valid].max(initial=0) <= 1e-3
            lost = expected[~view.valid]
            assert ((lost[:, 2:] - lost[:, :2]).min(1) < 1 + 1e-6).all() if len(lost) else True
            checked += 1


def test_crops_are_drawn_as_random_resized_crop_draws_them():
    rng, view = np.random.default_rng(0), View(224)
    ours = np.array([views.draw_crop(rng, 224, view) for _ in range(4000)])
    picture = torch.zeros(3, 224, 224)
    torch.manual_seed(0)
    theirs = np.array([v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(224, (0.5, 1.0)), [picture])[k]
                       for _ in range(4000) for k in ("left", "top", "width", "height")]).reshape(-1, 4)  # fmt: skip
    ours = np.stack([ours[:, 0], ours[:, 1], ours[:, 2] - ours[:, 0], ours[:, 3] - ours[:, 1]], 1)
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 2
    assert np.abs(ours.std(0) - theirs.std(0)).max() < 2
    area = ours[:, 2] * ours[:, 3] / 224**2
    assert area.min() > 0.49 and area.max() <= 1.0


def test_v3_is_v2_made_smaller(plain, photo):
    boxes = np.array([[60, 60, 200, 200]], np.float32)
    for seed in range(10):
        _, two, three = make_views(np.random.default_rng(seed), photo, boxes, CFG)
        assert two.crop == three.crop
        small = cv2.resize(two.image, (112, 112), interpolation=cv2.INTER_AREA)
        small = small if two.flip == three.flip else small[:, ::-1]
        assert np.abs(small.astype(int) - three.image).mean() < 2


def test_branches_flips_and_jitter_have_their_probabilities(monkeypatch, photo):
    seen = []
    monkeypatch.setattr(views, "photometry", lambda rng, image, branch: seen.append(branch) or image)
    cfg, boxes = Pretrain("a", "b"), np.array([[80, 60, 240, 180]] * 4, np.float32)
    rng, samples = np.random.default_rng(0), []
    for _ in range(1500):
        samples.append(make_views(rng, photo, boxes, cfg))
    assert seen[:3] == [FIRST, SECOND, SECOND]
    assert abs(np.mean([v.flip for s in samples for v in s]) - 0.5) < 0.03
    exact = boxes[0] * np.float32([224 / 320, 224 / 240] * 2)
    mirrored = np.float32([224 - exact[2], exact[1], 224 - exact[0], exact[3]])
    moved = [np.abs(b - (mirrored if s[0].flip else exact)).max() > 1e-3 for s in samples for b in s[0].boxes]
    assert abs(np.mean(moved) - 0.5) < 0.03
    assert all(v.valid.sum() >= 2 for s in samples for v in s)


def test_box_that_leaves_the_crop_is_dropped_and_half_must_stay(plain):
    """Two boxes in opposite corners: every crop keeps one at least; one that is lost is zeroed, in V3 as in V2."""
    image, corners = np.zeros((224, 224, 3), np.uint8), np.array([[0, 0, 8, 8], [216, 216, 224, 224]], np.float32)
    samples = [make_views(np.random.default_rng(s), image, corners, CFG) for s in range(200)]
    assert all(s[1].valid.any() for s in samples)
    dropped = [s for s in samples if not s[1].valid.all()]
    assert dropped
    assert all((s[1].boxes[~s[1].valid] == 0).all() and (s[1].valid == s[2].valid).all() for s in dropped)


OPERATIONS = [
    (views.brightness, lambda x, f: F.adjust_brightness(x, f), (0.6, 1.4), 1.0),
    (views.contrast, lambda x, f: F.adjust_contrast(x, f), (0.6, 1.4), 1.0),
    (views.saturation, lambda x, f: F.adjust_saturation(x, f), (0.8, 1.2), 1.0),
    (views.hue, lambda x, f: F.adjust_hue(x, f), (-0.1, 0.1), 2.5),
    (views.blur, lambda x, f: F.gaussian_blur(x, [23, 23], [f, f]), (0.1, 2.0), 1.0),
]


@pytest.mark.parametrize(("ours", "theirs", "limits", "tolerance"), OPERATIONS, ids=[o[0].__name__ for o in OPERATIONS])
def test_photometry_agrees_with_torchvision(photo, ours, theirs, limits, tolerance):
    """Mean absolute difference in gray levels of 255; hue goes through 8-bit HSV as Pillow's does."""
    picture = views.resize(photo, 224)
    for value in np.linspace(*limits, 7):
        a = ours(picture, float(value)).astype(float)
        b = theirs(torch.from_numpy(picture).permute(2, 0, 1), float(value)).permute(1, 2, 0).numpy()
        assert np.abs(a - b).mean() <= tolerance


def test_solarize_and_grayscale_agree_with_torchvision(photo):
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    assert (views.solarize(photo) == F.solarize(tensor, 128).permute(1, 2, 0).numpy()).all()
    gray = F.rgb_to_grayscale(tensor, num_output_channels=3).permute(1, 2, 0).numpy()
    assert np.abs(views.grayscale(photo).astype(int) - gray).max() <= 1


def test_cutout_stays_inside_its_box(plain, photo):
    cfg = Pretrain("a", "b", jitter_p=0.0, cutout_p=1.0)
    view = make_views(np.random.default_rng(0), photo * 0, np.array([[80, 60, 240, 180]], np.float32), cfg)[0]
    filled = np.argwhere((view.image == views.MEAN_COLOUR).all(-1))[:, ::-1]
    x1, y1, x2, y2 = view.boxes[0]
    assert 0.08 < len(filled) / ((x2 - x1) * (y2 - y1)) < 0.32
    assert (filled.min(0) >= [x1 - 1, y1 - 1]).all() and (filled.max(0) <= [x2, y2]).all()
