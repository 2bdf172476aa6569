"""Do the features know objects? Class of labelled boxes from frozen RoI features, each class counting alike.

`python -m soco_lib.features.probe results/RUN --data voc:ROOT@test --fit voc:ROOT@trainval` compares a pretraining with
random weights of the same network. M objects, D feature dimension.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soco_lib import ROOT, one_line_errors
from soco_lib import boxes as box_math
from soco_lib.config import ALIGNMENTS, Plan, Pretrain
from soco_lib.data.pictures import examine_source
from soco_lib.data.sources import ImageSource, UnreadableImage, open_source
from soco_lib.dataset import normalize
from soco_lib.encoder import Encoder
from soco_lib.fields import from_dict, require
from soco_lib.runs import checkpoint, processes, records, stop
from soco_lib.runs.folder import Run, write_json
from soco_lib.views import resize

from fvcore.nn.precise_bn import update_bn_stats

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
        over = f"class means over {self.classes} classes; chance {1 / self.classes:.1%}"
        counted = f"{self.objects} objects in {self.images} images"
        return f"k-NN {self.knn:.1%}, linear {self.linear:.1%} ({over}; {counted})"


def batches(source: ImageSource, cfg: Pretrain, indices, size: int = 16):
    """Whole images at V1's size and their labelled boxes: images (B, 3, S, S), boxes B tensors (m_i, 4), labels (m,).

    An image that cannot be read is left out; the number of images says so.
    """
    for start in range(0, len(indices), size):
        images, boxes, labels = [], [], []
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
        if images:
            yield normalize(torch.stack(images)), boxes, np.concatenate(labels)


@torch.no_grad()
def features(encoder: nn.Module, cfg: Pretrain, source: ImageSource, indices) -> tuple[Tensor, np.ndarray, int]:
    """Unit RoI features (M, D), labels (M,), number of images read. Raises BookError where there is no object."""
    device = next(encoder.parameters()).device
    x, labels, read = [], [], 0
    for images, boxes, names in batches(source, cfg, indices):
        x.append(encoder(images.to(device), boxes))
        labels.append(names)
        read += len(images)
    least = f"at least {SMALLEST:g} pixels at {cfg.size} px"
    require(sum(map(len, x)) > 0, f"{source.spec} holds no labelled object of {least}")
    return F.normalize(torch.cat(x), dim=1), np.concatenate(labels), read


def fresh(cfg: Pretrain, state: Mapping[str, Tensor] | None = None, device: torch.device | str = "cpu") -> Encoder:
    """An encoder with the weights `state` (None: random ones, from the run's own seed).

    Never a copy of one that trains, whose synchronised norms would wait for other processes or mix with their step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        encoder = Encoder(cfg)
    if state is not None:
        encoder.load_state_dict(state)
    return encoder.to(device)


@torch.no_grad()
def measured(encoder: nn.Module, cfg: Pretrain, source: ImageSource, indices) -> nn.Module:
    """A copy of the encoder in evaluation mode, on its device, with the batch statistics of up to 64 of these images:
    random weights have none of their own, and a young run's lag behind its weights.
    """
    device = next(encoder.parameters()).device
    encoder = fresh(cfg, encoder.state_dict(), device).train()
    found = [part for part in batches(source, cfg, indices[:64]) if len(part[2])]
    sample = [(images.to(device), boxes) for images, boxes, _ in found]
    if sample:
        encoder.forward = lambda part: Encoder.forward(encoder, *part)  # update_bn_stats gives a single argument
        update_bn_stats(encoder, sample, len(sample))
        del encoder.forward
    return encoder.eval()


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
    return votes.new_zeros(len(queries), classes).scatter_add_(1, y[nearest], votes).argmax(1)


def linear(x: Tensor, y: Tensor, queries: Tensor, classes: int, decay: float = 1e-3) -> Tensor:
    """Class of each query (Q,) by a linear classifier fitted to x (M, D), y (M,) with class-balanced cross-entropy."""
    mean, deviation = x.mean(0), x.std(0).clamp(min=1e-6)
    x, queries = (x - mean) / deviation, (queries - mean) / deviation
    weight = (len(y) / classes / torch.bincount(y, minlength=classes)).to(x.dtype)
    w, b = x.new_zeros(classes, x.shape[1]).requires_grad_(), x.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.LBFGS([w, b], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, w, b), y, weight) + decay * w.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return F.linear(queries, w, b).argmax(1)


def open_labelled(data: str, fit: str = "") -> tuple[ImageSource, ImageSource]:
    """The labelled sets `data` and `fit` of a probe. Raises BookError for data without labels, and of other classes."""
    tested, known = open_source(data), open_source(fit or data)
    for source in (tested, known):
        require(bool(source.classes), f"{source.spec} carries no labels: give coco:ANNOTATIONS.json or voc:ROOT")
    require(tested.classes == known.classes, f"{fit} and {data} have different classes: give two parts of one data set")
    return tested, known


