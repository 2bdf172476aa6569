"""Do the features know objects? Class of labelled boxes from frozen RoI features, each class counting alike.

`python -m soco_lib.probe results/RUN --data voc:ROOT` compares a pretraining with random weights of the same network.

M objects, D feature dimension, C classes that occur in both halves.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soco_lib import BookError, checkpoint
from soco_lib import boxes as box_math
from soco_lib.config import Pretrain, from_dict, require
from soco_lib.dataset import normalize
from soco_lib.encoder import Encoder
from soco_lib.results import Run, write_json
from soco_lib.sources import ImageSource, UnreadableImage, open_source
from soco_lib.views import resize

from fvcore.nn.precise_bn import update_bn_stats  # noqa: E402  (after soco_lib.detector, which silences its imports)

#: Objects whose box is smaller than this, in view pixels a side, are left out: they hold no feature of their own.
SMALLEST = 8.0
#: Fewest objects of a class in each half for it to be scored.
FEWEST = 5


@dataclass(frozen=True)
class Scores:
    """Class-mean accuracies in [0, 1] on held-out images; chance is 1 / classes."""

    knn: float
    linear: float
    classes: int
    objects: int
    images: int

    def describe(self) -> str:
        """One line in percent."""
        return (
            f"k-NN {self.knn:.1%}, linear {self.linear:.1%} (class means over {self.classes} classes; chance "
            f"{1 / self.classes:.1%}; {self.objects} objects in {self.images} images)"
        )


def batches(source: ImageSource, cfg: Pretrain, indices, size: int = 16):
    """Whole images at V1's size and their labelled boxes: images (B, 3, S, S), boxes B tensors (m_i, 4), labels (m,), image (m,)."""
    for start in range(0, len(indices), size):
        images, boxes, labels, owners = [], [], [], []
        for index in indices[start : start + size]:
            try:
                image = source.load(int(index))
            except UnreadableImage:
                continue
            found, names = source.annotations(int(index))
            mapped = box_math.crop_resize(found, (0, 0, image.shape[1], image.shape[0]), (cfg.size, cfg.size))
            large = box_math.valid(mapped, cfg.size, cfg.size, SMALLEST)
            images.append(torch.from_numpy(resize(image, cfg.size)))
            boxes.append(torch.from_numpy(box_math.clip(mapped[large], cfg.size, cfg.size)))
            labels.append(names[large])
            owners.append(np.full(large.sum(), index))
        if sum(len(b) for b in boxes):
            yield normalize(torch.stack(images)), boxes, np.concatenate(labels), np.concatenate(owners)


@torch.no_grad()
def features(encoder: nn.Module, source: ImageSource, cfg: Pretrain, indices) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Unit RoI features (M, D), labels (M,), image of each (M,). The encoder itself is left as it is.

    Batch-norm statistics are measured on these images first: random weights have none, and a young run's lag behind.
    """
    encoder = copy.deepcopy(encoder).train()
    device = next(encoder.parameters()).device
    wrapped = _Whole(encoder, device)
    update_bn_stats(wrapped, list(batches(source, cfg, indices[:64])), min(4, -(-len(indices[:64]) // 16)))
    encoder.eval()
    parts = [(wrapped(batch).cpu(), batch[2], batch[3]) for batch in batches(source, cfg, indices)]
    require(bool(parts), f"{source.spec} holds no labelled object of at least {SMALLEST:g} pixels at {cfg.size} px")
    x, labels, owners = (list(part) for part in zip(*parts))
    return F.normalize(torch.cat(x), dim=1), np.concatenate(labels), np.concatenate(owners)


class _Whole(nn.Module):
    """An encoder that takes one of our batches, as update_bn_stats calls it."""

    def __init__(self, encoder: nn.Module, device):
        super().__init__()
        self.encoder, self.device = encoder, device

    def forward(self, batch) -> Tensor:
        images, boxes = batch[0].to(self.device), [b.to(self.device) for b in batch[1]]
        if getattr(self.encoder, "pooler", True) is None:  # a whole-image network: one feature an image
            return self.encoder(images, boxes).repeat_interleave(torch.tensor([len(b) for b in boxes], device=self.device), 0)
        return self.encoder(images, boxes)


def class_mean(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """Mean over classes of each class's accuracy; predicted and labels (M,) in 0..classes-1, every class present."""
    right = torch.bincount(labels[predicted == labels], minlength=classes)
    return float((right / torch.bincount(labels, minlength=classes)).mean())


