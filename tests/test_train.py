"""The loop on a tiny detector: it learns, stops on bad input, and goes on as if nothing had happened."""

import json
import multiprocessing
import os
import random
import shutil
import sys
import time
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from soco_lib import BookError, train
from soco_lib.config import Pretrain, plan
from soco_lib.dataset import ProposalViews, Schedule, build_loader, choose
from soco_lib.optim import learning_rate
from soco_lib.runs import checkpoint, log, processes
from soco_lib.runs.folder import Run
from soco_lib.runs.launch import Launch, command, launch
from soco_lib.runs.log import Log, line
from tests.conftest import stopped_after_saving


def with_(cfg, **changes):
    return Pretrain(**{**{f: getattr(cfg, f) for f in cfg.__dataclass_fields__}, **changes})


def run_here(cfg, results, name="run"):
    run = Run.start(name, "pretrain", cfg, results)
    return run, train.main([str(run.folder)])


def final_weights(run):
    return checkpoint.read(checkpoint.paths(run.folder)[-1])["model"]


def same_threads():
    """A child's sums come out bit-equal only with as many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_lowers_the_loss_and_leaves_a_record(cfg, tmp_path):
    run, status = run_here(with_(cfg, steps=30, log_every=5), tmp_path)
    rows, metrics = run.rows(), Run.read(run.folder).metrics
    assert status == 0
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert metrics["images_seen"] == 120 and metrics["unreadable"] == 0
    record = Run.read(run.folder).record
    assert record["status"] == "done" and {"git", "versions", "hardware", "end"} <= record["sessions"][0].keys()
    assert len(checkpoint.paths(run.folder)) == 2  # keep
    assert {
        "pairs",
        "spread",
        "effective_rank",
        "tau",
        "lr",
        "images_per_s",
        "data_wait",
        "memory_gb",
        "eta_s",
    } <= rows[0].keys()
    before = (run.folder / "metrics.json").stat().st_mtime_ns
    assert train.main([str(run.folder)]) == 0  # done: nothing to do
    assert (run.folder / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("stop_at", [2, 4, 6])
def test_resume_is_bit_equal(cfg, tmp_path, stop_at):
    whole, _ = run_here(cfg, tmp_path, "whole")
    with stopped_after_saving(stop_at):
        run_here(cfg, tmp_path, "parts")
    parts, status = run_here(with_(cfg, workers=1), tmp_path, "parts")  # how it is fed may change
    assert status == 0
    assert same(final_weights(whole), final_weights(parts))
    assert [r["loss"] for r in whole.rows()] == [r["loss"] for r in parts.rows()]


def train_apart(folder):
    """As `python -m soco_lib.train` does, in a process that a forkserver made: clean, and without the seconds of
    imports.
    """
    multiprocessing.set_start_method(
        "fork", force=True
    )  # Python's own for the loader's workers, which it would inherit from here
    train.main([folder])


def test_killed_ten_times_at_random_and_resumed_is_bit_equal(cfg, tmp_path, monkeypatch):
    cfg = with_(cfg, steps=60, save_every=2, log_every=1)  # of 3 steps an epoch: checkpoints lie inside epochs too
    whole, _ = run_here(cfg, tmp_path, "whole")
    monkeypatch.setenv(
        "OMP_NUM_THREADS", str(torch.get_num_threads())
    )  # sums come out bit-equal only with as many threads
    processes, rng = multiprocessing.get_context("forkserver"), random.Random(0)
    processes.set_forkserver_preload(["soco_lib.train"])
    for kill in range(10):
        run = Run.start("killed", "pretrain", with_(cfg, workers=(0, 2)[kill % 2]), tmp_path)
        child, step = (
            processes.Process(target=train_apart, args=(str(run.folder),)),
            len(run.rows()) + rng.randint(1, 4),
        )
        child.start()
        while len(run.rows()) < step and child.is_alive():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))  # in a step, between two, or while a checkpoint is written
        assert child.is_alive(), "it ended before it could be killed"
        child.kill()
        while Path(f"/proc/{child.pid}").exists():  # join() would wait for its loader's orphans too
            time.sleep(0.005)
    assert train.main([str(run.folder)]) == 0
    assert len(Run.read(run.folder).record["sessions"]) == 11
    assert same(final_weights(whole), final_weights(run))
    assert [r["loss"] for r in whole.rows()] == [r["loss"] for r in run.rows()]


def test_broken_newest_checkpoint_is_passed_over(cfg, tmp_path, capsys):
    run, _ = run_here(cfg, tmp_path)
    newest = checkpoint.paths(run.folder)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    assert checkpoint.newest(run.folder)["step"] == 6
    assert newest.name in capsys.readouterr().out


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(cfg, tmp_path, monkeypatch, capsys):
    real = train.Trainer.backward

    def poisoned(self, batch, last):
        out = real(self, batch, last)
        self.calls = getattr(self, "calls", 0) + 1
        return out if self.calls < 6 else {**out, "loss": out["loss"] * float("nan")}

    monkeypatch.setattr(train.Trainer, "backward", poisoned)
    run, status = run_here(cfg, tmp_path)
    assert status == 1 and "nan at step 6" in capsys.readouterr().err
    assert Run.read(run.folder).record["status"] == "failed"
    assert checkpoint.newest(run.folder)["step"] == 4


def test_a_gpus_loss_is_read_late_and_not_lost(cfg, tmp_path, monkeypatch, capsys):
    """As above, where the host runs ahead of its device: told of the same step, and no checkpoint holds what came of
    it.
    """
    monkeypatch.setattr(processes.Process, "ahead", True)
    real, seen = processes.Later, []

    class Poisoned(real):
        def read(self):
            seen.append(self)
            return super().read() * (float("nan") if len(seen) == 5 else 1)

    monkeypatch.setattr(processes, "Later", Poisoned)
    run, status = run_here(with_(cfg, log_every=4, save_every=4), tmp_path)
    assert status == 1 and "nan at step 5" in capsys.readouterr().err
    assert checkpoint.newest(run.folder)["step"] == 4


def test_an_update_whose_gradient_overflows_changes_nothing_but_the_schedules(cfg, tmp_path):
    """fp16's scaler skips it: weights, momentum and target stay, and the log says how many."""
    cfg = with_(cfg, precision="fp16", optimizer="lars", tau=0.5)
    dataset = ProposalViews(cfg)
    trainer = train.Trainer(cfg, plan(cfg, len(dataset)), processes.start())
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    batches = iter(build_loader(dataset, trainer.plan, 0, 0, pin=False))
    rows = Log(Run.start("run", "pretrain", cfg, tmp_path), cfg, trainer.plan, writes=False)
    assert not trainer.update(0, batches)["skipped"]
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    momentum = [state["momentum"].clone() for state in trainer.optimizer.state.values()]
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    out = trainer.update(1, batches)
    assert out["skipped"] and all(torch.equal(before[k], v) for k, v in trainer.model.named_parameters())
    assert all(torch.equal(a, state["momentum"]) for a, state in zip(momentum, trainer.optimizer.state.values()))
    assert trainer.optimizer.param_groups[0]["lr"] == learning_rate(1, trainer.plan, cfg)
    rows.add(out)
    assert rows.row(2, out)["skipped"] == 1


