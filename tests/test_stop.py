"""Ctrl-C, JupyterLab's stop button, SIGTERM and a closed terminal: all is saved, one line says so, nothing is lost.

See test_lab.py for JupyterLab itself, test_runner.py for studies, test_slurm.py for a cluster's signals.
"""

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import yaml

from soco_lib import ROOT, train
from soco_lib.config import Pretrain
from soco_lib.data import shards
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import ProposalStore, build_store
from soco_lib.features import probe
from soco_lib.fields import from_dict
from soco_lib.runs import checkpoint, launch
from soco_lib.runs.folder import Run, read_json
from soco_lib.runs.settings import load
from soco_lib.runs.stop import STOPPED, Stopped
from soco_lib.transfer import finetune, predict
from soco_lib.transfer import run as transfer
from soco_lib.transfer.benchmarks import Transfer
from tests.conftest import TINY_PRETRAINING, TINY_TRANSFER
from tests.test_train import same
from tests.test_transfer import write_coco

#: Seconds that a busy machine may take for the step that runs and the checkpoint after it.
ENDS = 60.0
STEPS = 12


class Terminal:
    """A command in the foreground of a terminal of its own; its output goes to a file."""

    def __init__(self, words, output):
        self.master, slave = pty.openpty()
        self.output = output
        with open(output, "w") as file:
            self.process = subprocess.Popen(
                words, stdin=slave, stdout=file, stderr=file, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                preexec_fn=_foreground,
            )  # fmt: skip
        os.close(slave)

    def press(self, key: bytes = b"\x03") -> None:
        os.write(self.master, key)  # the terminal sends SIGINT to all of the foreground

    def ask(self, how: str) -> None:
        """To stop: "Ctrl-C", "closed", which is the terminal, or "SIGTERM", to this command alone."""
        {"Ctrl-C": self.press, "closed": lambda: os.close(self.master), "SIGTERM": self.process.terminate}[how]()

    def end(self) -> tuple[int, str]:
        return self.process.wait(ENDS), self.output.read_text()


