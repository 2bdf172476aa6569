"""A transfer reaches its batch with what fits, and goes on after any interruption as if nothing had happened."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

from soco_lib import BookError
from soco_lib.config import Pretrain, View
from soco_lib.fields import to_dict
from soco_lib.model import SoCo
from soco_lib.runs import checkpoint, session
from soco_lib.runs.folder import Run, read_json
from soco_lib.runs.loader import Feed
from soco_lib.transfer import finetune
from soco_lib.transfer import run as transfer
from soco_lib.transfer.batches import Accumulator, Batches, Samples, reach
from soco_lib.transfer.benchmarks import Transfer
from soco_lib.transfer.detectron import detectron_config, open_both
from tests.conftest import TINY_DETECTOR, Cut, stopped_after_saving
from tests.test_transfer import TINY, settings, start, write_coco

from detectron2.data import build_detection_train_loader  # isort: skip
from detectron2.data.samplers import TrainingSampler  # isort: skip
from detectron2.engine import DefaultTrainer  # isort: skip
from detectron2.utils import comm  # isort: skip
from detectron2.utils.events import EventStorage  # isort: skip

PAPER = dict(train="coco:a@b", test="coco:c@d", eval_every=5000)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Wide and tall pictures."""
    root = tmp_path_factory.mktemp("mixed")
    return {(split, masks): write_coco(root, split, count, masks, heights=(72, 96, 96))
            for split, count in (("train", 7), ("val", 2)) for masks in ("polygon", "none")}  # fmt: skip


def samples(cfg, folder):
    return Samples(detectron_config(cfg, *open_both(cfg), folder))


def run_here(cfg, folder, name):
    run = start(folder, name, cfg)
    return Run.read(run.folder), transfer.main([str(run.folder)])


def final_weights(run):
    return torch.load(run.folder / "detectron2" / "model_final.pth", weights_only=True)["model"]


def same(a, b, tolerance=0.0):
    return a.keys() == b.keys() and all(torch.allclose(a[k].double(), b[k].double(), 0, tolerance) for k in a)


def scores(run):
    """What a row says of the learning, without times."""
    said = lambda name: name in ("step", "lr") or name.startswith("loss") or name.endswith("_AP")
    return [{name: value for name, value in row.items() if said(name)} for row in run.rows()]


# --- how the batch is reached -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "world, changes, batch, accumulate, lr, iterations, warmup, eval_every, save_every, precise_bn",
    [
        (8, {}, 16, 1, 0.02, 90000, 1000, 5000, 5000, 200),
        (1, {}, 16, 1, 0.02, 90000, 1000, 5000, 5000, 200),
        (1, dict(micro_batch=2), 16, 8, 0.02, 90000, 1000, 5000, 5000, 200),
        (2, dict(micro_batch=4), 16, 2, 0.02, 90000, 1000, 5000, 5000, 200),
        (1, dict(micro_batch=2, reach="scale"), 2, 1, 0.0025, 720000, 8000, 40000, 40000, 1600),
        (2, dict(micro_batch=4, reach="scale"), 8, 1, 0.01, 180000, 2000, 10000, 10000, 400),
        (16, dict(micro_batch=2, reach="scale"), 32, 1, 0.04, 45000, 500, 2500, 2500, 100),
        (8, dict(micro_batch=2, reach="scale"), 16, 1, 0.02, 90000, 1000, 5000, 5000, 200),
    ],
)
def test_arithmetic(world, changes, batch, accumulate, lr, iterations, warmup, eval_every, save_every, precise_bn):
    found = reach(Transfer(**PAPER, **changes), world)
    cfg = found.cfg
    assert (cfg.batch, found.accumulate, cfg.iterations, cfg.warmup) == (batch, accumulate, iterations, warmup)
    assert (cfg.eval_every, cfg.save_every, cfg.precise_bn) == (eval_every, save_every, precise_bn)
    assert cfg.lr == pytest.approx(lr) and world * found.accumulate * found.micro_batch == batch
    assert found.describe().startswith(f"batch {batch} = {world} process") and ("linear" in found.describe()) == (
        batch != 16
    )


