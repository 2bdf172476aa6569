"""Detectron2's trainer as a transfer needs it: any device, seeded data, our log rows."""

from __future__ import annotations

import itertools
import math
import resource
import time
import weakref

import torch
from torch.utils.data import Sampler

from soco_lib import BookError
from soco_lib.benchmarks import Transfer
from soco_lib.detection import DetectionData
from soco_lib.evaluation import evaluate
from soco_lib.results import Run

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402  (soco_lib.detection silences its imports)
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, TrainerBase, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.solver import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import JSONWriter, TensorboardXWriter

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Skip(Sampler):
    """An endless sampler from its `skip`-th index on: a resumed run goes on with the images it had not seen."""

    def __init__(self, inner: Sampler):
        self.inner, self.skip = inner, 0

    def __iter__(self):
        return itertools.islice(iter(self.inner), self.skip, None)


class Progress(hooks.HookBase):
    """Log rows and plain lines: mean losses since the last row, the rate, images a second; AP whenever it was measured."""

    def __init__(self, run: Run, cfg: Transfer):
        self.run, self.cfg = run, cfg

    def before_train(self):
        earlier = [row for row in self.run.rows() if row["step"] <= self.trainer.start_iter]
        self.row = earlier[-1] if earlier else dict.fromkeys(("loss", "lr", "images_per_s", "memory_gb", "eta_s"), math.nan)
        self.before = self.row.get("seconds", 0.0)  # spent by sessions before this one
        self.started = self.since = time.perf_counter()
        self.steps = 0

    @property
    def seconds(self) -> float:
        """Training time of all sessions, evaluations included."""
        return round(self.before + time.perf_counter() - self.started, 1)

    def after_step(self):
        done, trainer = self.trainer.iter + 1, self.trainer
        self.steps += 1
        if done % self.cfg.log_every and done != trainer.max_iter and not trainer.fresh_results:
            return
        now, storage = time.perf_counter(), trainer.storage
        rate = self.steps / (now - self.since)
        mean = lambda name: round(storage.history(name).avg(self.steps), 5)  # noqa: E731
        losses = {name: mean(name) for name in sorted(storage.histories()) if name.startswith("loss_")}
        cuda = torch.cuda.is_available()
        memory = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.row = {"step": done, "loss": mean("total_loss"), **losses, "lr": storage.latest()["lr"][0]}
        self.row |= {"images_per_s": round(rate * self.cfg.batch, 3), "memory_gb": round(memory / 2**30, 3)}
        self.row |= {"eta_s": round((trainer.max_iter - done) / rate, 1), "seconds": self.seconds}
        self.write()
        self.since, self.steps = time.perf_counter(), 0

    def after_train(self):
        if self.trainer.fresh_results:
            self.row |= {"step": self.trainer.max_iter, "seconds": self.seconds}
            self.write()

    def write(self):
        """The row to log.jsonl and to the terminal, with the results of an evaluation that was just made."""
        results, self.trainer.fresh_results = self.trainer.fresh_results, {}
        self.row |= {f"{task}_AP": round(scores["AP"], 3) for task, scores in results.items()}
        self.run.log(self.row)
        row = self.row
        scores = "".join(f"  {k.replace('_', ' ')} {v:.2f}" for k, v in row.items() if k.endswith("_AP"))
        print(
            f"step {row['step']}/{self.cfg.iterations}  loss {row['loss']:.3f}  lr {row['lr']:.3g}  "
            f"{row['images_per_s']:.1f} images/s  {row['memory_gb']:.1f} GB  eta {row['eta_s']:.0f} s{scores}",
            flush=True,
        )


