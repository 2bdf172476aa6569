"""Fine-tuning and evaluation in Detectron2: `python -m soco_lib.transfer results/NAME`, alone or under torchrun.

The run folder's run.json says everything (see launch.py, which makes it); a run that was interrupted goes on.

    results/<name>/key_report.json   where every weight comes from, written before training; sha256 of init
                   labelled.json     the training images drawn, when not all of them are used
                   detectron2/       config.yaml, log.txt, TensorBoard, checkpoints/, coco_instances_results.json,
                                     model_final.pth and (with eval_every) model_best.pth for Detectron2
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from soco_lib import BookError
from soco_lib.fields import from_dict, require
from soco_lib.runs import checkpoint, processes, session
from soco_lib.runs.folder import Run, read_json, write_json
from soco_lib.runs.reasons import building
from soco_lib.transfer.batches import reach
from soco_lib.transfer.benchmarks import Transfer
from soco_lib.transfer.detectron import DetectionData, detectron_config, open_both, without
from soco_lib.transfer.finetune import BEST, FineTuner
from soco_lib.weights.load import Weights, checkpoint_file, compare, load_into, read_weights, remedy

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng


def _log_to(folder: Path, main: bool) -> None:
    """Detectron2's own log goes to log.txt; the terminal is for our lines."""
    folder.mkdir(exist_ok=True)
    handler = logging.FileHandler(folder / "log.txt") if main else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%m-%d %H:%M:%S"))
    for name in ("detectron2", "fvcore"):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    for text in (".*not writable", "torch.meshgrid"):  # Detectron2's, harmless, once a process
        warnings.filterwarnings("ignore", text)


