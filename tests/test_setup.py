"""Set-up: one declaration of dependencies, a Makefile that explains itself, notebooks that can be run strictly."""

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from soco_lib import ROOT
from soco_lib.book import parameters
from soco_lib.runs import launch

#: What make reads before an environment is there.
SET_UP = ("Makefile", "pyproject.toml", "soco_lib/detectron2.txt", "soco_lib/book/asked.py")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def make(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """`make` as a user runs it, with no environment active and none of an outer make's settings."""
    inherited = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("MAKE", "MFLAGS", "VIRTUAL_ENV", "CONDA_", "DETECTRON2"))
    }
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def bare(tmp_path) -> Path:
    """A checkout without an environment."""
    for name in SET_UP:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_environment_yml_names_what_pyproject_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda[-1]["pip"] == project["dependencies"] + project["optional-dependencies"]["test"]
    assert "python=3.11" in conda and "pip" in conda


def test_make_alone_lists_targets_in_groups_on_one_screen():
    listed = make()
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count("\n") <= 50
    groups = re.findall(r"^[a-z]+$", listed.stdout, re.M)
    assert groups == ["start", "look", "run", "tables", "studies", "checks"]
    described = re.findall(r"^  (\S+) +\S", listed.stdout, re.M)
    phony = re.findall(r"^\.PHONY: (.*)$", make("-pn", "help").stdout, re.M)
    families = {"tableN", "ablation-NAME", "pretrain-soco-NAME", "bench-NAME"}
    assert set(described) == set(" ".join(phony).split()) - {"changed"} | families
    for variable in ("RUN=", "PROFILE=toy", "GPUS=1", "SEED=0", "LAUNCH="):
        assert re.search(rf"^ .*\b{variable} ", listed.stdout, re.M), variable


def test_every_variable_is_described():
    described = re.findall(r"\b([A-Z][A-Z0-9_]*)=", re.sub(r"\(.*?\)", "", make("variables").stdout))
    text = (ROOT / "Makefile").read_text()
    defaults = re.search(r"^DEFAULTS := (.*?[^\\])$", text, re.M | re.S)[1]
    named = set(re.findall(r"[A-Z][A-Z0-9_]*", defaults)) | {"PYTHON", "DETECTRON2"}
    assert named == set(described)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("ablation-longer", "soco_lib.studies longer "),
        ("pretrain-soco-c4-100", "soco_lib.studies pretrain-soco-c4-100 "),
        ("table9", "soco_lib.studies table9 "),
        ("table8", "soco_lib.tables --results 'my results' --tables '8'"),
        ("table4", "soco_lib.tables --results 'my results' --studies alignment "),
        ("bench-store", "tests.speed.bench  --results 'my results' store"),
        ("join", "runs.launch join 'my results/my-run' "),
    ],
)
def test_families_of_targets_and_a_space_in_results(bare, target, says):
    plan = make("-n", target, "RESULTS=my results", "RUN=my-run", "IMAGES=", folder=bare)
    assert plan.returncode == 0 and says in plan.stdout and not plan.stderr, plan.stderr


def test_the_quickstart_refuses_results_with_a_space(bare):
    plan = make("-n", "quickstart", "RESULTS=my results", folder=bare)
    assert plan.returncode and "RESULTS=my results will not do for the quickstart" in plan.stderr


def test_launch_options_that_were_given_win_over_the_file(bare):
    given = {"LAUNCH": "notebooks/params/launch-slurm.yaml", "GPUS": "4", "PARTITION": "debug"}
    options = [f"{name}={value}" for name, value in given.items()]
    for target, option in (
        ("pretrain", "-p launch"),
        ("transfer", "-p launch"),
        ("join", "--launch"),
        ("table9", "--launch"),
    ):
        plan = make("-n", target, *options, folder=bare)
        text = re.search(rf"{option} '(.*?)'", plan.stdout)[1]
        how = launch.Launch.of(text)
        assert (how.launcher, how.gpus, how.partition, how.minutes) == ("slurm", 4, "debug", 1440)
    assert (
        launch.Launch.of(re.search("-p launch '(.*?)'", make("-n", "pretrain", folder=bare).stdout)[1])
        == launch.Launch()
    )


