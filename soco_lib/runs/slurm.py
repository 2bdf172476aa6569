"""A run's processes as a SLURM job, through submitit: requeued when it is preempted or out of time, cancelled from
here.

One task a node runs one command, `python -m soco_lib.runs.launch join …`: torchrun, so that a worker that dies is
started anew inside the job. What SLURM does to the job reaches the command as SIGTERM, upon which training saves and
ends (session.py, train.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from soco_lib import ROOT, BookError
from soco_lib.fields import one_of

#: Stands for host:port in a command; only the running job knows its first host.
RENDEZVOUS = "{first host of the job}"
#: Seconds between two questions to SLURM's controller.
POLL = 5.0
#: Seconds that USR2 may come after the TERM of the same preemption.
SETTLE = 2.0
#: Times that a job may run into its time limit and be requeued.
TIMEOUTS = 1000
#: Held while a command of SLURM runs: to submit a job, this process's environment is changed for a moment.
_ENVIRONMENT = threading.Lock()


def ask(*words: str) -> str:
    """Output of a SLURM command. Raises BookError with its message when it fails."""
    try:
        with _ENVIRONMENT:
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        remedy = "run on a login node of the cluster, or use LAUNCHER=local"
        raise BookError(f"LAUNCHER=slurm needs {words[0]} on the PATH: {remedy}") from None
    except subprocess.CalledProcessError as error:
        raise BookError(f"{words[0]} failed: {' '.join(error.stderr.split())}") from None


def state(job: str) -> str:
    """'RUNNING', 'PENDING (Resources)', … by squeue, which unlike sacct needs no accounting database; '' when over."""
    try:
        found, _, reason = ask("squeue", "--noheader", "--jobs", job, "--format", "%T %r").partition(" ")
    except BookError as error:
        if "Invalid job id" in str(error):
            return ""
        return "UNKNOWN (no answer)"  # the controller may be restarting; the job goes on without it
    return f"{found} ({reason})" if reason not in ("", "None") else found


class Node:
    """What each node of the job runs: the command, which gets SIGTERM before submitit requeues the job."""

    def __init__(self, words: list[str]):
        self.words, self.child = words, None

    def __call__(self) -> None:
        from submitit.helpers import TorchDistributedEnvironment

        first = TorchDistributedEnvironment()
        words = [word.replace(RENDEZVOUS, f"{first.master_addr}:{first.master_port}") for word in self.words]
        # SLURM sends USR2, "time is nearly up", to every process of the job. It would kill this one's child; here
        # submitit handles it.
        self.child = subprocess.Popen(words, cwd=ROOT, preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))
        status = self.child.wait()
        if status:
            time.sleep(SETTLE)
            sys.exit(status % 256)  # no exception: submitit would record it as the job's result, and it may be requeued

    def checkpoint(self):
        """submitit calls this upon USR2 and then requeues what it returns."""
        from submitit.helpers import DelayedSubmission

        if self.child:
            self.child.terminate()
            with contextlib.suppress(ChildProcessError):  # only look at its end: __call__ is inside wait() and reaps it
                os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Node(self.words))


class Job:
    """A job in the queue, with the methods of a `subprocess.Popen` that launching needs."""

    def __init__(self, number: str, output: Path):
        self.number, self.output, self.asked, self.state = number, output, -POLL, None

    def poll(self) -> int | None:
        """None while the job is in the queue, running or requeued; its changes of state go to the run's output."""
        if self.state == "":
            return 0
        if time.monotonic() - self.asked < POLL:
            return None
        now, self.asked = state(self.number), time.monotonic()
        if now != self.state:
            with open(self.output, "a") as file:
                file.write(f"SLURM job {self.number}: {now or 'over'}\n")
        self.state = now
        return None if now else 0  # its exit status is in the accounting only; the run's record says how it went

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(POLL / 5)
        return status

    def terminate(self) -> None:
        ask("scancel", self.number)


def submit(words: list[str], folder: Path, gpus: int, nodes: int, partition: str, minutes: int, cpus: int) -> str:
    """Submit a job that runs `words` on each of its nodes (see launch.Launch for the rest); returns its number.

    GPUs are asked for where the partition has any. Raises BookError when SLURM is absent, does not know the partition
    or refuses the job.
    """
    # Name, name with "*" for the default one, and "gpu:8" or "(null)"; a partition has a line for each kind of node.
    known = [line.split() for line in ask("sinfo", "--noheader", "--format", "%R %P %G").splitlines()]
    if partition:
        one_of("PARTITION", partition, sorted({name for name, _, _ in known}))
    ours = [kinds for name, mark, kinds in known if (name == partition if partition else mark.endswith("*"))]
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError
    from submitit.helpers import clean_env

    executor = SlurmExecutor(folder / "slurm", max_num_timeout=TIMEOUTS)
    executor.update_parameters(
        job_name=f"soco-{folder.name}",
        nodes=nodes,
        ntasks_per_node=1,
        time=minutes,
        additional_parameters={"requeue": True, "chdir": ROOT},
        **({"partition": partition} if partition else {}),
        **({"cpus_per_task": cpus} if cpus else {}),
        **({"gpus_per_node": gpus} if any("gpu" in kinds for kinds in ours) else {}),
    )
    try:
        with _ENVIRONMENT:
            cluster = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
            with clean_env():  # this process may be a job's own
                os.environ.update(cluster)
                return executor.submit(Node(words)).job_id
    except FailedJobError as error:
        raise BookError(f"sbatch refused the job: {str(error).strip().splitlines()[-1]}") from None


def start(words: list[str], folder: Path, **asked) -> Job:
    """The run's job: one that is in the queue already, because whoever submitted it was killed, else a new one."""
    number = folder / "slurm" / "job"
    if not (number.exists() and state(number.read_text())):
        submitted = submit(words, folder, **asked)
        number.write_text(submitted)
    return Job(number.read_text(), folder / "output.txt")