def _foreground() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def until(ready, process, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, (
            "it ended, or did not begin, before it was stopped"
        )
        time.sleep(0.02)


class Work:
    """What notebooks 03 and 04 run here: tiny, some steps long, without a checkpoint before the end."""

    def __init__(self, folder, **settings):
        self.folder, self.made = folder, {}
        self.configs = {kind: folder / f"{kind}.yaml" for kind in settings}
        for kind, values in settings.items():
            self.configs[kind].write_text(yaml.safe_dump(values | {"save_every": 1000, "log_every": 1}))

    def words(self, kind, results, gpus=1, **given):
        """The command behind `make pretrain`, `make transfer` or `make predict`; the run is called `run`."""
        notebook = {"pretrain": "03_pretrain", "transfer": "04_transfer", "predict": "11_predict"}[kind]
        given |= {"gpus": gpus} | ({"config": self.configs[kind]} if kind in self.configs else {})
        pairs = [word for name, value in given.items() for word in ("-p", name, str(value))]
        place = ["--results", str(results), "--run-name", "run", "--no-html"]
        return [sys.executable, "-m", "soco_lib.book", f"notebooks/{notebook}.ipynb", *place, *pairs]

    def config(self, kind, **changes):
        return load({"pretrain": Pretrain, "transfer": Transfer}[kind], self.configs[kind], **changes)

    def whole(self, kind, gpus=1):
        """The run that nobody stopped."""
        if (kind, gpus) not in self.made:
            run = Run.start(f"{kind}-{gpus}", kind, self.config(kind), self.folder)
            launch.launch(run, launch.Launch(gpus), lambda line: None)
            self.made[kind, gpus] = Run.read(run.folder)
        return self.made[kind, gpus]

    def goes_on_to_the_same_end(self, folder, gpus=1):
        """With the weights of the run that nobody stopped."""
        launch.launch(Run.read(folder), launch.Launch(gpus), lambda line: None)
        whole, run = self.whole(Run.read(folder).record["kind"], gpus), Run.read(folder)
        assert run.done and len(run.record["sessions"]) == 2 and same(weights(whole), weights(run))


def rows(run_folder, count):
    log = run_folder / "log.jsonl"
    return lambda: log.exists() and len(log.read_text().splitlines()) >= count


def newest(run):
    return checkpoint.newest(next(p for p in (run.folder, run.folder / "detectron2") if (p / "checkpoints").exists()))


def weights(run):
    return newest(run)["model"]


@contextlib.contextmanager
def tiny_work(pictures, store, folder, steps):
    pretrain = {**TINY_PRETRAINING, "steps": steps, "images": f"folder:{pictures}", "proposals": str(store)}
    data = {part: write_coco(folder, split, n) for part, split, n in (("train", "train", 8), ("test", "val", 4))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # sums come out bit-equal only with as many threads
        yield Work(folder, pretrain=pretrain, transfer={**TINY_TRANSFER, "iterations": steps, "profile": "toy", **data})


@pytest.fixture(scope="module")
def work(pictures, store, tmp_path_factory):
    with tiny_work(pictures, store, tmp_path_factory.mktemp("work"), STEPS) as made:
        yield made


def is_stopped(folder, said):
    """The run saved after its last step, and its record says so, as does the last line that the user saw."""
    run = Run.read(folder)
    last, cfg = run.rows()[-1]["step"], run.record["config"]
    assert run.record["status"] == "stopped" and newest(run)["step"] == last < cfg.get("steps", cfg.get("iterations"))
    assert f"step {last}, of which a checkpoint is saved" in run.last_session["error"]
    says(said, "was stopped: told to stop after step")


def says(text, line):
    """The last line does, and how to go on; nothing looks like a failure."""
    assert "Traceback" not in text and "KeyboardInterrupt" not in text, text
    assert line in text.splitlines()[-1] and "run again" in text.splitlines()[-1], text


# --- commands in a terminal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, how, gpus, status",
    [
        ("pretrain", "Ctrl-C", 1, 130),
        ("pretrain", "Ctrl-C", 2, 130),
        ("pretrain", "closed", 1, 129),
        ("pretrain", "SIGTERM", 1, 143),
        ("transfer", "SIGTERM", 1, 143),
        ("transfer", "closed", 1, 129),
        ("transfer", "Ctrl-C", 2, 130),
    ],
)
def test_a_run_saves_and_ends_with_one_line(work, tmp_path, kind, how, gpus, status):
    terminal = Terminal(work.words(kind, tmp_path, gpus), tmp_path / "said.txt")
    until(rows(tmp_path / "run", 3), terminal.process)
    terminal.ask(how)
    found, said = terminal.end()
    assert found == status, said
    is_stopped(tmp_path / "run", said)
    work.goes_on_to_the_same_end(tmp_path / "run", gpus)


def test_ctrl_c_twice_ends_at_once(work, tmp_path):
    terminal = Terminal(work.words("pretrain", tmp_path), tmp_path / "said.txt")
    until(rows(tmp_path / "run", 2), terminal.process)
    for _ in range(4):  # an impatient user: only the second one counts
        terminal.press()
        time.sleep(0.1)
    status, said = terminal.end()
    assert status == 130, said
    says(said, "was stopped")
    assert Run.read(tmp_path / "run").record["status"] == "stopped"


def test_detecting_ends_at_once_and_begins_anew(work, pictures, tmp_path):
    given = {"model": work.whole("transfer").folder, "images": f"folder:{pictures}", "score": 0.0}
    terminal = Terminal(work.words("predict", tmp_path, **given), tmp_path / "said.txt")
    run = tmp_path / "run"
    until(lambda: (run / "run.json").exists() and Run.read(run).record["status"] == "running", terminal.process)
    terminal.ask("closed")
    status, said = terminal.end()
    assert status == 129, said
    says(said, "was stopped: told to stop")
    assert Run.read(run).record["status"] == "stopped"
    whole = Run.start("whole", "predict", from_dict(predict.Predict, Run.read(run).record["config"]), tmp_path)
    for folder in (run, whole.folder):
        launch.launch(Run.read(folder), say=lambda line: None)
    first, second = (read_json(folder / "detections.json", list) for folder in (run, whole.folder))
    assert first == second and first


def imports(process):
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


def test_ctrl_c_within_the_imports_shows_no_traceback(work, tmp_path):
    terminal = Terminal([sys.executable, "-m", "soco_lib.studies", "batchsize"], tmp_path / "said.txt")
    until(lambda: imports(terminal.process), terminal.process)
    terminal.press()
    status, said = terminal.end()
    assert status in (-signal.SIGINT, 130) and "Traceback" not in said
    terminal = Terminal(work.words("pretrain", tmp_path), tmp_path / "said.txt")
    kernels = psutil.Process(terminal.process.pid).children
    until(lambda: any(map(imports, kernels())), terminal.process)
    terminal.press()
    status, said = terminal.end()
    assert status == 130 and "Traceback" not in said
    assert "03_pretrain was interrupted: the same command runs it again" in said.splitlines()[-1]


# --- where a process is when it is told -------------------------------------------------------------------------------


def told(*_, **__):
    """In place of something that takes long: the request must end it."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ENDS)
    raise AssertionError("it went on")


@pytest.mark.parametrize(
    "kind, module, opens", [("pretrain", train, "ProposalViews"), ("transfer", transfer, "open_both")]
)
def test_a_run_that_opens_its_data_ends_at_once(work, tmp_path, capsys, monkeypatch, kind, module, opens):
    run = Run.start("run", kind, work.config(kind), tmp_path)
    monkeypatch.setattr(module, opens, told)
    assert module.main([str(run.folder)]) == STOPPED
    assert Run.read(run.folder).record["status"] == "stopped"
    assert capsys.readouterr().err == "told to stop while it started: run again to go on\n"


def test_an_evaluation_ends_at_once_and_is_made_up_for(work, tmp_path, capsys, monkeypatch):
    cfg, evaluate, tries = work.config("transfer", iterations=4, eval_every=2), finetune.evaluate, []

    def once_told(model, *more):
        tries.append(model)
        return told() if len(tries) % 2 else evaluate(model, *more)

    monkeypatch.setattr(finetune, "evaluate", once_told)
    whole, run = (Run.start(name, "transfer", cfg, tmp_path) for name in ("whole", "run"))
    for step in (2, 4):
        assert transfer.main([str(run.folder)]) == STOPPED
        assert f"told to stop after step {step}, of which a checkpoint is saved" in capsys.readouterr().err
        assert newest(run)["step"] == step
    assert transfer.main([str(run.folder)]) == 0
    monkeypatch.undo()
    assert transfer.main([str(whole.folder)]) == 0
    assert same(weights(whole), weights(run))
    learnt = lambda run: [(row["step"], row["loss"], row.get("bbox_AP")) for row in Run.read(run.folder).rows()]
    assert learnt(run) == learnt(whole)


def test_an_object_probe_ends_at_once_and_is_made_up_for(work, tmp_path, capsys, monkeypatch):
    cfg, tries = work.config("pretrain", steps=4, probe="coco:labels.json", probe_every=2 / 3), []

    def once_told(*_):
        tries.append(len(tries))
        return told() if tries[-1] in (0, 3) else probe.Scores(len(tries) / 10, 0.0, 2, 10, 5)

    monkeypatch.setattr(train, "record_oddities", lambda *of: None)
    for name, stand_in in (("open_labelled", lambda data: None), ("probe", once_told)):
        monkeypatch.setattr(probe, name, stand_in)
    run = Run.start("run", "pretrain", cfg, tmp_path)
    for step in (2, 4):
        assert train.main([str(run.folder)]) == STOPPED
        assert f"told to stop after step {step}, of which a checkpoint is saved" in capsys.readouterr().err
        assert newest(run)["step"] == step
    assert train.main([str(run.folder)]) == 0 and len(tries) == 5
    run = Run.read(run.folder)  # at first random weights, too
    assert run.metrics["knn"] == 0.5 and [row.get("knn") for row in run.rows()] == [None, 0.3, None, 0.5]


def test_the_stop_button_of_a_notebook_saves(work, tmp_path):
    from jupyter_client.manager import start_new_kernel

    notebook = json.loads((ROOT / "notebooks/03_pretrain.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    cells.insert(1, f"run_name, results, config = 'run', {str(tmp_path)!r}, {str(work.configs['pretrain'])!r}")
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(ROOT))
    try:
        ends, shown = [], []
        for cell in cells[:4]:
            client.execute_interactive(cell, timeout=60, output_hook=lambda message: None)
        asked = client.execute(cells[4])
        until(rows(tmp_path / "run", 3), manager.provisioner.process)
        manager.interrupt_kernel()
        while not ends:
            message = client.get_iopub_msg(timeout=ENDS)
            if message["parent_header"].get("msg_id") == asked:
                ends += [message] if message["content"].get("execution_state") == "idle" else []
                shown += [message["content"]] if message["msg_type"] == "error" else []
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    [error] = shown
    assert error["ename"] == "Stopped" and len(error["traceback"]) == 1
    is_stopped(tmp_path / "run", error["traceback"][0])
    work.goes_on_to_the_same_end(tmp_path / "run")


# --- proposals --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """96 pictures, which are six shards; and their proposals."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for i in range(96):
        image = cv2.resize(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8), (160, 120))
        cv2.imwrite(str(folder / f"{i:03d}.jpg"), image)
    source = open_source(f"folder:{folder}")
    return source, build_store(source, ProposalConfig(), folder / "whole", workers=1)