@pytest.mark.parametrize("target", ["setup", "test", "lab"])
def test_targets_make_the_environment_first(bare, target):
    plan = make("-n", target, folder=bare)
    assert plan.returncode == 0, plan.stderr
    for step in ("venv --clear .venv", "install -q -e '.[test]'", "--require-hashes -r soco_lib/detectron2.txt"):
        assert step in plan.stdout


def test_the_quickstart_runs_its_two_transfers_side_by_side(bare):
    """And nothing else: with half of the cores each, and lines that say whose they are."""
    plan = make("-n", "quickstart", folder=bare)
    assert plan.returncode == 0 and not plan.stderr, plan.stderr
    alone, together = plan.stdout.split("TOGETHER=1", 1)
    assert "--label" not in alone and alone.rstrip().endswith("--jobs=2")
    for name in ("quickstart-scratch", "quickstart-transfer"):
        assert f"--label '{name}'" in together and f"--run-name {name}" not in alone


def test_a_finished_environment_is_left_alone_until_something_changes(bare):
    (bare / ".venv" / "bin").mkdir(parents=True)
    (bare / ".venv" / "bin" / "python").touch()
    (bare / ".venv" / ".soco-ready").write_text(f"{bare}\npinned\n")
    assert "pip" not in make("-n", "setup", folder=bare).stdout
    assert "--no-build-isolation 'git+https://x'" in make("-n", "setup", "DETECTRON2=git+https://x", folder=bare).stdout
    (bare / ".venv" / ".soco-ready").write_text(f"{bare}\ngit+https://x\n")
    assert "pip" not in make("-n", "setup", folder=bare).stdout, "the Detectron2 that was asked for once stays"
    assert "--require-hashes" in make("-n", "setup", "DETECTRON2=pinned", folder=bare).stdout
    os.utime(bare / "pyproject.toml", (4e9, 4e9))
    assert "pip" in make("-n", "setup", folder=bare).stdout


def test_an_active_environment_is_used_and_conda_base_is_not(bare):
    for name in ("virtual", "conda"):
        (bare / name / "bin").mkdir(parents=True)
        (bare / name / "bin" / "python").touch()
    virtual, conda = str(bare / "virtual"), str(bare / "conda")
    assert f"{virtual}/bin/python -m pip" in make("-n", "setup", folder=bare, VIRTUAL_ENV=virtual).stdout
    assert (
        f"{conda}/bin/python -m pip"
        in make("-n", "setup", folder=bare, CONDA_PREFIX=conda, CONDA_DEFAULT_ENV="soco").stdout
    )
    assert (
        ".venv/bin/python -m pip"
        in make("-n", "setup", folder=bare, CONDA_PREFIX=conda, CONDA_DEFAULT_ENV="base").stdout
    )


def test_set_up_mistakes_are_told_in_one_line(bare):
    wrong = make("setup", "PYTHON=no-such-python", folder=bare)
    assert (
        wrong.returncode
        and "no-such-python is not Python 3.11 to 3.13: make setup PYTHON=" in wrong.stderr.splitlines()[0]
    )
    gone = make("setup", folder=bare, VIRTUAL_ENV=str(bare / "gone"))
    assert gone.returncode and "gone has no bin/python: deactivate it" in gone.stderr.splitlines()[0]


def test_detectron2_is_pinned_by_hash():
    assert re.search(
        r"^sal-detectron2==\S+ \\\n +--hash=sha256:[0-9a-f]{64}$", (ROOT / "soco_lib/detectron2.txt").read_text(), re.M
    )


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks yet")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_can_be_run_strictly(path):
    """One parameters cell, no outputs, no shell lines (they fail silently) nor other magics, nothing that quits."""
    assert parameters.declared(path)
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3", "a kernel of one machine"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, "clear the outputs before committing"
            python = re.sub(r"^%matplotlib inline$", "", cell.source, flags=re.M)
            calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Call)}
            assert not calls & {"exit", "quit", "sys.exit", "os._exit", "os.system"}, cell.source


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks yet")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_annotated_names_are_not_magics(path):
    """IPython may read `run: str = "x"` as `%run`; `run = "x"` is always Python."""
    from IPython.core import magics

    owners = [getattr(magics, name) for name in dir(magics) if name.endswith("Magics")]
    lines = {name for owner in owners for name in getattr(owner, "magics", {}).get("line", ())}
    assert {"run", "env", "time"} <= lines
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not lines & set(re.findall(r"^(\w+) *:[^=\n]*=", "\n".join(sources), re.M))
