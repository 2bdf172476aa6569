"""Box maths: area and overlap, and boxes that follow an image through crops, resizes and flips.

A box is `x1 y1 x2 y2`, half-open, in pixels of a named frame (an image or a view); N boxes are float32 (N, 4). Pixel
(i, j) covers [j, j+1) x [i, i+1), so a whole image is `0 0 width height`, w = x2 - x1, and resizing is a
multiplication. Every function is pure; none changes its arguments.
"""

from __future__ import annotations

import numpy as np

#: The paper keeps a proposal with 1/3 <= w/h <= 3 and 0.3 <= sqrt(wh)/sqrt(WH) <= 0.8 (Sec. 3.2).
ASPECT_LIMITS = (1 / 3, 3.0)
SIDE_LIMITS = (0.3, 0.8)
#: Relative slack of the limits: float32 corners of a box that lies exactly on one may round to either side of it.
SLACK = 1e-5


def as_boxes(boxes) -> np.ndarray:
    """(N, 4) float32 from any list or array of N boxes, N = 0 included."""
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def area(boxes) -> np.ndarray:
    """(N,) float32 areas in square pixels; a box turned inside out has area 0."""
    boxes = as_boxes(boxes)
    return np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)


def iou(a, b) -> np.ndarray:
    """(N, M) float32 intersection over union in [0, 1] of N with M boxes of one frame; 0 where both are empty."""
    a, b = as_boxes(a), as_boxes(b)
    overlap = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(overlap, 0, None).prod(axis=2)
    union = area(a)[:, None] + area(b)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def clip(boxes, width: float, height: float) -> np.ndarray:
    """(N, 4) the parts inside a frame of `width` x `height`; a box outside becomes an empty one on the border."""
    return as_boxes(boxes).clip(0, np.array([width, height, width, height], np.float32))


def crop_resize(boxes, crop, size) -> np.ndarray:
    """(N, 4) boxes of a frame in pixels of its view, unclipped; `crop` = (x1, y1, x2, y2) of the frame is resized to
    `size` = (width, height).
    """
    x1, y1, x2, y2 = crop
    scale = np.array([size[0] / (x2 - x1), size[1] / (y2 - y1)] * 2, np.float32)
    return (as_boxes(boxes) - np.array([x1, y1, x1, y1], np.float32)) * scale


def hflip(boxes, width: float) -> np.ndarray:
    """(N, 4) boxes after a left-right flip of a frame `width` pixels wide."""
    boxes = as_boxes(boxes).copy()
    boxes[:, ::2] = width - boxes[:, 2::-2]
    return boxes


def jitter(boxes, rng: np.random.Generator, amount: float = 0.1, p: float = 0.5) -> np.ndarray:
    """(N, 4) boxes moved and resized at random (paper Sec. 3.2, Box Jitter), unclipped.

    With probability `p` a box, its centre (x, y) and size (w, h) become x + r*w, y + r*h, w + r*w, h + r*h, with r
    uniform in [-amount, amount] for each of the four. As many numbers are drawn whatever `p` and `amount` are.
    """
    boxes = as_boxes(boxes)
    apply, r = rng.random(len(boxes)) < p, rng.uniform(-amount, amount, (len(boxes), 4))
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + r[:, :2] * size
    size = size * (1 + r[:, 2:])
    jittered = np.concatenate([centre - size / 2, centre + size / 2], axis=1).astype(np.float32)
    return np.where(apply[:, None], jittered, boxes)


def valid(boxes, width: float, height: float, min_side: float = 1.0) -> np.ndarray:
    """(N,) bool: the part inside a view of `width` x `height` has both sides >= `min_side` pixels."""
    inside = clip(boxes, width, height)
    return ((inside[:, 2:] - inside[:, :2]) >= min_side).all(axis=1)


def aspect_fits(boxes) -> np.ndarray:
    """(N,) bool: 1/3 <= w/h <= 3, limits included (Sec. 3.2)."""
    w, h = _sides(boxes)
    low, high = ASPECT_LIMITS
    return (h > 0) & (w >= low * h * (1 - SLACK)) & (w <= high * h * (1 + SLACK))


def side_fits(boxes, width: float, height: float) -> np.ndarray:
    """(N,) bool: 0.3 <= sqrt(wh)/sqrt(WH) <= 0.8, limits included, in an image of `width` x `height` (Sec. 3.2)."""
    w, h = _sides(boxes)
    side = np.sqrt(np.clip(w, 0, None) * np.clip(h, 0, None))
    low, high = np.array(SIDE_LIMITS) * np.sqrt(width * height)
    return (side >= low * (1 - SLACK)) & (side <= high * (1 + SLACK))


def _sides(boxes) -> tuple[np.ndarray, np.ndarray]:
    boxes = as_boxes(boxes).astype(np.float64)
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
