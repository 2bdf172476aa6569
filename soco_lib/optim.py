"""LARS, parameter groups and schedules (Sec. 4.1)."""

from __future__ import annotations

import math

import torch
from torch import nn

from soco_lib.config import Plan, Pretrain


def learning_rate(step: int, plan: Plan, cfg: Pretrain) -> float:
    """Rate of update `step` (from 0): linear warm-up from lr x warmup_factor, then cosine to final_lr."""
    if step < plan.warmup_steps:
        return plan.lr * (cfg.warmup_factor + (1 - cfg.warmup_factor) * step / plan.warmup_steps)
    done = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    return cfg.final_lr + (plan.lr - cfg.final_lr) * (1 + math.cos(math.pi * done)) / 2


def target_momentum(step: int, steps: int, tau: float) -> float:
    """tau_k = 1 - (1 - tau_0)(cos(pi k / K) + 1) / 2 (BYOL's schedule, Sec. 4.1): tau at step 0, 1 at `steps`."""
    return 1 - (1 - tau) * (math.cos(math.pi * step / steps) + 1) / 2


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive SGD with momentum (You et al. 2017), the form of BYOL's and the authors' releases.

    A tensor's update is d = g + wd w, scaled by trust ||w|| / ||d|| where both norms are positive, then m = mu m + d
    and w -= lr m; groups with `adapt=False` (1-D parameters) take plain SGD with momentum. timm, lightly and apex
    divide by ||g|| + wd ||w||, up to sqrt(2) more for weights before a batch norm, whose g is orthogonal to w.
    """

    def __init__(self, params, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust, adapt=True))
        self.trust_ratios: torch.Tensor | None = None  # of the last step, one a scaled tensor: for the log

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every parameter that has a gradient, which is used up: `grad` holds d afterwards."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            update = [p.grad for p in params]  # changed in place: another copy would be the step's peak of memory
            torch._foreach_add_(update, params, alpha=group["weight_decay"])
            if group["adapt"]:
                w, d = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(update))
                ones = torch.ones_like(w)  # a Python number would be copied to the GPU, and the host wait for it
                self.trust_ratios = torch.where((w > 0) & (d > 0), group["trust"] * w / d, ones)
                torch._foreach_mul_(update, list(self.trust_ratios.unbind()))
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momentum = [self.state[p]["momentum"] for p in params]
            torch._foreach_mul_(momentum, group["momentum"])
            torch._foreach_add_(momentum, update)
            torch._foreach_add_(params, momentum, alpha=-group["lr"])


def build_optimizer(model: nn.Module, cfg: Pretrain) -> torch.optim.Optimizer:
    """Two groups: tensors with two or more dimensions; biases and norms, with neither decay nor trust scaling."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if cfg.optimizer == "lars":
        groups[1]["adapt"] = False
        return LARS(groups, lr=cfg.base_lr, momentum=cfg.momentum, trust=cfg.trust)
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=cfg.base_lr, momentum=cfg.momentum)
    return torch.optim.AdamW(groups, lr=cfg.base_lr)
