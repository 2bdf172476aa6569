"""What feeds a run: it fits into shared memory or is refused, a loader that is slow, dead or starving is told from one
that is not.

A picture that is a named pipe is one that cannot be read to its end: whoever opens it stands still.
"""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from soco_lib import BookError, train
from soco_lib.config import plan
from soco_lib.dataset import ProposalViews, build_loader
from soco_lib.model import SoCo
from soco_lib.runs import checkpoint, loader, processes, session
from soco_lib.runs.folder import Run
from soco_lib.runs.launch import Launch, command
from soco_lib.runs.loader import PAGE, SPARE, Feed, LoaderError, Waiting, batches_ahead, shared_bytes
from soco_lib.transfer import run as transfer
from soco_lib.transfer.batches import Samples, reach
from soco_lib.transfer.detectron import detectron_config, open_both
from soco_lib.transfer.evaluate import shared_bytes as shared_test_bytes
from tests.test_finetune import child as transferring
from tests.test_finetune import final_weights as tuned_weights
from tests.test_launch import children, workers_of
from tests.test_train import final_weights, run_here, same, same_threads, with_
from tests.test_transfer import settings, start, write_coco

MB = 10**6


@pytest.fixture
def shm(tmp_path, monkeypatch):
    """Says how many bytes are free of /dev/shm."""
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(loader, "SHM", tmp_path / "shm")
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(loader, "POLL", 0.1)
    monkeypatch.setattr(loader, "STARVED", 1.0)


@pytest.fixture
def own(cfg, pictures, tmp_path):
    """cfg with one worker on a copy of the pictures, which a test may spoil."""
    shutil.copytree(pictures, tmp_path / "pictures")
    return with_(cfg, images=f"folder:{tmp_path / 'pictures'}", workers=1, log_every=1)


#: As a disk that answers no more: who opens a named pipe waits, though the library asks not to.
STALLING = """
import os, stat
whole = os.open
def stalling(path, flags, *args, **named):
    picture = isinstance(path, str) and path.endswith(".jpg") and os.path.exists(path)
    waits = picture and stat.S_ISFIFO(os.stat(path).st_mode)
    return whole(path, flags & ~os.O_NONBLOCK if waits else flags, *args, **named)
os.open = stalling
"""


@pytest.fixture
def stalling(tmp_path, monkeypatch):
    """Here and in processes that are started, a stalled picture is waited for."""
    monkeypatch.setattr(os, "open", os.open)  # undone in the end
    exec(STALLING, {})
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(STALLING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "start"))


def stall(picture: Path) -> bytes:
    """Make a picture one that whoever opens it waits for (see `stalling`); returns what it was. Before a run begins it
    must be none of those that the store looks at.
    """
    content = picture.read_bytes()
    os.mkfifo(picture.with_suffix(".pipe"))
    picture.with_suffix(".link").symlink_to(picture.with_suffix(".pipe"))
    os.replace(picture.with_suffix(".link"), picture)
    return content


def mend(picture: Path, content: bytes) -> None:
    picture.unlink()
    picture.write_bytes(content)


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition(), "waited in vain"


def family(process: int) -> set[int]:
    """A process and all that descend from it."""
    return {process}.union(*(family(int(child)) for child in children(process)))


def alive(processes) -> set[int]:
    """Those that neither ended nor wait for nothing but being counted."""
    stat = lambda p: Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[0]
    return {p for p in processes if Path(f"/proc/{p}").exists() and stat(p) != "Z"}


def wait_for_standstill(run, step, process):
    """Until the run has made `step` updates and then none for two seconds."""
    wait_until(lambda: len(run.rows()) >= step or process.poll() is not None)
    count = -1
    while count != (count := len(run.rows())):
        time.sleep(2)
    assert process.poll() is None, "it ended before it could be disturbed"


