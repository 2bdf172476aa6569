"""Fine-tuning and evaluation in Detectron2: `python -m soco_lib.transfer results/NAME`, alone or under torchrun.

The run folder's run.json says everything (see launch.py, which makes it); a run that was interrupted goes on.

    results/<name>/key_report.json   where every weight of the detector comes from, written before training
                   labelled.json     the training images drawn, when not all of them are used
                   detectron2/       config.yaml, log.txt, TensorBoard, checkpoints, coco_instances_results.json
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

from torch import nn

from soco_lib import distributed, session
from soco_lib.benchmarks import Transfer
from soco_lib.config import from_dict
from soco_lib.detection import detectron_config, open_both
from soco_lib.finetune import FineTuner
from soco_lib.results import Run, write_json
from soco_lib.weights import Weights, compare, load_into, read_weights, remedy

from detectron2.config import CfgNode  # noqa: E402  (soco_lib.detection silences its imports)
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


def _initial_model(cfg: Transfer, d2: CfgNode, run: Run, main: bool, resuming: bool) -> nn.Module:
    """The detector with its starting weights (a resumed run brings its own); the key report is saved before they are judged."""
    weights = Weights({}) if cfg.init == "scratch" or resuming else read_weights(cfg.init, cfg.network)
    seed_all_rng(cfg.seed)
    model = build_model(d2)
    if main and not resuming:
        report = compare(model, weights)
        write_json(run.folder / "key_report.json", report.to_dict() | {"step": weights.step})
        report.check(remedy(weights, cfg.detector))
        print(report.summary(), flush=True)
    load_into(model, weights, cfg.detector)
    return model


def transfer(run: Run, process: distributed.Process) -> dict:
    """Run (or go on with) a transfer to its end; returns its metrics. Raises BookError before any work for bad input."""
    if process.world > 1:
        comm.create_local_process_group(process.local_world)
    cfg = from_dict(Transfer, run.record["config"])
    say = print if process.main else lambda *_, **__: None
    folder = run.folder / "detectron2"
    _log_to(folder, process.main)
    train, test = open_both(cfg)
    d2 = detectron_config(cfg, train, test, folder, process.world)
    say(
        f"{process.describe()}; {cfg.detector} from {cfg.init}; {len(train.image_ids)} training and {len(test.image_ids)} test "
        f"images, {len(train.classes)} classes, masks: {train.mask_format or 'none'}; batch {cfg.batch} = {process.world} x "
        f"{cfg.batch // process.world}, lr {cfg.lr:g}, weight decay {cfg.weight_decay:g}, {cfg.iterations} iterations, lr drops at "
        f"{', '.join(map(str, d2.SOLVER.STEPS))}",
        flush=True,
    )
    resuming = (folder / "last_checkpoint").exists()
    if process.main:
        (folder / "config.yaml").write_text(d2.dump())
        if cfg.labelled != 1:
            write_json(run.folder / "labelled.json", {"seed": cfg.seed, "labelled": cfg.labelled, "image_ids": list(train.image_ids)})
    model = _initial_model(cfg, d2, run, process.main, resuming)
    results = FineTuner(run, cfg, d2, test, model).go()
    if not process.main:
        return {}
    row = run.rows()[-1]
    return {
        "profile": cfg.profile,
        "init": cfg.init,
        "detector": cfg.detector,
        "iterations": cfg.iterations,
        "processes": process.world,
        "train_images": len(train.image_ids),
        "images": len(test.image_ids),
        "loss": row["loss"],
        "images_per_s": row["images_per_s"],
        "memory_gb": row["memory_gb"],
        "seconds": row["seconds"],
        **results,
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status (see session.main)."""
    return session.main(__doc__, transfer, arguments)


if __name__ == "__main__":
    sys.exit(main())
