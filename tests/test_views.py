"""Geometry proved with drawn pictures and with torchvision; photometry against torchvision; the statistics of the
draws.
"""

import cv2
import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from soco_lib import views
from soco_lib.config import Pretrain, View
from soco_lib.data.decoding import decode, decode_near
from soco_lib.views import FIRST, SECOND, make_views
from tests.speed.plain_views import colours

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


@pytest.mark.parametrize("branch", [FIRST, SECOND], ids=["first", "second"])
def test_moments_of_2000_draws_agree_with_torchvisions(photo, branch):
    """Mean and deviation over draws of what photometry changes, in gray levels: channel means, contrast, colour,
    sharpness, hue.

    Of n draws with deviation s each, two means differ by s * sqrt(2 / n), one standard error, and two deviations by no
    more (kurtosis up to 5); four of these are allowed, and half a level, since torchvision cuts off where we round.
    """
    draws, small = (
        2000,
        cv2.multiply(views.resize(photo, 64), (1.0, 0.8, 0.5, 0.0)),
    )  # reddish, so that a turn of hue shows
    tensor, rng, theirs = (
        torch.from_numpy(small).permute(2, 0, 1).contiguous(),
        np.random.default_rng(0),
        colours(64, branch),
    )
    torch.manual_seed(0)

    def moments(x):
        means = cv2.mean(x)[:3]
        return [
            *means,
            x[..., 1].std(),
            np.ptp(x, axis=2).mean(),
            cv2.absdiff(x[1:], x[:-1]).mean(),
            means[0] - means[1],
        ]

    a = np.array([moments(views.photometry(rng, small, branch)) for _ in range(draws)])
    b = np.array([moments(theirs(tensor).permute(1, 2, 0).contiguous().numpy()) for _ in range(draws)])
    tolerance = 4 * b.std(0) * np.sqrt(2 / draws) + 0.5
    assert (np.abs(a.mean(0) - b.mean(0)) <= tolerance).all(), (a.mean(0), b.mean(0), tolerance)
    assert (np.abs(a.std(0) - b.std(0)) <= tolerance).all(), (a.std(0), b.std(0), tolerance)


def test_views_of_a_large_jpeg_decoded_small_are_those_of_the_whole_image(plain):
    """Noise of every scale, as in photographs: what is not decoded is what the view cannot show. Boxes are equal."""
    rng, image, size = np.random.default_rng(0), np.full((1203, 1601, 3), 128, np.float32), (1601, 1203)
    for cells in (12, 48, 192, 768):
        noise = rng.normal(0, 360 / cells**0.5, (cells * 3 // 4, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    whole, (near, stored) = decode(data), decode_near(data, 224)
    assert whole.shape == (1203, 1601, 3) and near.shape == (602, 801, 3) and stored == size
    boxes = np.array([[100, 80, 900, 700], [600, 300, 1601, 1203], [0, 0, 500, 800]], np.float32)
    for seed in range(5):
        exact = make_views(np.random.default_rng(seed), whole, boxes, STAR)
        fast = make_views(np.random.default_rng(seed), near, boxes, STAR, stored)
        for a, b in zip(exact, fast):
            assert a.crop == b.crop and a.flip == b.flip and (a.boxes == b.boxes).all() and (a.valid == b.valid).all()
            assert cv2.absdiff(a.image, b.image).mean() <= 2.5
            assert a.image.std() > 20  # there is something to see


def test_cutout_stays_inside_its_box(plain, photo):
    cfg = Pretrain("a", "b", jitter_p=0.0, cutout_p=1.0)
    view = make_views(np.random.default_rng(0), photo * 0, np.array([[80, 60, 240, 180]], np.float32), cfg)[0]
    filled = np.argwhere((view.image == views.MEAN_COLOUR).all(-1))[:, ::-1]
    x1, y1, x2, y2 = view.boxes[0]
    assert 0.08 < len(filled) / ((x2 - x1) * (y2 - y1)) < 0.32
    assert (filled.min(0) >= [x1 - 1, y1 - 1]).all() and (filled.max(0) <= [x2, y2]).all()
