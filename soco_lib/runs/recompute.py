"""Less memory for more time: stages of a network whose activations backward computes again."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from soco_lib.fields import require


def recompute(trunk: nn.Module, names: Sequence[str]) -> None:
    """Keep no activations inside these stages of a ResNet for backward, which computes them again: less memory, more
    time, the same gradients and statistics. Raises BookError for a stage that the trunk does not have.
    """
    for name in names:
        stage = getattr(trunk, name, None)
        require(stage is not None, f"recompute={name!r}: this detector's backbone has no such stage")
        contexts = lambda stage=stage: (contextlib.nullcontext(), _statistics_seen(stage))  # first and second time
        options = dict(use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        stage.forward = functools.partial(checkpoint, stage.forward, **options)


@contextlib.contextmanager
def _statistics_seen(stage: nn.Module) -> Iterator[None]:
    """Within, batch norm normalises by the batch as before and leaves its running statistics: it has seen the batch."""
    norms = [m for m in stage.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            norm.num_batches_tracked -= 1