class FineTuner(DefaultTrainer):
    """Detectron2's trainer, put together from its own parts: seeded sampler, any device, our precision and log.

    DefaultTrainer's constructor assumes CUDA for several processes and fp16 for mixed precision, so it is not called.
    """

    def __init__(self, run: Run, cfg: Transfer, d2: CfgNode, test: DetectionData, model: torch.nn.Module):
        TrainerBase.__init__(self)
        self.run, self.settings, self.cfg, self.data = run, cfg, d2, test
        self.fresh_results: dict = {}  # of an evaluation that Progress has not written yet
        self.results: dict = {}
        self.start_iter, self.max_iter = 0, d2.SOLVER.MAX_ITER
        optimizer = self.build_optimizer(d2, model)
        self.sampler, loader = self.train_loader(d2.DATALOADER.NUM_WORKERS)
        cuda = d2.MODEL.DEVICE == "cuda"
        model = create_ddp_model(model, broadcast_buffers=False, **({} if cuda else {"device_ids": None}))
        if cfg.precision == "fp32":
            self._trainer = SimpleTrainer(model, loader, optimizer)
        else:
            scaler = torch.amp.GradScaler("cuda", enabled=cfg.precision == "fp16")
            self._trainer = AMPTrainer(model, loader, optimizer, precision=AUTOCAST[cfg.precision], grad_scaler=scaler)
        self.scheduler = build_lr_scheduler(d2, optimizer)
        self.checkpointer = DetectionCheckpointer(model, d2.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.register_hooks(self.build_hooks())

    def build_optimizer(self, d2: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Detectron2's SGD, or AdamW over the same parameter groups."""
        if self.settings.optimizer == "sgd":
            return build_optimizer(d2, model)
        groups = get_default_optimizer_params(model, base_lr=d2.SOLVER.BASE_LR, weight_decay_norm=d2.SOLVER.WEIGHT_DECAY_NORM)
        adamw = torch.optim.AdamW(groups, lr=d2.SOLVER.BASE_LR, weight_decay=d2.SOLVER.WEIGHT_DECAY, foreach=True)
        return maybe_add_gradient_clipping(d2, adamw)

    def train_loader(self, workers: int):
        """Detectron2's training loader over a sampler whose order is a function of the seed; returns (sampler, loader)."""
        d2 = self.cfg.clone()
        d2.defrost()
        d2.DATALOADER.NUM_WORKERS = workers
        records = get_detection_dataset_dicts(d2.DATASETS.TRAIN, filter_empty=d2.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        if d2.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":  # LVIS
            factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, d2.DATALOADER.REPEAT_THRESHOLD)
            sampler = _Skip(RepeatFactorTrainingSampler(factors, seed=d2.SEED))
        else:
            sampler = _Skip(TrainingSampler(len(records), seed=d2.SEED))
        return sampler, build_detection_train_loader(d2, dataset=records, sampler=sampler)

    def build_hooks(self):
        """Detectron2's, in its order (precise BN before saving, saving before evaluation), with our log rows."""
        d2, cfg = self.cfg, self.settings
        made = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.precise_bn:
            made.append(hooks.PreciseBN(cfg.eval_every, self.model, self.train_loader(0)[1], cfg.precise_bn))
        if comm.is_main_process():
            made.append(hooks.PeriodicCheckpointer(self.checkpointer, d2.SOLVER.CHECKPOINT_PERIOD, max_to_keep=cfg.keep))
        made.append(hooks.EvalHook(cfg.eval_every, self.evaluate))
        if comm.is_main_process():
            made.append(Progress(self.run, cfg))
            made.append(hooks.PeriodicWriter([JSONWriter(f"{d2.OUTPUT_DIR}/metrics.json"), TensorboardXWriter(d2.OUTPUT_DIR)]))
        return made

    def evaluate(self) -> dict:
        """Scores of the test data now (see `evaluate`); {} on all processes but the first."""
        self.results = self.fresh_results = evaluate(self.model, self.cfg, self.data)
        return {task: {k: v for k, v in scores.items() if k != "per_class"} for task, scores in self.results.items()}

    def go(self) -> dict:
        """Train from the last checkpoint (or the start) to the end; returns the last evaluation's scores."""
        cfg = self.settings
        if self.checkpointer.has_checkpoint():
            try:
                self.resume_or_load(resume=True)
            except Exception as error:  # a torn file raises whatever its first wrong byte leads to
                file = self.checkpointer.get_checkpoint_file()
                raise BookError(f"cannot go on from {file} ({str(error).splitlines()[0]}): delete {file} and its folder's "
                                "last_checkpoint, and run again") from None  # fmt: skip
            if comm.is_main_process():
                print(f"going on after step {self.start_iter}", flush=True)
        self.sampler.skip = self.start_iter * cfg.batch // comm.get_world_size()
        seed_all_rng(cfg.seed + 1 + self.start_iter + comm.get_rank())
        try:
            self.train()
        except FloatingPointError:
            raise BookError(
                f"the loss is not finite at step {self.iter + 1}: lower lr={cfg.lr}, lengthen warmup={cfg.warmup} or set "
                f"clip_gradients=1; the last checkpoint stays in {self.cfg.OUTPUT_DIR}"
            ) from None
        return self.results