def test_a_resumed_run_lets_go_of_the_checkpoints_contents(cfg, tmp_path, monkeypatch):
    run, _ = run_here(cfg, tmp_path)
    real, held = checkpoint.read, []

    def read(path):
        state = real(path)
        held.extend(weakref.ref(tensor) for tensor in state["model"].values())
        return state

    monkeypatch.setattr(checkpoint, "read", read)
    dataset = ProposalViews(cfg)
    trainer = train.Trainer(cfg, plan(cfg, len(dataset)), processes.start())
    assert trainer.resume(run.folder) == 8
    assert held and not any(tensor() is not None for tensor in held)


def test_compiling_for_several_processes_is_refused_until_it_has_run(cfg):
    with pytest.raises(BookError, match="compile=true has never run with several processes"):
        train.build_model(with_(cfg, compile=True), processes.Process(0, 0, 2, 2, torch.device("cpu")))


def test_an_image_whose_boxes_are_too_small_to_see_is_replaced_and_counted(cfg, store):
    """A view without a box would leave batch norm nothing; at the same step again after every resume."""
    dataset, specks = ProposalViews(cfg), {3}
    boxes = dataset.boxes
    dataset.boxes = lambda index, size: boxes(index, size) * (1e-3 if index in specks else 1)
    views, stood_in = dataset[(0, 3)]
    assert stood_in and all(view.valid.any() for view in views)
    specks |= set(range(12))
    with pytest.raises(BookError, match="every proposal drawn of .*jpg is under a pixel"):
        dataset[(0, 3)]


