"""Run records: a folder that explains itself and is finished when its run.json says so and its metrics.json exists.

results/<name>/run.json      what was run, where, by which code, in which state
               log.jsonl     one row a logged step, appended
               metrics.json  the numbers, by write-then-rename, before run.json says "done"
               *.ipynb, *.html, figures; checkpoints/ (not tracked)
"""

from __future__ import annotations

import errno
import importlib.metadata
import itertools
import json
import os
import platform
import re
import subprocess
import time
import weakref
from collections.abc import Iterable
from pathlib import Path

from soco_lib import ROOT, BookError
from soco_lib.fields import differences, essence, identity, require, to_dict
from soco_lib.runs import locks
from soco_lib.runs.files import replacing, writable

PACKAGES = ("torch", "torchvision", "numpy", "opencv-contrib-python-headless", "sal-detectron2", "detectron2", "pycocotools", "lvis",
            "papermill")  # fmt: skip

#: What /proc/cpuinfo tells of a processor's design, on x86 and on ARM -> how records say it.
DESIGN = {"cpu family": "family", "model": "model", "CPU implementer": "implementer", "CPU part": "part"}


def write_text(path: Path, text: str) -> None:
    """Write then rename, so that a reader sees the old file or the new one and a killed writer leaves no torn one."""
    with replacing(path, "w") as file:
        file.write(text)


def write_json(path: Path, value) -> None:
    """`value` as JSON, as `write_text` writes."""
    write_text(path, json.dumps(value, indent=1, allow_nan=True) + "\n")


def read_json(path: Path):
    """Raises BookError naming the file when it is missing or torn."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BookError(f"{path} is missing: that run was not started or not finished") from None
    except json.JSONDecodeError as error:
        raise BookError(f"{path} is not valid JSON ({error}): delete it and run again") from None


def _git(*args: str) -> str | None:
    """What git says of the checkout; None where it is missing or refuses. The checkout may be another user's: its code
    runs here anyway. Variables as a hook of git has them would lead to another repository.
    """
    words = ["git", "-c", f"safe.directory={ROOT}", "-C", ROOT, *args]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def code() -> dict:
    """Commit of the checkout and whether files differ from it; None is unknown: without git, or for an unpacked
    archive, also one inside another repository. What runs leave in results/ is no change of the code.
    """
    top = _git("rev-parse", "--show-toplevel")
    if not top or not os.path.exists(top) or not os.path.samefile(top, ROOT):
        return {"commit": None, "dirty": None}
    changes = _git("status", "--porcelain", "--", ".", ":(exclude)results")
    return {"commit": _git("rev-parse", "--verify", "HEAD"), "dirty": None if changes is None else bool(changes)}


def processor(cpuinfo: str) -> str:
    """A processor by name, out of the text of Linux's /proc/cpuinfo, with the numbers that tell designs of one name
    apart.

    Clouds call several generations "AMD EPYC"; sums of floats come out in another order, and so otherwise, on each.
    """
    known = dict(re.findall(r"^(\w[\w ]*?)\s*: (.*)$", cpuinfo, re.MULTILINE))
    numbers = [f"{word} {known[key]}" for key, word in DESIGN.items() if key in known]
    return known.get("model name", platform.processor() or platform.machine()) + f" ({', '.join(numbers)})" * bool(
        numbers
    )


def one_kind(processors: Iterable[str]) -> bool:
    """False where `processor` tells that they are of two designs; a name alone, as older records have it, is any design
    of that name.
    """
    return all(b == a or b.startswith(f"{a} (") for a, b in itertools.combinations(sorted({*processors}), 2))


def provenance() -> dict:
    """Code (see `code`), package versions and hardware of this process."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpuinfo = Path("/proc/cpuinfo")
    import torch  # here, because reading records needs no torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "git": code(),
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {
            "cpu": processor(cpuinfo.read_text() if cpuinfo.exists() else ""),
            "cores": os.cpu_count(),
            "gpus": gpus,
        },
    }