def equal(first, second):
    return all(np.array_equal(first.boxes(i), second.boxes(i)) for i in range(len(second)))


def test_a_shard_goes_on_from_its_last_image(many, tmp_path, monkeypatch):
    (source, whole), made, row = many, [], shards._row

    def told_now_and_then(source, index, config):
        made.append(index)
        if len(made) in (20, 24):
            os.kill(os.getpid(), signal.SIGINT)
        return row(source, index, config)

    monkeypatch.setattr(shards, "_row", told_now_and_then)
    build = lambda: build_store(source, ProposalConfig(), tmp_path, workers=1)
    for last in (20, 24):
        with pytest.raises(Stopped, match="shards left to make: 5; run again") as stopped:
            build()
        assert stopped.value.status == 130 and made == [*range(last)]
        [part] = (tmp_path / "shards").glob("*.part")
        assert part.name == f"000000016-{last:09d}.part"
    part.write_bytes(b"PK torn")
    assert equal(build(), whole) and made[24:] == [*range(16, 96)]  # what cannot be read is made anew


@pytest.mark.parametrize("how, workers, status", [("Ctrl-C", 1, 130), ("SIGTERM", 2, 143), ("closed", 2, 129)])
def test_proposals_keep_what_is_made(many, tmp_path, how, workers, status):
    """SIGTERM: to make alone, whose shell keeps it to itself."""
    source, whole = many
    words = [sys.executable, "-m", "soco_lib.data.store", "--images", source.spec, "--out", str(tmp_path / "store")]
    words += ["--workers", str(workers)]
    if how == "SIGTERM":
        recipe = f"SHELL := bash\ngo:\n\t@status=0; {' '.join(words)} || status=$$?; exit $$status\n"
        (tmp_path / "Makefile").write_text(recipe)
        words = ["make", "-f", str(tmp_path / "Makefile")]
    terminal = Terminal(words, tmp_path / "said.txt")
    until(lambda: any((tmp_path / "store/shards").glob("*.npz")), terminal.process)
    below = psutil.Process(terminal.process.pid).children(recursive=True)
    terminal.ask(how)
    found, said = terminal.end()
    assert not psutil.wait_procs(below, ENDS)[1]
    assert abs(found) in (status, signal.SIGTERM), said
    said = [line for line in (tmp_path / "said.txt").read_text().splitlines() if not line.startswith("make")]
    says("\n".join(said), "shards left to make: ")
    assert any((tmp_path / "store/shards").glob("*.part"))
    assert equal(build_store(source, ProposalConfig(), tmp_path / "store", workers=1), whole)
    assert len(ProposalStore.open(tmp_path / "store")) == 96
