"""Detectron2's trainer as a transfer needs it: any device, exact resume, our log rows, the best model kept."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch.utils.data import DataLoader

from soco_lib.fields import to_dict
from soco_lib.runs import checkpoint, loader, processes, session, stop
from soco_lib.runs.files import replacing
from soco_lib.runs.folder import Run
from soco_lib.runs.machine import peak_memory
from soco_lib.transfer.batches import AHEAD, Accumulator, Reach, Samples
from soco_lib.transfer.detectron import DetectionData
from soco_lib.transfer.evaluate import evaluate, shared_bytes

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.solver import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter

#: The best model's weights (of all evaluations, when eval_every > 0) and the last ones, in a run's detectron2/ folder.
BEST, FINAL = "model_best.pth", "model_final.pth"


class PreciseBN(hooks.PreciseBN):
    """Detectron2's, from the same images each time: where it stopped reading would not survive an interruption."""

    def update_stats(self):
        self._data_iter = None
        super().update_stats()


class Progress(hooks.HookBase):
    """Log rows and plain lines: mean losses since the last row, the rate, images a second (of updates alone)."""

    def before_train(self):
        self.spent, self.steps = 0.0, 0

    def before_step(self):
        self.began = time.perf_counter()

    def after_step(self):
        trainer, cfg, storage = self.trainer, self.trainer.cfg, self.trainer.storage
        done = trainer.iter + 1
        self.spent += time.perf_counter() - self.began
        self.steps += 1
        if done % cfg.log_every and done != cfg.iterations:
            return
        rate = self.steps / self.spent
        mean = lambda name: round(storage.history(name).avg(self.steps), 5)
        losses = {name: mean(name) for name in sorted(storage.histories()) if name.startswith("loss_")}
        memory = peak_memory(cuda=torch.cuda.is_available())
        row = {"step": done, "loss": mean("total_loss"), **losses, "lr": storage.latest()["lr"][0]}
        row |= {"images_per_s": round(rate * cfg.batch, 3), "memory_gb": round(memory / 2**30, 3)}
        row |= {"eta_s": round((cfg.iterations - done) / rate, 1), "seconds": trainer.seconds}
        trainer.run.log(row)
        speed = f"{row['images_per_s']:.1f} images/s  {row['memory_gb']:.1f} GB  eta {row['eta_s']:.0f} s"
        print(f"step {done}/{cfg.iterations}  loss {row['loss']:.3f}  lr {row['lr']:.3g}  {speed}", flush=True)
        self.spent, self.steps = 0.0, 0


class Saving(hooks.HookBase):
    """Checkpoints every `save_every` iterations, at the end and when asked to stop, which raises stop.Stopped."""

    def after_step(self):
        trainer, cfg = self.trainer, self.trainer.cfg
        done = trainer.iter + 1
        if comm.is_main_process():
            if done == cfg.iterations:
                trainer.write_model(FINAL, done)
            if done == cfg.iterations or done % cfg.save_every == 0 or trainer.stop:
                trainer.save(done)
        if trainer.stop:
            raise stop.Stopped(stop.AFTER.format(done))


