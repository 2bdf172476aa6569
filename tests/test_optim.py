import math

import pytest
import torch

from soco_lib.config import Pretrain, plan
from soco_lib.optim import LARS, build_optimizer, learning_rate, target_momentum

CFG = Pretrain("a", "b", batch=256, base_lr=2.0, epochs=10, warmup_epochs=2, final_lr=0.5, warmup_factor=0.1)
PLAN = plan(CFG, images=2560)  # 10 steps an epoch, 100 steps, 20 of warm-up, lr 2


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.2), (10, 1.1), (20, 2.0), (60, 1.25), (100, 0.5), (40, 0.5 + 0.75 * (1 + math.sqrt(0.5)))]
)
def test_learning_rate(step, rate):
    assert learning_rate(step, PLAN, CFG) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("step", "tau"), [(0, 0.99), (50, 0.995), (100, 1.0), (25, 1 - 0.01 * (math.sqrt(0.5) + 1) / 2)]
)
def test_target_momentum(step, tau):
    assert target_momentum(step, 100, 0.99) == pytest.approx(tau)


def reference_lars(w, g, m, lr, wd, mu, trust, adapt):
    """You et al. 2017 in plain numbers: one tensor, one step."""
    d = [gi + wd * wi for gi, wi in zip(g, w)]
    if adapt:
        nw, nd = math.hypot(*w), math.hypot(*d)
        d = [di * (trust * nw / nd if nw > 0 and nd > 0 else 1.0) for di in d]
    m = [mu * mi + di for mi, di in zip(m, d)]
    return [wi - lr * mi for wi, mi in zip(w, m)], m


#: What may be zero: weight -> gradients of four steps. A zero weight or update has no norm to trust and is taken as it
#: is.
TENSORS = {
    "usual": ([3.0, 4.0], [[1.0, 2.0], [-0.5, 0.25], [0.1, -2.0], [3.0, 0.5]]),
    "zero weight": ([0.0, 0.0], [[1.0, 2.0], [-0.5, 0.25], [0.1, -2.0], [3.0, 0.5]]),
    "zero gradient": ([3.0, 4.0], [[0.0, 0.0]] * 4),
    "zero gradient for a while": ([3.0, 4.0], [[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [-1.0, 0.5]]),
    "both zero": ([0.0, 0.0], [[0.0, 0.0]] * 4),
}


@pytest.mark.parametrize("wd", [0.1, 0.0])
@pytest.mark.parametrize("adapt", [True, False])
def test_lars_steps_by_hand(adapt, wd):
    """All tensors in one optimiser, so that none takes another's ratio; the rate changes from step to step."""
    params = [torch.nn.Parameter(torch.tensor([weight], dtype=torch.float64)) for weight, _ in TENSORS.values()]
    optimizer = LARS([{"params": params, "adapt": adapt}], lr=9.0, momentum=0.9, weight_decay=wd, trust=0.01)
    state = [(weight, [0.0, 0.0]) for weight, _ in TENSORS.values()]
    for step, lr in enumerate((0.5, 0.4, 0.1, 2.0)):
        optimizer.param_groups[0]["lr"] = lr
        for i, (p, (_, gradients)) in enumerate(zip(params, TENSORS.values())):
            p.grad = torch.tensor([gradients[step]], dtype=torch.float64)
            state[i] = reference_lars(state[i][0], gradients[step], state[i][1], lr, wd, 0.9, 0.01, adapt)
        optimizer.step()
        for p, (weight, _) in zip(params, state):
            assert p.detach().flatten().tolist() == pytest.approx(weight, abs=1e-12)


def test_a_tensor_without_gradient_is_left_alone():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    LARS([weight], lr=1.0, weight_decay=0.1).step()
    assert (weight == 1).all()


def test_biases_and_norms_have_neither_decay_nor_trust():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    matrices, vectors = build_optimizer(model, CFG).param_groups
    assert [p.shape for p in matrices["params"]] == [(4, 3)]
    assert (matrices["weight_decay"], matrices["adapt"]) == (CFG.weight_decay, True)
    assert len(vectors["params"]) == 3
    assert (vectors["weight_decay"], vectors["adapt"]) == (0.0, False)
