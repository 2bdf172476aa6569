"""Ctrl-C, JupyterLab's stop button, SIGTERM and a closed terminal: all is saved, one line says so, nothing is lost."""

import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
import time

import cv2
import numpy as np
import pytest
import yaml

from soco_lib import ROOT
from soco_lib.config import Pretrain
from soco_lib.data.store import ProposalStore
from soco_lib.fields import from_dict
from soco_lib.runs import launch
from soco_lib.runs.folder import Run
from tests.conftest import TINY_PRETRAINING
from tests.test_train import final_weights, same

#: Seconds that a busy machine may take for the step that runs and the checkpoint after it.
ENDS = 60.0


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

    def close(self) -> None:
        os.close(self.master)

    def end(self) -> tuple[int, str]:
        return self.process.wait(ENDS), self.output.read_text()


def _foreground() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def until(ready, process, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, (
            "it ended, or did not begin, before it was stopped"
        )
        time.sleep(0.02)


def rows(run_folder, count):
    log = run_folder / "log.jsonl"
    return lambda: log.exists() and len(log.read_text().splitlines()) >= count


@pytest.fixture
def pretraining(pictures, store, tmp_path):
    """words(name, gpus) of the command behind `make pretrain`; 12 steps, no checkpoint before the end."""
    config = tmp_path / "tiny.yaml"
    settings = {**TINY_PRETRAINING, "steps": 12, "save_every": 1000, "log_every": 1}
    config.write_text(yaml.safe_dump({**settings, "images": f"folder:{pictures}", "proposals": str(store)}))

    def words(name, gpus=1):
        place = ["--results", str(tmp_path), "--run-name", name, "--no-html"]
        given = ["-p", "config", str(config), "-p", "gpus", str(gpus)]
        return [sys.executable, "-m", "soco_lib.book", "notebooks/03_pretrain.ipynb", *place, *given]

    words.config = str(config)
    return words


def is_stopped(folder, said=None):
    """The run saved after its last step, and its record says so, as does the last line that the user saw."""
    record = Run.read(folder).record
    steps = [row["step"] for row in Run.read(folder).rows()]
    assert (
        record["status"] == "stopped" and f"step {steps[-1]}, of which a checkpoint" in record["sessions"][-1]["error"]
    )
    assert (folder / "checkpoints" / f"step_{steps[-1]:08d}.pt").exists() and steps[-1] < 12
    if said is not None:
        assert "Traceback" not in said and "KeyboardInterrupt" not in said
        assert "was stopped: told to stop after step" in said.splitlines()[-1]
        assert "run again to go on" in said.splitlines()[-1]


def goes_on_to_the_same_end(folder, tmp_path, gpus=1):
    """With the weights of a run that nobody stopped."""
    whole = Run.start("whole", "pretrain", from_dict(Pretrain, Run.read(folder).record["config"]), tmp_path)
    launch.launch(whole, launch.Launch(gpus), lambda line: None)
    launch.launch(Run.read(folder), launch.Launch(gpus), lambda line: None)
    assert same(final_weights(whole), final_weights(Run.read(folder)))


@pytest.mark.parametrize("how, gpus, status", [("Ctrl-C", 1, 130), ("Ctrl-C", 2, 130), ("closed", 1, 129)])
def test_a_pretraining_saves_and_ends_with_one_line(pretraining, tmp_path, one_thread, how, gpus, status):
    terminal = Terminal(pretraining("run", gpus), tmp_path / "said.txt")
    until(rows(tmp_path / "run", 3), terminal.process)
    if how == "Ctrl-C":
        terminal.press()
    else:
        terminal.close()
    found, said = terminal.end()
    assert found == status, said
    is_stopped(tmp_path / "run", said)
    if how == "Ctrl-C":
        goes_on_to_the_same_end(tmp_path / "run", tmp_path, gpus)


def test_ctrl_c_twice_ends_at_once(pretraining, tmp_path):
    terminal = Terminal(pretraining("run"), tmp_path / "said.txt")
    until(rows(tmp_path / "run", 2), terminal.process)
    for _ in range(4):  # an impatient user: only the second one counts
        terminal.press()
        time.sleep(0.1)
    status, said = terminal.end()
    assert status == 130 and "Traceback" not in said and "run again to go on" in said.splitlines()[-1], said
    assert Run.read(tmp_path / "run").record["status"] == "stopped"


def test_the_stop_button_of_a_notebook_saves(pretraining, tmp_path, one_thread, monkeypatch):
    from jupyter_client.manager import start_new_kernel

    notebook = json.loads((ROOT / "notebooks/03_pretrain.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    cells.insert(1, f"run_name, results, config = 'run', {str(tmp_path)!r}, {pretraining.config!r}")
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
    is_stopped(tmp_path / "run", "\n".join(error["traceback"]))
    goes_on_to_the_same_end(tmp_path / "run", tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_proposals_keep_the_finished_shards(tmp_path, store, workers):
    pictures = tmp_path / "many"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(96):
        image = cv2.resize(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8), (160, 120))
        cv2.imwrite(str(pictures / f"{i:03d}.jpg"), image)

    def words(out, workers):
        given = ["--images", f"folder:{pictures}", "--out", str(out), "--workers", str(workers)]
        return [sys.executable, "-m", "soco_lib.data.store", *given]

    terminal = Terminal(words(tmp_path / "stopped", workers), tmp_path / "said.txt")
    until(lambda: any((tmp_path / "stopped" / "shards").glob("*.npz")), terminal.process)
    terminal.press()
    status, said = terminal.end()
    assert status == 130 and "Traceback" not in said, said
    assert "shards are left to make: run again to go on" in said.splitlines()[-1]
    for out in (tmp_path / "stopped", tmp_path / "whole"):
        subprocess.run(words(out, 2), check=True, stdout=subprocess.DEVNULL)
    first, second = (ProposalStore.open(tmp_path / name) for name in ("stopped", "whole"))
    assert all(np.array_equal(first.boxes(i), second.boxes(i)) for i in range(len(first)))
