"""What only a GPU makes worth while needs nothing but a device: the same code runs here on the CPU."""

import dataclasses
import functools

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as F

from soco_lib import BookError
from soco_lib.dataset import MEAN, STD, _by_formula, normalize
from soco_lib.encoder import send
from soco_lib.train import Trainer
from tests.conftest import TINY_DETECTOR
from tests.speed import bench_step, plain_step

CPU = torch.device("cpu")


def gradients(trainer: Trainer) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients of one micro-batch."""
    loss = trainer.backward(plain_step.a_batch(trainer.cfg), last=True)["loss"]
    return loss, [p.grad for p in trainer.model.parameters() if p.requires_grad]


def relative(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """||a - b|| / ||b|| of all together."""
    norm = lambda xs: torch.stack(torch._foreach_norm(xs)).norm()
    return float(norm([x - y for x, y in zip(a, b)]) / norm(b))


def test_the_views_last_stage_is_torchvisions():
    images = torch.randint(0, 256, (2, 31, 31, 3), dtype=torch.uint8)
    ours = normalize(images)
    assert ours.dtype == torch.float32 and ours.is_contiguous(memory_format=torch.channels_last)
    theirs = F.normalize(images.permute(0, 3, 1, 2).float(), list(MEAN), list(STD))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(2, 1, 1, 3)
    assert torch.equal(normalize(levels).permute(0, 2, 3, 1), _by_formula(levels))


def test_images_and_counts_are_pinned_and_nothing_is_moved_by_waiting(monkeypatch):
    """Pinning itself asks for a GPU: that each is pinned, and no copy is told to wait, is seen without one."""
    model = plain_step.a_trainer(bench_step.SMALL).model
    batch = plain_step.a_batch(bench_step.SMALL)
    batch.counted = model.count(batch.boxes, batch.valid)
    parts = [x for r in batch.counted.rois for x in (r.rows, r.order)] + [
        x for p in batch.counted.pairs for x in vars(p).values()
    ]
    pinned, waits = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.shape) or self.clone())
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking=False: waits.append(not non_blocking) or self
    )
    fixed = batch.pin_memory()
    assert sorted(pinned) == sorted(x.shape for x in (*batch.images, *parts))
    assert all(torch.equal(a, b) for a, b in zip(fixed.images_on(CPU), batch.images))
    fixed.counted.moved(send(torch.device("cuda")))
    assert waits == [False] * (len(batch.images) + len(parts))


def test_autocast_keeps_the_loss():
    """bf16 has three digits, and batch norm over few pixels magnifies its errors; the loss itself is computed in
    float32.
    """
    cfg = dataclasses.replace(bench_step.SMALL, batch=8)
    exact, _ = gradients(plain_step.a_trainer(cfg))
    loss, grads = gradients(plain_step.a_trainer(dataclasses.replace(cfg, precision="bf16")))
    assert loss.dtype == torch.float32 and abs(loss - exact) < 0.2  # of -4 to 4
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


def test_a_compiled_trunk_gives_the_same_gradients(monkeypatch):
    """Traced by torch.compile for every size of view and run as it was traced, for which no C++ compiler is needed."""
    loss, expected = gradients(plain_step.a_trainer(bench_step.SMALL))
    compiled, plain = [], nn.Module.compile
    eager = functools.partialmethod(plain, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self) or eager.__get__(self)())
    trainer = plain_step.a_trainer(dataclasses.replace(bench_step.SMALL, compile=True))
    same, grads = gradients(trainer)
    assert compiled == [trainer.model.online.encoder.trunk, trainer.model.target.encoder.trunk]
    assert same == pytest.approx(float(loss), abs=1e-5) and relative(grads, expected) < 1e-4


def test_recomputed_stages_give_the_same_bits():
    """Loss, gradients, and batch norm's running statistics, which must not see a batch twice."""
    plain = plain_step.a_trainer(bench_step.SMALL)
    cfg = dataclasses.replace(bench_step.SMALL, recompute=("res2", "res3"))
    trainer = plain_step.a_trainer(cfg)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss, expected = gradients(plain)
    without, kept[:] = sum(kept), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        same, grads = gradients(trainer)
    assert loss == same and all(torch.equal(a, b) for a, b in zip(grads, expected))
    assert sum(kept) < without
    ours, theirs = trainer.model.state_dict(), plain.model.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(BookError, match="recompute='res5'.*no such stage"):
        plain_step.a_trainer(
            dataclasses.replace(cfg, detector="mask-rcnn-r50-c4", overrides=TINY_DETECTOR[-3:], recompute=("res5",))
        )
    with pytest.raises(BookError, match="did you mean 'res2'"):
        dataclasses.replace(cfg, recompute=("res22",))