def test_scaling_is_detectron2s(mixed, tmp_path):
    cfg = settings(mixed, batch=16, iterations=90000, warmup=1000, eval_every=5000, save_every=5000)
    data = open_both(cfg)
    theirs = detectron_config(cfg, *data, tmp_path)
    theirs.defrost()
    theirs.SOLVER.REFERENCE_WORLD_SIZE = 16
    kept = {name: getattr(cfg, name) for name in ("batch", "iterations", "warmup", "eval_every", "save_every")}
    small = settings(mixed, **kept, micro_batch=6, reach="scale")
    ours = detectron_config(reach(small).cfg, *data, tmp_path)
    theirs = DefaultTrainer.auto_scale_workers(theirs, 6)
    for name in ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "WARMUP_ITERS", "STEPS", "CHECKPOINT_PERIOD"):
        assert ours.SOLVER[name] == pytest.approx(theirs.SOLVER[name]), name
    assert ours.TEST.EVAL_PERIOD == theirs.TEST.EVAL_PERIOD


@pytest.mark.parametrize(
    "world, changes, message",
    [
        (1, dict(micro_batch=3), "no accumulation reaches batch=16: 1 x micro_batch=3"),
        (2, dict(micro_batch=16), "no accumulation reaches batch=16: 2 x micro_batch=16"),
        (3, {}, "batch=16 cannot be split evenly over 3 processes"),
        (3, dict(reach="scale"), "batch=16 cannot be split evenly over 3 processes"),
        (1, dict(micro_batch=-1), "micro_batch=-1 may not be negative"),
    ],
)
def test_impossible_batches(world, changes, message):
    with pytest.raises(BookError, match=message) as caught:
        reach(Transfer(**PAPER, **changes), world)
    assert "\n" not in str(caught.value)


