"""Every variant of the method is configuration: each trains 20 steps through the command's own path.

`make check-variants` runs this file alone, with the compiled network too, which takes minutes.
"""

import os
import shutil

import pytest
import torch

from soco_lib import train
from soco_lib.config import View
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import build_store
from soco_lib.runs import processes
from soco_lib.runs.folder import Run
from tests.conftest import TINY_DETECTOR
from tests.test_train import final_weights, with_

STEPS = 20
BACKBONE = TINY_DETECTOR[-3:]  # detectors that lack FPN or box head have no such settings
NO_HEAD = (TINY_DETECTOR[0], *BACKBONE)
V2, V3 = View(64), View(32, "V2")
C4 = dict(detector="mask-rcnn-r50-c4", overrides=BACKBONE)
#: Table 4, row by row, each on top of the one before it.
WHOLE = dict(views=(V2,), jitter_p=0.0, alignment="whole", k=1, proposals="whole")
SELECTIVE = dict(views=(V2,), jitter_p=0.0, alignment="c5")
FPN = {**SELECTIVE, "alignment": "neck", "assignment": "fixed"}
HEAD = {**FPN, "alignment": "head"}
SCALE = {**HEAD, "assignment": "scale"}
JITTER = {**SCALE, "jitter_p": 0.5}
MULTI = {**JITTER, "views": (V2, V3)}

VARIANTS = {
    "SoCo-FPN": dict(),
    "SoCo* (V4)": dict(views=(V2, V3, View(56))),
    "C4, V1 and V2": {**C4, "views": (View(64, scale=(0.6, 1.0)),)},
    "C4, V1, V2 and V3": C4,
    "five more views, crops and downsampled": dict(views=(V2, V3, View(48), View(40, "V4"), View(36, "V3"))),
    "V3 as its own crop": dict(views=(V2, View(32))),
    "cutout in a box": dict(cutout_p=0.5),
    "random proposals": dict(proposals="random"),
    "whole image as proposal, box head": dict(proposals="whole"),
    "K 1": dict(k=1),
    "K 8": dict(k=8),
    "K 16": dict(k=16),
    "Table 4: whole image": WHOLE,
    "Table 4: + selective search": SELECTIVE,
    "Table 4: + FPN": FPN,
    "Table 4: + head": HEAD,
    "Table 4: + scale-aware": SCALE,
    "Table 4: + box jitter": JITTER,
    "Table 4: + multi-view": MULTI,
    "Detectron2's assignment": dict(assignment="detectron2"),
    "RetinaNet": dict(detector="retinanet-r50-fpn", overrides=NO_HEAD),
    "FCOS": dict(detector="fcos-r50-fpn", overrides=NO_HEAD),
    "R-101": dict(detector="mask-rcnn-r101-fpn"),
    "R-101 RetinaNet by its file": dict(detector="COCO-Detection/retinanet_R_101_FPN_3x.yaml", overrides=NO_HEAD),
    "LARS": dict(optimizer="lars", base_lr=64.0),
    "AdamW": dict(optimizer="adamw", base_lr=0.064),
    "bf16": dict(precision="bf16"),
    "fp16": dict(precision="fp16"),
    "channels first": dict(channels_last=False),
    "accumulation": dict(micro_batch=2),
    "compiled": dict(compile=True, detector="toy-mask-rcnn-r18-fpn", overrides=TINY_DETECTOR[:4]),
}
#: What of a variant's network stands still, since no box is pooled there. The lateral of a level also feeds the levels
#: below it.
FIXED = {"fpn_output2", "fpn_output3", "fpn_output5", "fpn_lateral2", "fpn_lateral3"}  # all but P4
STILL = {
    "Table 4: + FPN": FIXED,
    "Table 4: + head": FIXED,
    "whole image as proposal, box head": {
        "fpn_output2",
        "fpn_output3",
        "fpn_lateral2",
        "fpn_lateral3",
    },  # 64 and 32 pixels: P5, P4
    "Detectron2's assignment": {"fpn_output3", "fpn_output4", "fpn_output5"},  # made for 224 pixels and more
}
#: Biases that the batch norm behind them takes away: their gradient is rounding.
TAKEN_AWAY = ("projector.0.bias", "projector.3.bias", "predictor.0.bias")


@pytest.fixture(scope="module")
def random_store(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("random") / "proposals"
    build_store(open_source(f"folder:{pictures}"), ProposalConfig(generator="random"), out, workers=1)
    return str(out)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_trains(cfg, random_store, tmp_path, name, capsys):
    changes = {**VARIANTS[name]}
    if changes.get("compile") and not (os.environ.get("SOCO_SLOW") and shutil.which("g++")):
        pytest.skip("compiling takes minutes and a C++ compiler: make check-variants")
    if changes.get("proposals") == "random":
        changes["proposals"] = random_store
    cfg = with_(
        cfg, **{"steps": STEPS, "warmup_epochs": 0, "canonical": 24.0, "log_every": 1, "save_every": 1000, **changes}
    )
    run = Run.start("variant", "pretrain", cfg, tmp_path)
    assert train.main([str(run.folder)]) == 0

    rows, metrics = run.rows(), Run.read(run.folder).metrics
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    bound = 4 * len(cfg.views)
    assert all(-bound <= row["loss"] <= bound and len(row["pairs"]) == len(cfg.views) for row in rows)
    assert (
        metrics["images_seen"] == STEPS * cfg.batch
        and metrics["unreadable"] == 0
        and metrics["loss"] == rows[-1]["loss"]
    )
    assert f"{cfg.optimizer}, {cfg.precision}" in capsys.readouterr().out

    before, after = train.build_model(cfg, processes.start()).cpu(), final_weights(run)
    learned = {k: p for k, p in before.named_parameters() if not k.startswith("target.") and not k.endswith(TAKEN_AWAY)}
    still = {k for k, p in learned.items() if torch.equal(p, after[k])}
    assert {k.split(".")[3] for k in still} == STILL.get(name, set())
    targets = {k: k.replace("online.", "target.") for k, p in learned.items() if k.startswith("online.") and p.ndim > 1}
    follow = {k for k, target in targets.items() if not torch.equal(after[target], before.state_dict()[target])}
    assert follow == targets.keys() - still
    assert not any(torch.equal(after[k], after[targets[k]]) for k in follow)