def _sha256(cfg: Transfer) -> str:
    """Content of the file that a transfer starts from; "" for scratch. Raises BookError when it is not there."""
    if cfg.init == "scratch":
        return ""
    with open(checkpoint_file(cfg.init), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _initial_model(cfg: Transfer, d2: CfgNode, run: Run, main: bool, resuming: bool) -> nn.Module:
    """The detector with its starting weights (a resumed run brings its own); the key report is saved, then judged."""
    weights = Weights({}) if cfg.init == "scratch" or resuming else read_weights(cfg.init, cfg.network)
    seed_all_rng(cfg.seed)
    with building(cfg):
        model = build_model(d2)
    if main and not resuming:
        report = compare(model, weights)
        write_json(run.folder / "key_report.json", report.to_dict() | {"step": weights.step, "sha256": _sha256(cfg)})
        report.check(remedy(weights, cfg.detector))
        print(report.summary(), flush=True)
    load_into(model, weights, cfg.detector)
    return model


def _check_data(run: Run, parts: dict[str, DetectionData], main: bool, say: Callable) -> None:
    """Look at every picture, and record what is odd about pictures and labels. Raises BookError for what is refused."""
    record = {}
    for name, data in parts.items():
        for layout in data.layouts:
            pictures = layout.examine_pictures(say=say)
            pictures.check()
            for kind, found in (layout.findings.record() | pictures.record()).items():
                before = record.setdefault(name, {}).setdefault(kind, {"count": 0} | {"verdict": found["verdict"]})
                before["count"] += found["count"]
    for name, kinds in record.items():
        said = "; ".join(f"{kind}: {found['count']} ({found['verdict']})" for kind, found in kinds.items())
        say(f"odd in {name}: {said}", flush=True)
    if main:
        run.record["data"] = record
        run.write()


def _check_images(run: Run, cfg: Transfer, train: DetectionData, main: bool, begun: bool) -> None:
    """Write the drawn training images to labelled.json. Raises BookError when the run, if begun, has others."""
    path, drawn = run.folder / "labelled.json", list(train.image_ids)
    if begun and path.exists():
        gone, fresh = (sorted({*a} - {*b}) for a, b in itertools.permutations((read_json(path)["image_ids"], drawn)))
        lists = ((gone, "then"), (fresh, "now"))
        changed = "; ".join(f"{len(ids)} only {when}, e.g. {ids[0]}" for ids, when in lists if ids)
        said = (
            f"the images drawn from it are not those of {path} ({changed}): remove {run.folder} or give the same file"
        )
        require(not changed, f"{cfg.train} has changed since this run began: {said}")
    elif main and cfg.labelled != 1:
        write_json(path, {"seed": cfg.seed, "labelled": cfg.labelled, "image_ids": drawn})


def _check_same(run: Run, cfg: Transfer, found: dict, say: Callable) -> None:
    """Raises BookError when the run that made checkpoint `found` had another schedule or began from another file."""
    names = ("batch", "lr", "iterations")
    changed = [f"{name}={found['config'][name]} then, {getattr(cfg, name)} now" for name in names
               if found["config"][name] != getattr(cfg, name)]  # fmt: skip
    other = f"reach=scale gives other numbers than this run began with ({'; '.join(changed)})"
    require(not changed, f"{other}: start as many processes as then")
    then = read_json(run.folder / "key_report.json")["sha256"]
    try:
        now = _sha256(cfg)
    except BookError:
        say(f"init={cfg.init} is not there any more; this run's checkpoint has all it needs", flush=True)
        return
    said = f"sha256 {then[:12]} then, {now[:12]} now: remove {run.folder} or give the same file"
    require(then == now, f"init={cfg.init} has changed since this run began: {said}")


def transfer(run: Run, process: processes.Process, stop_requests: Sequence = ()) -> dict:
    """Run (or go on with) a transfer to its end; returns its metrics. Raises BookError before any work for bad input.

    stop_requests: filled once this process is to stop; all processes then raise stop.Stopped after the same update.
    """
    if process.world > 1:
        comm.create_local_process_group(process.local_world)
    reached = reach(from_dict(Transfer, run.record["config"]), process.world)
    cfg = reached.cfg
    say = print if process.main else lambda *_, **__: None
    folder = run.folder / "detectron2"
    _log_to(folder, process.main)
    train, test = open_both(cfg)
    _check_data(run, {"train": train, "test": test}, process.main, say)
    d2 = detectron_config(cfg, train, test, folder, process.world)
    say(
        f"{process.describe()}; {cfg.detector} from {cfg.init}; training: {train.describe()}; test: {test.describe()}; "
        f"{reached.describe()}, lr {cfg.lr:g}, weight decay {cfg.weight_decay:g}, {cfg.iterations} iterations, "
        f"{cfg.warmup} of them warm-up, lr drops at {', '.join(map(str, d2.SOLVER.STEPS))}",
        flush=True,
    )
    if unused := without(cfg):
        say(f"of {cfg.detector} is used {unused}", flush=True)
    found = checkpoint.chosen(folder, process.main, say)
    _check_images(run, cfg, train, process.main, found is not None)
    if found:
        _check_same(run, cfg, found, say)
        say(f"going on after step {found['step']}", flush=True)
    if process.main:
        (folder / "config.yaml").write_text(d2.dump())
    model = _initial_model(cfg, d2, run, process.main, resuming=found is not None)
    tuner = FineTuner(run, reached, d2, test, model, found["step"] if found else 0, stop_requests)
    if found:
        tuner.restore(found)
    del found
    results = tuner.go()
    if not process.main:
        return {}
    rows = run.rows()
    metrics = {
        **{name: getattr(cfg, name) for name in ("profile", "init", "detector", "batch")},
        **{name: getattr(reached, name) for name in ("micro_batch", "accumulate")},
        **{name: getattr(cfg, name) for name in ("lr", "iterations")},
        "processes": process.world,
        "train_images": len(train.image_ids),
        "images": len(test.image_ids),
        **{name: rows[-1][name] for name in ("loss", "images_per_s", "memory_gb", "seconds")},
        **results,
    }
    if cfg.eval_every:
        best = max((row for row in rows if "bbox_AP" in row), key=lambda row: row["bbox_AP"])
        metrics["best"] = {"iteration": best["step"], "bbox_AP": best["bbox_AP"], "checkpoint": f"detectron2/{BEST}"}
    return metrics


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status (see session.main)."""
    return session.main(__doc__, transfer, arguments, fixed_sizes=False)


if __name__ == "__main__":
    sys.exit(main())