def knn(x: Tensor, y: Tensor, queries: Tensor, classes: int, k: int = 20, temperature: float = 0.07) -> Tensor:
    """Class of each query by votes of its k nearest, a vote worth exp(cosine / temperature) / (size of its class).

    x (M, D) unit vectors with labels y (M,); queries (Q, D) unit vectors. Returns (Q,).
    """
    similarity, nearest = (queries @ x.T).topk(min(k, len(x)), dim=1)
    votes = (similarity / temperature).exp() / torch.bincount(y, minlength=classes)[y[nearest]]
    return torch.zeros(len(queries), classes).scatter_add_(1, y[nearest], votes).argmax(1)


def linear(x: Tensor, y: Tensor, queries: Tensor, classes: int, decay: float = 1e-3) -> Tensor:
    """Class of each query (Q,) by a linear classifier fitted to x (M, D), y (M,), with class-balanced cross-entropy and L2."""
    mean, deviation = x.mean(0), x.std(0).clamp(min=1e-6)
    x, queries = (x - mean) / deviation, (queries - mean) / deviation
    weight = (len(y) / classes / torch.bincount(y, minlength=classes)).to(x.dtype)
    layer = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), y, weight) + decay * layer.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return layer(queries).argmax(1)


def probe(encoder: nn.Module, cfg: Pretrain, data: str, images: int = 0, seed: int = 0) -> Scores:
    """Score an encoder on a labelled COCO- or VOC-layout set, half of its images (drawn by `seed`) against the other half.

    images: at most so many (0: all). Raises BookError for data without labels or without a class in both halves.
    """
    source = open_source(data)
    require(bool(source.classes), f"{data} carries no labels: give coco:ANNOTATIONS.json or voc:ROOT")
    order = np.random.default_rng(seed).permutation(len(source))[: images or None]
    x, labels, owners = features(encoder, source, cfg, np.sort(order))
    held_out = np.isin(owners, order[: len(order) // 2])
    counts = [np.bincount(labels[part], minlength=len(source.classes)) for part in (~held_out, held_out)]
    scored = np.flatnonzero(np.minimum(*counts) >= FEWEST)
    require(len(scored) > 1, f"{data} has fewer than two classes with {FEWEST} objects in each half: probe more images")
    number = np.full(len(source.classes), -1)
    number[scored] = np.arange(len(scored))
    y = torch.from_numpy(number[labels])
    fit, test = (torch.from_numpy(part) & (y >= 0) for part in (~held_out, held_out))
    args = (x[fit], y[fit], x[test], len(scored))
    return Scores(
        knn=class_mean(knn(*args), y[test], len(scored)),
        linear=class_mean(linear(*args), y[test], len(scored)),
        classes=len(scored),
        objects=int(test.sum() + fit.sum()),
        images=len(order),
    )


def random_encoder(cfg: Pretrain) -> Encoder:
    """The network before training, from the run's own seed."""
    torch.manual_seed(cfg.seed)
    return Encoder(cfg)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="run folder of a pretraining")
    parser.add_argument("--data", required=True, help="labelled images: coco:JSON or voc:ROOT@SPLIT")
    parser.add_argument("--images", type=int, default=0, help="at most so many (default: all)")
    given = parser.parse_args(arguments)
    try:
        run = Run.read(given.folder)
        cfg = from_dict(Pretrain, run.record["config"])
        state = checkpoint.newest(run.folder)
        require(state is not None, f"{run.folder} holds no checkpoint yet")
        trained = Encoder(cfg)
        prefix = "online.encoder."
        trained.load_state_dict({k[len(prefix) :]: v for k, v in state["model"].items() if k.startswith(prefix)})
        scores = {name: probe(e, cfg, given.data, given.images) for name, e in (("random", random_encoder(cfg)), ("trained", trained))}
    except BookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, score in scores.items():
        print(f"{name:>8}: {score.describe()}")
    write_json(run.folder / "probe.json", {"data": given.data, "step": state["step"], **{n: vars(s) for n, s in scores.items()}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