def test_a_folder_of_another_configuration_is_refused(cfg, tmp_path):
    Run.start("run", "pretrain", cfg, tmp_path)
    Run.start("run", "pretrain", with_(cfg, log_every=99), tmp_path)  # only how it is watched
    Run.read(tmp_path / "run").log({"step": 1})  # from then on there is something to lose
    with pytest.raises(BookError, match=r"k: 4 there, 8 now"):
        Run.start("run", "pretrain", with_(cfg, k=8), tmp_path)
    with pytest.raises(BookError, match="run name"):
        Run.start("../run", "pretrain", cfg, tmp_path)


def test_two_writers_are_refused(cfg, tmp_path):
    run = Run.start("run", "pretrain", cfg, tmp_path)
    run.lock()
    with pytest.raises(BookError, match="another process"):
        Run.read(run.folder).lock()


def test_two_gloo_processes_train_and_say_so(cfg, tmp_path):
    run, said = Run.start("run", "pretrain", with_(cfg, steps=4), tmp_path), []
    metrics = launch(run, Launch(gpus=2), said.append)
    assert metrics["processes"] == 2
    assert any(
        "2 gloo processes on the CPU" in line and "2 processes x 1 accumulation x 2 images" in line for line in said
    )


def test_failure_of_the_child_is_one_error(cfg, tmp_path):
    run = Run.start("run", "pretrain", with_(cfg, batch=64), tmp_path)
    with pytest.raises(BookError, match="larger than the 12 usable images"):
        launch(run, say=lambda line: None)


