"""Notebooks run strictly: what is wrong is told in one line, before the kernel starts where that is possible."""

import os
import re
from pathlib import Path

import nbformat
import pytest

from soco_lib import BookError
from soco_lib.book import execute as book
from soco_lib.book import parameters
from soco_lib.book.parameters import Parameter

CELL = """\
run_name = "none"
steps = 3  # optimiser steps (effective = steps * 2)
lr = 0.1
colour = "#ff0000"
sizes = [224, 112]
checkpoint: str | None = None
flip = True
"""


def write(path: Path, *cells: str, tagged: int = 1) -> Path:
    """A notebook of code cells, the first `tagged` of which are parameters cells."""
    made = [nbformat.v4.new_code_cell(source) for source in cells]
    for cell in made[:tagged]:
        cell.metadata.tags = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def run(notebook: Path, *options: str) -> int:
    return book.main([str(notebook), "--results", str(notebook.parent / "results"), *options])


def told(capsys) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write(tmp_path / "tiny.ipynb", CELL, "print(steps)")


def test_declared_parameters_are_read_as_python_reads_them(notebook):
    found = parameters.declared(notebook)
    assert list(found) == ["run_name", "steps", "lr", "colour", "sizes", "checkpoint", "flip"]
    assert found["colour"].default == "#ff0000" and found["steps"].default == 3
    assert found["checkpoint"].kinds == {str, type(None)}


def test_a_run_leaves_the_executed_copy_and_one_page_that_needs_no_network(tmp_path, capsys):
    body = """\
import os, matplotlib.pyplot as plt
print("run", run_name, "lr", lr * 10, "headless", os.environ["SOCO_HEADLESS"], os.path.exists("pyproject.toml"))
print("10%\\r50%\\r100%")
figure = plt.figure(figsize=(1, 1))"""
    notebook = write(tmp_path / "tiny.ipynb", CELL, body)
    params = tmp_path / "params.yaml"
    params.write_text("steps: 7\nlr: 5\nsizes: [8, 8]\n")
    assert run(notebook, "--run-name", "a-run", "-f", str(params), "-p", "lr", "1e-3") == 0
    out = capsys.readouterr().out.splitlines()
    assert "  run a-run lr 0.01 headless 1 True" in out and "  100%" in out and len(out) == 4
    copy = tmp_path / "results" / "a-run" / "tiny.ipynb"
    injected = nbformat.read(copy, as_version=4).cells[1].source
    assert "steps = 7" in injected and "lr = 0.001" in injected and "sizes = [8, 8]" in injected
    page = copy.with_suffix(".html").read_text()
    assert "data:image/png;base64," in page and "run a-run" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//|import\(|@import""", page), "the page fetches something"
    assert sorted(p.name for p in copy.parent.iterdir()) == ["tiny.html", "tiny.ipynb"]
    assert "SOCO_HEADLESS" not in os.environ and not book.headless()


def test_the_run_goes_where_the_command_says(tmp_path, capsys):
    notebook = write(tmp_path / "tiny.ipynb", 'run_name = ""\nresults = "results"', "print(results, run_name)")
    assert run(notebook, "--run-name", "a-run", "--no-html") == 0
    assert f"  {tmp_path}/results a-run" in capsys.readouterr().out
    assert run(notebook, "--run-name", "a-run", "-p", "results", "elsewhere") == 1
    assert "contradicts" in told(capsys)


def test_lines_of_notebooks_side_by_side_say_whose_they_are(notebook, capsys):
    assert run(notebook, "--run-name", "a-run", "--label", "left", "--no-html") == 0
    begin, printed, end = capsys.readouterr().out.splitlines()
    assert begin == "[left] tiny [a-run]" and printed == "[left]   3" and end.startswith("[left] tiny done in ")


def test_a_failing_cell_is_one_line_and_leaves_the_copy(tmp_path, capsys):
    stale = tmp_path / "results" / "bad" / "tiny.html"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert run(write(tmp_path / "tiny.ipynb", CELL, "steps", "print(1)\n{}['lost']"), "--run-name", "bad") == 1
    line = told(capsys)
    assert line.startswith("error: KeyError: 'lost' (tiny.ipynb, cell [4];") and "bad/tiny.ipynb" in line
    assert stale.with_suffix(".ipynb").exists() and not stale.exists()