# --- shared memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "free, batch, workers, processes, test, expected",
    [
        (10**10, 43, 8, 1, 0, 4),
        (64, 43, 0, 8, 0, 4),  # no workers, no sharing
        (64, 1, 8, 1, 0, 4),  # 33
        (30, 1, 8, 1, 0, 3),  # 25
        (10, 1, 8, 1, 0, 1),  # 9
        (64, 1, 8, 4, 0, 1),  # 36; two ahead: 68
        (64, 1, 4, 1, 5, 4),  # 17 + 9 x 5 = 62
        (60, 1, 4, 1, 5, 3),
    ],
)
def test_as_many_batches_are_kept_ready_as_fit(shm, free, batch, workers, processes, test, expected):
    said = []
    shm(free * MB)
    assert (
        batches_ahead(4, batch * MB, workers, processes, test * MB, say=lambda line, flush: said.append(line))
        == expected
    )
    assert len(said) == (expected < 4) and all(f"keep {expected} batch" in line and "\n" not in line for line in said)


@pytest.mark.parametrize(
    "free, workers, processes, remedy",
    [(64, 8, 1, "workers: 0'"), (130, 8, 1, "workers: 2'"), (380, 8, 1, "workers: 7'"), (200, 4, 2, "workers: 1'")],
)
def test_too_small_shared_memory_is_refused_with_what_would_fit(shm, free, workers, processes, remedy):
    shm(free * MB)
    with pytest.raises(BookError, match=remedy) as caught:
        batches_ahead(4, 43 * MB, workers, processes)
    need = processes * ((workers + 1) * 43 * MB + (workers + 1) * SPARE) / MB
    for part in (f"need at least {need:.1f} MB", f"{free:.1f} MB are free", "--shm-size=2g"):
        assert part in str(caught.value)
    fits = int(remedy[9])
    assert processes * ((fits + 1) * (43 * MB + SPARE)) <= free * MB or fits == 0
    assert processes * ((fits + 2) * (43 * MB + SPARE)) > free * MB


def test_without_shared_memory_nothing_is_reckoned(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "SHM", tmp_path / "none")
    assert batches_ahead(4, 10**15, 8, 1) == 4


def tensors(value):
    """All tensors in a batch."""
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif hasattr(value, "get_fields"):
        value = value.get_fields()
    elif type(value).__name__ in ("Boxes", "BitMasks"):
        value = [value.tensor]
    value = list(value.values()) if isinstance(value, dict) else value
    return [t for part in value for t in tensors(part)] if isinstance(value, (list, tuple)) else []