def test_unreadable_image_is_replaced_and_counted(cfg, pictures, store, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    dataset = ProposalViews(with_(cfg, images=f"folder:{folder}"))
    (folder / "03.jpg").write_bytes(b"not a picture")  # broken after its proposals were made
    views, stood_in = dataset[(0, 3)]
    assert stood_in and len(views) == 3
    assert not dataset[(0, 4)][1]


def test_proposals_of_other_images_are_refused(cfg, tmp_path):
    cv2.imwrite(str(tmp_path / "other.jpg"), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(BookError, match="do not belong"):
        ProposalViews(with_(cfg, images=f"folder:{tmp_path}"))


def test_samples_depend_on_seed_and_number_only(cfg):
    dataset = ProposalViews(cfg)
    a, b, other = dataset[(7, 2)][0], dataset[(7, 2)][0], dataset[(8, 2)][0]
    assert all((x.image == y.image).all() and (x.boxes == y.boxes).all() for x, y in zip(a, b))
    assert not all((x.image == y.image).all() for x, y in zip(a, other))


def test_processes_and_accumulation_share_out_one_global_batch(cfg):
    c = with_(cfg, batch=6, steps=4, micro_batch=0)
    usable = np.arange(12)
    one = [items for items in Schedule(usable, c, plan(c, 12))]
    halves = [list(Schedule(usable, c, plan(c, 12, 2), rank)) for rank in (0, 1)]
    assert one == [a + b for a, b in zip(*halves)]
    small = with_(c, micro_batch=2)
    micro = list(Schedule(usable, small, plan(small, 12)))
    assert one == [sum(micro[3 * i : 3 * i + 3], []) for i in range(4)]
    assert list(Schedule(usable, c, plan(c, 12), start=2)) == one[2:]
    assert sorted(i for items in one[:2] for _, i in items) == list(range(12))  # an epoch sees every image once
    assert one[0] != one[2]


def test_k_proposals_without_replacement_and_repeats_only_when_few():
    rng = np.random.default_rng(0)
    drawn = np.array([choose(rng, 10, 4) for _ in range(3000)])
    assert all(len(set(row)) == 4 for row in drawn)
    assert np.abs(np.bincount(drawn.ravel(), minlength=10) / drawn.size - 0.1).max() < 0.01
    assert sorted(set(choose(rng, 3, 8))) == [0, 1, 2] and len(choose(rng, 3, 8)) == 8


def test_spread_and_rank_tell_collapse_from_health():
    g = torch.Generator().manual_seed(0)
    healthy = torch.randn(500, 32, generator=g)
    collapsed = torch.ones(500, 32) + 1e-3 * healthy
    assert log.spread(healthy) == pytest.approx(1.0, abs=0.02) and log.effective_rank(healthy) > 29
    assert log.spread(collapsed) < 0.01
    flat = healthy.clone()
    flat[:, 4:] = 0
    assert 3.8 < log.effective_rank(flat) <= 4.0


@pytest.mark.parametrize(
    ("spread", "pairs", "says"),
    [
        (0.8, [0.1, -0.2], ""),
        (0.6, [-3.7, -3.9], ""),
        (0.19, [-1.0, -1.0], "COLLAPSE"),
        (0.0, [-4.0, -4.0], "COLLAPSE"),
        (0.8, [-4.0, -3.99], "DEAD LOSS"),
        (0.8, [-4.0, -3.0], ""),
        (float("nan"), [-1.0], ""),  # one object: no spread
    ],
)
def test_verdict(spread, pairs, says):
    assert log.verdict(spread, pairs).partition(":")[0] == says


@pytest.mark.parametrize("broken", [False, True])
def test_collapse_is_called_by_name_while_the_run_is_young(cfg, tmp_path, monkeypatch, capsys, broken):
    """Without predictor and slow target nothing holds embeddings apart; with them an untrained network is no alarm."""
    real = train.build_model

    def without_predictor(*args):
        model = real(*args)
        model.predictor = torch.nn.Identity()
        return model

    if broken:
        monkeypatch.setattr(train, "build_model", without_predictor)
    run_here(with_(cfg, steps=12, log_every=1, warmup_epochs=0, base_lr=32.0, tau=0.0 if broken else 0.99), tmp_path)
    lines = [text for text in capsys.readouterr().out.splitlines() if text.startswith("step ")]
    alarms = [step for step, text in enumerate(lines, start=1) if "COLLAPSE: spread" in text]
    assert len(lines) == 12 and (alarms[0] <= 5 if broken else not alarms), lines


def test_line_shows_every_pair_and_the_range_of_trust_ratios():
    """As wide as SoCo* at the paper's size needs."""
    row = dict(
        step=249950,
        loss=-10.871,
        pairs=[-3.62, -3.61, -3.64],
        spread=0.774,
        effective_rank=145.3,
        lr=1.03e-6,
        tau=0.9901,
    )
    row |= dict(trust=[1.2e-5, 0.02], images_per_s=9017.7, data_wait=0.12, memory_gb=61.2, eta_s=126_000)
    text = line(row, 250_000)
    assert "loss -10.87 (-3.62 -3.61 -3.64)" in text and "trust 1e-05..2e-02" in text and text.endswith("eta 35.0 h")
    assert len(text) <= 160
    assert "trust" not in line({k: v for k, v in row.items() if k != "trust"}, 250_000)


def test_log_survives_a_torn_line(cfg, tmp_path):
    run = Run.start("run", "pretrain", cfg, tmp_path)
    run.log({"step": 1, "loss": 2.0})
    run.log({"step": 2, "loss": 1.0})
    run.log({"step": 1, "loss": 2.0})  # repeated by a resumed run
    with open(run.folder / "log.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in run.rows()] == [1, 2]
    (run.folder / "run.json").write_text(json.dumps(run.record)[:50])
    with pytest.raises(BookError, match="is not valid"):
        Run.read(run.folder)


def test_torchrun_command():
    words = command("soco_lib.train", Path("r/x"), Launch(gpus=8, nodes=2, rendezvous="a:1"))
    assert words[:2] == [sys.executable, "-u"] and {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=a:1"} <= set(
        words
    )
    with pytest.raises(BookError, match="RENDEZVOUS"):
        Launch(gpus=8, nodes=2)
