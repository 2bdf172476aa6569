"""What a process has of its machine, on Linux and as macOS has it."""

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import soco_lib
from soco_lib.runs import launch, machine, processes
from soco_lib.runs.folder import Run


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    assert machine.cores() == 3


@pytest.mark.parametrize(("counted", "cores"), [(6, 6), (None, 1)])
def test_a_system_without_affinity_counts_all_cores(monkeypatch, counted, cores):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "QUOTA", Path("nowhere"))
    assert machine.cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("150000 100000", 2), ("20000 100000", 1), ("", 8)])
def test_a_container_has_the_cores_that_its_quota_pays_for(monkeypatch, tmp_path, quota, cores):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {*range(8)}, raising=False)
    assert machine.cores() == cores


def test_free_cores_are_those_that_others_leave(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 3}, raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: [10.0, 100.0, 50.0, 0.0])
    assert machine.free_cores() == pytest.approx(1.9)  # core 2 is not ours
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert machine.free_cores() == 1


@pytest.mark.parametrize(
    ("free", "gpus", "jobs", "count"), [(2.0, 1, 1, 2), (1.7, 1, 1, 2), (1.0, 1, 1, 1), (0.1, 1, 1, 1), (7.8, 2, 2, 2)]
)
def test_a_run_takes_the_cores_that_are_free(monkeypatch, free, gpus, jobs, count):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(machine, "free_cores", lambda: free)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    given = launch.shares(jobs, launch.Launch(gpus))[-1]
    made = launch.environment(gpus, given)
    assert made["OMP_NUM_THREADS"] == str(count)
    assert made[processes.THREADS] == f"{free:.1f} of {machine.cores()} cores were free"


def test_a_run_goes_on_with_its_threads_and_a_user_is_obeyed(monkeypatch, cfg, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(machine, "free_cores", lambda: 8.0)
    run = Run.start("run", "pretrain", cfg, tmp_path)
    run.begin(processes=1, threads=3)
    run.end("stopped")
    chosen = lambda gpus, **given: launch.environment(gpus, given, Run.read(run.folder))["OMP_NUM_THREADS"]
    assert chosen(1) == "3" and chosen(2) == "4", "as many processes as before, or others"
    assert chosen(1, OMP_NUM_THREADS="5") == "5"
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert chosen(1) == "6"


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