def probe(encoder: Encoder, cfg: Pretrain, data: str, images: int = 0, seed: int = 0, fit: str = "") -> Scores:
    """Score an encoder on the labelled COCO- or VOC-layout set `data`, from the labels of `fit`: a set of the same
    classes, or ("") half of the images of `data`, drawn by `seed`.

    images: at most so many of each (0: all). Raises BookError for data without labels or without a class in both.
    """
    cfg, encoder = pooled(cfg, encoder)
    tested, known = open_labelled(data, fit)
    order = lambda source: np.random.default_rng(seed).permutation(len(source))[: images or None]
    halves = np.split(order(tested), [len(order(tested)) // 2])
    test_on, fit_on = map(np.sort, (order(tested), order(known)) if fit else halves)
    encoder = measured(encoder, cfg, known, fit_on)
    x, labels, read = features(encoder, cfg, known, fit_on)
    queries, truth, read_too = features(encoder, cfg, tested, test_on)
    counts = [np.bincount(found, minlength=len(tested.classes)) for found in (labels, truth)]
    scored = np.flatnonzero(np.minimum(*counts) >= FEWEST)
    require(len(scored) > 1, f"{data} has fewer than two classes with {FEWEST} objects in each part: probe more images")
    number = np.full(len(tested.classes), -1)
    number[scored] = np.arange(len(scored))
    y, truth = (torch.from_numpy(number[found]).to(x.device) for found in (labels, truth))
    args = (x[y >= 0], y[y >= 0], queries[truth >= 0], len(scored))
    truth = truth[truth >= 0]
    right = [class_mean(classify(*args), truth, len(scored)) for classify in (knn, linear)]
    return Scores(*right, classes=len(scored), objects=len(args[0]) + len(truth), images=read + read_too)


def due(done: int, cfg: Pretrain, plan: Plan, rows: Sequence[dict] = ()) -> bool:
    """Whether a pretraining is probed after `done` updates: every cfg.probe_every epochs, and at the end; not twice by
    the log's `rows`.
    """
    every = max(1, round(cfg.probe_every * plan.steps_per_epoch))
    had = any("knn" in row for row in rows if row["step"] == done)
    return bool(cfg.probe and done and not had) and (done == plan.steps or cfg.probe_every > 0 and done % every == 0)


def after(done: int, encoder: Encoder, cfg: Pretrain, log, stop_requests: Sequence, save: Callable) -> None:
    """Probe the encoder after `done` updates, as cfg says, in the process whose log.Log writes; the others wait. At a
    run's first probe, random weights of the same network too. A request to stop ends it, and `save` is called.
    """
    networks = {"": encoder} if log.board else {}
    if networks and not any("knn_random" in row for row in log.run.rows()):
        networks = {"_random": fresh(cfg, device=next(encoder.parameters()).device), **networks}
    with stop.harmless(stop_requests, stop.AFTER.format(done), save):
        for suffix, network in networks.items():
            scores = probe(network, cfg, cfg.probe, cfg.probe_images)
            log.write({"step": done, f"knn{suffix}": scores.knn, f"linear{suffix}": scores.linear})
            print(f"probe after step {done}{' (random weights)' if suffix else ''}: {scores.describe()}", flush=True)
    processes.wait()


def pooled(cfg: Pretrain, encoder: Encoder) -> tuple[Pretrain, Encoder]:
    """A whole-image network with RoI pooling around the same weights (alignment "c5"); any other as it is."""
    if cfg.aligned.boxes:
        return cfg, encoder
    wanted = dataclasses.replace(cfg.aligned, boxes=True)
    cfg = dataclasses.replace(cfg, alignment=next(name for name, other in ALIGNMENTS.items() if other == wanted))
    return cfg, fresh(cfg, encoder.state_dict(), next(encoder.parameters()).device)


def trained_encoder(run: Run, device: torch.device | str = "cpu") -> tuple[Pretrain, Encoder, int]:
    """A pretraining's settings, its online encoder and the checkpoint's step. Raises BookError without a checkpoint."""
    cfg, state = from_dict(Pretrain, run.record["config"]), checkpoint.newest(run.folder)
    require(state is not None, f"{run.folder} holds no checkpoint yet")
    checkpoint.check_parts(state, run.folder, {"model": Mapping})
    prefix = "online.encoder."
    weights = {k.removeprefix(prefix): v for k, v in state["model"].items() if k.startswith(prefix)}
    with checkpoint.fitting(run.folder, state["step"]):
        return cfg, fresh(cfg, weights, device), state["step"]


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="run folder of a pretraining")
    parser.add_argument("--data", required=True, help="labelled images: coco:JSON or voc:ROOT@SPLIT")
    parser.add_argument("--fit", default="", help="labelled images to learn the classes from (default: half of --data)")
    parser.add_argument("--images", type=int, default=0, help="at most so many (default: all)")
    device = processes.own_device()
    parser.add_argument("--device", default=device, type=torch.device, help="cpu, cuda, ... (default: the GPU if any)")
    given = parser.parse_args(arguments)
    run = records.named("INIT", str(given.folder), ROOT / "results")
    kind = run.record["kind"]
    require(kind == "pretrain", f"INIT={given.folder} is of kind {kind!r}: give a pretraining's folder")
    named = {"data": given.data, **({"fit": given.fit} if given.fit else {})}
    odd = {name: examine_source(open_source(spec)) for name, spec in named.items()}
    cfg, trained, step = trained_encoder(run, given.device)
    both = {"random": fresh(cfg, device=given.device), "trained": trained}
    scores = {name: probe(encoder, cfg, given.data, given.images, fit=given.fit) for name, encoder in both.items()}
    for name, score in scores.items():
        print(f"{name:>8}: {score.describe()}")
    record = {"data": given.data, "fit": given.fit, "step": step, "odd": odd}
    write_json(run.folder / "probe.json", record | {name: vars(score) for name, score in scores.items()})


if __name__ == "__main__":
    sys.exit(main())
