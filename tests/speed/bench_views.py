"""bench-views: from a JPEG's bytes to normalised views on one core, against torchvision's transforms on PIL images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from soco_lib import dataset, views
from soco_lib.config import Pretrain, View
from soco_lib.data import decoding
from soco_lib.data.proposals import key_rng, random_proposals, whole_image
from soco_lib.data.sources import open_source
from tests.speed.plain_views import Plain, pillow_blur
from tests.speed.timing import REPETITIONS, Bench, in_turns, stage_table

#: Images of one collated batch: what is held at once, not what is timed.
BATCH = 16
RATE = "images/s a core"
MS = "ms an image"
#: Longer side in pixels of a photograph as cameras make them, by enlarging.
LARGE = 2000
PILLOW = "plain, Pillow's blur"
NOTES = (
    "ours: decode_near, make_views, collate, normalize, as a loader's worker and the step do; three views (224, 224, "
    "112), K = 4",
    "plain: Pillow decodes, torchvision's v2 transforms on PIL images follow; it draws one crop, ours up to five",
    f"{PILLOW}: torchvision convolves with all 23 x 23 taps at once, so here it does not blur; not the same numbers",
    f"photographs of {LARGE} px: the same images enlarged and encoded again, smoother than a camera's; ours decodes "
    "them reduced",
    "agreement: against torchvision on PIL images, with five parameters over the range that is drawn from",
    "stages: timed inside one pass of each way, so that they add up to it",
)


@dataclass(frozen=True)
class Photo:
    """One JPEG and its proposals."""

    data: bytes
    boxes: np.ndarray  # (64, 4) float32, pixels of the stored image


def photos(images: str, count: int, longer: int = 0) -> list[Photo]:
    """`count` images spread over those that `images` names (or all, if fewer) with random proposals.

    longer: pixels of the longer side, to which they are resized and encoded again; 0: as they are stored. What is no
    JPEG is made one.
    """
    source, made = open_source(images), []
    for index in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
        data = source.read(index)
        image = decoding.decode(data)
        if longer or data[:2] != b"\xff\xd8":
            scale = longer / max(image.shape[:2]) if longer else 1
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=how)
            data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        height, width = image.shape[:2]
        drawn = random_proposals(key_rng(0, source.keys[index]), width, height)
        made.append(Photo(data, drawn if len(drawn) else whole_image(width, height)))
    return made


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Torch and OpenCV on one thread each."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


class Clock:
    """Seconds by stage, of functions that it wraps."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)

    def of(self, stage: str, function: Callable) -> Callable:
        """`function`, its time counted to `stage`; that of boxes, which torchvision's functions take too, to none."""

        def timed(first, *others, **named):
            start = time.perf_counter()
            result = function(first, *others, **named)
            if not isinstance(first, tv_tensors.BoundingBoxes):
                self.seconds[stage] += time.perf_counter() - start
            return result

        return timed


def ours(given: list[Photo], cfg: Pretrain, side: int = 0) -> None:
    """What ProposalViews, loader and training step do, in one process. side: pixels to decode for; 0: cfg.size."""
    for first in range(0, len(given), BATCH):
        samples = []
        for number, photo in enumerate(given[first : first + BATCH], first):
            rng = np.random.default_rng((cfg.seed, number))
            image, size = decoding.decode_near(photo.data, side or cfg.size)
            drawn = photo.boxes[dataset.choose(rng, len(photo.boxes), cfg.k)]
            samples.append((views.make_views(rng, image, drawn, cfg, size), False))
        for images in dataset.collate(samples).images:
            dataset.normalize(images)


def plain(given: list[Photo], maker: Plain) -> None:
    """The plain formulation of the same."""
    torch.manual_seed(maker.cfg.seed)
    for first in range(0, len(given), BATCH):
        maker([(photo.data, photo.boxes) for photo in given[first : first + BATCH]])


# --- what is measured

#: Of each operation: ours, torchvision's on a PIL image, and the ends of the range that its parameter is drawn from.
OPERATIONS = {
    "resize": (lambda x, _: views.resize(x, 224), lambda x, _: F.resize(x, [224, 224]), (0, 0)),
    "brightness": (views.brightness, F.adjust_brightness, (0.6, 1.4)),
    "contrast": (views.contrast, F.adjust_contrast, (0.6, 1.4)),
    "saturation": (views.saturation, F.adjust_saturation, (0.8, 1.2)),
    "hue": (views.hue, F.adjust_hue, (-0.1, 0.1)),
    "grayscale": (lambda x, _: views.grayscale(x), lambda x, _: F.rgb_to_grayscale(x, 3), (0, 0)),
    "blur": (views.blur, lambda x, sigma: F.gaussian_blur(x, [23, 23], [sigma, sigma]), (0.1, 2.0)),
    "solarize": (lambda x, _: views.solarize(x), lambda x, _: F.solarize(x, 128), (0, 0)),
}