def in_pages(batch):
    return sum(-(-t.numel() * t.element_size() // PAGE) * PAGE for t in tensors(batch))


def test_a_pretrainings_batch_is_reckoned_from_above(cfg):
    cfg = with_(cfg, micro_batch=2, size=61)
    numbers, dataset = plan(cfg, 12), ProposalViews(cfg)
    batch = next(iter(build_loader(dataset, numbers, 0, 0, False, SoCo(cfg).count)))
    assert shared_bytes(cfg, numbers) / 1.5 < in_pages(batch) <= shared_bytes(cfg, numbers)


@pytest.mark.parametrize("masks", ["polygon", "rle", "none"])
def test_a_transfers_batch_is_reckoned_from_above(tmp_path, masks):
    data = {(split, masks): write_coco(tmp_path, split, 4, masks) for split in ("train", "val")}
    cfg = settings(data, masks, min_sizes=(64, 96), max_size=128)
    d2 = detectron_config(cfg, *open_both(cfg), tmp_path)
    found = Samples(d2)
    batches, most = found.loader(reach(cfg), workers=0), found.shared_bytes(2)
    taken = [in_pages(batch) for _, batch in zip(range(8), batches)]
    assert most / 2 < max(taken) <= most
    assert shared_test_bytes(d2) == 3 * 64 * 128


@pytest.mark.parametrize("kind", ["pretrain", "transfer"])
def test_a_run_says_that_shared_memory_is_too_small_before_it_starts(cfg, tmp_path, shm, capsys, kind):
    shm(50_000)
    if kind == "pretrain":
        run, status = run_here(with_(cfg, workers=2), tmp_path)
    else:
        data = {(split, "polygon"): write_coco(tmp_path, split, 4) for split in ("train", "val")}
        run = start(tmp_path, "run", settings(data, workers=2))
        status = transfer.main([str(run.folder)])
    error = capsys.readouterr().err
    assert status == 1 and error.count("\n") == 1 and "is too small" in error and "SET='workers: 0'" in error
    assert Run.read(run.folder).record["status"] == "failed" and not run.rows()


def test_fewer_batches_ahead_are_said_and_give_the_same_bits(cfg, tmp_path, shm, capsys):
    whole, _ = run_here(cfg, tmp_path, "whole")
    shm(4 * shared_bytes(cfg, plan(cfg, 12)))
    run, status = run_here(with_(cfg, workers=1), tmp_path, "narrow")
    assert status == 0 and "keep 2 batches ready in place of 4" in capsys.readouterr().out
    assert same(final_weights(whole), final_weights(run))


class Unsendable:
    """As a tensor where shared memory is full."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </x>: No space left on device (28)")


class Numbers(Dataset):
    def __getitem__(self, number):
        return number


def hand_over(numbers):
    return Unsendable(2) if 2 in numbers else numbers


def test_a_batch_that_shared_memory_has_no_room_for_ends_the_run_at_once():
    """It was dropped, and waited for without end."""
    batches = Feed(DataLoader(Numbers(), batch_sampler=[[0], [1], [2], [3]], num_workers=2, collate_fn=hand_over,
                              worker_init_fn=loader.start_worker, timeout=10))  # fmt: skip
    began = time.monotonic()
    assert [next(batches), next(batches)] == [[0], [1]]
    with pytest.raises(LoaderError, match="No space left on device.*df -h /dev/shm.*workers: 0") as caught:
        next(batches)
    assert time.monotonic() - began < 8 and "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a small /dev/shm of its own")
def test_a_pretraining_goes_on_with_a_shared_memory_that_just_holds_what_was_reckoned(cfg, tmp_path):
    cfg = with_(cfg, size=224, batch=12, workers=2, steps=4)
    batch = shared_bytes(cfg, plan(cfg, 12))
    free = 3 * batch + 3 * SPARE
    run = Run.start("run", "pretrain", cfg, tmp_path)
    mount = f"mount -t tmpfs -o size={-(-free // PAGE) * PAGE} tmpfs /dev/shm"
    script = f"{mount} && exec {' '.join(command('soco_lib.train', run.folder))}"
    words = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
    done = subprocess.run(words, env=same_threads(), capture_output=True, text=True, timeout=120)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this machine does not let a test mount anything")
    assert done.returncode == 0 and "keep 1 batch ready in place of 4" in done.stdout, done


# --- waiting ----------------------------------------------------------------------------------------------------------


class Late:
    """As a DataLoader that times out `often` times before each batch."""

    def __init__(self, often=10**9, at=0, notice=lambda: None):
        self.often, self.at, self.notice = often, at, notice

    def __iter__(self):
        return self

    def __next__(self):
        if self.at:
            self.at -= 1
            return "batch"
        for _ in range(self.often):
            time.sleep(0.01)
            self.notice()
            self.often -= 1
            raise RuntimeError("DataLoader timed out after 0.01 seconds")
        return "late"


def test_a_late_batch_is_waited_for():
    assert next(Feed(Late(often=20), share=2)) == "late"


def test_told_between_updates_it_does_not_wait_on():
    told = []
    feed = Feed(Late(at=4, notice=lambda: told.append(15)), share=2, stop_requests=told)
    assert [next(feed) for _ in range(4)] == ["batch"] * 4
    with pytest.raises(Waiting) as caught:
        next(feed)
    assert caught.value.between and "after step 2, of which a checkpoint is saved" in caught.value.describe(
        2, Path("run")
    )


def test_told_within_an_update_it_waits_a_while_for_the_rest(monkeypatch):
    monkeypatch.setattr(loader, "GRACE", 0.2)
    assert [*zip(range(2), Feed(Late(often=5, at=1), share=2, stop_requests=[15]))] == [(0, "batch"), (1, "late")]
    feed = Feed(Late(at=1), share=2, stop_requests=[15])
    next(feed)
    with pytest.raises(Waiting) as caught:
        next(feed)
    assert not caught.value.between and "images of step 1: run again to go on from the last" in caught.value.describe(
        0, Path("run")
    )


def test_a_loader_that_is_slower_than_the_looks_at_it_gives_the_same_bits(own, tmp_path, impatient, monkeypatch):
    whole, _ = run_here(with_(own, workers=0), tmp_path, "whole")
    real, began = ProposalViews.__getitem__, time.monotonic()

    def slow(self, item):
        time.sleep(0.1)
        return real(self, item)

    monkeypatch.setattr(ProposalViews, "__getitem__", slow)
    run, status = run_here(own, tmp_path, "slow")
    assert status == 0 and time.monotonic() - began > 8 * 0.4
    assert same(final_weights(whole), final_weights(run))


def test_a_starving_loader_ends_the_run_with_its_reason(own, tmp_path, impatient, capsys, stalling):
    run = Run.start("run", "pretrain", own, tmp_path)
    stall(tmp_path / "pictures" / "02.jpg")
    began, others = time.monotonic(), {*children(os.getpid())}
    assert train.main([str(run.folder)]) == 1
    error = capsys.readouterr().err
    assert time.monotonic() - began < 20 and error.count("\n") == 1 and "delivered nothing for 1 s" in error
    assert "delivered nothing" in Run.read(run.folder).record["sessions"][-1]["error"]
    assert not alive(map(int, {*children(os.getpid())} - others))


def test_a_dead_worker_ends_the_run_with_its_reason(own, tmp_path):
    run = Run.start("run", "pretrain", with_(own, steps=1000, workers=2), tmp_path)
    process = subprocess.Popen(
        command("soco_lib.train", run.folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=same_threads(),
    )
    wait_until(lambda: len(run.rows()) >= 3)
    workers = children(process.pid)
    os.kill(int(workers[0]), signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and said.count("\n") == 1
    handing_over = "a worker ended while it handed a batch over" in said  # where it was killed just then
    assert handing_over or f"DataLoader worker (pid {workers[0]}) is killed" in said
    assert "the loader broke" in Run.read(run.folder).record["sessions"][-1]["error"] and not alive(map(int, workers))


def test_a_dead_worker_of_another_process_is_told_with_its_process(own, tmp_path):
    run, said = Run.start("run", "pretrain", with_(own, steps=1000), tmp_path), tmp_path / "said.txt"
    with open(said, "w") as output:
        agent = subprocess.Popen(
            command("soco_lib.train", run.folder, Launch(2)), stdout=output, stderr=output, env=same_threads()
        )
    wait_until(lambda: len(run.rows()) >= 3)
    os.kill(int(children(workers_of(agent.pid)[1])[0]), signal.SIGKILL)
    assert agent.wait(timeout=60) == 1
    assert "error: process 1: the loader broke: DataLoader worker" in said.read_text()


def test_the_first_process_records_the_reason_of_another(own, tmp_path):
    """It keeps the record, and sees no more than a broken connection."""
    run, broken = Run.start("run", "pretrain", own, tmp_path), LoaderError("the loader broke")
    first, second = (processes.Process(rank, rank, 2, 2, torch.device("cpu")) for rank in (0, 1))
    closed = RuntimeError("Connection closed by peer")
    assert session._shared_reason(run, first, BookError("bad"), "bad") == "bad"
    told = session._shared_reason(run, second, broken, str(broken))
    assert told == "process 1: the loader broke" == session._shared_reason(run, first, closed, str(closed))


def test_bad_input_that_a_worker_finds_is_one_line(own, tmp_path, capsys):
    run = Run.start("run", "pretrain", own, tmp_path)
    cv2.imwrite(str(tmp_path / "pictures" / "02.jpg"), np.zeros((40, 40, 3), np.uint8))
    assert train.main([str(run.folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: proposals in ") and error.count("\n") == 1 and "the image is 40x40" in error


# --- told to stop, or left alone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [1, 2])
def test_its_notebook_is_killed_while_it_waits_and_all_of_it_ends_and_nothing_is_lost(
    own, tmp_path, monkeypatch, gpus, stalling
):
    """It stood still for ever, deaf to SIGTERM."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    own = with_(own, steps=30, save_every=1000)
    whole = Run.start("whole", "pretrain", own, tmp_path)
    assert (
        subprocess.run(command("soco_lib.train", whole.folder, Launch(gpus)), stdout=subprocess.DEVNULL).returncode == 0
    )
    run, picture = Run.start("run", "pretrain", own, tmp_path), tmp_path / "pictures" / "02.jpg"
    start = "launch.launch(folder.Run.read(sys.argv[1]), launch.Launch(int(sys.argv[2])))"
    code = f"import sys; from soco_lib.runs import folder, launch; {start}"
    watcher = subprocess.Popen([sys.executable, "-c", code, str(run.folder), str(gpus)], stdout=subprocess.DEVNULL)
    wait_until(lambda: len(run.rows()) >= 3)
    content = stall(picture)
    wait_for_standstill(run, 3, watcher)
    processes = family(watcher.pid)
    assert len(processes) >= 1 + 2 * gpus
    watcher.kill()
    watcher.wait()
    wait_until(lambda: not alive(processes), seconds=loader.POLL + 10 + 30 * (gpus > 1))
    last = run.rows()[-1]["step"]
    if gpus == 1:
        assert Run.read(run.folder).record["status"] == "stopped" and checkpoint.newest(run.folder)["step"] == last < 30
        error = Run.read(run.folder).record["sessions"][-1]["error"]
        assert f"while it waited for images after step {last}, of which a checkpoint is saved" in error
    mend(picture, content)
    assert (
        subprocess.run(command("soco_lib.train", run.folder, Launch(gpus)), stdout=subprocess.DEVNULL).returncode == 0
    )
    assert same(final_weights(whole), final_weights(run))


def test_a_killed_run_takes_along_a_worker_that_stands_still(own, tmp_path, stalling):
    run = Run.start("run", "pretrain", own, tmp_path)
    stall(tmp_path / "pictures" / "02.jpg")
    process = subprocess.Popen(command("soco_lib.train", run.folder), stdout=subprocess.DEVNULL, env=same_threads())
    wait_until(lambda: children(process.pid))
    time.sleep(1)  # in which the worker says of what it wants to die
    workers = children(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not alive(map(int, workers)), seconds=2)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_waiting_transfer_stops_when_told_and_nothing_is_lost(tmp_path, split):
    data = {(part, "polygon"): write_coco(tmp_path, part, 4) for part in ("train", "val")}
    cfg = settings(data, workers=1, iterations=60, log_every=1, save_every=1000, eval_every=40)
    whole = start(tmp_path, "whole", cfg)
    assert transfer.main([str(whole.folder)]) == 0
    run, picture = start(tmp_path, "run", cfg), tmp_path / "images" / f"{split}2.jpg"
    process = transferring(run)
    wait_until(lambda: len(run.rows()) >= 1)
    content = stall(picture)
    wait_for_standstill(run, 1, process)
    processes = family(process.pid)
    assert len(processes) >= 2
    process.terminate()
    assert process.wait(timeout=loader.POLL + 15) == session.STOPPED
    wait_until(lambda: not alive(processes), seconds=2)
    last = max(row["step"] for row in run.rows())
    record = Run.read(run.folder).record
    assert record["status"] == "stopped" and f"after step {last}, of which" in record["sessions"][-1]["error"]
    assert checkpoint.newest(run.folder / "detectron2")["step"] == last and (
        last == 40 if split == "val" else last < 40
    )
    mend(picture, content)
    assert transfer.main([str(run.folder)]) == 0
    assert same(tuned_weights(whole), tuned_weights(run))
