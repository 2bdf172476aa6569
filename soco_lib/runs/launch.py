"""From a run folder to running processes: one for one device, torchrun (one node or several) for more, SLURM for a
cluster.

    python -m soco_lib.runs.launch join RUN_FOLDER --gpus 8 --nodes 2 --rendezvous HOST:PORT

runs one node's processes of a run that was started elsewhere: `make pretrain NODES=2 …` or `make transfer NODES=2 …` on
the first node, `join` on the others. Which module works on a run follows from its kind, which its record tells.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from soco_lib import ROOT, BookError, one_line_errors
from soco_lib.fields import from_dict, one_of, require
from soco_lib.runs import machine, slurm
from soco_lib.runs.folder import Run
from soco_lib.runs.processes import THREADS
from soco_lib.runs.settings import load, parse_yaml, with_values
from soco_lib.runs.stop import Stopped, StopRequests, requests

LAUNCHERS = ("local", "slurm")
#: Seconds until what a SLURM job wrote last must be seen here: a network file system may be slow.
PATIENCE = 60.0
#: torchrun's warnings; those upon a request to stop, and the traceback with which it ends, tell its user nothing.
AGENT = re.compile(r"[WE]\d{4} .*torch/distributed")
#: A run's kind -> the module that works on such a run, in one process or in each of torchrun's.
MODULES = {"pretrain": "soco_lib.train", "transfer": "soco_lib.transfer", "predict": "soco_lib.transfer.predict"}


@dataclass(frozen=True)
class Launch:
    """How a run's processes are started; none of it is part of the experiment. Raises BookError for a bad value."""

    gpus: int = 1  # processes on each node, one a GPU; without GPUs, gloo processes on the CPU
    nodes: int = 1  # machines
    rendezvous: str = ""  # host:port that all nodes reach, for nodes > 1 without SLURM
    restarts: int = 0  # times that torchrun starts all processes anew, from the newest checkpoint, after one died
    launcher: str = "local"  # local: this node's processes here; slurm: a job for all nodes
    partition: str = ""  # of SLURM; "": the cluster's default
    minutes: int = 240  # time limit of a SLURM job, after which it is requeued and goes on
    cpus: int = 0  # cores a node that SLURM is asked for; 0: the cluster's default

    def __post_init__(self):
        one_of("LAUNCHER", self.launcher, LAUNCHERS)
        require(self.gpus >= 1 and self.nodes >= 1, f"GPUS={self.gpus} and NODES={self.nodes} must be at least 1")
        require(self.restarts >= 0, f"RESTARTS={self.restarts} must not be negative")
        require(self.minutes > 0, f"MINUTES={self.minutes} must be positive: a SLURM job's time limit")
        alone = bool(self.nodes == 1 or self.slurm or self.rendezvous)
        require(alone, f"NODES={self.nodes} needs RENDEZVOUS=host:port, the same on every node, or LAUNCHER=slurm")

    @classmethod
    def of(cls, given: str | dict = "", **changes) -> Launch:
        """From a parameter file, a mapping, or a mapping's text in YAML; `changes` win over it (None: no change).

        A mapping may name a parameter file as `launch`, which its other fields win over, and write fields in capitals,
        as make does. Raises BookError for an unknown field or a bad value.
        """
        if isinstance(given, str):
            file = {"launch": given} if given else {}
            given = parse_yaml(given, "launch") if given.lstrip().startswith("{") else file
        values = {str(name).lower(): value for name, value in with_values(given, "launch").items()}
        values |= {name: value for name, value in changes.items() if value is not None}
        file = values.pop("launch", "")
        return load(cls, file, **values) if file else from_dict(cls, values)

    @classmethod
    def of_arguments(cls, given: argparse.Namespace) -> Launch:
        """From a command line (see `add_options`)."""
        return cls.of(given.launch, **{field.name: getattr(given, field.name) for field in dataclasses.fields(cls)})

    @property
    def slurm(self) -> bool:
        """Whether SLURM starts the processes."""
        return self.launcher == "slurm"

    @property
    def world(self) -> int:
        """Processes of the run."""
        return self.gpus * self.nodes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a command line `--launch` and an option for every field of Launch."""
    parser.add_argument("--launch", default="", metavar="FILE", help="parameter file of a cluster, or a YAML mapping")
    for field in dataclasses.fields(Launch):
        parser.add_argument(f"--{field.name}", help=f"of a launch, in place of the file's (default {field.default!r})")


def module_of(run: Run) -> str:
    """The module that works on a run. Raises BookError for a record of another kind, such as a notebook's own."""
    kind = run.record.get("kind")
    known = " or ".join(MODULES)
    require(kind in MODULES, f"{run.folder} is of kind {kind!r}: give the folder of a run of kind {known}")
    return MODULES[kind]


