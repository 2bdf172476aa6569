"""Box maths against answers worked out by hand, and against a drawn picture."""

import cv2
import numpy as np
import pytest

from soco_lib import boxes as B


def test_area_counts_the_pixels_of_a_half_open_box():
    assert B.area([[0, 0, 4, 3], [1, 1, 1, 5], [5, 5, 2, 2]]).tolist() == [12, 0, 0]
    assert B.area([]).shape == (0,)


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [1, 0, 3, 2], 2 / 6),
        ([0, 0, 2, 2], [2, 0, 4, 2], 0.0),  # neighbours share an edge, no pixel
        ([0, 0, 4, 4], [1, 1, 3, 3], 4 / 16),
        ([0, 0, 2, 2], [3, 3, 5, 5], 0.0),  # two negative overlaps are not a positive one
        ([1, 1, 1, 1], [1, 1, 1, 1], 0.0),
    ],
)
def test_iou(a, b, expected):
    assert B.iou([a], [b])[0, 0] == pytest.approx(expected) and B.iou([b], [a])[0, 0] == pytest.approx(expected)


def test_iou_of_many_and_of_none():
    assert B.iou(np.zeros((3, 4)), np.zeros((0, 4))).shape == (3, 0)
    table = B.iou([[0, 0, 2, 2], [0, 0, 1, 1]], [[0, 0, 2, 2], [0, 0, 2, 1], [9, 9, 10, 10]])
    np.testing.assert_allclose(table, [[1, 0.5, 0], [0.25, 0.5, 0]])


def test_clip_and_valid():
    boxes = [[-5, -5, 5, 5], [2, 2, 8, 8], [10, 0, 12, 5], [9.5, 0, 20, 5], [9, 0, 20, 1], [-4, 3, 0.5, 9]]
    clipped = [[0, 0, 5, 5], [2, 2, 8, 8], [10, 0, 10, 5], [9.5, 0, 10, 5], [9, 0, 10, 1], [0, 3, 0.5, 8]]
    np.testing.assert_array_equal(B.clip(boxes, 10, 8), clipped)
    assert B.valid(boxes, 10, 8).tolist() == [True, True, False, False, True, False]
    assert B.valid(boxes, 10, 8, min_side=0.5).tolist() == [True, True, False, True, True, True]


def test_crop_resize_by_hand():
    # The crop 10..30 x 20..60 becomes 40 x 40: twice as wide, as high as it was.
    mapped = B.crop_resize([[10, 20, 30, 60], [15, 30, 20, 40], [0, 0, 5, 5]], (10, 20, 30, 60), (40, 40))
    np.testing.assert_allclose(mapped, [[0, 0, 40, 40], [10, 10, 20, 20], [-20, -20, -10, -15]])
    assert mapped.dtype == np.float32


def test_hflip_by_hand_and_twice():
    boxes = np.array([[1, 2, 4, 6], [0, 0, 10, 8]], np.float32)
    np.testing.assert_array_equal(B.hflip(boxes, 10), [[6, 2, 9, 6], [0, 0, 10, 8]])
    np.testing.assert_array_equal(B.hflip(B.hflip(boxes, 10), 10), boxes)


def test_a_drawn_box_stays_on_its_picture():
    image = np.zeros((60, 80), np.uint8)
    image[24:48, 16:40] = 255
    crop, size = (8, 12, 56, 60), (96, 144)
    view = cv2.resize(image[crop[1] : crop[3], crop[0] : crop[2]], size, interpolation=cv2.INTER_NEAREST)[:, ::-1]
    box = B.hflip(B.crop_resize([[16, 24, 40, 48]], crop, size), size[0])[0]
    ys, xs = np.nonzero(view)
    assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


class FixedDraws:
    """Stands in for a generator: says which boxes are jittered and by which r."""

    def __init__(self, chance, r):
        self.chance, self.r = np.array(chance), np.array(r)

    def random(self, n):
        return self.chance

    def uniform(self, low, high, shape):
        assert self.r.shape == shape and low == -0.1 and high == 0.1
        return self.r


def test_jitter_by_hand():
    # Centre (20, 30), size 20 x 40: x + 0.1*20, y - 0.1*40, w - 0.05*20, h + 0.05*40 = (22, 26), 19 x 42.
    rng = FixedDraws([0.4, 0.6], [[0.1, -0.1, -0.05, 0.05]] * 2)
    moved = B.jitter([[10, 10, 30, 50]] * 2, rng, 0.1, 0.5)
    np.testing.assert_allclose(moved, [[12.5, 5, 31.5, 47], [10, 10, 30, 50]], atol=1e-5)


def test_jitter_hits_a_share_of_p_and_stays_in_range():
    boxes = np.tile(np.array([[10, 10, 30, 50]], np.float32), (20000, 1))
    moved = B.jitter(boxes, np.random.default_rng(0))
    hit = (moved != boxes).any(axis=1)
    assert hit.mean() == pytest.approx(0.5, abs=0.02)
    size = (moved[:, 2:] - moved[:, :2])[hit] / (20, 40)
    shift = ((moved[:, :2] + moved[:, 2:]) / 2 - (20, 30))[hit] / (20, 40)
    for r in (size - 1, shift):
        assert abs(r).max() <= 0.1 + 1e-5 and r.std() == pytest.approx(0.2 / 12**0.5, abs=0.002)
    assert abs(np.corrcoef(np.hstack([size, shift]).T) - np.eye(4)).max() < 0.05  # four draws of their own
    np.testing.assert_array_equal(B.jitter(boxes, np.random.default_rng(0), p=0.0), boxes)
    assert B.jitter(np.zeros((0, 4)), np.random.default_rng(0)).shape == (0, 4)
