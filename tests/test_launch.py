"""Many processes: killed workers, a stop, several nodes; whatever happens on the way, the weights are the same."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from soco_lib import ROOT, BookError
from soco_lib.fields import identity
from soco_lib.runs import launch, session
from soco_lib.runs.folder import Run
from soco_lib.runs.launch import Launch, command, environment
from soco_lib.studies import plans
from tests.test_train import final_weights, same, same_threads, with_

#: Weights of undisturbed runs, by configuration and processes: several tests compare with the same ones.
WHOLE = {}


def undisturbed(cfg, tmp_path, gpus=1):
    key = identity(cfg), gpus
    if key not in WHOLE:
        run = Run.start("whole", "pretrain", cfg, tmp_path)
        launch.launch(run, Launch(gpus), say=lambda line: None)
        WHOLE[key] = final_weights(run)
    return WHOLE[key]


def children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def workers_of(agent: int) -> dict[int, int]:
    """RANK -> process number of the training processes that a torchrun started."""
    found = {}
    for child in children(agent):
        words = dict(word.partition("=")[::2] for word in Path(f"/proc/{child}/environ").read_text().split("\0"))
        if "RANK" in words:
            found[int(words["RANK"])] = int(child)
    return found


def wait_for_rows(run, rows, child):
    while len(run.rows()) < rows and child.poll() is None:
        time.sleep(0.01)
    assert child.poll() is None, "it ended before it could be disturbed"


def test_killed_workers_are_restarted_and_the_weights_are_the_same(cfg, tmp_path, one_thread):
    """Three kills in one run, of either rank, at random steps, with 1, 2 and 0 loader workers."""
    cfg = with_(
        cfg, steps=40, save_every=2, log_every=1, workers=1
    )  # of 3 steps an epoch: checkpoints lie inside epochs too
    whole = undisturbed(cfg, tmp_path, gpus=2)
    run = Run.start("killed", "pretrain", cfg, tmp_path)
    words, rng = command("soco_lib.train", run.folder, Launch(gpus=2, restarts=3)), random.Random(0)
    with open(tmp_path / "output.txt", "w") as output:
        child = subprocess.Popen(words, stdout=output, stderr=output, env=environment(2))
    for rank, before, after in (
        (1, 1, 1),
        (0, 1, 2),
        (0, 2, 0),
    ):  # a rank 0 that lives on to see the other's end writes run.json
        wait_for_rows(run, len(run.rows()) + rng.randint(3, 8), child)  # 2: the first checkpoint
        trainers = workers_of(child.pid)
        assert [len(children(trainer)) for trainer in trainers.values()] == [before, before]
        Run.start("killed", "pretrain", with_(cfg, workers=after), tmp_path)  # which the restarted ones will read
        os.kill(trainers[rank], signal.SIGKILL)
    said = child.wait(), (tmp_path / "output.txt").read_text()
    assert said[0] == 0 and said[1].count("going on after step") == 3, said
    assert len(Run.read(run.folder).record["sessions"]) == 4
    assert same(whole, final_weights(run))


@pytest.mark.parametrize("gpus", [1, 2])
def test_told_to_stop_it_loses_nothing(cfg, tmp_path, one_thread, gpus):
    cfg = with_(cfg, steps=20, save_every=1000, log_every=1, workers=1)
    whole = undisturbed(cfg, tmp_path, gpus=gpus)
    run, seen = Run.start("stopped", "pretrain", cfg, tmp_path), []
    lines = launch.stream(run, Launch(gpus))
    for line in lines:
        seen += [line] if line.startswith("step ") else []
        if len(seen) == 9:
            lines.close()  # as an interrupted notebook does
    record = Run.read(run.folder).record
    assert record["status"] == "stopped"
    last = run.rows()[-1]["step"]
    assert 9 <= last < 20 and f"told to stop after step {last}" in record["sessions"][0]["error"]
    said = []
    launch.launch(run, Launch(gpus), said.append)
    assert f"going on after step {last}" in said
    assert same(whole, final_weights(run))


def test_a_stopped_process_says_so_by_its_status(cfg, tmp_path):
    run = Run.start("run", "pretrain", with_(cfg, steps=1000, log_every=1), tmp_path)
    child = subprocess.Popen(command("soco_lib.train", run.folder), stdout=subprocess.DEVNULL, env=same_threads())
    wait_for_rows(run, 3, child)
    child.terminate()
    assert child.wait() == session.STOPPED == 143


@pytest.mark.parametrize("gpus", [1, 2])
def test_who_watches_is_killed_and_the_processes_save_and_end(cfg, tmp_path, gpus):
    run = Run.start("run", "pretrain", with_(cfg, steps=1000, save_every=1000, log_every=1), tmp_path)
    start = "launch.launch(folder.Run.read(sys.argv[1]), launch.Launch(int(sys.argv[2])))"
    code = f"import sys; from soco_lib.runs import folder, launch; {start}"
    watcher = subprocess.Popen(
        [sys.executable, "-c", code, str(run.folder), str(gpus)], stdout=subprocess.DEVNULL, env=same_threads()
    )
    wait_for_rows(run, 3, watcher)
    watcher.kill()
    watcher.wait()
    deadline = time.monotonic() + 120
    while Run.read(run.folder).record["status"] == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert Run.read(run.folder).record["status"] == "stopped"
    assert list(run.folder.glob("checkpoints/step_*.pt"))


def test_two_processes_meet_on_a_host_whose_name_has_no_address(cfg, tmp_path):
    run = Run.start("run", "pretrain", with_(cfg, steps=2), tmp_path)
    words = command("soco_lib.train", run.folder, Launch(gpus=2))
    assert {"--standalone", "--local-addr=127.0.0.1"} <= {*words}
    nameless = ["unshare", "--uts", "sh", "-c", 'hostname no-such-host && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*nameless, "true"], capture_output=True).returncode:
        pytest.skip("no host's name can be changed for one command here")
    subprocess.run(
        [*nameless, *words], cwd=ROOT, env=environment(2), check=True, timeout=120
    )  # it would look for minutes
    assert Run.read(run.folder).metrics["processes"] == 2


def test_two_nodes_train_one_run(cfg, tmp_path, one_thread):
    cfg = with_(cfg, steps=20)
    whole = undisturbed(cfg, tmp_path, gpus=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rendezvous = f"localhost:{free.getsockname()[1]}"
    run, said = Run.start("nodes", "pretrain", cfg, tmp_path), []
    words = ["--gpus", "1", "--nodes", "2", "--rendezvous", rendezvous]
    other = subprocess.Popen([sys.executable, "-m", "soco_lib.runs.launch", "join", str(run.folder), *words], cwd=ROOT)
    metrics = launch.launch(run, Launch(nodes=2, rendezvous=rendezvous), said.append)
    assert other.wait() == 0
    assert metrics["processes"] == 2 and any("2 gloo processes" in line for line in said)
    assert same(whole, final_weights(run))


a_process = subprocess.Popen  # also where a test puts something in its place


class Executed(Exception):
    """In place of becoming another program; its argument is that program's command."""