def agreement(given: list[Photo]) -> list[dict]:
    """A row an operation: mean absolute difference over the images at five parameters, and the time of one call."""
    rows, whole = [], [decoding.decode(photo.data) for photo in given]
    small = [views.resize(image, 224) for image in whole]
    for name, (mine, theirs, ends) in OPERATIONS.items():
        clock, apart = Clock(), []
        mine, theirs = clock.of("ours", mine), clock.of("plain", theirs)
        for image in whole if name == "resize" else small:
            picture = Image.fromarray(image)
            for value in np.unique(np.linspace(*ends, 5)):
                a, b = mine(image, float(value)), np.asarray(theirs(picture, float(value)))
                apart.append(cv2.absdiff(a, b).mean())
        each = {f"{way}, ms": 1000 * seconds / len(apart) for way, seconds in clock.seconds.items()}
        rows.append({"operation": name, "mean difference, 1/255": float(np.mean(apart)), **each})
    return rows


GEOMETRY, LAST = "resize, crop, flip", "normalise, collate"
#: Which function belongs to which stage; what is none of them draws numbers and moves boxes.
PARTS = {
    "ours": (
        (decoding, "decode_near", "decode"), (views, "resize", GEOMETRY), (cv2, "flip", GEOMETRY),
        (views, "photometry", "photometry"), (dataset, "collate", LAST), (dataset, "normalize", LAST),
    ),
    "plain": (
        (Plain, "decode", "decode"), (F, "resize", GEOMETRY), (F, "resized_crop", GEOMETRY),
        (F, "horizontal_flip", GEOMETRY), (Plain, "colour", "photometry"), (Plain, "finish", LAST),
    ),
}  # fmt: skip


def stages(given: list[Photo], ways: dict[str, Callable]) -> list[dict]:
    """A row a stage: ms an image of each way that PARTS knows."""
    columns = {}
    for way, parts in PARTS.items():
        clock = Clock()
        with contextlib.ExitStack() as patches:
            for where, name, stage in parts:
                patches.enter_context(mock.patch.object(where, name, clock.of(stage, getattr(where, name))))
            ways[way](given)
            clock.seconds.clear()
            start = time.perf_counter()
            ways[way](given)
            clock.seconds["boxes, draws"] = time.perf_counter() - start - sum(clock.seconds.values())
        columns[way] = {stage: 1000 * seconds / len(given) for stage, seconds in clock.seconds.items()}
    return stage_table(columns)


def every_way(cfg: Pretrain) -> dict[str, Callable]:
    """Ways to make views."""
    of = lambda **changes: functools.partial(plain, maker=Plain(cfg, **changes))
    return {"ours": functools.partial(ours, cfg=cfg), "plain": of(), PILLOW: of(blur=pillow_blur)}


def growing(images: str, few: int) -> Iterator[tuple[str, float, Pretrain, list[Photo]]]:
    """Points of growth curves: variable, its value, the configuration, the images."""
    cfg, given = Pretrain("", ""), photos(images, few)
    for longer in (250, 500, 1000, LARGE):
        yield "longer side of the image, px", longer, cfg, photos(images, few, longer)
    for side in (112, 224, 448):
        sides = {"size": side, "views": (View(side), View(side // 2, "V2"))}
        yield "side of V1, px", side, dataclasses.replace(cfg, **sides), given
    for extra in ((View(224),), cfg.views, (*cfg.views, View(192))):
        yield "views", 1 + len(extra), dataclasses.replace(cfg, views=extra), given
    for k in (1, 4, 16, 64):
        yield "K", k, dataclasses.replace(cfg, k=k), given


def run(images: str, quick: bool) -> Bench:
    """Measure on the images that `images` names; a few of them, once, if `quick`."""
    bench, cfg = Bench("views", "from a file's bytes to normalised views with boxes, one core"), Pretrain("", "")
    count, few, repetitions = (8, 2, 1) if quick else (128, 16, REPETITIONS)
    given, ways = photos(images, count), every_way(cfg)
    bench.data = f"{len(given)} images of {images}, JPEG; 64 random boxes each"
    large = photos(images, few, LARGE)

    def per_image(ways: dict, given: list[Photo]) -> dict[str, list[float]]:
        seconds = in_turns({name: functools.partial(way, given) for name, way in ways.items()}, repetitions)
        return {name: [s / len(given) for s in values] for name, values in seconds.items()}

    with one_core():
        whole = {"ours, decoded whole": functools.partial(ours, cfg=cfg, side=LARGE)}
        for what, these, some in (("views", ways, given), (f"views of photographs of {LARGE} px", ways | whole, large)):
            rates = {way: [1 / s for s in seconds] for way, seconds in per_image(these, some).items()}
            bench.add(what, RATE, rates)
            if some is given:
                bench.goal(what, statistics.median(rates["ours"]), 400, RATE)
        bench.tables["Stages of three views, ms an image"] = stages(given, ways)
        bench.tables[f"Stages for photographs of {LARGE} px, ms an image"] = stages(large, ways)
        bench.tables["Agreement with torchvision, operation by operation, at side 224"] = agreement(given[:few])
        for over, at, changed, some in growing(images, few):
            times = per_image({name: way for name, way in every_way(changed).items() if name in PARTS}, some)
            milliseconds = {way: [1000 * s for s in values] for way, values in times.items()}
            bench.add("views", MS, milliseconds, more_is_better=False, over=over, at=at)
    bench.notes += NOTES
    return bench
