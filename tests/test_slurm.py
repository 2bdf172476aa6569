"""A real SLURM, of one node (slurm_cluster.sh): requeued, timed out or cancelled, a run ends with the same weights."""

import os
import subprocess
import threading
import time

import pytest

from soco_lib import BookError
from soco_lib.runs import launch, slurm
from soco_lib.runs.folder import Run
from soco_lib.runs.launch import Launch
from tests.test_launch import undisturbed
from tests.test_train import final_weights, same, with_

slow = pytest.mark.skipif(not os.environ.get("SOCO_SLOW"), reason="takes minutes: SOCO_SLOW=1 runs it")


def disturbed(run, disturb, **how):
    """Launch through SLURM; `disturb(job number)` when nine steps were logged. Returns what was said."""
    said = []

    def watch():
        while len(run.rows()) < 9:
            time.sleep(0.02)
        disturb((run.folder / "slurm" / "job").read_text())

    threading.Thread(target=watch, daemon=True).start()
    launch.launch(run, Launch(launcher="slurm", minutes=30, **how), said.append)
    print("\n".join(said))
    return said


@pytest.mark.parametrize(
    ("words", "gpus"),
    [
        (["scontrol", "requeue"], 1),  # as by an administrator, or by SLURM itself upon preemption
        pytest.param(["scontrol", "requeue"], 2, marks=slow),
        pytest.param(
            ["scancel", "--signal=USR2"], 2, marks=slow
        ),  # SLURM's word that the time limit is near: submitit requeues
    ],
)
def test_requeued_it_finishes_with_the_same_weights(cluster, cfg, tmp_path, one_thread, words, gpus):
    cfg = with_(cfg, steps=20, save_every=1000, log_every=1, workers=1)
    whole = undisturbed(cfg, tmp_path, gpus=gpus)
    run = Run.start("requeued", "pretrain", cfg, tmp_path)
    said = disturbed(run, lambda job: subprocess.run([*words, job], check=True), gpus=gpus, restarts=1)
    assert len(Run.read(run.folder).record["sessions"]) == 2
    first = Run.read(run.folder).record["sessions"][0]
    assert "told to stop after step" in first["error"], first
    assert any(line.startswith("going on after step") for line in said)
    assert same(whole, final_weights(run))


@slow
def test_preempted_by_a_job_of_higher_priority(cluster, cfg, tmp_path, one_thread):
    cfg = with_(cfg, steps=20, save_every=1000, log_every=1)
    whole = undisturbed(cfg, tmp_path)
    run = Run.start("preempted", "pretrain", cfg, tmp_path)
    urgent = ["sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"]
    said = disturbed(run, lambda job: subprocess.run(urgent, check=True, cwd=tmp_path), partition="low")
    assert any("PENDING" in line for line in said[3:]) and any(line.startswith("going on after step") for line in said)
    assert same(whole, final_weights(run))


@slow
def test_left_alone_the_job_is_cancelled_and_goes_on_later(cluster, cfg, tmp_path, one_thread):
    run = Run.start("cancelled", "pretrain", with_(cfg, steps=12, save_every=1000, log_every=1), tmp_path)
    lines = launch.stream(run, Launch(launcher="slurm", minutes=30))
    next(line for line in lines if line.startswith("step 4/"))
    lines.close()
    assert slurm.state((run.folder / "slurm" / "job").read_text()) == ""
    assert Run.read(run.folder).record["status"] == "stopped"
    assert launch.launch(run, say=lambda line: None)["steps"] == 12


def test_the_jobs_own_error_comes_back(cluster, cfg, tmp_path):
    run = Run.start("run", "pretrain", with_(cfg, batch=64), tmp_path)
    with pytest.raises(BookError, match="larger than the 12 usable images"):
        launch.launch(run, Launch(launcher="slurm"), lambda line: None)


def test_wrong_values_are_told_before_anything_is_submitted(cluster, cfg, tmp_path):
    run = Run.start("run", "pretrain", cfg, tmp_path)
    for wrong, says in (
        ({"partition": "lwo"}, "PARTITION='lwo' is unknown; did you mean 'low'"),
        ({"minutes": 0}, "MINUTES=0"),
        ({"cpus": 10**4}, "sbatch refused the job: .*More processors"),
    ):
        with pytest.raises(BookError, match=says):
            next(launch.stream(run, Launch(launcher="slurm", **wrong)))
