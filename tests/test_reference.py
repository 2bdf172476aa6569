"""The whole method against plain formulations in float64: loss and gradients box by box, updates by hand, the draws'
statistics.
"""

import copy
import math

import numpy as np
import pytest
import torch

from soco_lib import train, views
from soco_lib.config import Pretrain, View, plan
from soco_lib.dataset import ProposalViews, build_loader, normalize
from soco_lib.model import SoCo
from soco_lib.runs import processes
from soco_lib.views import FIRST, SECOND, make_views
from tests.conftest import TINY_DETECTOR
from tests.test_soco import batch, pairs
from tests.test_soco import cfg as tiny
from tests.test_train import with_

EXACT = dict(rtol=1e-10, atol=1e-10)


def cosine(a, b):
    """Of two vectors, by its definition."""
    return (a * b).sum() / (a * a).sum().sqrt() / (b * b).sum().sqrt()


def naive_loss(v, z, valid):
    """Eqs. 5 and 6, symmetrised, in Python loops.

    v(j, n, k), z(j, n, k): the online and target embedding of box k of image n in view j; valid[j][n, k]: that box is
    in that view.
    """
    images, boxes = valid[0].shape
    total = 0.0
    for n in range(images):
        for j in range(1, len(valid)):
            kept = [k for k in range(boxes) if valid[0][n, k] and valid[j][n, k]]
            for k in kept:
                total = total - 2 * cosine(v(0, n, k), z(j, n, k).detach()) / len(kept) / images
                total = total - 2 * cosine(v(j, n, k), z(0, n, k).detach()) / len(kept) / images
    return total


def box_by_box(model, images, boxes, valid):
    """The loss from one image and one box at a time: exact where no layer looks at its neighbours (batch norm in eval
    mode).
    """

    def z(branch):
        return lambda j, n, k: branch(images[j][n : n + 1], [boxes[j][n, k : k + 1]])[0]

    return naive_loss(lambda *at: model.predictor(z(model.online)(*at)[None])[0], z(model.target), valid)


def view_by_view(model, images, boxes, valid):
    """The loss from one view of the batch at a time, whose statistics batch norm uses in train mode."""
    v, z = {}, {}
    for j in range(len(images)):
        present = [(n, k) for n, k in np.ndindex(*valid[j].shape) if valid[j][n, k]]
        of_view = [b[k] for b, k in zip(boxes[j], valid[j])]
        v |= {(j, *at): row for at, row in zip(present, model.predictor(model.online(images[j], of_view)))}
        z |= {(j, *at): row for at, row in zip(present, model.target(images[j], of_view))}
    return naive_loss(lambda *at: v[at], lambda *at: z[at], valid)


MODELS = {
    "fpn": {},
    "three extra views": {"views": (View(64), View(48, "V2"), View(56))},
    "c4": {"detector": "mask-rcnn-r50-c4", "views": (View(64),), "overrides": TINY_DETECTOR[-3:]},
}


@pytest.mark.parametrize("naive", [box_by_box, view_by_view])
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_loss_and_gradients_equal_a_naive_loop(changes, naive):
    torch.manual_seed(0)
    c = tiny(**changes)
    model = SoCo(c).double()
    images, boxes, valid = batch(c.view_sizes)
    images, boxes = [x.double() for x in images], [b.double() for b in boxes]
    valid[0][1, 0] = valid[-1][2] = (
        False  # one lost in V1, which jitter can do; an image of which the last view sees nothing
    )
    with torch.no_grad():
        for p in model.target.parameters():  # online and target must not be mistaken for each other
            p.mul_(1 + 0.1 * torch.randn_like(p))
        pairs(model, images, boxes, valid)  # gives batch norm its running statistics
    model.train(naive is view_by_view)
    out = pairs(model, images, boxes, valid)
    out.sum().backward()
    learned = [*model.online.parameters(), *model.predictor.parameters()]
    expected = naive(model, images, boxes, valid)
    torch.testing.assert_close(out.sum(), expected, **EXACT)
    torch.testing.assert_close([p.grad for p in learned], list(torch.autograd.grad(expected, learned)), **EXACT)
    assert all(p.grad is None for p in model.target.parameters())


