"""What a pretraining says of itself while it runs: log rows, a plain line each, TensorBoard, the object probe."""

from __future__ import annotations

import time

import torch
from torch.utils.tensorboard import SummaryWriter

from soco_lib.config import Plan, Pretrain
from soco_lib.features.probe import fresh, probe
from soco_lib.optim import target_momentum
from soco_lib.runs import health, processes
from soco_lib.runs.folder import Run
from soco_lib.runs.machine import peak_memory


class Meter:
    """Log rows: what happened since the last one. Losses are means over all processes; the rest is the first one's."""

    def __init__(self, cfg: Pretrain, plan: Plan):
        self.cfg, self.plan, self.unreadable, self.skipped = cfg, plan, 0, 0
        self.reset()

    def reset(self) -> None:
        self.since, self.steps, self.data_s, self.pairs = time.perf_counter(), 0, 0.0, []

    def add(self, out: dict) -> None:
        self.steps += 1
        self.data_s += out["data_s"]
        self.unreadable += out["unreadable"]
        self.skipped += out["skipped"]
        self.pairs.append(out["pairs"])

    def row(self, done: int, out: dict, trainer) -> dict:
        """`done` updates are made. Losses are means since the last row; the rest describes the last update. Collective."""
        seconds = time.perf_counter() - self.since
        z, pairs = out["embeddings"], processes.mean(torch.stack(self.pairs).mean(0)).tolist()
        cuda = trainer.process.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated() if cuda else peak_memory()
        row = {
            "step": done,
            "epoch": round(done / self.plan.steps_per_epoch, 4),
            "loss": sum(pairs),
            "pairs": [round(p, 5) for p in pairs],
            "spread": round(health.spread(z), 5),
            "effective_rank": round(health.effective_rank(z), 3),
            "lr": trainer.optimizer.param_groups[0]["lr"],
            "tau": target_momentum(done - 1, self.plan.steps, self.cfg.tau),
            "images_per_s": round(self.steps * self.cfg.batch / seconds, 3),
            "data_wait": round(self.data_s / seconds, 4),
            "memory_gb": round(memory / 2**30, 3),
            "eta_s": round((self.plan.steps - done) * seconds / self.steps, 1),
            "unreadable": self.unreadable,
        }
        if trainer.scaler.is_enabled():
            row["skipped"] = self.skipped  # updates whose gradient overflowed, since this process began
        trust = getattr(trainer.optimizer, "trust_ratios", None)
        if trust is not None:
            row["trust"] = [float(trust.min()), float(trust.max())]
        self.reset()
        return row


def line(row: dict, steps: int) -> str:
    """A log row as one plain line: after the loss that of each pair of views; after the rate the range of LARS's trust
    ratios.
    """
    trust = "  trust {:.0e}..{:.0e}".format(*row["trust"]) if "trust" in row else ""
    eta = f"{row['eta_s']:.0f} s" if row["eta_s"] < 7200 else f"{row['eta_s'] / 3600:.1f} h"
    return (
        f"step {row['step']}/{steps}  loss {row['loss']:.2f} ({' '.join(f'{p:.2f}' for p in row['pairs'])})  "
        f"spread {row['spread']:.2f}  rank {row['effective_rank']:.3g}  lr {row['lr']:.2g}{trust}  tau {row['tau']:.4f}  "
        f"{row['images_per_s']:.1f} img/s  data {row['data_wait']:.0%}  {row['memory_gb']:.0f} GB  eta {eta}"
    )


def probe_due(done: int, cfg: Pretrain, plan: Plan) -> bool:
    """Whether the object probe is due after `done` updates: every cfg.probe_every epochs, and at the end."""
    every = max(1, round(cfg.probe_every * plan.steps_per_epoch))
    return bool(cfg.probe) and (done == plan.steps or cfg.probe_every > 0 and done % every == 0)


class Record:
    """Where the first process's rows go: log.jsonl, the terminal, TensorBoard (<run>/tensorboard)."""

    def __init__(self, run: Run, cfg: Pretrain, plan: Plan):
        self.run, self.cfg, self.plan = run, cfg, plan
        self.board = SummaryWriter(run.folder / "tensorboard")

    def row(self, row: dict) -> None:
        """A row of Meter."""
        self.write(row)
        print(line(row, self.plan.steps), health.verdict(row["spread"], row["pairs"]), flush=True)

    def write(self, row: dict) -> None:
        """Any values of a step."""
        self.run.log(row)
        for name, value in row.items():
            for i, number in enumerate(value if isinstance(value, list) else [value]):
                self.board.add_scalar(f"{name}/{i}" if isinstance(value, list) else name, number, row["step"])

    def probe(self, done: int, encoder) -> None:
        """Score the encoder on labelled objects; random weights of the same network once, at the run's first probe."""
        if not any("knn_random" in row for row in self.run.rows()):
            self.score(done, fresh(self.cfg, device=next(encoder.parameters()).device), "_random")
        self.score(done, encoder, "")

    def score(self, done: int, encoder, suffix: str) -> None:
        """One line and the class-mean accuracies knn<suffix>, linear<suffix> of the step."""
        scores = probe(encoder, self.cfg, self.cfg.probe, self.cfg.probe_images)
        self.write({"step": done, f"knn{suffix}": scores.knn, f"linear{suffix}": scores.linear})
        print(f"probe after step {done}{' (random weights)' if suffix else ''}: {scores.describe()}", flush=True)
