"""What pretrained features see: the nearest objects of an object, and where an image looks like a box.

N objects, D feature dimension, S side of V1 in pixels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from soco_lib.config import Pretrain
from soco_lib.data.sources import ImageSource
from soco_lib.dataset import MEAN, STD
from soco_lib.encoder import Encoder
from soco_lib.features.probe import batches, measured, pooled
from soco_lib.fields import require


@dataclass(frozen=True)
class Objects:
    """Labelled objects of a set and their features."""

    features: Tensor  # (N, D), unit vectors
    labels: np.ndarray  # (N,)
    crops: list[np.ndarray]  # N pictures (h, w, 3) uint8, cut from V1
    images: np.ndarray  # (N,) number of the image


def _picture(image: Tensor) -> np.ndarray:
    """(3, S, S) normalised to (S, S, 3) uint8."""
    return (image.permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)).clamp(0, 255).round().byte().numpy()


@torch.no_grad()
def objects(encoder: Encoder, cfg: Pretrain, source: ImageSource, indices) -> Objects:
    """Features of all labelled objects of these images, with batch statistics measured on them (probe.measured)."""
    cfg, encoder = pooled(cfg, encoder)
    encoder, device = measured(encoder, cfg, source, indices), next(encoder.parameters()).device
    features, labels, crops, images, number = [], [], [], [], 0
    for views, boxes, names in batches(source, cfg, indices):
        features.append(F.normalize(encoder(views.to(device), boxes), dim=1).cpu())
        labels.append(names)
        for view, found in zip(views, boxes):
            picture = _picture(view)
            for x1, y1, x2, y2 in found.round().int().tolist():
                crops.append(picture[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)])
                images.append(number)
            number += 1
    require(bool(crops), f"{source.spec} holds no labelled object: give coco:ANNOTATIONS.json or voc:ROOT")
    return Objects(torch.cat(features), np.concatenate(labels), crops, np.array(images))


@torch.no_grad()
def with_box(found: Objects, encoder: Encoder, view: Tensor, box: Tensor, label: int, image: int) -> Objects:
    """`found` and, as its last row, `box` (4,) of `view` (3, S, S), normalised, which is its image number `image`.

    label: the box's class, or -1 where it is not known. The encoder is the one that made `found`, in evaluation mode.
    """
    own = F.normalize(encoder(view[None].to(next(encoder.parameters()).device), [box[None]]), dim=1).cpu()
    x1, y1, x2, y2 = box.round().int().tolist()
    return Objects(
        torch.cat([found.features, own]), np.append(found.labels, label),
        [*found.crops, _picture(view)[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]], np.append(found.images, image),
    )  # fmt: skip


def nearest(found: Objects, queries, count: int = 6) -> np.ndarray:
    """Rows of the `count` objects nearest to each query row, from other images; (Q, count), nearest first."""
    similarity = found.features[queries] @ found.features.T
    own = torch.from_numpy(found.images[queries][:, None] == found.images[None])
    return similarity.masked_fill(own, -2.0).topk(count, dim=1).indices.numpy()


def draw_nearest(found: dict[str, Objects], queries, classes: tuple[str, ...], count: int = 6) -> Figure:
    """A row a query and network: the query, then its nearest objects, framed green where the class is the query's,
    orange where it is another, black where the query's is not known (label -1).

    found: network -> the same objects in its features.
    """
    columns = len(found) * (count + 1)
    size = (0.8 * columns, 0.95 * len(queries) + 0.5)
    figure, axes = plt.subplots(len(queries), columns, figsize=size, squeeze=False, layout="constrained")
    for part, (name, each) in enumerate(found.items()):
        rows = nearest(each, queries, count)
        for line, query in enumerate(queries):
            for place, row in enumerate([query, *rows[line]]):
                ax = axes[line, part * (count + 1) + place]
                ax.imshow(each.crops[row])
                ax.set_xticks([], [])
                ax.set_yticks([], [])
                label, same = each.labels[query], each.labels[row] == each.labels[query]
                colour = "black" if not place or label < 0 else "#009E73" if same else "#D55E00"
                for spine in ax.spines.values():
                    spine.set(color=colour, linewidth=3 if place else 1)
                if not place:
                    ax.set_ylabel("no label" if label < 0 else classes[label], fontsize=8)
                    if not line:
                        ax.set_title(name, fontsize=10, loc="left")
    return figure


def agreement(found: Objects, count: int = 6) -> float:
    """Share of each object's `count` nearest that are of its class, each class counting alike; chance: 1 / classes."""
    rows = nearest(found, np.arange(len(found.labels)), count)
    same = (found.labels[rows] == found.labels[:, None]).mean(1)
    return float(np.mean([same[found.labels == label].mean() for label in np.unique(found.labels)]))


