"""Object proposals of one image: selective search and its stand-ins, and the paper's filter (Sec. 3.2).

Selective search groups pixels by colour, texture, size and fill, bottom-up and without labels (Uijlings et al., 2013;
OpenCV contrib). Boxes are `x1 y1 x2 y2`, half-open, float32 (N, 4), in pixels of the image.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from soco_lib.boxes import SIDE_LIMITS, area, as_boxes, aspect_fits, iou, side_fits
from soco_lib.fields import MANY, SEEDS, in_range, one_of, require

GENERATORS = ("selective_search", "random", "whole")
MODES = ("fast", "quality", "single", "fine")
#: Of mode "fine": the colour spaces, and its segmentations' k in units of base_k; sigma is OpenCV's own.
FINE_COLOURS, FINE_K, SIGMA = (cv2.COLOR_RGB2HSV, cv2.COLOR_RGB2Lab), (1, 2, 5), 0.8
#: Smallest side, in image pixels, of a box that the fallback chain accepts (the authors' released filter).
FALLBACK_SIDE = 32
#: How an image's boxes were chosen: by the paper's filter, or by the first step of the fallback chain that left any.
RULES = ("paper", "aspect", "side", "whole")
#: What an image of a store may be: proposed for by one of the rules, or unreadable.
STATUSES = (*RULES, "error")
#: Fields of ProposalConfig that change what each generator makes: a store is refused for a difference in these alone.
_USED = {"selective_search": ("mode", "search_side", "base_k"), "random": ("count", "seed"), "whole": ()}


@dataclass(frozen=True)
class ProposalConfig:
    """How proposals are made; checked on construction. Raises BookError for an unknown name or a bad number."""

    generator: str = "selective_search"  # selective_search; random (Table 5c); whole: the image as one box (Table 4)
    mode: str = "fast"  # OpenCV's fast, quality (slow) and single (rough); fine: as fast, its k closer (FINE_K)
    search_side: int = 128  # pixels, longer side of the copy that is searched; 0 searches the image at full size
    base_k: int = 100  # k of the finest graph segmentation: smaller gives smaller first regions, more boxes, more time
    count: int = 64  # boxes an image of the random generator
    seed: int = 0  # of the random generator

    def __post_init__(self):
        one_of("generator", self.generator, GENERATORS)
        one_of("mode", self.mode, MODES)
        side = self.search_side
        require(side == 0 or side >= 32, f"search_side={side} is too small: give 32 pixels or more, or 0 for full size")
        in_range(self, {"search_side": (0, 10**5), "base_k": (1, MANY), "count": (1, 10**5), "seed": (0, SEEDS)})

    def essence(self) -> dict:
        """The generator and the fields that it uses, as plain values."""
        return {name: getattr(self, name) for name in ("generator", *_USED[self.generator])}


def selective_search(image: np.ndarray, mode: str = "fast", max_side: int = 128, base_k: int = 100) -> np.ndarray:
    """All boxes that selective search proposes for `image` (H, W, 3) uint8 RGB, unfiltered: (N, 4), N >= 1.

    The search runs on a copy whose longer side is at most `max_side` pixels (0: full size); boxes are scaled
    back. The longer side, because it bounds the pixels searched, and so the time, whatever the image's shape. Exact
    duplicates (many groupings end in the same box) are removed, since training draws boxes uniformly; the rest is
    sorted, so that the result does not depend on OpenCV's random ranking. Deterministic. Raises BookError for an
    unknown mode.
    """
    one_of("mode", mode, MODES)
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width)) if max_side else 1.0
    small_width, small_height = max(1, round(width * scale)), max(1, round(height * scale))
    if scale < 1:
        image = cv2.resize(image, (small_width, small_height), interpolation=cv2.INTER_AREA)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    switch = {"fast": search.switchToSelectiveSearchFast, "quality": search.switchToSelectiveSearchQuality,
              "single": search.switchToSingleStrategy, "fine": partial(_switch_to_fine, search, image)}  # fmt: skip
    switch[mode](base_k)
    found = np.unique(np.reshape(search.process(), (-1, 4)), axis=0).astype(np.float32)  # x y w h
    found[:, 2:] += found[:, :2]
    return found * np.array([width / small_width, height / small_height] * 2, np.float32)


def _switch_to_fine(search, image: np.ndarray, base_k: int) -> None:
    """OpenCV's fast mode but for k, which it raises by 150: coarse segmentations add few boxes to the finer ones'."""
    kinds = cv2.ximgproc.segmentation
    strategy = lambda name: getattr(kinds, f"createSelectiveSearchSegmentationStrategy{name}")
    for colour in FINE_COLOURS:
        search.addImage(cv2.cvtColor(image, colour))
    for k in FINE_K:
        search.addGraphSegmentation(kinds.createGraphSegmentation(SIGMA, k * base_k, k * base_k))
    for parts in (("Color", "Fill", "Texture", "Size"), ("Fill", "Texture", "Size")):
        search.addStrategy(strategy("Multiple")(*(strategy(part)() for part in parts)))


def paper_filter(boxes: np.ndarray, width: int, height: int, fallback: bool = True) -> tuple[np.ndarray, str]:
    """The boxes (N, 4) that pretraining may draw from in an image of `width` x `height`, and the rule that chose them.

    "paper": 1/3 <= w/h <= 3 and 0.3 <= sqrt(wh)/sqrt(WH) <= 0.8 (Sec. 3.2). Where none survives, as the authors'
    release does: "aspect" (the aspect alone, sides >= 32 px), then "side" (sides >= 32 px), then "whole" (the image as
    one box). With `fallback=False` the rule is always "paper" and the result may be empty.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    for rule, keep in fulfilled(boxes, width, height).items():
        if keep.any() or not fallback:
            return boxes[keep], rule
    return whole_image(width, height), "whole"


