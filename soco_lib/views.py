"""Views of one image (Sec. 3.2): geometry first, boxes with it, then BYOL's photometry for each view by itself.

Images are (S, S, 3) uint8 RGB; boxes (K, 4) float32 x1 y1 x2 y2 in pixels of the named view; K proposals.
Every random number comes from the numpy Generator that is passed in.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from soco_lib import boxes as box_math
from soco_lib.config import Pretrain, View

#: Attempts at a crop that keeps at least half of the boxes (authors' release).
CROP_TRIES = 5
#: The ImageNet mean colour, which normalises to zero: what cutout fills with.
MEAN_COLOUR = (124, 116, 104)
#: Ranges of the factors of brightness, contrast and saturation, and of the turn of hue.
LOW, HIGH = np.array([0.6, 0.6, 0.8, -0.1]), np.array([1.4, 1.4, 1.2, 0.1])


@dataclass(frozen=True)
class Branch:
    """Probabilities in which BYOL's two augmentation branches differ."""

    blur: float
    solarize: float


FIRST, SECOND = Branch(blur=1.0, solarize=0.0), Branch(blur=0.1, solarize=0.2)


@dataclass(frozen=True)
class ViewSample:
    """One finished view."""

    image: np.ndarray  # (S, S, 3) uint8
    boxes: np.ndarray  # (K, 4) float32, view pixels, clipped to the view
    valid: np.ndarray  # (K,) bool: the proposal overlaps this view
    crop: tuple[int, int, int, int]  # x1, y1, x2, y2 that it shows, whole pixels of V1 before its flip
    flip: bool
    regions: np.ndarray | None = None  # (n, 4) float32: every proposal of the image in V1, where an RPN learns them


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """Resize to (side, side), bilinear; a pixel that covers several is their average, as Pillow's is."""
    if image.shape[:2] == (side, side):
        return image
    if max(image.shape[:2]) <= side:
        return cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
    import torch  # here, so that who only draws views does not wait for it

    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)  # channels-last: its fast kernel
    smaller = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    return smaller.permute(0, 2, 3, 1)[0].contiguous().numpy()


