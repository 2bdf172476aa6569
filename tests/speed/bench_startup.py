"""bench-startup: how long one waits before anything happens: imports, and from a command to the first training step."""

from __future__ import annotations

import functools
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np

from soco_lib import ROOT
from soco_lib.config import Pretrain
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import build_store
from soco_lib.runs.folder import Run
from soco_lib.runs.launch import command, environment
from soco_lib.runs.settings import load
from tests.speed.timing import REPETITIONS, Bench, in_turns

#: What reading a parameter file and naming images takes.
LIGHT = "soco_lib, soco_lib.config, soco_lib.data.sources"
IMPORTS = {
    "ours": f"import {LIGHT}, sys; assert 'torch' not in sys.modules, 'it needs no torch'",
    "plain": "import torch, torchvision, detectron2",
    "soco_lib.train": "import soco_lib.train",
    "nothing": "",
}
TOY = ROOT / "notebooks/params/pretrain-toy.yaml"
IMAGES = 32
#: Lines of a run that are waited for.
LINES = {"to its first line": "global batch", "to its first step": "^step "}
NOTES = (
    f"imports: from starting an interpreter to its end; ours: {LIGHT}; plain: torch, torchvision, Detectron2, "
    "which runs need",
    "a run: `python -m soco_lib.train`, toy profile; the first line follows imports and opening the data, the first "
    "step building the model, starting a worker, its first batch and one update",
    "files are in the page cache: the first start on a machine also reads gigabytes of libraries from its disk",
)


def fresh(code: str) -> None:
    """Run `code` in a new interpreter. Raises CalledProcessError when it fails."""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def toy(images: str, scratch: Path) -> Pretrain:
    """One step of the toy profile, on copies of a few of `images` with random proposals, both below `scratch`."""
    source, folder = open_source(images), scratch / "images"
    folder.mkdir()
    chosen = np.linspace(0, len(source) - 1, min(IMAGES, len(source))).astype(int)
    for i in chosen:
        (folder / f"{i:06d}{Path(source.keys[i]).suffix}").write_bytes(source.read(i))
    build_store(open_source(f"folder:{folder}"), ProposalConfig("random"), scratch / "proposals", workers=1)
    changes = {"steps": 1, "log_every": 1, "batch": min(load(Pretrain, TOY).batch, len(chosen))}
    return load(Pretrain, TOY, images=f"folder:{folder}", proposals=str(scratch / "proposals"), **changes)


def first_step(cfg: Pretrain, results: Path, name: str) -> dict[str, float]:
    """Seconds from launching a new run to its first line and to its first step's, or RuntimeError if there is none."""
    words, awaited = command("soco_lib.train", Run.start(name, "pretrain", cfg, results).folder), dict(LINES)
    seconds, tail, start = {}, deque(maxlen=5), time.perf_counter()
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, cwd=ROOT, env=environment(1), **output) as process:
        for line in process.stdout:
            tail.append(line)
            for what in [what for what, sign in awaited.items() if re.search(sign, line)]:
                seconds[what] = time.perf_counter() - start
                del awaited[what]
    if process.returncode or awaited:
        raise RuntimeError(f"the run ended with status {process.returncode} and without {[*awaited]}: {''.join(tail)}")
    return seconds


def run(images: str, quick: bool) -> Bench:
    """Measure; the run trains on a few of the images that `images` names. Once if `quick`."""
    bench = Bench("startup", "imports, and from a command to the first training step")
    repetitions = 1 if quick else REPETITIONS
    seconds = in_turns({name: functools.partial(fresh, code) for name, code in IMPORTS.items()}, repetitions)
    for what, ways in {
        "import of the light modules": ("ours", "plain"),
        "import of": ("soco_lib.train", "nothing"),
    }.items():
        bench.add(what, "s", {way: seconds[way] for way in ways}, more_is_better=False)
    bench.goal(f"import {LIGHT}", statistics.median(seconds["ours"]), 0.5, "s", at_least=False)
    with tempfile.TemporaryDirectory() as scratch:
        cfg = toy(images, Path(scratch))
        waits = [first_step(cfg, Path(scratch) / "results", f"run-{number}") for number in range(repetitions)]
    bench.data = f"toy profile, batch {cfg.batch}, on at most {IMAGES} images of {images}"
    for what in LINES:
        bench.add(f"a run, {what}", "s", {"ours": [each[what] for each in waits]})
    bench.goal(f"a run, {what}", statistics.median(each[what] for each in waits), 10, "s", at_least=False)
    bench.notes += NOTES
    return bench