class Run:
    """One run folder. Create with `Run.start` (a new or continued run) or `Run.read` (any existing one)."""

    def __init__(self, folder: Path, record: dict):
        self.folder, self.record = Path(folder), record
        self._lock = None

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """Open an existing run folder."""
        return cls(Path(folder), read_json(Path(folder) / "run.json"))

    @classmethod
    def start(cls, name: str, kind: str, config, results: str | Path = "results") -> Run:
        """Create results/<name>, or continue the run that is there.

        Raises BookError when the folder holds a run of another configuration (naming the differing fields) or cannot be
        written.
        """
        require(
            bool(re.fullmatch(r"[\w][\w.+-]*", name)), f"run name {name!r} may hold letters, digits, '_', '-', '+', '.'"
        )
        folder, plain = ROOT / results / name, to_dict(config)
        if (folder / "run.json").exists():
            run = cls.read(folder)
            changed = differences(essence(run.record["config"]), essence(plain))
            if run.record["kind"] != kind:
                changed = {"kind": (run.record["kind"], kind), **changed}
            if changed:
                listed = "; ".join(f"{field}: {old!r} there, {new!r} now" for field, (old, new) in changed.items())
                raise BookError(
                    f"{folder} holds a run of another configuration ({listed}): choose another run name or delete it"
                )
            if run.record["config"] == plain:
                return run
            run.record["config"] = plain
        else:
            with writable(f"the results folder {folder}"):
                folder.mkdir(parents=True, exist_ok=True)
            run = cls(folder, {"name": name, "kind": kind, "config": plain, "identity": identity(config)})
            run.record |= {"status": "created", "sessions": []}
        run.write()
        return run

    @property
    def name(self) -> str:
        return self.record["name"]

    @property
    def metrics(self) -> dict | None:
        """The finished run's numbers; None while there are none."""
        path = self.folder / "metrics.json"
        return read_json(path) if path.exists() else None

    @property
    def done(self) -> bool:
        return self.record["status"] == "done" and (self.folder / "metrics.json").exists()

    def write(self) -> None:
        """Save run.json."""
        write_json(self.folder / "run.json", self.record)

    def lock(self):
        """Take the folder for this process until `end` or its own end. Raises BookError when another process has it,
        and for a file system without locks.
        """
        with writable(self.folder):
            self._lock = locks.lockable(self.folder / ".lock")
        held = weakref.ref(self._lock)  # a killed process's loader workers must not keep the lock
        os.register_at_fork(after_in_child=lambda: (file := held()) and file.close())
        if not locks.take(self._lock):
            raise BookError(
                f"{self.folder} is being written by another process: wait for it or choose another run name"
            )

    def begin(self, **facts) -> None:
        """A process starts (or goes on with) the work: record where and by which code."""
        self.record["status"] = "running"
        self.record["sessions"].append({"start": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **provenance(), **facts})
        self.write()

    def end(self, status: str, metrics: dict | None = None, error: str = "") -> None:
        """status: done (with metrics), failed or stopped (with the last line of the error)."""
        self.record["status"] = status
        self.record["sessions"][-1] |= {
            "end": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **({"error": error} if error else {}),
        }
        if metrics is not None:  # first: whoever reads "done" finds them
            write_json(self.folder / "metrics.json", metrics)
        self.write()
        if self._lock:
            self._lock.close()

    def log(self, row: dict) -> None:
        """Append a row to log.jsonl, whole or not at all. Raises BookError where it cannot be written."""
        path = self.folder / "log.jsonl"
        with writable(path), open(path, "ab", buffering=0) as file:
            line, before = (json.dumps(row) + "\n").encode(), os.fstat(file.fileno()).st_size
            if file.write(line) < len(line):
                file.truncate(before)  # or the next row would be glued to a part of this one
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def rows(self) -> list[dict]:
        """Rows of log.jsonl, one a step (a resumed run repeats some: the last value counts); a torn last line is left
        out.
        """
        path, rows = self.folder / "log.jsonl", {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            step = row.get("step", len(rows))
            rows[step] = rows.get(step, {}) | row
        return [rows[step] for step in sorted(rows)]