class Evaluation(hooks.HookBase):
    """Scores every `eval_every` iterations and at the end; the model with the best box AP so far is kept.

    It follows Saving, so that an interrupted evaluation costs no training: the resumed run begins with it. The best
    score so far is read from the log, since Detectron2's BestCheckpointer forgets it at an interruption.
    """

    def _due(self, done: int) -> bool:
        cfg = self.trainer.cfg
        return done == cfg.iterations or (cfg.eval_every > 0 and done % cfg.eval_every == 0)

    def before_train(self):
        trainer, done = self.trainer, self.trainer.start_iter
        scored = any(row["step"] == done and "bbox_AP" in row for row in trainer.run.rows())
        due = done == trainer.cfg.iterations or (done > 0 and self._due(done) and not scored)
        if processes.from_first(due):  # each process reads the log for itself; all have to do the same
            self.evaluate(done)

    def after_step(self):
        if self._due(self.trainer.iter + 1):
            self.evaluate(self.trainer.iter + 1)

    def evaluate(self, done: int):
        """Scores after `done` iterations (see evaluate.evaluate) to log, terminal and TensorBoard."""
        trainer, run = self.trainer, self.trainer.run
        try:
            with stop.harmless(trainer.stop_requests, stop.AFTER.format(done), lambda: trainer.save(done)):
                trainer.results = evaluate(trainer.model, trainer.d2, trainer.test, trainer.stop_requests)
        except loader.Waiting as waiting:
            trainer.stop_waiting(waiting, done)
        processes.wait()  # the first process scores alone: minutes for COCO, tens of minutes for LVIS
        if not comm.is_main_process():
            return
        found = {f"{task}_AP": round(scores["AP"], 3) for task, scores in trainer.results.items()}
        earlier = [row["bbox_AP"] for row in run.rows() if row["step"] < done and "bbox_AP" in row]
        if trainer.cfg.eval_every and all(found["bbox_AP"] > score for score in earlier):
            trainer.write_model(BEST, done)
        run.log({"step": done, **found, "seconds": trainer.seconds})
        plain = {f"{t}/{k}": v for t, s in trainer.results.items() for k, v in s.items() if k != "per_class"}
        trainer.storage.put_scalars(**plain, smoothing_hint=False)
        said = "".join(f"  {name.replace('_', ' ')} {value:.2f}" for name, value in found.items())
        print(f"step {done}/{trainer.cfg.iterations}{said}", flush=True)


