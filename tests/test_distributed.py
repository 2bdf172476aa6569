"""Two gloo processes equal one process with the same global batch, where batch norm does not look at the batch."""

import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from soco_lib import BookError
from soco_lib.config import Pretrain, View, plan
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import build_store
from soco_lib.dataset import ProposalViews, build_loader
from soco_lib.runs import checkpoint, processes, session
from soco_lib.runs.folder import Run
from soco_lib.train import Trainer
from tests.conftest import TINY_DETECTOR


def joined(rank: int, world: int, port: int) -> processes.Process:
    """This process as one of `world`."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return processes.start()


def three_updates(rank: int, world: int, port: int, cfg: Pretrain, out: str) -> None:
    """Run three updates as process `rank` of `world` with frozen batch norm; the first one saves the weights."""
    process = joined(rank, world, port)
    dataset = ProposalViews(cfg)
    numbers = plan(cfg, len(dataset), world)
    trainer = Trainer(cfg, numbers, process)
    trainer.model.eval()
    batches = iter(build_loader(dataset, numbers, rank, 0, pin=False))
    losses = [float(processes.mean(trainer.update(step, batches)["loss"])) for step in range(3)]
    if process.main:
        torch.save({"model": trainer.model.state_dict(), "losses": losses}, out)
    processes.stop()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("how", ["processes", "accumulation"])
def test_the_global_batch_is_all_that_counts(pictures, tmp_path, how):
    build_store(open_source(f"folder:{pictures}"), ProposalConfig(mode="single"), tmp_path / "proposals", workers=1)
    common = dict(
        images=f"folder:{pictures}", proposals=str(tmp_path / "proposals"),
        detector="mask-rcnn-r50-fpn", overrides=TINY_DETECTOR, size=64, views=(View(64), View(32, "V2")),
        hidden=32, embedding=16, base_lr=3.2, batch=4, steps=3, warmup_epochs=0,
        precision="fp32", workers=0,
    )  # fmt: skip
    whole = Pretrain(**common)
    parts = whole if how == "processes" else Pretrain(**common, micro_batch=2)
    mp.spawn(three_updates, (1, free_port(), whole, str(tmp_path / "whole.pt")), nprocs=1)
    world = 2 if how == "processes" else 1
    mp.spawn(three_updates, (world, free_port(), parts, str(tmp_path / "parts.pt")), nprocs=world)
    a, b = (torch.load(tmp_path / name) for name in ("whole.pt", "parts.pt"))
    assert a["losses"] == pytest.approx(b["losses"], abs=1e-5)
    assert (
        max(float((a["model"][k] - b["model"][k]).abs().max()) for k in a["model"] if a["model"][k].is_floating_point())
        <= 1e-6
    )


def agree(rank: int, world: int, port: int, cfg: Pretrain, folder: Path) -> None:
    """What processes that see different things agree on."""
    process = joined(rank, world, port)
    assert processes.from_first(f"seen by {rank}") == "seen by 0"
    assert processes.anyone(rank == 1) and not processes.anyone(False)
    if process.main:
        for step in (2, 4):
            checkpoint.save(folder, step, {}, 2)
    processes.wait()
    if not process.main:
        seen = checkpoint.paths
        checkpoint.paths = lambda folder: seen(folder)[
            :-1
        ]  # a network file system has not told this process of the newest
    assert checkpoint.chosen(folder, process.main)["step"] == 4
    assert checkpoint.chosen(folder / "none", process.main) is None
    dataset = ProposalViews(cfg)
    trainer = Trainer(cfg, plan(cfg, len(dataset), world), process)
    trainer.update(0, iter(build_loader(dataset, trainer.plan, rank, 0, pin=False)))
    means = [None] * world
    dist.all_gather_object(means, trainer.model.online.encoder.trunk.stem.conv1.norm.running_mean.tolist())
    assert means[0] != means[1], "the first process's statistics were imposed on the other"
    processes.stop()


def test_processes_agree_on_what_each_sees_for_itself(cfg, tmp_path):
    """Which checkpoint, whether an evaluation is due, whether to stop; each keeps the statistics of its own norms."""
    mp.spawn(agree, (2, free_port(), cfg, tmp_path), nprocs=2)


def test_a_chosen_checkpoint_that_never_comes_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.3)
    monkeypatch.setattr(processes, "from_first", lambda value: 4)
    with pytest.raises(BookError, match="no checkpoint .*step_00000004.pt"):
        checkpoint.chosen(tmp_path, first=False)


@pytest.fixture
def four_gpus(monkeypatch):
    """A machine with four GPUs, as far as starting asks."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 3, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))


def test_nccl_gets_a_device_and_a_timeout_and_lone_work_a_group_of_its_own(four_gpus, monkeypatch):
    """NCCL's own 10 minutes are shorter than LVIS's evaluation, which one process makes alone."""
    calls = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **how: calls.append((backend, how)))
    monkeypatch.setattr(dist, "new_group", lambda **how: calls.append(how))
    monkeypatch.setattr(processes, "_agreeing", None)  # put back afterwards, both
    monkeypatch.setattr(processes, "_waiting", None)
    assert processes.start().device == torch.device("cuda", 3)
    device = torch.device("cuda", 3)
    assert calls[0] == ("nccl", {"timeout": processes.TIMEOUT, "device_id": device}) and processes.TIMEOUT >= timedelta(
        minutes=30
    )
    assert calls[1:] == [{"backend": "gloo", "timeout": limit} for limit in (processes.TIMEOUT, processes.LONE_WORK)]
    assert processes.LONE_WORK > timedelta(hours=12)


@pytest.mark.parametrize("rank", ["0", "7"])
def test_more_processes_than_gpus_are_one_line_of_the_first(four_gpus, monkeypatch, tmp_path, cfg, capsys, rank):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", rank)
    run = Run.start("run", "pretrain", cfg, tmp_path)
    assert session.main("", None, [str(run.folder)], fixed_sizes=True) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == ["error: 8 processes were started on this node and 4 GPUs are visible: GPUS=4"] * (rank == "0")


def test_float32_on_a_gpu_is_float32(monkeypatch, request):
    """cuDNN's convolutions use TF32 unless told; its trials of algorithms pay where sizes are fixed. Both go to the
    run's record.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32
    request.addfinalizer(
        lambda: [setattr(*x) for x in zip((cudnn, cudnn, matmul), ("allow_tf32", "benchmark", "allow_tf32"), before)]
    )
    assert processes.arithmetic(True) == {} and torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert processes.arithmetic(True) == {"tf32": False, "cudnn_benchmark": True}
    assert (
        not torch.backends.cudnn.allow_tf32
        and not torch.backends.cuda.matmul.allow_tf32
        and torch.backends.cudnn.benchmark
    )
    assert (
        processes.arithmetic(False) == {"tf32": False, "cudnn_benchmark": False} and not torch.backends.cudnn.benchmark
    )
