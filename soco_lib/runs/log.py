"""The log of a pretraining: rows for log.jsonl, the terminal and TensorBoard, and whether they look healthy.

Spread and effective rank of the embeddings say what the loss cannot: whether they collapsed. M embeddings of dimension
E.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from soco_lib.config import Plan, Pretrain
from soco_lib.runs import processes
from soco_lib.runs.folder import Run
from soco_lib.runs.machine import peak_memory

#: Below this spread the cosine of two objects is above 0.96 on average. The projector's batch norm spreads random
#: weights' embeddings to about 0.8 whatever the images, and a healthy toy run stays above 0.6: a young run is safe.
COLLAPSED = 0.2
#: Above this cosine between the views of an object, mean over the boxes of every pair, nothing is left to learn.
AGREED = 0.995


def spread(z: Tensor) -> float:
    """Mean standard deviation of the normalised embeddings' components times sqrt(E), z (M, E) with M >= 2.

    0: collapsed; 1: uniform on the sphere.
    """
    return float(F.normalize(z.float(), dim=1).std(0).mean() * z.shape[1] ** 0.5)


def effective_rank(z: Tensor) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of z's normalised singular values, in [1, min(M, E)]."""
    p = torch.linalg.svdvals(z.float())
    p = p / p.sum().clamp(min=1e-12)
    return float(torch.exp(-(p * (p + 1e-12).log()).sum()))


def verdict(spread_now: float, pairs: Sequence[float]) -> str:
    """'' for a healthy run, else what is wrong and what to try. pairs: the loss of each pair of views, in [-4, 4].

    A spread that is NaN (a single embedding has none) is no verdict.
    """
    if spread_now < COLLAPSED:
        remedy = "lower base_lr, or raise tau or batch"
        return f"COLLAPSE: spread {spread_now:.3f} < {COLLAPSED}; all objects embed alike ({remedy})"
    cosine = -max(pairs) / 4
    if cosine > AGREED:
        cause = "the views are identical or a few vectors stand for all objects"
        return f"DEAD LOSS: cosine {cosine:.4f} between all views; {cause}"
    return ""


def line(row: dict, steps: int) -> str:
    """A row on one line; after the loss that of each pair of views, after the rate the range of LARS's trust ratios."""
    regions = f"  rpn {row['regions']:.2f}" if "regions" in row else ""
    trust = "  trust {:.0e}..{:.0e}".format(*row["trust"]) if "trust" in row else ""
    eta = f"{row['eta_s']:.0f} s" if row["eta_s"] < 7200 else f"{row['eta_s'] / 3600:.1f} h"
    return (
        f"step {row['step']}/{steps}  loss {row['loss']:.2f} ({' '.join(f'{p:.2f}' for p in row['pairs'])}){regions}  "
        f"spread {row['spread']:.2f}  rank {row['effective_rank']:.3g}  lr {row['lr']:.2g}{trust}  "
        f"tau {row['tau']:.4f}  {row['images_per_s']:.1f} img/s  data {row['data_wait']:.0%}  "
        f"{row['memory_gb']:.0f} GB  eta {eta}"
    )


class Log:
    """Adds up updates to rows and, in the first process, writes them. Losses are means over all processes, the rest is
    this process's.
    """

    def __init__(self, run: Run, cfg: Pretrain, plan: Plan, writes: bool = True):
        self.run, self.cfg, self.plan = run, cfg, plan
        self.board = SummaryWriter(run.folder / "tensorboard") if writes else None
        self.unreadable = self.skipped = 0  # since this process began
        self._start_row()

    def _start_row(self) -> None:
        self.since, self.steps, self.data_s, self.pairs = time.perf_counter(), 0, 0.0, []

    def add(self, out: dict) -> None:
        """Count an update: what train.Trainer.update returned."""
        self.steps += 1
        self.data_s += out["data_s"]
        self.unreadable += out["unreadable"]
        self.skipped += out["skipped"]
        self.pairs.append(out["pairs"])

    def row(self, done: int, out: dict) -> dict:
        """Write and return the row of the updates since the last one; the last of them, number `done`, returned `out`.

        A collective.
        """
        seconds = time.perf_counter() - self.since
        pairs = processes.mean(torch.stack(self.pairs).mean(0)).tolist()
        row = {
            "step": done,
            "epoch": round(done / self.plan.steps_per_epoch, 4),
            "loss": sum(pairs),
            "pairs": [round(p, 5) for p in pairs[: len(self.cfg.views)]],
            "spread": round(spread(out["embeddings"]), 5),
            "effective_rank": round(effective_rank(out["embeddings"]), 3),
            "lr": out["lr"],
            "tau": out["tau"],
            "images_per_s": round(self.steps * self.cfg.batch / seconds, 3),
            "data_wait": round(self.data_s / seconds, 4),
            "memory_gb": round(peak_memory(torch.cuda.is_available()) / 2**30, 3),
            "eta_s": round((self.plan.steps - done) * seconds / self.steps, 1),
            "unreadable": self.unreadable,
        }
        if self.cfg.aligned.regions:
            row["regions"] = round(pairs[-1], 5)  # the RPN's loss
        if self.cfg.precision == "fp16":
            row["skipped"] = self.skipped  # updates whose gradient overflowed
        if out["trust"] is not None:
            row["trust"] = [float(out["trust"].min()), float(out["trust"].max())]
        self._start_row()
        if self.board:
            self.write(row)
            print(line(row, self.plan.steps), verdict(row["spread"], row["pairs"]), flush=True)
        return row

    def write(self, row: dict) -> None:
        """Any values of row["step"], numbers or lists of them, to log.jsonl and TensorBoard."""
        self.run.log(row)
        for name, value in row.items():
            for i, number in enumerate(value if isinstance(value, list) else [value]):
                self.board.add_scalar(f"{name}/{i}" if isinstance(value, list) else name, number, row["step"])