class FineTuner(Accumulator):
    """Accumulator with what DefaultTrainer adds, which assumes CUDA for several processes and fp16 for mixed precision.

    start: iterations already made, by the checkpoint that `restore` is then given. stop_requests: filled once this
    process is to stop. results: the scores of the last evaluation.
    """

    def __init__(self, run: Run, reached: Reach, d2: CfgNode, test: DetectionData, model: torch.nn.Module,
                 start: int = 0, stop_requests: Sequence = ()):  # fmt: skip
        cfg, cuda = reached.cfg, d2.MODEL.DEVICE == "cuda"
        self.run, self.cfg, self.d2, self.test, self.detector = run, cfg, d2, test, model
        self.stop_requests = stop_requests
        self.folder, self.stop, self.results = Path(d2.OUTPUT_DIR), False, {}
        samples, optimizer = Samples(d2), self.build_optimizer(model)
        # Before any process starts its workers: they meet in the next line.
        ahead = loader.batches_ahead(
            AHEAD, samples.shared_bytes(reached.micro_batch), cfg.workers, comm.get_local_size(), shared_bytes(d2),
            say=print if comm.is_main_process() else lambda *_, **__: None,
        )  # fmt: skip
        parallel = create_ddp_model(model, **processes.own_buffers(), **({} if cuda else {"device_ids": None}))
        batches = samples.loader(reached, cfg.workers, start, ahead)
        super().__init__(parallel, batches, optimizer, reached.accumulate, cfg.precision, cfg.seed)
        self.scheduler = build_lr_scheduler(d2, optimizer)
        self.register_hooks(self.build_hooks(samples.loader(reached, workers=0)))
        self.start_iter, self.started = start, time.perf_counter()
        # Of other sessions.
        self.earlier = max((row["seconds"] for row in run.rows() if row["step"] <= start), default=0.0)

    def restore(self, state: dict) -> None:
        """Take over a checkpoint's contents, which the caller should then let go: network and optimiser in size."""
        with checkpoint.fitting(self.folder, state["step"]):
            self.detector.load_state_dict(state["model"])
            self.load_state_dict(state["trainer"])
            if state["loss_normalizer"] is not None:
                self.detector.loss_normalizer = state["loss_normalizer"]

    def build_hooks(self, again: DataLoader) -> list:
        """After each step: rate, our row, precise BN (on the images of `again`), saving, evaluation, TensorBoard."""
        cfg, main, made = self.cfg, comm.is_main_process(), [hooks.IterationTimer(), hooks.LRScheduler()]
        if main:
            made.append(Progress())
        if cfg.precise_bn:
            made.append(PreciseBN(cfg.eval_every, self.model, again, cfg.precise_bn * self.accumulate))
        made += [Saving(), Evaluation()]
        if main:
            writers = [JSONWriter(f"{self.folder}/metrics.json"), TensorboardXWriter(str(self.folder))]
            made.append(hooks.PeriodicWriter(writers))
        return made

    def build_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Detectron2's SGD, or AdamW over the same parameter groups."""
        cfg, d2 = self.cfg, self.d2
        if cfg.optimizer == "sgd":
            return build_optimizer(d2, model)
        groups = get_default_optimizer_params(model, base_lr=cfg.lr, weight_decay_norm=d2.SOLVER.WEIGHT_DECAY_NORM)
        adamw = torch.optim.AdamW(groups, lr=cfg.lr, weight_decay=cfg.weight_decay, foreach=True)
        return maybe_add_gradient_clipping(d2, adamw)

    def full_state(self) -> dict:
        """What a resumed run needs beyond the step: images, their order and all draws follow from seed and step."""
        return {
            "model": self.detector.state_dict(),
            "trainer": self.state_dict(),
            # RetinaNet's and FCOS's running count, a plain attribute of each process; the first one's is kept.
            "loss_normalizer": getattr(self.detector, "loss_normalizer", None),
        }

    def save(self, done: int) -> None:
        """A checkpoint of the state after `done` iterations, in the first process alone."""
        if comm.is_main_process():
            checkpoint.save(self.folder, done, to_dict(self.cfg), self.cfg.keep, **self.full_state())

    def stop_waiting(self, waiting: loader.Waiting, done: int) -> NoReturn:
        """Told to stop while no images came, with `done` iterations made: keep them and raise stop.Stopped."""
        if waiting.between and done:
            self.save(done)
        raise stop.Stopped(waiting.describe(done, self.folder)) from None

    def write_model(self, name: str, done: int) -> None:
        """The weights after `done` iterations as a file that Detectron2 reads."""
        with replacing(self.folder / name, "wb") as file:
            torch.save({"model": self.detector.state_dict(), "iteration": done}, file)

    @property
    def seconds(self) -> float:
        """Time of all sessions, evaluations included."""
        return round(self.earlier + time.perf_counter() - self.started, 1)

    def _write_metrics(self, losses: dict[str, torch.Tensor], data_time: float) -> None:
        """Mean losses over all processes to the storage; and all processes learn whether one was told to stop."""
        asked = torch.tensor(float(bool(self.stop_requests)), device=self.d2.MODEL.DEVICE)
        *means, asked = processes.mean(torch.stack([*losses.values(), asked])).tolist()
        if not math.isfinite(sum(means)):
            raise FloatingPointError
        self.stop = asked > 0
        self.storage.put_scalars(total_loss=sum(means), data_time=data_time, **dict(zip(losses, means)))

    def go(self) -> dict:
        """Train to the end from where the restored checkpoint left off; returns the last evaluation's scores.

        Raises BookError when the loss is not finite, stop.Stopped when told to stop.
        """
        try:
            stop.keep(self.stop_requests)
            with stop.children_ignore():
                self._data_loader_iter_obj = loader.Feed(self.data_loader, self.accumulate, self.stop_requests)
            # Compiled functions (the focal loss) round otherwise from their second call on: on the CPU, where a resumed
            # run is bit-equal, they stay as in the first.
            with torch.jit.optimized_execution(self.d2.MODEL.DEVICE != "cpu"):
                self.train(self.start_iter, self.cfg.iterations)
        except loader.Waiting as waiting:
            self.stop_waiting(waiting, self.iter)
        except FloatingPointError:  # ours, and RPN's of boxes that are not finite
            raise session.Diverged(
                f"the loss is not finite at step {self.iter + 1}: lower lr={self.cfg.lr}, lengthen "
                f"warmup={self.cfg.warmup} or set clip_gradients=1; the last checkpoint stays in "
                f"{self.folder / 'checkpoints'}",
                self.iter + 1,
            ) from None
        finally:
            loader.end_workers()
            self._data_loader_iter_obj = None
        return self.results
