"""One generated scene: a photograph for a background, objects placed, covered by one another, embedded and exposed."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from soco_lib import BookError
from soco_lib.scenes.objects import CATEGORIES, render
from soco_lib.scenes.textures import PHOTOGRAPHS, photographs

SPLITS = ("train", "val")
MIN_VISIBLE = 0.35  #: an object of which less is seen is left out
MIN_PIXELS = 90  #: so is one with fewer visible pixels
LARGEST = 0.70  #: square root of an object's box area over that of the image area, at most
MOST, SMALLEST = 6, 0.10  #: objects of a scene, and the smallest one's side, unless others are asked for
_GREY = ("brick", "camera", "coins", "grass", "gravel", "moon")  # have no colours of their own


@dataclass(frozen=True)
class Scene:
    """One picture and its N objects, back to front."""

    image: np.ndarray  #: (H, W, 3) uint8 RGB
    masks: np.ndarray  #: (N, H, W) bool, each object's visible pixels: they never overlap
    boxes: np.ndarray  #: (N, 4) float32 x1 y1 x2 y2, half-open, pixels, tight on the masks
    labels: np.ndarray  #: (N,) int64, indices into `CATEGORIES`
    visible: np.ndarray  #: (N,) float32 in 0..1, the share of the whole object that is neither covered nor cut off


def draw_scene(seed: int, index: int, split: str, size: tuple[int, int] | None = None, most: int = MOST,
               smallest: float = SMALLEST) -> Scene:  # fmt: skip
    """Draw scene `index` of a split: 1 to `most` objects, later ones in front. It is a function of the arguments alone.

    `split`: "train" or "val". `size`: (height, width) in pixels; None is about 240x320, sometimes portrait or square.
    `smallest`: side of the smallest object, the square root of its box area over the image's, up to LARGEST.
    Raises BookError for an unknown split or a value that cannot be.
    """
    if most < 1 or not 0 < smallest <= LARGEST:
        limits = f"give at least one object, and a side above 0 and up to {LARGEST}"
        raise BookError(f"cannot draw scenes of up to {most} objects with sides from {smallest}: {limits}")
    if split not in SPLITS:
        raise BookError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # stackBlur rounds differently when threads share a picture
    try:
        return _draw(np.random.default_rng([seed, SPLITS.index(split), index]), split, size, most, smallest)
    finally:
        cv2.setNumThreads(threads)


def _draw(rng, split, size, most, smallest):
    h, w = size or _size(rng)
    image = _background(rng, split, h, w)
    azimuth, height = rng.uniform(0.1, 0.9) * np.pi, rng.uniform(0.5, 1.1)
    light = np.array([np.cos(azimuth) * np.cos(height), -np.sin(azimuth) * np.cos(height), np.sin(height)])

    sprites = []
    sides = np.exp(rng.uniform(*np.log((smallest, LARGEST)), size=int(rng.integers(1, most + 1)))) * np.sqrt(h * w)
    for side in np.sort(sides)[::-1] if rng.uniform() < 0.8 else sides:  # mostly the small before the large
        label = int(rng.integers(len(CATEGORIES)))
        sprite = render(CATEGORIES[label], float(side), light, rng, fit=(0.94 * h, 0.94 * w))
        taken = [(s, corner) for s, corner, _ in sprites]
        sprites.append((sprite, _place(rng, sprite, taken, h, w), label))

    sprites, masks, visible = _keep_visible(sprites, h, w)
    for sprite, corner, _ in sprites:
        _embed(image, sprite, corner, light, rng)
    boxes = np.array([_tight_box(m) for m in masks], np.float32).reshape(-1, 4)
    labels = np.array([label for _, _, label in sprites], np.int64)
    return Scene(_expose(rng, image), masks, boxes, labels, visible)


def _size(rng):
    shape = rng.choice(3, p=(0.6, 0.2, 0.2))
    h, w = ((240, 320), (320, 240), (272, 272))[shape]
    return int(h * rng.uniform(0.92, 1.08)), int(w * rng.uniform(0.92, 1.08))


def _background(rng, split, h, w):
    """A crop of a photograph, (3, h, w) float32 in 0..1.

    Train takes one end of every photograph and val the other, so they share no pixel; the two views of the motorcycle
    are a stereo pair, so a strip as wide as the disparity is seen by both.
    """
    often = np.array(list(PHOTOGRAPHS.values()))
    name = str(rng.choice(list(PHOTOGRAPHS), p=often / sum(PHOTOGRAPHS.values())))
    photo = photographs()[name]
    long = int(photo.shape[1] > photo.shape[0])
    cut = photo.shape[long]
    side = slice(0, int(0.58 * cut)) if split == "train" else slice(int(0.61 * cut), cut)
    region = photo[:, side] if long else photo[side]
    zoom = min(region.shape[0] / h, region.shape[1] / w) * rng.uniform(0.7, 1.0)
    ch, cw = int(zoom * h), int(zoom * w)
    y, x = rng.integers(0, region.shape[0] - ch + 1), rng.integers(0, region.shape[1] - cw + 1)
    how = cv2.INTER_AREA if zoom > 1 else cv2.INTER_CUBIC
    crop = cv2.resize(region[y : y + ch, x : x + cw], (w, h), interpolation=how)
    if (blur := rng.uniform(0, 1.6)) > 0.4:
        crop = cv2.GaussianBlur(crop, (0, 0), blur)
    if rng.uniform() < 0.5:
        crop = cv2.flip(crop, 1)
    warm = rng.normal(0, 0.14 if name in _GREY else 0.05)  # daylight to lamp light; a grey photograph needs more of it
    tint = (1 + warm, 1 + rng.normal(0, 0.02), 1 - warm)
    contrast, grey = rng.uniform(0.75, 1.1), cv2.mean(crop)[1] / 255
    lift = grey * (1 - contrast) + rng.uniform(-0.05, 0.08)
    planes = [plane * np.float32(contrast * t / 255) + np.float32(lift * t) for plane, t in zip(cv2.split(crop), tint)]
    return np.clip(np.stack(planes), 0, 1)


def _paste(sprite, corner, h, w):
    """The rectangles in image and sprite where the two meet: (image slices, sprite slices)."""
    x, y = corner
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + sprite.shape[-1], w), min(y + sprite.shape[-2], h)
    return (slice(y1, y2), slice(x1, x2)), (slice(y1 - y, y2 - y), slice(x1 - x, x2 - x))


def _place(rng, sprite, taken, h, w):
    """A corner (x, y) for the sprite: that with least overlap of a few random ones; one in five may leave the image."""
    sh, sw = sprite.shape[1:]
    out = 0.4 if rng.uniform() < 0.2 else 0.03
    best, least = None, np.inf
    for _ in range(int(rng.integers(1, 7))):
        x = int(rng.uniform(min(-out * sw, w - sw), max(w - (1 - out) * sw, 0)))
        y = int(rng.uniform(min(-out * sh, h - sh), max(h - (1 - out) * sh, 0)))
        overlap = sum(
            max(0, min(x + sw, a + s.shape[2]) - max(x, a)) * max(0, min(y + sh, b + s.shape[1]) - max(y, b))
            for s, (a, b) in taken
        )
        if overlap < least:
            best, least = (x, y), overlap
    return best


def _keep_visible(sprites, h, w):
    """Drop the least visible object until all are seen well enough: sprites, masks (N, h, w), visible share (N,)."""
    whole = np.array([np.count_nonzero(s[3] >= 0.5) for s, _, _ in sprites])
    solid = np.zeros((len(sprites), h, w), bool)
    for mask, (sprite, corner, _) in zip(solid, sprites):
        target, source = _paste(sprite, corner, h, w)
        mask[target] = sprite[3][source] >= 0.5
    kept = list(range(len(sprites)))
    while True:
        masks, covered = solid[kept], np.zeros((h, w), bool)
        for mask in masks[::-1]:
            shown = mask & ~covered
            covered |= mask
            mask[:] = shown
        pixels = np.count_nonzero(masks, axis=(1, 2))
        share = pixels / whole[kept]
        bad = (share < MIN_VISIBLE) | (pixels < MIN_PIXELS)
        if not bad.any() or len(kept) == 1:
            return [sprites[i] for i in kept], masks, share.astype(np.float32)
        kept.pop(int(np.argmin(np.where(bad, share, np.inf))))


def _tight_box(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _embed(image, sprite, corner, light, rng):
    """Lay a sprite into the picture (3, h, w), in place, on a soft shadow, exposed and tinted as its surroundings."""
    h, w = image.shape[1:]
    reach = 0.05 * np.sqrt(sprite[0].size) * rng.uniform(0.6, 1.5)
    pad = int(2.5 * reach) + 3
    alpha = cv2.copyMakeBorder((sprite[3] * 255).astype(np.uint8), pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    target, source = _paste(alpha, (corner[0] - pad, corner[1] - pad), h, w)
    # A wide shadow, and a dark line at the contact.
    for distance, blur, strength in ((1.0, 0.55, 0.45), (0.25, 0.15, 0.35)):
        dx, dy = -light[:2] * distance * reach * 1.6
        moved = cv2.warpAffine(alpha, np.float32([[1, 0, dx], [0, 1, dy]]), alpha.shape[::-1])
        shadow = cv2.stackBlur(moved, 2 * [2 * int(1 + 2 * blur * reach) + 1])[source]
        image[:, *target] *= 1 - np.float32(strength / 255) * shadow

    target, source = _paste(sprite, corner, h, w)
    around = image[:, *target].mean((1, 2))
    bright = max(float(around.mean()), 0.02)
    gain = np.clip(0.7 + 0.7 * bright, 0.7, 1.15) * (0.72 + 0.28 * np.clip(around / bright, 0.4, 1.7))
    image[:, *target] *= 1 - sprite[3][source]
    image[:, *target] += sprite[:3, *source] * gain.astype(np.float32)[:, None, None]


@lru_cache(maxsize=1)
def _sensor():
    """Noise, (3, 640, 640) float32 of unit variance, mostly grey and slightly blurred as a demosaiced sensor's is."""
    rng = np.random.default_rng(1)
    planes = rng.standard_normal((3, 640, 640), np.float32) + rng.standard_normal((640, 640), np.float32)
    noise = np.stack([cv2.GaussianBlur(plane, (0, 0), 0.5) for plane in planes])
    return noise / noise.std()


def _expose(rng, image):
    """What the camera does to all alike: falloff, lens blur, noise; (3, h, w) float32 in 0..1 -> (h, w, 3) uint8."""
    h, w = image.shape[1:]
    noise = _sensor() if max(h, w) < 640 else np.tile(_sensor(), (1, h // 640 + 1, w // 640 + 1))
    y, x = (int(rng.integers(0, room)) for room in np.array(noise.shape[1:]) - (h, w) + 1)
    grain = noise[:, y : y + h, x : x + w] * np.float32(255 * rng.uniform(0.005, 0.018))
    gy, gx = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)
    sy, sx, corner = (255 * rng.uniform((-0.1, -0.1, 0), (0.1, 0.1, 0.12))).astype(np.float32)
    soft = rng.uniform(0.35, 0.7)
    falloff = 255 + sy * gy + sx * gx - corner * (gx * gx + gy * gy)
    planes = [cv2.GaussianBlur(plane * falloff, (3, 3), soft) for plane in image]
    return cv2.merge([cv2.add(plane, noise, dtype=cv2.CV_8U) for plane, noise in zip(planes, grain)])
