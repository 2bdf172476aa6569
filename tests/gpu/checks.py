"""Does this device compute what the method says? Checks in one process; `tests.gpu` runs them and group.py's.

On a GPU the network and the views are the paper's, and the judge is the CPU; on a CPU they are small, and the judge is
float64.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from soco_lib import dataset
from soco_lib.config import Pretrain, View, plan
from soco_lib.dataset import Batch, ProposalViews, build_loader, normalize
from soco_lib.encoder import Encoder, send
from soco_lib.fields import to_dict
from soco_lib.model import SoCo
from soco_lib.runs import checkpoint
from soco_lib.runs.processes import Process
from soco_lib.studies.step_time import as_loaded, lone_trainer, random_batch
from soco_lib.train import Trainer

#: float32 against the judge, of a smooth network whose batch norm has given statistics: loss, absolute; gradients,
#: relative to their norm. Rounding of 1e-5 in every layer stays within both; TF32's reaches 4e-5 and 3e-4.
LOSS, GRADIENT = 1e-5, 1e-4
#: The same of the network as it is, where rounding switches a ReLU: loss, and the least cosine between gradients.
SWITCHED, ALIKE = 3e-4, 0.99
#: The loss with the batch's own statistics, in training mode: batch norm of untrained features magnifies rounding.
#: TF32: 2e-2.
TRAINING = 5e-3
#: bf16 and fp16 against float32: loss (of -8 to 8), and the least cosine between the gradients; here 0.007 and 0.80,
#: 0.001 and 0.97.
HALF = {"bf16": (0.1, 0.5), "fp16": (0.02, 0.9)}
#: More images than bf16 counts exactly; an image's number in binary digits is what its channels hold.
IMAGES, DIGITS = 600, 10

PAPER = Pretrain("", "", batch=8, steps=100, precision="fp32")
SMALL = dataclasses.replace(
    PAPER,
    detector="toy-mask-rcnn-narrow-r50-fpn",
    size=96,
    views=(View(96), View(48, "V2")),
    canonical=41,
    hidden=64,
    embedding=32,
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a check found; passed None: not checked here, and why."""

    passed: bool | None
    said: str


def settings(device: torch.device) -> Pretrain:
    """The paper's step at 8 images, or on a CPU a small one."""
    return PAPER if device.type == "cuda" else SMALL


def learned(model: SoCo) -> list[Tensor]:
    """The parameters that have gradients."""
    return [p for p in model.parameters() if p.requires_grad]


def judge(model: SoCo, batch: Batch, dtype: torch.dtype) -> tuple[float, list[Tensor]]:
    """Loss and gradients of one batch by a copy of `model` on the CPU in `dtype`, with one graph over all views."""
    model = copy.deepcopy(model).to("cpu", dtype, memory_format=torch.contiguous_format)
    model.zero_grad()
    images, counted = [normalize(x).to(dtype) for x in batch.images], model.count(batch.boxes, batch.valid)
    z = model.targets(images, counted.rois)
    loss = sum(model(j, images[j], counted.rois[j], counted.pairs, z) for j in range(len(images))).sum()
    loss.backward()
    return float(loss.detach()), [p.grad for p in learned(model)]


def fitted(cfg: Pretrain, batch: Batch, device: torch.device) -> SoCo:
    """A network on the CPU in evaluation mode, whose running statistics have seen the batch: `device` measured them."""
    model = lone_trainer(cfg, device).model
    images = [normalize(x) for x in batch.images_on(device)]
    counted = model.count(batch.boxes, batch.valid).moved(send(device))
    with torch.no_grad():
        for _ in range(5):
            model.targets(images, counted.rois)
            _ = [model.predictor(model.online(x, rois)) for x, rois in zip(images, counted.rois)]
    return model.eval().cpu()


def one_pass(cfg: Pretrain, batch: Batch, device: torch.device, like: SoCo) -> tuple[float, list[Tensor]]:
    """Loss and gradients (on the CPU, float32) of one micro-batch in the training loop's own way, by the network and
    mode of `like`.
    """
    trainer = lone_trainer(cfg, device)
    trainer.model.load_state_dict(like.state_dict())
    trainer.model.train(like.training)
    if trainer.scaler.is_enabled():
        # Training finds a scale without overflow by itself.
        trainer.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    loss = float(trainer.backward(as_loaded(batch, trainer.model, device), last=True)["loss"])
    scale = trainer.scaler.get_scale()
    return loss, [p.grad.float().cpu() / scale for p in learned(trainer.model)]


def norm(tensors: list[Tensor]) -> float:
    """Of all together."""
    return float(torch.stack([t.double().norm() for t in tensors]).norm())


def difference(a: list[Tensor], b: list[Tensor]) -> float:
    """||a - b|| / ||b|| of all together."""
    return norm([x - y for x, y in zip(a, b)]) / norm(b)


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """Of all together."""
    return float(sum((x.double() * y.double()).sum() for x, y in zip(a, b))) / norm(a) / norm(b)


# --- the checks


