"""Two gloo processes equal one process with the same global batch, where batch norm does not look at the batch."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp

from soco_lib import distributed
from soco_lib.config import Pretrain, View, plan
from soco_lib.dataset import ProposalViews, build_loader
from soco_lib.proposals import ProposalConfig
from soco_lib.sources import open_source
from soco_lib.store import build_store
from soco_lib.train import Trainer
from tests.conftest import TINY_DETECTOR


def three_updates(rank: int, world: int, port: int, cfg: Pretrain, out: str) -> None:
    """Run three updates as process `rank` of `world` with frozen batch norm; the first one saves the weights."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    process = distributed.start()
    dataset = ProposalViews(cfg)
    numbers = plan(cfg, len(dataset), world)
    trainer = Trainer(cfg, numbers, process)
    trainer.model.eval()
    batches = iter(build_loader(dataset, numbers, rank, 0, pin=False))
    losses = [float(distributed.mean(trainer.update(step, batches)["loss"])) for step in range(3)]
    if process.main:
        torch.save({"model": trainer.model.state_dict(), "losses": losses}, out)
    distributed.stop()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("how", ["processes", "accumulation"])
def test_the_global_batch_is_all_that_counts(pictures, tmp_path, how):
    build_store(open_source(f"folder:{pictures}"), ProposalConfig(mode="single"), tmp_path / "proposals", workers=1)
    common = dict(
        images=f"folder:{pictures}", proposals=str(tmp_path / "proposals"), detector="mask-rcnn-r50-fpn", overrides=TINY_DETECTOR,
        size=64, views=(View(64), View(32, "V2")), hidden=32, embedding=16, base_lr=3.2, batch=4, steps=3, warmup_epochs=0,
        precision="fp32", workers=0,
    )  # fmt: skip
    whole = Pretrain(**common)
    parts = whole if how == "processes" else Pretrain(**common, micro_batch=2)
    mp.spawn(three_updates, (1, free_port(), whole, str(tmp_path / "whole.pt")), nprocs=1)
    world = 2 if how == "processes" else 1
    mp.spawn(three_updates, (world, free_port(), parts, str(tmp_path / "parts.pt")), nprocs=world)
    a, b = (torch.load(tmp_path / name) for name in ("whole.pt", "parts.pt"))
    assert a["losses"] == pytest.approx(b["losses"], abs=1e-5)
    assert max(float((a["model"][k] - b["model"][k]).abs().max()) for k in a["model"] if a["model"][k].is_floating_point()) <= 1e-6
