"""What a process has of its machine, on Linux and as macOS has it."""

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import soco_lib
from soco_lib.runs import launch, machine


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    assert machine.cores() == 3


@pytest.mark.parametrize(("counted", "cores"), [(6, 6), (None, 1)])
def test_a_system_without_affinity_counts_all_cores(monkeypatch, counted, cores):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert machine.cores() == cores
    assert launch.environment(2)["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert launch.shares(2, launch.Launch())[0]["OMP_NUM_THREADS"] == str(max(1, cores // 2))


@pytest.mark.parametrize(("platform", "bytes"), [("darwin", 5000), ("linux", 5000 * 1024)])
@pytest.mark.parametrize("status", [None, "Name:\tpython\nVmRSS:\t  10 kB\n"])
def test_peak_memory_is_in_bytes_where_only_getrusage_says_it(monkeypatch, tmp_path, platform, bytes, status):
    """Some kernels have a status without VmHWM."""
    if status:
        (tmp_path / "status").write_text(status)
    monkeypatch.setattr(machine, "STATUS", tmp_path / "status")
    monkeypatch.setattr(machine.sys, "platform", platform)
    monkeypatch.setattr(machine.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5000))
    assert machine.peak_memory() == bytes


def test_peak_memory_is_this_processs_own(monkeypatch, tmp_path):
    (tmp_path / "status").write_text("VmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    monkeypatch.setattr(machine, "STATUS", tmp_path / "status")
    assert machine.peak_memory() == 2048 * 1024


@pytest.mark.skipif(not machine.STATUS.exists() or "VmHWM" not in machine.STATUS.read_text(), reason="no VmHWM here")
def test_peak_memory_of_a_child_is_not_its_parents():
    held = bytearray(400 * 2**20)
    held[:: resource.getpagesize()] = b"x" * len(held[:: resource.getpagesize()])
    code = "from soco_lib.runs.machine import peak_memory; print(peak_memory())"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=soco_lib.ROOT
    ).stdout
    assert int(said) < 200 * 2**20 < 400 * 2**20 <= machine.peak_memory()


@pytest.mark.parametrize("prctl", ["machine._PRCTL", "None"], ids=["as here", "as macOS"])
def test_a_child_ends_with_its_parent(prctl):
    setting = f"import time; from soco_lib.runs import machine; machine._PRCTL = {prctl}; machine.end_with_parent(9)"
    child = [sys.executable, "-c", f"{setting}; print('ready', flush=True); time.sleep(60)"]
    code = (
        f"import subprocess; child = subprocess.Popen({child!r}, stdout=-1); child.stdout.readline(); print(child.pid)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=soco_lib.ROOT)
    deadline, status = time.monotonic() + 10, Path("/proc") / said.stdout.strip() / "status"

    def alive():
        try:
            return "State:\tZ" not in status.read_text()  # dead, if nobody has reaped it
        except OSError:
            return False

    while alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive()


def test_only_one_module_asks_the_system_for_cores_and_memory():
    asks = re.compile("sched_getaffinity|ru_maxrss").search
    assert [path.name for path in (soco_lib.ROOT / "soco_lib").rglob("*.py") if asks(path.read_text())] == [
        "machine.py"
    ]
