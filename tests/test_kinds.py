"""Kinds of bad input, each with the sentence that names it and the remedy: settings, stores, checkpoints, files, places."""

import pytest

from soco_lib import BookError
from soco_lib.config import Pretrain, View
from soco_lib.data.proposals import ProposalConfig
from soco_lib.detector import detector_config
from soco_lib.fields import from_dict
from soco_lib.runs import processes
from soco_lib.train import build_model
from soco_lib.transfer.benchmarks import Transfer

PRETRAIN, TRANSFER = {"images": "a", "proposals": "b"}, {"train": "coco:a", "test": "coco:b"}
ANCHORS = "MODEL.ANCHOR_GENERATOR.SIZES"

# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "values", "sentence"),
    [
        (Pretrain, {"base_lr": float("inf")}, "base_lr=inf must be a finite number"),
        (Pretrain, {"base_lr": ".inf"}, "base_lr='.inf' must be a finite number"),
        (Pretrain, {"epochs": float("nan")}, "epochs=nan must be a finite number"),
        (Pretrain, {"steps": float("inf")}, "steps=inf must be of type int"),
        (Pretrain, {"batch": float("nan")}, "batch=nan must be of type int"),
        (Pretrain, {"workers": -1}, "workers=-1 may not be negative"),
        (Pretrain, {"workers": 10**6}, "workers=1000000 must be at most 1024"),
        (Pretrain, {"k": 100_000}, "k=100000 must be at most 1024"),
        (Pretrain, {"seed": 2**70}, f"seed={2**70} must be at most"),
        (Pretrain, {"seed": -1}, "seed=-1 may not be negative"),
        (Pretrain, {"momentum": 5}, "momentum=5.0 must be at most"),
        (Pretrain, {"size": 1}, "size=1 must be at least 16"),
        (Pretrain, {"size": 10**6}, "size=1000000 must be at most 4096"),
        (Pretrain, {"views": [{"size": 1}]}, "view size=1 must be at least 16"),
        (Pretrain, {"views": [{"size": 64, "scale": [float("nan"), 1]}]}, r"scale\[0\]=nan must be a finite number"),
        (Pretrain, {"warmup_factor": -3}, "warmup_factor=-3.0 may not be negative"),
        (Pretrain, {"jitter": 40}, "jitter=40.0 must be at most 1"),
        (Pretrain, {"trust": 0}, "trust=0.0 must be positive"),
        (Pretrain, {"weight_decay": -1e-4}, "weight_decay=-0.0001 may not be negative"),
        (Pretrain, {"fixed_level": 9}, "fixed_level=9 must be at most 6"),
        (Pretrain, {"probe_every": -1}, "probe_every=-1.0 may not be negative"),
        (Transfer, {"momentum": 5}, "momentum=5.0 must be at most"),
        (Transfer, {"max_size": 1}, "max_size=1 must be at least 16"),
        (Transfer, {"test_size": 10**7}, "test_size=10000000 must be at most"),
        (Transfer, {"min_sizes": []}, r"min_sizes=\(\) needs at least one side"),
        (Transfer, {"min_sizes": [1]}, r"min_sizes=\(1,\) needs at least one side"),
        (Transfer, {"precise_bn": 10**9}, "precise_bn=1000000000 must be at most 10000"),
        (Transfer, {"seed": 2**64}, f"seed={2**64} must be at most"),
        (Transfer, {"lr": float("inf")}, "lr=inf must be a finite number"),
        (Transfer, {"milestones": [float("nan")]}, r"milestones\[0\]=nan must be a finite number"),
        (Transfer, {"workers": -2}, "workers=-2 may not be negative"),
        (ProposalConfig, {"count": 10**9}, "count=1000000000 must be at most"),
        (ProposalConfig, {"seed": 2**64}, "must be at most"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_the_start(cls, values, sentence):
    needed = {Pretrain: PRETRAIN, Transfer: TRANSFER}.get(cls, {})
    with pytest.raises(BookError, match=sentence):
        from_dict(cls, needed | values)


@pytest.mark.parametrize("make", [lambda: Pretrain("a", "b", base_lr=float("nan")), lambda: View(64, ratio=(1, 1e999))])
def test_so_it_is_in_python(make):
    with pytest.raises(BookError, match="base_lr=nan|ratio="):
        make()


@pytest.mark.parametrize("value", ["[]", "[[]]", "[[32],[]]", "[[-1]]", "[['a']]", "3", "[[0]]"])
def test_anchors_that_no_network_can_have_are_refused(value):
    with pytest.raises(BookError, match=f"{ANCHORS}.*positive numbers|override '{ANCHORS}"):
        detector_config("mask-rcnn-r50-fpn", (f"{ANCHORS}={value}",))


def test_compile_without_a_compiler_is_refused(cfg, monkeypatch):
    from dataclasses import replace

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BookError, match="compile=true needs a compiler and none of g"):
        build_model(replace(cfg, compile=True), processes.start())
