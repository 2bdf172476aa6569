"""Views as one writes them straight from the paper: torchvision's v2 transforms on PIL images, one after another.

What bench-views compares with, and tests too. Images are PIL; boxes (K, 4) in pixels of the named image; draws are
torch's.
"""

from __future__ import annotations

import functools
import io

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from soco_lib import boxes as box_math
from soco_lib import dataset
from soco_lib.config import Pretrain
from soco_lib.views import FIRST, SECOND, Branch


def pillow_blur(image: Image.Image) -> Image.Image:
    """Pillow's approximation of a Gaussian by box filters, as many repositories use it: sigma uniform in [0.1, 2]."""
    return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))


def colours(side: int, branch: Branch, blur=None) -> v2.Compose:
    """BYOL's photometry by torchvision for a view of `side` pixels, PIL or uint8 tensor; `blur` in place of
    torchvision's.
    """
    return v2.Compose([
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([blur or v2.GaussianBlur(max(3, side // 10 | 1), (0.1, 2.0))], branch.blur),
        v2.RandomSolarize(128, branch.solarize),
    ])  # fmt: skip


class Plain:
    """Encoded images and boxes to batches of normalised views. One crop is drawn, whatever boxes it keeps."""

    def __init__(self, cfg: Pretrain, blur=None):
        self.cfg = cfg
        self.crops = [v2.RandomResizedCrop(view.size, view.scale, view.ratio) for view in cfg.views]
        self.colours = [colours(cfg.size, FIRST, blur), *(colours(view.size, SECOND, blur) for view in cfg.views)]
        mean, std = torch.tensor([dataset.MEAN, dataset.STD]).div(255).tolist()
        self.normalize = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])

    def decode(self, data: bytes) -> Image.Image:
        """The image, whole."""
        return Image.open(io.BytesIO(data)).convert("RGB")

    def views(self, image: Image.Image, boxes: np.ndarray) -> list[tuple]:
        """(image, boxes) of V1, V2, …; `boxes` (n, 4) in pixels of the image, of which k are drawn."""
        cfg = self.cfg
        drawn = torch.from_numpy(boxes)[torch.randperm(len(boxes))[: cfg.k]]
        boxes = F.resize(
            tv_tensors.BoundingBoxes(drawn, format="XYXY", canvas_size=image.size[::-1]), [cfg.size, cfg.size]
        )
        base = F.resize(image, [cfg.size, cfg.size])
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        jittered = torch.from_numpy(box_math.jitter(boxes.numpy(), rng, cfg.jitter, cfg.jitter_p))
        made = {"V1": (base, tv_tensors.wrap(jittered, like=boxes))}
        for number, (view, crop) in enumerate(zip(cfg.views, self.crops), 2):
            if view.source == "crop":
                cut = functools.partial(F.resized_crop, size=[view.size, view.size], **crop.make_params([base]))
                made[f"V{number}"] = cut(base), cut(boxes)
            else:
                made[f"V{number}"] = tuple(F.resize(part, [view.size, view.size]) for part in made[view.source])
        flipped = [tuple(map(F.horizontal_flip, view)) if torch.rand(()) < 0.5 else view for view in made.values()]
        return [(self.colour(i, image), F.clamp_bounding_boxes(boxes)) for i, (image, boxes) in enumerate(flipped)]

    def colour(self, number: int, image: Image.Image) -> Image.Image:
        """View `number`, counted from 0, after photometry."""
        return self.colours[number](image)

    def finish(self, samples: list[list[tuple]]) -> list[torch.Tensor]:
        """Samples to the normalised views of a batch: (B, 3, S_v, S_v) each."""
        return [torch.stack([self.normalize(image) for image, _ in view]) for view in zip(*samples)]

    def __call__(self, encoded: list[tuple[bytes, np.ndarray]]) -> list[torch.Tensor]:
        """One batch from (bytes, boxes) of each image."""
        return self.finish([self.views(self.decode(data), boxes) for data, boxes in encoded])