@pytest.fixture
def joined(monkeypatch):
    """joined(words): the command that `join` would become."""

    def execute(program, words, environment):
        raise Executed(words)

    def join(*words):
        with pytest.raises(Executed) as executed:
            launch.main(["join", *map(str, words)])
        return executed.value.args[0]

    for name, stub in (("execvpe", execute), ("dup2", lambda *_: None), ("chdir", lambda *_: None)):
        monkeypatch.setattr(launch.os, name, stub)
    return join


@pytest.mark.parametrize(("kind", "module"), [("pretrain", "soco_lib.train"), ("transfer", "soco_lib.transfer")])
def test_the_runs_kind_decides_what_joins_it(cfg, tmp_path, joined, monkeypatch, kind, module):
    run = Run.start("run", kind, cfg, tmp_path)
    assert joined(run.folder, "--gpus", 2)[-3:] == ["-m", module, str(run.folder)]
    started = []
    monkeypatch.setattr(launch, "PATIENCE", 0)
    monkeypatch.setattr(
        launch.slurm, "start", lambda words, folder, **_: started.append(words) or subprocess.Popen(["true"])
    )
    with pytest.raises(BookError, match="ended before it was done"):
        launch.launch(run, Launch(2, launcher="slurm"))
    verb = started[0].index("join")  # what each node of the job does with the rest of its words
    assert joined(*started[0][verb + 1 :])[-3:] == ["-m", module, str(run.folder)]


@pytest.fixture
def a_job(cfg, tmp_path, monkeypatch):
    """a_job(write): a run whose SLURM job has left the queue; `write(run)` is seen half a second later."""
    monkeypatch.setattr(launch, "PATIENCE", 30.0)
    written = []

    def made(write):
        run = Run.start("run", "pretrain", cfg, tmp_path)

        def start(words, folder, **asked):
            theirs = Run.read(folder)
            theirs.begin()
            written.append(threading.Timer(0.5, write, [theirs]))
            written[0].start()
            return SimpleNamespace(poll=lambda: 0, wait=lambda: 0)

        monkeypatch.setattr(launch.slurm, "start", start)
        return run

    yield made
    for timer in written:
        timer.cancel()