def command(module: str, folder: Path, how: Launch = Launch()) -> list[str]:
    """The command of one node: plain Python for one process, else torchrun with `how.gpus` processes a node."""
    if how.world == 1 and not how.restarts:
        return [sys.executable, "-u", "-m", module, str(folder)]
    if how.nodes > 1:
        where = ["--rdzv-backend=c10d", f"--rdzv-endpoint={how.rendezvous}", f"--rdzv-id={folder.name}"]
    else:  # by address: processes look for each other by the host's name, for minutes where that has no address
        where = ["--standalone", "--local-addr=127.0.0.1"]
    counts = [f"--nnodes={how.nodes}", f"--nproc-per-node={how.gpus}", f"--max-restarts={how.restarts}"]
    return [sys.executable, "-u", "-m", "torch.distributed.run", *counts, *where, "-m", module, str(folder)]


def threads(processes: int, before: int | None = None) -> dict[str, str]:
    """Variables for processes that share this machine's cores: CPU threads for each, and why so many, for the log.

    As many as share out the cores that are free now: a thread that shares a core with a busy process has all others
    wait for it, several times as long as it would take without it. `before`: a run's own number, which it keeps when it
    goes on: sums of floats depend on it. OMP_NUM_THREADS of this process's environment wins.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"], THREADS: "as OMP_NUM_THREADS says"}
    if before:
        return {"OMP_NUM_THREADS": str(before), THREADS: "as before: sums depend on it"}
    free = machine.free_cores()
    count = max(1, int((free + 0.5) // processes))  # a little work of others, as every desktop has, is let pass
    return {"OMP_NUM_THREADS": str(count), THREADS: f"{free:.1f} of {machine.cores()} cores were free"}


def environment(gpus: int, given: dict[str, str] | None = None, run: Run | None = None) -> dict[str, str]:
    """The child's environment: the free cores shared out among the processes of this node, and what torchrun reads;
    this process's environment wins over that, and `given` over both. `run`: the one that the child works on.
    """
    last = run.last_session if run else {}
    before = last.get("threads") if last.get("processes") == gpus else None
    given = {**({} if "OMP_NUM_THREADS" in (given or {}) else threads(gpus, before)), **(given or {})}
    ours = {
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "90",  # seconds to save in after a request to stop; 30 otherwise
        # torch 2.14's shared store gives restarted processes the addresses of the dead ones.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        # Waiting threads spin briefly: spinning on starves busy cores, not spinning halves the speed of free ones.
        "GOMP_SPINCOUNT": "10000",
    }
    return {**ours, **os.environ, "PYTHONUNBUFFERED": "1", **(given or {})}


def visible_devices(gpus: int, jobs: int = 1) -> int:
    """The number of CUDA devices that are visible here, of which `jobs` runs of `gpus` processes take one a process.

    Raises BookError where there are some and too few. Without any, any number of gloo processes runs on the CPU.
    """
    count = torch.cuda.device_count()  # by NVML, where it can: CUDA stays untouched in this process
    runs = f"JOBS={jobs} runs of GPUS={gpus} need {jobs * gpus} devices"
    asked = runs if jobs > 1 else f"GPUS={gpus} needs a device a process"
    remedy = f"{count} {'is' if count == 1 else 'are'} visible: lower {'JOBS or ' * (jobs > 1)}GPUS"
    require(not count or jobs * gpus <= count, f"{asked}, {remedy}")
    return count


def shares(jobs: int, how: Launch) -> list[dict[str, str]]:
    """Environment variables for each of `jobs` runs at a time on this machine: its share of the visible GPUs and cores.

    Raises BookError where there are fewer GPUs than they need together.
    """
    require(jobs >= 1, f"JOBS={jobs} must be at least 1")
    if how.slurm:
        return [{}] * jobs
    count = visible_devices(how.gpus, jobs)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    made = [dict(share) for share in [threads(jobs * how.gpus) if jobs > 1 else {}] * jobs]
    for i, share in enumerate(made if count else ()):
        share["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[i * how.gpus : (i + 1) * how.gpus])
    return made


def join(folder: Path, how: Launch) -> None:
    """Become this node's part of a run; its output is appended to <run>/output.txt, as all nodes' is. Does not return.

    Raises BookError when the folder is no run's that processes work on, and for fewer devices than processes.
    """
    run = Run.read(folder)
    folder = run.folder.resolve()
    words = command(module_of(run), folder, how)
    with open(folder / "output.txt", "a") as output:
        try:
            visible_devices(how.gpus)
        except BookError as error:
            output.write(f"error: {error}\n")  # who launched the job reads this file alone
            raise
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    os.chdir(ROOT)
    os.execvpe(words[0], words, environment(how.gpus, run=run))


def follow(path: Path, begin: int, alive: Callable[[], bool]) -> Iterator[str]:
    """Yield the lines that appear in `path` after byte `begin`, until `alive()` is false."""
    with open(path, errors="replace") as file:
        file.seek(begin)
        text, going = "", True
        while going:
            going = alive()
            while piece := file.readline():
                text += piece
                if text.endswith("\n"):
                    yield text.rstrip()
                    text = ""
            if going:
                time.sleep(0.1)
        if text:
            yield text


def _has_ended(run: Run, before: Run) -> bool:
    """Whether the run's record says how it ended, and not only how it had ended when it was the record `before`."""
    return run.done or (run.record["status"] in ("failed", "stopped") and run.record != before.record)


