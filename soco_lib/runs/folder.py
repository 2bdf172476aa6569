"""Run folders: each explains itself, and is finished when its run.json says so and its metrics.json exists.

results/<name>/run.json      what was run, where, by which code, in which state
               log.jsonl     one row a logged step, appended
               metrics.json  the numbers, written before run.json says "done"
               *.ipynb, *.html, figures; checkpoints/ (not tracked)
"""

from __future__ import annotations

import contextlib
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

#: Packages whose versions a record keeps.
PACKAGES = "torch torchvision numpy opencv-contrib-python-headless sal-detectron2 detectron2 pycocotools lvis papermill"
#: What run.json must hold.
PARTS = {"name": str, "kind": str, "config": dict, "status": str, "sessions": list}
#: How sessions record a time.
TIME = "%Y-%m-%dT%H:%M:%S%z"
#: Keys of a processor's design in /proc/cpuinfo, on x86 and on ARM -> their names in records.
DESIGN = {"cpu family": "family", "model": "model", "CPU implementer": "implementer", "CPU part": "part"}


def write_text(path: Path, text: str) -> None:
    """Write a text file whole (see `replacing`)."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path, value) -> None:
    """Write `value` as JSON, whole (see `replacing`)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=True) + "\n")


def read_json(path: Path, kind: type = dict):
    """Raises BookError naming the file when it is missing, torn, of another `kind` or may not be read."""
    try:
        if path.exists() and not path.is_file():  # a pipe, which nobody may ever write to
            raise OSError(errno.EINVAL, "it is no regular file")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"it holds a {type(value).__name__}, not a {kind.__name__}")
        return value
    except FileNotFoundError:
        raise BookError(f"{path} is missing: that run was not started or not finished") from None
    except OSError as error:
        raise BookError(f"{path} cannot be read ({error.strerror}): make it a readable file, or delete it") from None
    except (ValueError, RecursionError) as error:
        raise BookError(f"{path} is not valid ({error}): delete it and run again") from None


def is_record(value) -> bool:
    """Whether a value has what every run.json holds."""
    whole = isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in PARTS.items())
    return whole and all(isinstance(session, dict) for session in value["sessions"])


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
    """A processor's name and the numbers of its design, from the text of Linux's /proc/cpuinfo: clouds call several
    generations "AMD EPYC", and floats are summed in another order on each.
    """
    known = dict(re.findall(r"^(\w[\w ]*?)\s*: (.*)$", cpuinfo, re.MULTILINE))
    design = ", ".join(f"{word} {known[key]}" for key, word in DESIGN.items() if key in known)
    name = known.get("model name", platform.processor() or platform.machine())
    return f"{name} ({design})" if design else name


def one_kind(processors: Iterable[str]) -> bool:
    """False where these names (see `processor`) are of two designs; a name alone, as in older records, matches any
    design of that name.
    """
    return all(b == a or b.startswith(f"{a} (") for a, b in itertools.combinations(sorted({*processors}), 2))


def provenance() -> dict:
    """Code (see `code`), package versions and hardware of this process."""
    import torch  # here, because reading records needs no torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES.split():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    cpuinfo = Path("/proc/cpuinfo")
    return {
        "git": code(),
        "versions": versions,
        "hardware": {
            "cpu": processor(cpuinfo.read_text() if cpuinfo.exists() else ""),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


class Run:
    """One run folder. Create with `Run.start` (a new or continued run) or `Run.read` (any existing one)."""

    def __init__(self, folder: Path, record: dict):
        self.folder, self.record = Path(folder), record
        self._lock = None

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """Open an existing run folder. Raises BookError naming run.json: missing, torn, unreadable or no run's."""
        path = Path(folder) / "run.json"
        record = read_json(path)
        require(is_record(record), f"{path} is no run's record: delete it and run again")
        return cls(Path(folder), record)

    @classmethod
    def start(cls, name: str, kind: str, config, results: str | Path = "results") -> Run:
        """Create results/<name>, or continue the run that is there; one that was refused before it computed anything
        may have another configuration.

        Raises BookError when the folder holds a run of another configuration (naming the differing fields) or cannot be
        written.
        """
        allowed = f"run name {name!r} may hold letters, digits, '_', '-', '+', '.'"
        require(bool(re.fullmatch(r"[\w][\w.+-]*", name)), allowed)
        folder, plain = ROOT / results / name, to_dict(config)
        if os.path.exists(folder / "run.json"):  # False, too, for a name that is too long
            run = cls.read(folder)
            changed = differences(essence(run.record["config"]), essence(plain))
            if run.record["kind"] != kind:
                changed = {"kind": (run.record["kind"], kind), **changed}
            if changed and (run.record["kind"] != kind or run.computed or run.is_taken()):
                listed = "; ".join(f"{field}: {old!r} there, {new!r} now" for field, (old, new) in changed.items())
                other = f"{folder} holds a run of another configuration ({listed})"
                raise BookError(f"{other}: choose another run name, RUN=, or delete {folder}")
            if run.record["config"] == plain:
                return run
            run.record |= {"config": plain, "identity": identity(config)}
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

    @property
    def computed(self) -> bool:
        """Whether a session got as far as a logged step, a checkpoint or metrics."""
        kept = ("metrics.json", "log.jsonl", "checkpoints/*", "detectron2/checkpoints/*")
        return any(next(self.folder.glob(pattern), None) for pattern in kept)

    def is_taken(self) -> bool:
        """Whether another process works on the folder."""
        return locks.is_taken(self.folder / ".lock")

    def write(self) -> None:
        """Save run.json."""
        write_json(self.folder / "run.json", self.record)

    @property
    def last_session(self) -> dict:
        """What the record says of the newest session; {} before the first."""
        return (self.record["sessions"] or [{}])[-1]

    def lock(self):
        """Take the folder for this process until `end` or its own end. Raises BookError when another process has it,
        and for a file system without locks.
        """
        with writable(self.folder):
            self._lock = locks.lockable(self.folder / ".lock")
        held = weakref.ref(self._lock)  # a killed process's loader workers must not keep the lock
        os.register_at_fork(after_in_child=lambda: (file := held()) and file.close())
        if not locks.take(self._lock):
            raise self.busy()

    def busy(self) -> BookError:
        """What is said of a folder that another process works on."""
        return BookError(f"{self.folder} is being written by another process: wait for it or give another name, RUN=")

    def begin(self, **facts) -> None:
        """A process starts (or goes on with) the work: record where and by which code."""
        self.record["status"] = "running"
        self.record["sessions"].append({"start": time.strftime(TIME), **provenance(), **facts})
        self.write()

    def end(self, status: str, metrics: dict | None = None, **facts) -> None:
        """status: done (with metrics), failed or stopped. facts: of the session, such as `error`, the reason in a line,
        and `diverged_at`, the step whose loss was not finite.
        """
        self.record["status"] = status
        self.last_session.update(end=time.strftime(TIME), ended=status, **facts)
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
        """Rows of log.jsonl, one a step, without torn lines; of a step that a resumed run repeated the last values."""
        path, rows = self.folder / "log.jsonl", {}
        for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(step := row.get("step", len(rows)), int):
                    rows[step] = rows.get(step, {}) | row
        return [rows[step] for step in sorted(rows)]
