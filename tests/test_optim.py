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


@pytest.mark.parametrize(("step", "tau"), [(0, 0.99), (50, 0.995), (100, 1.0), (25, 1 - 0.01 * (math.sqrt(0.5) + 1) / 2)])
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


def test_lars_steps_by_hand():
    matrix = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    bias = torch.nn.Parameter(torch.tensor([1.0, -1.0], dtype=torch.float64))
    zero = torch.nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))  # no norm to trust: taken as it is
    groups = [{"params": [matrix, zero], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0, "adapt": False}]
    optimizer = LARS(groups, lr=0.5, momentum=0.9, trust=0.01)
    state = {id(p): ([*p.detach().flatten().tolist()], [0.0, 0.0]) for p in (matrix, bias, zero)}
    for gradient in ([1.0, 2.0], [-0.5, 0.25]):
        for p in (matrix, bias, zero):
            p.grad = torch.tensor(gradient, dtype=torch.float64).view_as(p)
            w, m = state[id(p)]
            wd, adapt = (0.0, False) if p is bias else (0.1, True)
            state[id(p)] = reference_lars(w, gradient, m, 0.5, wd, 0.9, 0.01, adapt)
        optimizer.step()
        for p in (matrix, bias, zero):
            assert p.detach().flatten().tolist() == pytest.approx(state[id(p)][0], abs=1e-12)


def test_biases_and_norms_have_neither_decay_nor_trust():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    matrices, vectors = build_optimizer(model, CFG).param_groups
    assert [p.shape for p in matrices["params"]] == [(4, 3)]
    assert (matrices["weight_decay"], matrices["adapt"]) == (CFG.weight_decay, True)
    assert len(vectors["params"]) == 3
    assert (vectors["weight_decay"], vectors["adapt"]) == (0.0, False)