class Toy(torch.nn.Module):
    """Two losses that are means over images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, batch):
        out = self.layer(torch.stack(batch))
        return {"loss_a": out.square().mean(), "loss_b": (out - 1).abs().mean()}


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-6), ("bf16", 1e-2)])
def test_gradient_of_micro_batches_is_the_batchs(precision, tolerance):
    images = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for accumulate in (1, 2, 4):
        model, size = Toy(), 8 // accumulate
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer = Accumulator(model, [list(part) for part in images.split(size)], optimizer, accumulate, precision)
        with EventStorage() as storage:
            trainer.run_step()
            trainer.run_step()
            losses = {name: storage.latest()[name][0] for name in ("loss_a", "loss_b", "total_loss")}
        found.append((model.state_dict(), losses))
    for state, losses in found[1:]:
        assert same(state, found[0][0], tolerance) and losses == pytest.approx(found[0][1], abs=tolerance)


def test_detector_learns_alike_from_micro_batches(mixed, tmp_path):
    """Where no norm sees the batch, every region is sampled and each image has as many: Faster R-CNN's losses are then
    means.
    """
    alone = [f"{part}.NORM=''" for part in ("MODEL.FPN", "MODEL.ROI_BOX_HEAD")]
    every = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE=9999", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE=9999"]
    overrides = (*TINY, *alone, *every, "MODEL.RESNETS.NORM=FrozenBN", "MODEL.RPN.POST_NMS_TOPK_TRAIN=20")
    found = []
    for name, micro in (("whole", 0), ("halves", 2), ("single", 1)):
        cfg = settings(
            mixed, "none", overrides=overrides, iterations=2, warmup=0, batch=4, micro_batch=micro, precise_bn=0
        )
        run, status = run_here(cfg, tmp_path, name)
        metrics = Run.read(run.folder).metrics
        assert status == 0 and (metrics["batch"], metrics["accumulate"]) == (4, 4 // (micro or 4))
        found.append((final_weights(run), [row["loss"] for row in run.rows()]))
    untouched = torch.cat([value.flatten() for key, value in found[0][0].items() if key.endswith("fpn_output2.weight")])
    assert untouched.abs().sum() > 0
    for weights, losses in found[1:]:
        assert same(weights, found[0][0], 1e-5) and losses == pytest.approx(found[0][1], abs=2e-5)


# --- which images -----------------------------------------------------------------------------------------------------


def numbers(batches, count):
    return list(itertools.islice(batches, count))


def test_batches_are_detectron2s(mixed, tmp_path):
    cfg = settings(mixed, batch=2)
    ours = samples(cfg, tmp_path)
    records = list(ours.records)
    theirs = build_detection_train_loader(
        records,
        mapper=dict,
        sampler=TrainingSampler(len(records), seed=cfg.seed),
        total_batch_size=2,
        aspect_ratio_grouping=True,
    )
    for found, expected in zip(Batches(ours, 1, 2), itertools.islice(theirs, 20)):
        assert [records[index]["image_id"] for _, index in found] == [record["image_id"] for record in expected]


def test_micro_batches_processes_and_start_share_out_one_order(mixed, tmp_path, monkeypatch):
    cfg = settings(mixed, overrides=(*TINY, "DATALOADER.ASPECT_RATIO_GROUPING=False"))
    whole = numbers(Batches(samples(cfg, tmp_path), 1, 4), 6)
    halves = numbers(Batches(samples(cfg, tmp_path), 2, 2), 12)
    assert [a + b for a, b in zip(halves[::2], halves[1::2])] == whole
    ranks = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        ranks.append(numbers(Batches(samples(cfg, tmp_path), 1, 2), 6))
    assert [sorted(a + b) for a, b in zip(*ranks)] == [sorted(share) for share in whole]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_order_goes_on_with_images_held_back(mixed, tmp_path, accumulate):
    data = samples(settings(mixed), tmp_path)
    whole = numbers(Batches(data, accumulate, 2), 12)
    for start_at in (1, 3):
        assert (
            numbers(Batches(data, accumulate, 2, start_at), 12 - start_at * accumulate)
            == whole[start_at * accumulate :]
        )
    for share in zip(*[iter(whole)] * accumulate):
        assert len({data.wide[index] for batch in share for _, index in batch}) == 1


def test_loaded_images_do_not_depend_on_workers(mixed, tmp_path):
    cfg = settings(mixed, min_sizes=(48, 56, 64, 72))
    data, seen = samples(cfg, tmp_path), []
    for workers in (0, 2):
        loader = Feed(data.loader(reach(cfg), workers, start=1))
        seen.append([(image["image_id"], image["image"]) for batch in itertools.islice(loader, 5) for image in batch])
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(*seen))
    assert len({tuple(image.shape) for _, image in seen[0]}) > 2, "sizes are drawn"


# --- going on ---------------------------------------------------------------------------------------------------------

CASES = {
    "mask-rcnn": dict(eval_every=2, batch=2),
    "accumulated": dict(batch=4, micro_batch=2, eval_every=4),
    "scaled": dict(batch=4, micro_batch=2, reach="scale", iterations=3, save_every=1),
    "retinanet": dict(detector="retinanet-r50-fpn", overrides=TINY_DETECTOR, clip_gradients=1.0, eval_every=4),
    "adamw": dict(optimizer="adamw", lr=1e-3, precise_bn=0),
}


@pytest.mark.parametrize("name", CASES)
def test_resume_is_bit_equal(mixed, tmp_path, name):
    whole, _ = run_here(settings(mixed, **CASES[name]), tmp_path, "whole")
    cfg = settings(mixed, **CASES[name], workers=1)  # how it is fed may differ
    for stop_at in (2, 4, 6):
        with stopped_after_saving(stop_at):
            run_here(cfg, tmp_path, "parts")
    parts, status = run_here(cfg, tmp_path, "parts")
    assert status == 0 and same(final_weights(whole), final_weights(parts))
    assert scores(whole) == scores(parts)
    for measured in ("bbox", "segm", "best"):
        assert json.dumps(whole.metrics.get(measured)) == json.dumps(parts.metrics.get(measured))


def child(run, *prefix):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }  # sums are bit-equal with as many threads
    words = [sys.executable, *prefix, "-m", "soco_lib.transfer", str(run.folder)]
    return subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    )


def wait_for_step(run, step, process):
    while not any(row["step"] >= step for row in run.rows()) and process.poll() is None:
        time.sleep(0.01)


@pytest.mark.parametrize("number, status", [(signal.SIGKILL, "running"), (signal.SIGINT, "stopped")])
def test_ended_at_any_moment_and_resumed_is_bit_equal(mixed, tmp_path, number, status):
    cfg = settings(mixed, iterations=40, save_every=7, log_every=1, batch=2, micro_batch=1, workers=1, eval_every=16)
    whole, _ = run_here(cfg, tmp_path, "whole")
    run = start(tmp_path, "ended", cfg)
    process = child(run)
    wait_for_step(run, 11, process)
    os.killpg(process.pid, number)  # as a terminal and a cluster do: the loader's processes too
    assert process.wait() == (session.STOPPED if number == signal.SIGINT else -number)
    assert Run.read(run.folder).record["status"] == status
    last = max(row["step"] for row in run.rows())
    saved = checkpoint.newest(run.folder / "detectron2")["step"]
    assert 11 <= last < 40 and saved == (last if number == signal.SIGINT else 7 * (last // 7))
    assert transfer.main([str(run.folder)]) == 0
    assert same(final_weights(whole), final_weights(run))
    assert len(list((run.folder / "detectron2" / "checkpoints").iterdir())) == cfg.keep


def test_two_accumulating_processes_stop_together_and_go_on(mixed, tmp_path):
    run = start(
        tmp_path,
        "two",
        settings(mixed, iterations=16, save_every=100, log_every=1, batch=4, micro_batch=1, precise_bn=0),
    )
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2")
    process = child(run, *torchrun)
    wait_for_step(run, 3, process)
    process.terminate()
    assert process.wait() != 0
    record = Run.read(run.folder).record
    assert record["status"] == "stopped" and "run again to go on" in record["sessions"][-1]["error"]
    stopped = checkpoint.newest(run.folder / "detectron2")["step"]
    assert 3 <= stopped < 16
    assert child(run, *torchrun).wait() == 0
    run = Run.read(run.folder)
    assert run.done and [row["step"] for row in run.rows()] == list(range(1, 17))
    assert (run.metrics["processes"], run.metrics["accumulate"]) == (2, 2)


def interrupted(cfg, folder, name, monkeypatch, at):
    """A run that ends before iteration `at` + 1."""
    whole_step = finetune.FineTuner.run_step

    def cut(self):
        if self.iter == at:
            raise Cut
        whole_step(self)

    monkeypatch.setattr(finetune.FineTuner, "run_step", cut)
    with pytest.raises(Cut):
        run_here(cfg, folder, name)
    monkeypatch.setattr(finetune.FineTuner, "run_step", whole_step)
    return Run.read(folder / name)


def test_broken_newest_checkpoint_is_passed_over(mixed, tmp_path, monkeypatch, capsys):
    cfg = settings(mixed)
    whole, _ = run_here(cfg, tmp_path, "whole")
    run = interrupted(cfg, tmp_path, "torn", monkeypatch, 5)
    newest = checkpoint.paths(run.folder / "detectron2")[-1]
    newest.write_bytes(newest.read_bytes()[:2000])
    assert transfer.main([str(run.folder)]) == 0
    out = capsys.readouterr().out
    assert f"passing over a broken checkpoint: {newest}" in out and "going on after step 2" in out
    assert same(final_weights(whole), final_weights(run))


def test_a_resumed_transfer_lets_go_of_the_checkpoints_contents(mixed, tmp_path, monkeypatch):
    """They are as large as network and optimiser together, and would be held by each process to the end of the run."""
    run, held, left = interrupted(settings(mixed), tmp_path, "run", monkeypatch, 5), [], []
    read, step = checkpoint.read, finetune.FineTuner.run_step

    def seen(path):
        state = read(path)
        held.extend(weakref.ref(tensor) for tensor in state["model"].values())
        return state

    monkeypatch.setattr(checkpoint, "read", seen)
    monkeypatch.setattr(
        finetune.FineTuner, "run_step", lambda self: (left.append(sum(t() is not None for t in held)), step(self))
    )
    assert transfer.main([str(run.folder)]) == 0
    assert held and set(left) == {0}


def test_one_small_image_at_once_is_refused_by_name(mixed, tmp_path):
    cfg = settings(mixed, batch=2, micro_batch=1, min_sizes=(32, 64))
    with pytest.raises(BookError, match="one image of min_sizes=32 leaves batch norm a single value.*micro_batch=1"):
        detectron_config(cfg, *open_both(cfg), tmp_path)


def test_best_model_is_kept_and_an_interrupted_evaluation_made_up_for(mixed, tmp_path, monkeypatch):
    after, seen = {2: 10.0, 4: 30.0, 6: 20.0}, []

    def scripted(model, d2, test, stop_requests):
        done = 2 * (len(seen) + 1)
        if done == 4 and not (tmp_path / "came").exists():
            (tmp_path / "came").touch()
            raise Cut
        seen.append(hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest())
        return {"bbox": {"AP": after[done], "per_class": {}}}

    monkeypatch.setattr(finetune, "evaluate", scripted)
    cfg = settings(mixed, eval_every=2)
    with pytest.raises(Cut):
        run_here(cfg, tmp_path, "run")
    run = interrupted(cfg, tmp_path, "run", monkeypatch, 5)  # after the evaluation that the first session owed
    assert len(seen) == 2
    assert transfer.main([str(run.folder)]) == 0
    run = Run.read(run.folder)
    assert [row["bbox_AP"] for row in run.rows()] == [10, 30, 20] and run.metrics["bbox"]["AP"] == 20
    assert run.metrics["best"] == {"iteration": 4, "bbox_AP": 30.0, "checkpoint": "detectron2/model_best.pth"}
    best = torch.load(run.folder / run.metrics["best"]["checkpoint"], weights_only=True)
    assert best["iteration"] == 4
    assert hashlib.sha256(b"".join(v.numpy().tobytes() for v in best["model"].values())).hexdigest() == seen[1]


# --- what may not change meanwhile ------------------------------------------------------------------------------------


def refused(run, capsys):
    capsys.readouterr()
    assert transfer.main([str(run.folder)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_other_images_are_refused(mixed, tmp_path, monkeypatch, capsys):
    root = Path(mixed["train", "polygon"].partition("@")[2])
    path = tmp_path / "train.json"
    shutil.copy(root.parent / "train-polygon.json", path)
    data = {**mixed, ("train", "polygon"): f"coco:{path}@{root}"}
    run = interrupted(settings(data, labelled=3.0), tmp_path, "part", monkeypatch, 3)
    drawn = read_json(run.folder / "labelled.json")["image_ids"]
    assert len(drawn) == 3
    content = json.loads(path.read_text())
    for part, key in (("images", "id"), ("annotations", "image_id")):
        for item in content[part]:
            item[key] += drawn[0] == item[key]
    path.write_text(json.dumps(content))
    error = refused(run, capsys)
    assert f"{path}" in error and f"1 only then, e.g. {drawn[0]}; 1 only now, e.g. {drawn[0] + 1}" in error


def test_other_initial_weights_are_refused(mixed, tmp_path, monkeypatch, capsys):
    cfg = Pretrain("a", "b", overrides=TINY_DETECTOR, hidden=16, embedding=8, size=64, views=(View(64),))
    model = SoCo(cfg)
    (tmp_path / "soco").mkdir()
    file = checkpoint.save(tmp_path / "soco", 3, to_dict(cfg), 1, model=model.state_dict())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    run = interrupted(settings(mixed, init=str(tmp_path / "soco")), tmp_path, "tuned", monkeypatch, 3)
    report = read_json(run.folder / "key_report.json")
    assert report["step"] == 3 and report["sha256"] == digest
    checkpoint.save(tmp_path / "soco", 4, to_dict(cfg), 1, model=model.state_dict())
    error = refused(run, capsys)
    assert "has changed since this run began" in error and digest[:12] in error and f"remove {run.folder}" in error
    shutil.rmtree(tmp_path / "soco")
    assert transfer.main([str(run.folder)]) == 0
    assert "is not there any more" in capsys.readouterr().out


def test_another_schedule_is_refused(mixed, tmp_path, monkeypatch, capsys):
    run = interrupted(
        settings(mixed, batch=4, micro_batch=2, reach="scale", save_every=1), tmp_path, "scaled", monkeypatch, 3
    )
    path = checkpoint.paths(run.folder / "detectron2")[-1]
    state = checkpoint.read(path)
    assert (state["config"]["batch"], state["config"]["lr"], state["config"]["iterations"]) == (2, 0.01, 12)
    state["config"] |= {"batch": 4, "lr": 0.02, "iterations": 6}  # as two processes would have written
    torch.save(state, path)
    assert "batch=4 then, 2 now; lr=0.02 then, 0.01 now; iterations=6 then, 12 now" in refused(run, capsys)