def _going(child, before: Run, patience: float, stop: StopRequests) -> Callable[[], bool]:
    """For `follow`: true while `child` runs, and for at most `patience` seconds more until the run's record says how it
    ended, which another machine may have written late. A request to `stop` ends the child: once, or at once.
    """
    over, stopping = None, False

    def going() -> bool:
        nonlocal over, stopping
        if child.poll() is None:
            if stop and not stopping:
                stopping = True
                child.terminate()
            if stop.at_once:
                _kill(child)
            return True
        over = over or time.monotonic()
        if time.monotonic() - over >= patience:
            return False
        try:
            return not _has_ended(Run.read(before.folder), before)
        except (BookError, OSError):  # replaced on the other machine while it was read
            return True

    return going


def _kill(child) -> None:
    """End a run's processes at once; a SLURM job is cancelled already. torchrun's processes would outlive it."""
    import psutil

    if isinstance(child, subprocess.Popen):
        with contextlib.suppress(psutil.NoSuchProcess):
            agent = psutil.Process(child.pid)
            for process in (agent, *agent.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def stream(run: Run, how: Launch = Launch(), *, env: dict[str, str] | None = None,
           stop: StopRequests | None = None) -> Iterator[str]:  # fmt: skip
    """Start a run's processes and yield their lines of output as they come; the output is kept in <run>/output.txt.

    env: variables for this node's processes. Upon a request to `stop` or when the caller leaves the iteration they get
    SIGTERM, or the SLURM job is cancelled: the run saves, and can go on later; a second Ctrl-C kills them. They get
    SIGTERM, too, when the caller is killed (on Linux); a SLURM job then goes on, and is found again. Raises BookError
    with the run's own error, Stopped after a stop.
    """
    module, output, folder = module_of(run), run.folder / "output.txt", run.folder.resolve()
    if not how.slurm and run.is_taken():  # its lines would be shown as this one's; a job of SLURM's is found again
        raise run.busy()
    output.touch()
    begin, before = output.stat().st_size, Run.read(folder)
    if how.slurm:
        counts = [f"--gpus={how.gpus}", f"--nodes={how.nodes}", f"--restarts={how.restarts}"]
        words = [sys.executable, "-m", "soco_lib.runs.launch", "join", str(folder), *counts]
        words += ["--rendezvous", slurm.RENDEZVOUS]
        asked = {"partition": how.partition, "minutes": how.minutes, "cpus": how.cpus}
        child = slurm.start(words, folder, gpus=how.gpus, nodes=how.nodes, **asked)
    else:
        visible_devices(how.gpus)
        with open(output, "a") as file:  # no pipe: of several nodes another's process may be the one that speaks
            # In a session of its own: Ctrl-C reaches the caller alone, who then lets the run save.
            child = subprocess.Popen(
                command(module, folder, how), stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
                env=environment(how.gpus, env, before), preexec_fn=lambda: machine.end_with_parent(signal.SIGTERM),
            )  # fmt: skip
    stop = StopRequests() if stop is None else stop
    patience, last, refusal, agent = PATIENCE if how.slurm else 0.0, "", "", False
    try:
        for text in follow(output, begin, _going(child, before, patience, stop)):
            last, agent = text.strip() or last, agent or (stop and text.startswith("Traceback"))
            refusal = text.removeprefix("error: ") if text.startswith("error: ") else refusal
            if not (agent or (stop and AGENT.match(text))):
                yield text
    except BaseException:
        child.terminate()
        raise
    finally:
        status = child.wait()
    run = Run.read(run.folder)
    if run.done and (stop or not status):  # a request may reach a process that has just finished
        return
    ended = _has_ended(run, before)
    said = run.last_session.get("error") if ended else ""  # else it is an earlier session's
    reason = said or refusal or last or "it printed nothing"
    if not ended and stop:  # before it could say so itself
        when = "at once" if stop.at_once else "before its first step"
        reason = f"{when}, run again to go on from the last checkpoint"
        if run.record["status"] == "running" and not how.slurm:
            run.end("stopped", error=reason)
    if run.record["status"] == "stopped" and (ended or stop):
        raise Stopped(f"{run.name} was stopped: {reason}; all output is in {output}")
    waited = f", by what its record says {patience:.0f} seconds later" if patience and not ended else ""
    failed = f"failed (exit {status})" if status else f"ended before it was done{waited}"
    raise BookError(f"{run.name} {failed}: {reason}; all output is in {output}")


def launch(run: Run, how: Launch = Launch(), say: Callable[[str], None] = print, **streaming) -> dict:
    """Run to the end as `stream` does, and `say` each line; returns the metrics, at once for a finished run. Ctrl-C,
    SIGTERM and SIGHUP are requests to stop.
    """
    if not run.done:
        with requests(into=streaming.pop("stop", None)) as stop:
            for text in stream(run, how, stop=stop, **streaming):
                say(text)
    return Run.read(run.folder).metrics


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["join"])
    parser.add_argument("folder", type=Path, help="run folder, the same on every node")
    add_options(parser)
    given = parser.parse_args(arguments)
    join(given.folder, Launch.of_arguments(given))


if __name__ == "__main__":
    sys.exit(main())