def fulfilled(boxes: np.ndarray, width: int, height: int) -> dict[str, np.ndarray]:
    """Rule -> (N,) bool, strictest rule first."""
    aspect, large = aspect_fits(boxes), (boxes[:, 2:] - boxes[:, :2] >= FALLBACK_SIDE).all(axis=1)
    return {"paper": aspect & side_fits(boxes, width, height), "aspect": aspect & large, "side": large}


def dropped(boxes: np.ndarray, width: int, height: int) -> dict[str, np.ndarray]:
    """Why the paper's filter drops boxes (N, 4): reason -> (N,) bool. Each box that it drops has one reason."""
    aspect, side = aspect_fits(boxes), side_fits(boxes, width, height)
    small = area(boxes) < width * height * SIDE_LIMITS[0] ** 2
    return {"aspect": ~aspect & side, "too small": aspect & ~side & small, "too large": aspect & ~side & ~small,
            "aspect and size": ~aspect & ~side}  # fmt: skip


def random_proposals(rng: np.random.Generator, width: int, height: int, count: int = 64) -> np.ndarray:
    """(count, 4) random boxes inside the image that the paper's filter keeps (Table 5c, "Random").

    sqrt(wh)/sqrt(WH) is uniform in [0.3, 0.8] and w/h log-uniform in [1/3, 3]; boxes that do not fit are drawn again;
    the place is uniform. Empty (0, 4) where the image is too narrow for any box of the filter's range.
    """
    kept = np.empty((0, 4), np.float32)
    for _ in range(20):
        side = rng.uniform(0.3, 0.8, 4 * count) * np.sqrt(width * height)
        root = np.exp(rng.uniform(-0.5, 0.5, 4 * count) * np.log(3))
        size = np.stack([side * root, side / root], axis=1)
        size = size[(size <= (width, height)).all(axis=1)]
        corner = rng.random(size.shape) * ((width, height) - size)
        kept = np.concatenate([kept, np.concatenate([corner, corner + size], axis=1).astype(np.float32)])
        if len(kept) >= count:
            break
    return np.clip(kept[:count], 0, np.array([width, height] * 2, np.float32))


def whole_image(width: int, height: int) -> np.ndarray:
    """(1, 4) the image itself as the only box (Table 4's baseline)."""
    return np.array([[0, 0, width, height]], np.float32)


def propose(image: np.ndarray, key: str, config: ProposalConfig) -> tuple[np.ndarray, str]:
    """The proposals of one image (H, W, 3) uint8 RGB: (N, 4), N >= 1, and the rule of `RULES` that chose them."""
    boxes, (height, width) = unfiltered(image, key, config), image.shape[:2]
    return (boxes, "whole") if config.generator == "whole" else paper_filter(boxes, width, height)


def unfiltered(image: np.ndarray, key: str, config: ProposalConfig) -> np.ndarray:
    """(N, 4) all boxes that the generator finds in an image, before the paper's filter.

    Random boxes depend on (seed, key) alone: not on the order, the process or the other images.
    """
    height, width = image.shape[:2]
    if config.generator == "whole":
        return whole_image(width, height)
    if config.generator == "random":
        return random_proposals(key_rng(config.seed, key), width, height, config.count)
    return selective_search(image, config.mode, config.search_side, config.base_k)


def best_overlaps(objects, boxes, size: tuple[int, int]) -> np.ndarray:
    """(m,) best IoU with any of `boxes` (N, 4) of each of the m labelled objects (M, 4) that the filter would keep.

    `size` = (width, height) of the image. The mean is the mean best overlap, the share >= 0.5 the recall@0.5.
    """
    objects = as_boxes(objects)
    objects = objects[aspect_fits(objects) & side_fits(objects, *size)]
    return iou(objects, boxes).max(axis=1, initial=0.0)


def key_rng(seed: int, key: str) -> np.random.Generator:
    """A generator that is a function of (seed, image key), the same on every machine."""
    return np.random.default_rng((seed, int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")))