def test_a_record_that_comes_after_the_job_has_left_the_queue_is_waited_for(a_job):
    def write(run):
        with open(run.folder / "output.txt", "a") as file:
            file.write("the last line\n")
        run.end("done", {"steps": 8})

    said = []
    assert launch.launch(a_job(write), Launch(launcher="slurm"), said.append) == {"steps": 8}
    assert said == ["the last line"]


def test_a_failure_that_comes_after_the_job_has_left_the_queue_is_told(a_job):
    run = a_job(lambda run: run.end("failed", error="its own words"))
    run.begin()
    run.end("failed", error="an earlier session's")
    with pytest.raises(BookError, match="run ended before it was done: its own words"):
        launch.launch(run, Launch(launcher="slurm"))


def test_a_record_that_never_comes_is_not_waited_for_longer_than_stated(a_job, monkeypatch):
    monkeypatch.setattr(launch, "PATIENCE", 1.0)
    run = a_job(lambda run: None)
    run.begin()
    run.end("stopped", error="an earlier session's")
    with pytest.raises(
        BookError, match="ended before it was done, by what its record says 1 seconds later: it printed nothing;"
    ):
        launch.launch(run, Launch(launcher="slurm"))


def test_a_record_that_no_process_works_on_is_one_line(cfg, tmp_path, capfd):
    run = Run.start("seen", "views", cfg, tmp_path)
    assert launch.main(["join", str(run.folder)]) == 1
    error = capfd.readouterr().err
    assert (
        "seen is of kind 'views': give the folder of a run of kind pretrain or transfer" in error
        and error.count("\n") == 1
    )
    with pytest.raises(BookError, match="kind 'views'"):
        next(launch.stream(run))


def test_every_kind_that_a_study_plans_has_a_module():
    assert plans.KINDS.keys() <= launch.MODULES.keys()


def test_joining_nothing_is_one_line(tmp_path, capfd):
    assert launch.main(["join", str(tmp_path)]) == 1
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("devices", "says"), [(1, "GPUS=2 needs a device a process, 1 is visible: lower GPUS"), (0, None), (2, None)]
)
def test_more_gpus_than_there_are_is_one_line_before_anything_starts(
    cfg, tmp_path, monkeypatch, joined, capfd, devices, says
):
    """Without any device, gloo processes train on the CPU."""
    run, started = Run.start("run", "pretrain", cfg, tmp_path), []
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    monkeypatch.setattr(launch.subprocess, "Popen", lambda words, **_: started.append(words) or a_process(["false"]))
    with pytest.raises(BookError, match=says or "failed .exit 1."):
        launch.launch(run, Launch(2))
    assert bool(started) == (says is None)
    if says:
        assert launch.main(["join", str(run.folder), "--gpus", "2"]) == 1
        assert says in capfd.readouterr().err and (run.folder / "output.txt").read_text().count(says) == 1
    else:
        assert "--nproc-per-node=2" in joined(run.folder, "--gpus", 2)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"launcher": "slrum"}, "LAUNCHER='slrum' is unknown; did you mean 'slurm'"),
        ({"nodes": 2}, "NODES=2 needs RENDEZVOUS=host:port"),
        ({"gpus": 0}, "GPUS=0"),
        ({"restarts": -1}, "RESTARTS=-1"),
        ({"launcher": "slurm", "minutes": 0}, "MINUTES=0 must be positive"),
    ],
)
def test_wrong_values_are_told_before_anything_starts(cfg, tmp_path, wrong, says):
    run = Run.start("run", "pretrain", cfg, tmp_path)
    with pytest.raises(BookError, match=says):
        next(launch.stream(run, Launch(**wrong)))


def test_launch_options_come_from_a_file_a_mapping_or_words(tmp_path):
    (tmp_path / "cluster.yaml").write_text("launcher: slurm\ngpus: 8\nminutes: 60\n")
    of = Launch.of
    assert of() == of({}) == of("{}") == Launch()
    assert (
        of({"gpus": "2"})
        == of("{gpus: 2}")
        == of("{GPUS: '2', }")
        == of(gpus=2)
        == of({"gpus": 4}, gpus=2)
        == Launch(2)
    )
    assert of(str(tmp_path / "cluster.yaml")) == Launch(8, launcher="slurm", minutes=60)
    assert of({"launch": str(tmp_path / "cluster.yaml"), "gpus": 4}, nodes=2) == Launch(
        4, 2, launcher="slurm", minutes=60
    )
    for wrong, says in (
        ({"gpu": 2}, "field='gpu' is unknown; did you mean 'gpus'"),
        ({"gpus": "two"}, "gpus='two' must be of type int"),
        ("notebooks/params/launch-slrum.yaml", "no parameter file .*known are .*launch-slurm.yaml"),
    ):
        with pytest.raises(BookError, match=says):
            of(wrong)