def test_a_user_mistake_found_in_the_kernel_keeps_its_own_words(tmp_path, capsys):
    notebook = write(
        tmp_path / "tiny.ipynb", CELL, "from soco_lib import BookError\nraise BookError('K = 0: give K >= 1')"
    )
    assert run(notebook, "--run-name", "bad") == 1
    assert told(capsys).startswith("error: K = 0: give K >= 1 (tiny.ipynb, cell [3];")


@pytest.mark.parametrize(
    ("cell", "says"),
    [("import sys; sys.exit(0)", "quits"), ("import os; os._exit(9)", "kernel died")],
    ids=["exit", "dead"],
)
def test_a_cell_that_ends_the_run_does_not_look_good(tmp_path, capsys, cell, says):
    assert run(write(tmp_path / "tiny.ipynb", "a = 1", cell), "--run-name", "bad") == 1
    line = told(capsys)
    assert says in line and "cell [2]" in line


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("step", 3, "parameter='step' is unknown; did you mean 'steps'? (known: run_name, steps, lr, colour"),
        ("zzz", 3, "parameter='zzz' is unknown (known: run_name"),
        ("lr", "1e-3", "takes float: give one like 0.1"),
        ("lr", True, "takes float"),
        ("steps", 2.5, "takes int"),
        ("flip", 1, "takes bool"),
        ("colour", False, "takes str"),
        ("checkpoint", 5, "takes None or str"),
        ("sizes", [224, "112"], "takes list"),
        ("run_name", "other", "contradicts 'a-run'"),
    ],
)
def test_wrong_parameters_are_refused_before_the_kernel_starts(notebook, name, value, says):
    with pytest.raises(BookError, match="^[^\n]*$") as caught:
        book.execute(notebook, "a-run", {name: value}, notebook.parent)
    assert says in str(caught.value)
    assert not (notebook.parent / "a-run").exists()


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [
        (0.1, "1e-3", 1e-3),
        (0.1, "2", 2),
        (1, "1e3", 1e3),  # refused later: not an int
        ("", "no", "no"),
        ("", "2024", "2024"),
        ("", "2024-01-01", "2024-01-01"),
        (True, "no", False),
        ((1, 2), "[3, 4]", [3, 4]),
        ({}, "{a: 1e-2}", {"a": 0.01}),
    ],
)
def test_values_from_the_command_line(default, text, value):
    assert Parameter(default, frozenset({type(default)})).parse(text) == value


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "a\\b", "-p", "a b", "a\n"])
def test_run_names_are_folder_names(notebook, name):
    with pytest.raises(BookError, match="run name"):
        book.execute(notebook, name, {}, notebook.parent)


@pytest.mark.parametrize(("cells", "tagged"), [(("a = 1",), 0), (("a = 1", "b = 2"), 2)])
def test_exactly_one_parameters_cell(tmp_path, capsys, cells, tagged):
    assert run(write(tmp_path / "tiny.ipynb", *cells, tagged=tagged), "--run-name", "x") == 1
    assert f"tiny.ipynb has {tagged} code cells tagged 'parameters'" in told(capsys)


def test_missing_and_unreadable_files(tmp_path, notebook, capsys):
    assert run(tmp_path / "no.ipynb", "--run-name", "x") == 1
    assert "there is no notebook" in told(capsys)
    broken = tmp_path / "broken.ipynb"
    for text in ("not json", "[]", "{}"):
        broken.write_text(text)
        assert run(broken, "--run-name", "x") == 1
        assert "not a readable notebook" in told(capsys)
    for text, says in (("- 1", "holds a list"), ("a: [", "is not plain YAML")):
        (tmp_path / "p.yaml").write_text(text)
        assert run(notebook, "--run-name", "x", "-f", str(tmp_path / "p.yaml")) == 1
        assert says in told(capsys)
    assert run(notebook, "--run-name", "x", "-f", str(tmp_path / "no.yaml")) == 1
    assert "there is no parameter file" in told(capsys)