def draw_crop(rng: Generator, side: int, view: View) -> tuple[int, int, int, int]:
    """A random crop of a (side, side) image, as RandomResizedCrop draws it: area uniform, aspect log-uniform."""
    for _ in range(10):
        area = side * side * rng.uniform(*view.scale)
        aspect = math.exp(rng.uniform(math.log(view.ratio[0]), math.log(view.ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= side and 0 < h <= side:
            x, y = int(rng.integers(0, side - w + 1)), int(rng.integers(0, side - h + 1))
            return x, y, x + w, y + h
    return 0, 0, side, side


def crop_with_boxes(rng, boxes: np.ndarray, side: int, view: View) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """A crop that keeps at least half of the boxes, else the best of CROP_TRIES; the whole if none keeps any. With it
    the boxes in the view, unclipped, and which of them overlap it.
    """
    best, kept = (0, 0, side, side), 0
    for number in range(CROP_TRIES + 1):
        crop = draw_crop(rng, side, view) if number < CROP_TRIES else best
        mapped = box_math.crop_resize(boxes, crop, (view.size, view.size))
        valid = box_math.valid(mapped, view.size, view.size)
        if 2 * (found := np.count_nonzero(valid)) >= len(boxes):
            break
        if found > kept:
            best, kept = crop, found
    return crop, mapped, valid


# --- photometry: each function is one of torchvision's operations on uint8, rounded where torchvision cuts off -------

_SAME, _GRAY = np.eye(3, dtype=np.float32), np.array([0.299, 0.587, 0.114], np.float32)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """factor >= 0; 1 changes nothing."""
    return cv2.convertScaleAbs(image, alpha=factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean gray level; factor >= 0, 1 changes nothing."""
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return cv2.addWeighted(image, factor, image, 0, mean * (1 - factor))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend each pixel with its gray level; factor >= 0, 1 changes nothing."""
    return cv2.transform(image, _SAME * factor + (1 - factor) * _GRAY)


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Turn the colour circle by `shift` of its round, in [-0.5, 0.5], in steps of 1/256."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    rows = hsv.reshape(len(hsv), -1)  # H S V H S V ...: a long row is added to fast, a channel of three is not
    turn = np.zeros(rows.shape[1], np.uint8)
    turn[::3] = round(shift * 256) % 256
    rows += turn  # uint8 wraps around, as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def grayscale(image: np.ndarray) -> np.ndarray:
    """Three equal channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, sigma in pixels, kernel about a tenth of the side (23 at 224), odd; no taps beyond 5.5 sigma."""
    kernel = min(max(3, image.shape[0] // 10 | 1), 2 * math.ceil(5.5 * sigma) + 1)
    taps = cv2.getGaussianKernel(kernel, sigma)
    # Three times as fast as GaussianBlur.
    return cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)


def solarize(image: np.ndarray) -> np.ndarray:
    """Invert levels from 128 on: of a level and its inverse, the lower."""
    return cv2.min(image, cv2.bitwise_not(image))


def photometry(rng: Generator, image: np.ndarray, branch: Branch) -> np.ndarray:
    """BYOL's colour jitter (0.4, 0.4, 0.2, 0.1) in random order with p 0.8, grayscale 0.2, blur, solarize."""
    if rng.random() < 0.8:
        jitter, values = (brightness, contrast, saturation, hue), (LOW + (HIGH - LOW) * rng.random(4)).tolist()
        for i in rng.permutation(4):
            image = jitter[i](image, values[i])
    if rng.random() < 0.2:
        image = grayscale(image)
    if rng.random() < branch.blur:
        image = blur(image, rng.uniform(0.1, 2.0))
    if rng.random() < branch.solarize:
        image = solarize(image)
    return image


def cutout(rng: Generator, image: np.ndarray, boxes: np.ndarray, p: float) -> np.ndarray:
    """With probability p a box: fill a rectangle of 10 % to 30 % of its area, inside it, with the mean colour.

    An option of the authors' release, not in the paper.
    """
    image = image.copy()
    for x1, y1, x2, y2 in boxes:
        if rng.random() < p:
            side = math.sqrt(rng.uniform(0.1, 0.3))
            w, h = (x2 - x1) * side, (y2 - y1) * side
            x, y = rng.uniform(x1, x2 - w), rng.uniform(y1, y2 - h)
            image[round(y) : round(y + h), round(x) : round(x + w)] = MEAN_COLOUR
    return image


def _finish(rng, image, boxes, valid, crop, branch: Branch, cfg: Pretrain) -> ViewSample:
    """Flip, cutout and photometry of one view, boxes following; boxes not in the view are zeroed."""
    side = image.shape[0]
    flip = bool(rng.random() < 0.5)
    if flip:
        image, boxes = cv2.flip(image, 1), box_math.hflip(boxes, side)
    boxes = np.where(valid[:, None], box_math.clip(boxes, side, side), np.float32(0))
    if cfg.cutout_p > 0:
        image = cutout(rng, image, boxes[valid], cfg.cutout_p)
    return ViewSample(photometry(rng, image, branch), boxes, valid, crop, flip)


def make_views(rng: Generator, image: np.ndarray, boxes: np.ndarray, cfg: Pretrain, frame=None) -> list[ViewSample]:
    """V1, V2, … of one image.

    image: (H, W, 3) uint8; boxes: (K, 4) in pixels of `frame` = (width, height), the image's before it was decoded at a
    reduced size (None: its own). V1 is the whole image at cfg.size with jittered boxes; every other view is a crop of
    V1 or an earlier view resized (config.View), with the boxes as they are.
    """
    width, height = frame or image.shape[1::-1]
    whole = (0, 0, cfg.size, cfg.size)
    base = resize(image, cfg.size)
    boxes = box_math.crop_resize(boxes, (0, 0, width, height), (cfg.size, cfg.size))
    jittered = box_math.jitter(boxes, rng, cfg.jitter, cfg.jitter_p)
    everywhere = box_math.valid(jittered, cfg.size, cfg.size)
    samples = [_finish(rng, base, jittered, everywhere, whole, FIRST, cfg)]
    plain = {"V1": (base, boxes, everywhere, whole)}  # before flip and photometry: what later views derive from
    for number, view in enumerate(cfg.views, start=2):
        if view.source == "crop":
            crop, mapped, valid = crop_with_boxes(rng, boxes, cfg.size, view)
            pixels = base[crop[1] : crop[3], crop[0] : crop[2]]
        else:
            pixels, parent, valid, crop = plain[view.source]
            mapped = parent * np.float32(view.size / pixels.shape[0])
        plain[f"V{number}"] = (resize(pixels, view.size), mapped, valid, crop)
        samples.append(_finish(rng, *plain[f"V{number}"], SECOND, cfg))
    return samples


def all_in_first(first: ViewSample, boxes: np.ndarray, frame: tuple[int, int]) -> ViewSample:
    """V1 with every proposal of its image as `regions`: boxes (n, 4) in pixels of `frame` = (width, height)."""
    side = first.image.shape[0]
    mapped = box_math.clip(box_math.crop_resize(boxes, (0, 0, *frame), (side, side)), side, side)
    mapped = mapped[box_math.valid(mapped, side, side)]
    return dataclasses.replace(first, regions=box_math.hflip(mapped, side) if first.flip else mapped)
