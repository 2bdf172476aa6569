"""The objective as a whole: by hand, against loops, and what a training step adds up view by view against it."""

import math

import pytest
import torch

from soco_lib import train
from soco_lib.config import View
from soco_lib.dataset import normalize
from soco_lib.loss import box_weights, pair_loss, soco_loss
from tests.speed import plain_step
from tests.test_soco import cfg as tiny


def test_by_hand():
    """Two boxes of one image: one aligned (cos 1), one orthogonal (cos 0): -2 (1 + 0) / 2."""
    v, z = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[5.0, 0.0], [1.0, 0.0]])
    valid = torch.tensor([[True, True]])
    weight = box_weights(valid).flatten()
    assert pair_loss(v, z, weight).item() == pytest.approx(-1.0)
    assert pair_loss(v, -z, weight).item() == pytest.approx(1.0)
    assert soco_loss([v[None], v[None]], [z[None], z[None]], [valid, valid]).item() == pytest.approx(-2.0)


def test_weights_average_over_boxes_then_images():
    valid = torch.tensor([[True, True, True, True], [True, False, False, False], [False] * 4])
    assert box_weights(valid).flatten().tolist() == pytest.approx([1 / 12] * 4 + [1 / 3, 0, 0, 0] + [0] * 4)


def naive(v, z, valid):
    """Eqs. 5 and 6 in Python floats, box by box."""
    total, rows = 0.0, iter(range(len(v)))
    for image in valid.tolist():
        terms = []
        for present in image:
            if present:
                i = next(rows)
                a, b = v[i].tolist(), z[i].tolist()
                dot = sum(x * y for x, y in zip(a, b))
                terms.append(-2 * dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b)))
        total += sum(terms) / len(terms) if terms else 0.0
    return total / len(valid)


def test_against_a_naive_loop():
    torch.manual_seed(0)
    valid = torch.rand(7, 4) < 0.7
    v, z = torch.randn(2, int(valid.sum()), 16, dtype=torch.float64)
    assert pair_loss(v, z, box_weights(valid)[valid]).item() == pytest.approx(naive(v, z, valid), abs=1e-12)


def test_the_whole_loss_is_both_directions_of_every_pair_with_v1_and_stops_the_targets_gradient():
    torch.manual_seed(0)
    valid = torch.rand(3, 7, 4) < 0.7
    valid[1, 2] = False  # an image without any box in V2
    v, z = torch.randn(2, 3, 7, 4, 16, dtype=torch.float64, requires_grad=True)
    expected = 0.0
    for j in (1, 2):
        both = valid[0] & valid[j]
        expected += naive(v[0][both], z[j][both], both) + naive(v[j][both], z[0][both], both)
    loss = soco_loss(v, z, valid)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    of_v, of_z = torch.autograd.grad(loss, (v, z), allow_unused=True)
    assert of_z is None and not of_v[~valid].any()


def of_all_boxes(embeddings, valid):
    """(B, K, E) from the (M, E) of the boxes that are there; zeros for the others."""
    return embeddings.new_zeros(*valid.shape, embeddings.shape[1]).masked_scatter(valid[..., None], embeddings)


STAR = {"views": (View(64), View(48, "V2"), View(56))}
VARIANTS = {
    "SoCo: V1 to V3": ({}, False),
    "SoCo, boxes lost": ({}, True),
    "SoCo*: V1 to V4": (STAR, False),
    "SoCo*, boxes lost": (STAR, True),
    "whole image": ({"alignment": "whole", "k": 1, "proposals": "whole"}, False),
}


@pytest.mark.parametrize(("changes", "lost"), VARIANTS.values(), ids=VARIANTS)
def test_a_step_view_by_view_has_the_loss_and_the_gradients_of_the_whole(changes, lost, monkeypatch):
    """Trainer.backward frees each view's graph before the next; the whole loss has one graph over all views."""
    monkeypatch.setattr(train, "normalize", lambda images: normalize(images).double())
    cfg = tiny(batch=4, precision="fp32", **changes)
    trainer, batch = plain_step.a_trainer(cfg), plain_step.a_batch(cfg)
    model = trainer.model.double()
    with torch.no_grad():  # online and target must not be mistaken for each other
        for p in model.target.parameters():
            p.mul_(1 + 0.1 * torch.randn_like(p))
    if lost:
        batch.valid[0][1, 0] = batch.valid[1][0, :2] = batch.valid[-1][2] = False
    out = trainer.backward(batch, last=True)
    learned = [*model.online.parameters(), *model.predictor.parameters()]
    images, rois = [train.normalize(x) for x in batch.images], model.count(batch.boxes, batch.valid).rois
    z = [of_all_boxes(x, valid) for x, valid in zip(model.targets(images, rois), batch.valid)]
    v = [of_all_boxes(model.predictor(model.online(*x)), valid) for *x, valid in zip(images, rois, batch.valid)]
    whole = soco_loss(v, z, batch.valid)
    torch.testing.assert_close(out["loss"], whole.detach(), rtol=1e-10, atol=1e-10)
    gradients = list(torch.autograd.grad(whole, learned, materialize_grads=True))
    torch.testing.assert_close([p.grad for p in learned], gradients, rtol=1e-8, atol=1e-10)
    assert all(p.grad is None for p in model.target.parameters())