@contextlib.contextmanager
def smooth() -> Iterator[None]:
    """Within, networks have SiLU for ReLU and mean for max pooling: no unit that rounding switches on or off, whatever
    the machine.
    """
    pool = lambda x, kernel_size, stride=None, padding=0: F.avg_pool2d(x, kernel_size, stride, padding)
    other = {"relu": lambda x, inplace=False: F.silu(x), "relu_": F.silu, "max_pool2d": pool}
    before = {name: getattr(F, name) for name in other}
    try:
        for name, function in other.items():
            setattr(F, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(F, name, function)


def float32(device: torch.device) -> Found:
    """Loss and gradients of the same weights and batch: this device in float32 against the judge."""
    cfg = settings(device)
    batch, exact = random_batch(cfg, cfg.batch), torch.float32 if device.type == "cuda" else torch.float64
    with smooth():
        model = fitted(cfg, batch, device)
        (loss, gradients), (expected, theirs) = one_pass(cfg, batch, device, model), judge(model, batch, exact)
        off, relative = abs(loss - expected), difference(gradients, theirs)
    model = fitted(cfg, batch, device)
    (loss, gradients), (expected, theirs) = one_pass(cfg, batch, device, model), judge(model, batch, exact)
    switched, alike = abs(loss - expected), cosine(gradients, theirs)
    model.train()
    training = abs(one_pass(cfg, batch, device, model)[0] - judge(model, batch, exact)[0])
    said = (
        f"against {'the CPU' if device.type == 'cuda' else 'float64'}, without kinks: loss {off:.1e} (<= {LOSS:g}), "
        f"gradients {relative:.1e} (<= {GRADIENT:g}); with: loss {switched:.1e} (<= {SWITCHED:g}), "
        f"cosine {alike:.4f} (>= {ALIKE:g}); with batch statistics: loss {training:.1e} (<= {TRAINING:g})"
    )
    passed = off <= LOSS and relative <= GRADIENT and switched <= SWITCHED and alike >= ALIKE and training <= TRAINING
    return Found(passed, said)


def half(device: torch.device, precision: str) -> Found:
    """Loss and gradients under autocast against float32 on the same device."""
    batch = 8 if device.type == "cuda" else 4  # CPUs compute fp16 slowly
    cfg = dataclasses.replace(settings(device), batch=batch)
    batch = random_batch(cfg, cfg.batch)
    model = fitted(cfg, batch, device)
    expected, theirs = one_pass(cfg, batch, device, model)
    loss, gradients = one_pass(dataclasses.replace(cfg, precision=precision), batch, device, model)
    (limit, least), off, alike = HALF[precision], abs(loss - expected), cosine(gradients, theirs)
    said = f"against float32: loss {off:.1e} (<= {limit:g}), cosine of the gradients {alike:.3f} (>= {least:g})"
    return Found(off <= limit and alike >= least, said)


def numbered(dtype: torch.dtype, device: torch.device, strides=(4, 8, 16, 32), side: int = 64) -> list[Tensor]:
    """Feature maps of IMAGES images of `side` pixels, every pixel of image n the digits of n: (IMAGES, DIGITS, h, w)
    each.
    """
    digits = (torch.arange(IMAGES)[:, None] >> torch.arange(DIGITS)) & 1
    digits = digits[:, :, None, None].to(device, dtype)
    return [digits.expand(-1, -1, side // s, side // s).contiguous() for s in strides]


def number(pooled: Tensor) -> list[int]:
    """The image that each region (M, DIGITS, s, s) was pooled from."""
    return (pooled.float().mean((2, 3)).round().long().cpu() << torch.arange(DIGITS)).sum(1).tolist()


def regions(device: torch.device, dtype: torch.dtype) -> Found:
    """Boxes of IMAGES images, pooled in `dtype`: each from its own image, and with the corners that it has."""
    encoder = Encoder(dataclasses.replace(SMALL, alignment="neck"))
    boxes = torch.tensor([[10.0, 10, 20, 20], [4, 4, 60, 60], [8, 20, 31, 44]])
    rois = encoder.levels_of_boxes.rois([boxes] * IMAGES).moved(send(device))
    autocast = torch.autocast(device.type, dtype)
    with torch.no_grad(), autocast:
        found = number(encoder.pool(dict(zip(encoder.levels, numbered(dtype, device))), rois))
    wrong = sum(n != i // len(boxes) for i, n in enumerate(found))
    ramp = torch.arange(2048 // 4, device=device, dtype=dtype).div(64).expand(1, DIGITS, 16, -1).contiguous()
    far = encoder.levels_of_boxes.rois([torch.tensor([[1301.0, 13, 1327, 37]])]).moved(send(device))
    align = encoder.pooler.level_poolers[0]
    with torch.no_grad(), autocast:
        exact = align(ramp.float(), far.rows).to(dtype)
        moved = float((align(ramp, far.rows).float() - exact.float()).abs().max()) * 4 * 64
    said = f"{wrong} of {len(found)} from another image; at 1327 px corners are off by {moved:.2f} px"
    return Found(wrong == 0 and moved == 0, said)


def variant(device: torch.device, cfg: Pretrain | None = None, **changes) -> Found:
    """Gradients of a way to compute the same, against the plain way: contiguous, nothing recomputed, not compiled."""
    cfg = dataclasses.replace(cfg or settings(device), channels_last=False)
    batch = random_batch(cfg, cfg.batch)
    with smooth():
        model = fitted(cfg, batch, device)
        expected, theirs = one_pass(cfg, batch, device, model)
        loss, gradients = one_pass(dataclasses.replace(cfg, **changes), batch, device, model)
    off, relative = abs(loss - expected), difference(gradients, theirs)
    said = f"against plain: loss {off:.1e} (<= {LOSS:g}), gradients {relative:.1e} (<= {GRADIENT:g})"
    return Found(off <= LOSS and relative <= GRADIENT, said)


def resumed(device: torch.device, data: dict) -> Found:
    """A trainer that goes on from another's checkpoint has its state, and computes its next loss. data: see
    check.drawn.
    """
    given = {name: data[name] for name in ("images", "proposals")}
    cfg = dataclasses.replace(SMALL, **given, steps=6, warmup_epochs=0, workers=0)
    dataset, at = ProposalViews(cfg), 3
    numbers = plan(cfg, len(dataset))
    first, second = (Trainer(cfg, numbers, Process(0, 0, 1, 1, device)) for _ in range(2))
    pin = device.type == "cuda"
    feed = lambda trainer, start: iter(build_loader(dataset, numbers, 0, start, pin, trainer.model.count))
    batches = feed(first, 0)
    for step in range(at):
        first.update(step, batches)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), at, to_dict(cfg), 1, **first.state())
        done = second.resume(Path(folder))
    state = lambda t: [*t.model.state_dict().values(), *(s["momentum"] for s in t.optimizer.state.values())]
    same = all(torch.equal(a, b) for a, b in zip(state(first), state(second)))
    off = abs(float(first.update(at, batches)["loss"] - second.update(done, feed(second, done))["loss"]))
    limit = TRAINING if device.type == "cuda" else 0.0  # a GPU adds in another order each time
    whose = "the same" if same else "another"
    said = f"after step {done}: {whose} state, next losses differ by {off:.1e} (<= {limit:g})"
    return Found(done == at and same and off <= limit, said)


class _Values(TorchFunctionMode):
    """Notes what hands a tensor's values to Python or the CPU without a kernel of its own."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (Tensor.tolist, Tensor.numpy, Tensor.cpu):
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


class _Kernels(TorchDispatchMode):
    """Notes kernels whose result's value or size the host has to know: a number, a count, a mask as an index."""

    ASKS = ("local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "repeat_interleave")

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::").lstrip("_")
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
        masked = any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in indices)
        if masked or name.startswith(self.ASKS):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted_waits(device: torch.device) -> Iterator[list[str]]:
    """Within, each wait of the host for the device is noted: CUDA's own word for it; on a CPU, what would be one on a
    GPU.
    """
    found = []
    if device.type != "cuda":
        as_a_gpu = mock.patch.object(dataset, "_by_table", dataset._by_formula)  # a GPU's, which no table normalises
        with as_a_gpu, _Values(found), _Kernels(found):
            yield found
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [str(w.message).splitlines()[0] for w in said if "called a synchronizing" in str(w.message)]


def waits(device: torch.device, precision: str) -> Found:
    """Whole updates from batches that a loader made: the host is not kept waiting once in them."""
    cfg = dataclasses.replace(settings(device), precision=precision, micro_batch=4)
    trainer = lone_trainer(cfg, device)
    batches = itertools.repeat(as_loaded(random_batch(cfg, cfg.micro_batch), trainer.model, device))
    trainer.update(0, batches)  # what is made once, such as momentum
    with counted_waits(device) as found:
        trainer.update(1, batches)
    said = f"{len(found)} in an update of {trainer.plan.accumulate} micro-batches, {precision}"
    return Found(not found, said + "".join(f"; {name}" for name in sorted({*found})))


def compiled(device: torch.device) -> Found:
    """The compiled trunk against plain, of a ResNet-18, which compiles soonest; on a CPU it would take a C++ compiler
    and minutes.
    """
    if device.type != "cuda":
        return Found(None, "only on a GPU")
    return variant(device, dataclasses.replace(SMALL, detector="toy-mask-rcnn-r18-fpn"), compile=True)


#: name -> check of (device, drawn data), in this order; those of SLOW are left out when time is short.
CHECKS = {
    "float32": lambda device, data: float32(device),
    "bf16": lambda device, data: half(device, "bf16"),
    "fp16": lambda device, data: half(device, "fp16"),
    "regions of 600 images, bf16": lambda device, data: regions(device, torch.bfloat16),
    "regions of 600 images, fp16": lambda device, data: regions(device, torch.float16),
    "channels-last": lambda device, data: variant(device, channels_last=True),
    "recompute": lambda device, data: variant(device, recompute=("res2", "res3")),
    "compile": lambda device, data: compiled(device),
    "waits of the host, fp32": lambda device, data: waits(device, "fp32"),
    "waits of the host, bf16": lambda device, data: waits(device, "bf16"),
    "save and resume": resumed,
}
SLOW = ("compile", "waits of the host, fp32")