def test_three_updates_equal_updates_by_hand(cfg, monkeypatch):
    """Trainer.update in float64, whole: accumulation, LARS and its exclusions, momentum, the step's rate and tau, batch
    norm.

    By hand: the naive loss, its gradient, and LARS, learning rate and tau as formulas on plain tensors.
    """
    monkeypatch.setattr(train, "normalize", lambda images: normalize(images).double())
    # Views and batch large enough that batch norm over a few pixels does not magnify the last digit past 1e-10.
    cfg = with_(cfg, size=96, views=(View(96), View(64, "V2")), batch=12, micro_batch=6, optimizer="lars", base_lr=0.16)
    cfg = with_(cfg, weight_decay=0.02, warmup_epochs=25, tau=0.9)
    dataset = ProposalViews(cfg)
    trainer = train.Trainer(cfg, plan(cfg, len(dataset)), processes.Process(0, 0, 1, 1, torch.device("cpu")))
    trainer.model.double()
    model = copy.deepcopy(trainer.model)
    learned = [*model.online.parameters(), *model.predictor.parameters()]
    momentum = [torch.zeros_like(w) for w in learned]
    ours, theirs = (iter(build_loader(dataset, trainer.plan, 0, 0, pin=False)) for _ in range(2))
    rates = (0.000075, 0.0037875, 0.0075)  # 0.16 x 12 / 256 = 0.0075 after two steps of warm-up from a hundredth of it
    for step, rate in enumerate(rates):
        out = trainer.update(step, ours)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-15)

        micro = [next(theirs), next(theirs)]
        loss = sum(view_by_view(model, [normalize(x).double() for x in b.images], b.boxes, b.valid) for b in micro) / 2
        for i, (w, g) in enumerate(zip(learned, torch.autograd.grad(loss, learned))):
            if w.ndim > 1:
                g = g + 0.02 * w.detach()
                g = 0.001 * w.detach().square().sum().sqrt() / g.square().sum().sqrt() * g
            momentum[i] = 0.9 * momentum[i] + g
            w.data = w.data - rate * momentum[i]
        tau = 1 - (1 - 0.9) * (math.cos(math.pi * step / 8) + 1) / 2
        for target, online in zip(model.target.parameters(), model.online.parameters()):
            target.data = tau * target.data + (1 - tau) * online.data

        torch.testing.assert_close(out["loss"], loss.detach(), **EXACT)
        # By hand every level is computed: batch norms of a level without a box see batches that ours leaves out.
        own = {name for name in model.state_dict() if "fpn_" in name and name.split(".")[-1] not in ("weight", "bias")}
        found, expected = ({n: x for n, x in m.state_dict().items() if n not in own} for m in (trainer.model, model))
        assert own and len(found) > len(own)
        torch.testing.assert_close(found, expected, **EXACT)


def test_photometry_draws_as_specified(monkeypatch):
    """Colour jitter (0.4, 0.4, 0.2, 0.1) p 0.8, grayscale p 0.2, blur p 1.0 / 0.1 with sigma in [0.1, 2], solarize p 0
    / 0.2.
    """
    calls = []

    def recorded(name):
        return lambda image, *value: calls.append((name, *value)) or image

    jitter = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
    for name in (*jitter, "grayscale", "blur", "solarize"):
        monkeypatch.setattr(views, name, recorded(name))
    rng, n = np.random.default_rng(0), 6000
    for branch, blur, solarize in ((FIRST, 1.0, 0.0), (SECOND, 0.1, 0.2)):
        calls.clear()
        for _ in range(n):
            views.photometry(rng, None, branch)
        names = [call[0] for call in calls]
        rates = {"grayscale": 0.2, "blur": blur, "solarize": solarize, **dict.fromkeys(jitter, 0.8)}
        assert {name: names.count(name) / n for name in rates} == pytest.approx(rates, abs=0.02)
        for name, (low, high) in {**jitter, "blur": (0.1, 2.0)}.items():  # uniform: its limits, mean and deviation
            drawn = np.array([call[1] for call in calls if call[0] == name])
            assert low <= drawn.min() and drawn.max() <= high
            assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
            assert drawn.std() == pytest.approx((high - low) / 12**0.5, abs=0.05 * (high - low))
        colours = [name for name in names if name in jitter]
        places = np.array([[colour == name for colour in colours] for name in jitter]).reshape(4, -1, 4).mean(1)
        assert (
            np.abs(places - 0.25).max() < 0.03
        )  # each of the four comes first, second, third and fourth equally often


@pytest.mark.parametrize(("side", "kernel"), [(224, 23), (192, 19), (112, 11)])
def test_blur_kernel_is_a_tenth_of_the_view(side, kernel):
    """As far as a single bright pixel spreads."""
    image = np.zeros((side, side, 3), np.float32)
    image[side // 2, side // 2] = 1
    assert (views.blur(image, 2.0)[side // 2, :, 0] > 0).sum() == kernel


def test_each_view_draws_its_own(monkeypatch):
    """Flips and crops of different views are independent; C4's crops keep 60 % of the area at least."""
    monkeypatch.setattr(views, "photometry", lambda rng, image, branch: image)
    image, boxes, rng = (
        np.zeros((64, 64, 3), np.uint8),
        np.array([[8, 8, 56, 56]], np.float32),
        np.random.default_rng(0),
    )
    star = Pretrain("a", "b", size=64, views=(View(64), View(32, "V2"), View(48), View(64, scale=(0.6, 1.0))))
    samples = [make_views(rng, image, boxes, star) for _ in range(2000)]
    flips = np.corrcoef(np.array([[v.flip for v in s] for s in samples], float).T)
    assert np.abs(flips - np.eye(5)).max() < 0.08
    crops = np.array([[v.crop for v in s] for s in samples], float)  # (sample, view, x1 y1 x2 y2)
    width, height = crops[..., 2] - crops[..., 0], crops[..., 3] - crops[..., 1]
    assert (crops[:, 1] == crops[:, 2]).all(), "V3 is V2 made smaller"
    assert np.abs(np.corrcoef(width[:, [1, 3, 4]].T) - np.eye(3)).max() < 0.08
    area = width * height / 64**2
    for view, low in ((1, 0.5), (3, 0.5), (4, 0.6)):
        assert low - 0.02 < area[:, view].min() and area[:, view].max() <= 1