@torch.no_grad()
def similarity(encoder: Encoder, image: Tensor, box: Tensor, cells: int = 24) -> np.ndarray:
    """Cosine between the feature of `box` and those of boxes of its size all over the image, (cells, cells), y first.

    image: (3, S, S), normalised; box: (4,) view pixels. The encoder is one in evaluation mode with RoI pooling.
    """
    size = (box[2:] - box[:2]).clamp(max=image.shape[1])
    steps = [torch.linspace(0, float(image.shape[1] - side), cells) for side in size]
    y, x = torch.meshgrid(steps[1], steps[0], indexing="ij")
    corner = torch.stack([x.flatten(), y.flatten()], 1)
    boxes = torch.cat([box[None], torch.cat([corner, corner + size], 1)])
    device = next(encoder.parameters()).device
    features = F.normalize(encoder(image[None].to(device), [boxes]), dim=1).cpu()
    return (features[1:] @ features[0]).reshape(cells, cells).numpy()


def draw_similarity(networks: dict[str, Encoder], cfg: Pretrain, source: ImageSource, indices, rows: int = 3) -> Figure:
    """`draw_maps` for one object of each of the first images of `indices`, by networks (name -> encoder).

    The object is the largest of up to half of the view's side, which leaves room to look around; images without one are
    left out.
    """
    cfg = pooled(cfg, next(iter(networks.values())))[0]
    ready = {name: measured(pooled(cfg, net)[1], cfg, source, indices) for name, net in networks.items()}
    views = ((image, box) for images, boxes, _ in batches(source, cfg, indices) for image, box in zip(images, boxes))
    side = lambda boxes: (boxes[:, 2:] - boxes[:, :2]).amax(1)
    small = ((image, boxes[side(boxes) <= cfg.size / 2]) for image, boxes in views)
    largest = ((image, boxes[side(boxes).argmax()]) for image, boxes in small if len(boxes))
    return draw_maps(ready, list(itertools.islice(largest, rows)))


def draw_maps(networks: dict[str, Encoder], views: list[tuple[Tensor, Tensor]]) -> Figure:
    """A row a view, an image (3, S, S), normalised, and a box (4,) of it: the image with its box, and a map of
    `similarity` a network, whose range stands above it and which lies where the centres of its boxes do.

    networks: name -> encoder in evaluation mode with RoI pooling (see probe.pooled and probe.measured).
    """
    rows, columns = max(1, len(views)), 1 + len(networks)
    size = (2.3 * columns, 2.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for line, (image, box) in zip(axes, views):
        side, (x1, y1, x2, y2) = image.shape[1], box.tolist()
        for ax in line:
            ax.imshow(_picture(image))
            ax.axis("off")
            ax.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="white", lw=2))
        for ax, (name, net) in zip(line[1:], networks.items()):
            found = similarity(net, image, box)
            w, h = (x2 - x1) / 2, (y2 - y1) / 2
            extent = (w, side - w, side - h, h)
            ax.imshow(found, extent=extent, cmap="viridis", alpha=0.75, interpolation="bilinear")
            ax.set(xlim=(0, side), ylim=(side, 0))
            ax.set_title(f"{name}\n{found.min():.2f} to {found.max():.2f}", fontsize=9)
    return figure
