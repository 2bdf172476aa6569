"""Executing the book's notebooks, strictly, through papermill.

    python -m soco_lib.book notebooks/views.ipynb --run-name first-look -p seed 3 -p lr 1e-3

leaves `results/first-look/views.ipynb` and, when every cell ran, `views.html` beside it. Stricter than papermill itself:
an unknown parameter, a value of another type than the default's and a cell that quits are errors, each told in one line.
Values are YAML, except that `1e-3` is a number (YAML asks for `1.0e-3`) and that a parameter whose default is text takes
what was typed (`-p note no` is the text "no"). `-p` wins over `-f`. Importing this module costs nothing: notebooks do.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from soco_lib import ROOT, BookError, locate

_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "tuple": tuple, "dict": dict, "None": type(None)}


class NotebookFailed(RuntimeError):
    """A cell raised, quit or took its kernel down; one line says which, why, and where the executed copy lies."""


def headless() -> bool:
    """True in a kernel that `execute` started: print sparse plain lines instead of live figures and bars."""
    return os.environ.get("SOCO_HEADLESS", "") not in ("", "0")


class Parameter(NamedTuple):
    """One line of a parameters cell: its default (None where it is not a literal) and the types it takes (None: any)."""

    default: Any
    kinds: frozenset | None

    def takes(self, value: Any) -> bool:
        """Whether `value` may be injected: an int may stand for a float, a list for a tuple, a bool only for a bool."""
        if self.kinds is None:
            return True
        wider = {int: float, list: tuple}.get(type(value))
        if type(value) not in self.kinds and wider not in self.kinds:
            return False
        if type(value) is list and isinstance(self.default, (list, tuple)):
            one = {type(item) for item in self.default}
            return len(one) != 1 or all(Parameter(None, frozenset(one)).takes(item) for item in value)
        return True

    def parse(self, text: str) -> Any:
        """The value that `text` from the command line means for this parameter."""
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            value = text
        return text if not self.takes(value) and self.takes(text) else value


class _Loader(yaml.SafeLoader):
    """YAML as papermill reads it (no dates), with `1e-3` a float."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_EXPONENT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def parameters(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters a notebook declares, from its one cell tagged `parameters`.

    Read with `ast`, not `papermill.inspect_notebook`: that one skips a line whose comment has a second `=`
    and cuts a default at a `#` inside quotes.
    """
    import nbformat

    path = locate(notebook)
    if not path.is_file():
        raise BookError(f"there is no notebook {_shown(path)}: name an .ipynb file, as in notebooks/views.ipynb")
    try:
        cells = nbformat.read(path, as_version=4).cells
    except (ValueError, nbformat.ValidationError) as error:
        raise BookError(f"{_shown(path)} is not a readable notebook ({_line(error)}): name an .ipynb file") from error
    tagged = [cell for cell in cells if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise BookError(f"{_shown(path)} has {len(tagged)} code cells tagged 'parameters': tag exactly one (JupyterLab, property inspector)")
    try:
        statements = ast.parse(tagged[0].source).body
    except SyntaxError as error:
        raise BookError(f"{_shown(path)}: line {error.lineno} of the parameters cell is not plain Python: keep only `name = value` lines") from error
    found = {}
    for line in statements:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        if len(targets) == 1 and isinstance(targets[0], ast.Name) and line.value is not None:
            found[targets[0].id] = _parameter(line.value, getattr(line, "annotation", None))
    return found


def _parameter(value: ast.expr, annotation: ast.expr | None) -> Parameter:
    try:
        default = ast.literal_eval(value)
        known = True
    except ValueError:
        default, known = None, False
    kinds = _annotated(annotation) if annotation else None if default is None else {type(default)}
    if kinds and known:
        kinds = kinds | {type(default)}
    return Parameter(default, frozenset(kinds) if kinds else None)


def _annotated(node: ast.expr) -> set | None:
    """The types an annotation such as `float`, `str | None` or `list[int]` names; None where it names others."""
    if isinstance(node, ast.BinOp):
        left, right = _annotated(node.left), _annotated(node.right)
        return left | right if left and right else None
    kind = _TYPES.get(ast.unparse(node.value if isinstance(node, ast.Subscript) else node))
    return {kind} if kind else None


def check(notebook: str | Path, params: dict) -> None:
    """Raise BookError if `params` has a name the notebook does not declare or a value of another type."""
    known = parameters(notebook)
    for name, value in params.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise BookError(f"{Path(notebook).name} has no parameter {name!r}{hint} It has: {', '.join(known) or 'none'}".replace("? It", "? It").replace("' It", "'. It"))
        if not known[name].takes(value):
            wanted = " or ".join(sorted(kind.__name__ for kind in known[name].kinds)).replace("NoneType", "None")
            text = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str) and _EXPONENT.match(v)]
            remedy = f"YAML reads {text[0]} as text, write 1.0e-3 for 1e-3" if text else f"give a value like {known[name].default!r}"
            raise BookError(f"{Path(notebook).name}: {name}={value!r} ({type(value).__name__}) where it expects {wanted}: {remedy}")


def execute(notebook: str | Path, run_name: str, params: dict, results: str | Path = ROOT / "results", html: bool = True, kernel: str | None = None) -> Path:
    """Execute a notebook from the checkout's root and return its executed copy, `<results>/<run_name>/<notebook>.ipynb`.

    `params` override the parameters cell; `run_name` is injected too where the notebook declares it. The cells' stdout lines
    appear on the terminal. `kernel` defaults to `python3`, the kernel of this environment, whatever the file's metadata says.
    Raises BookError before anything runs, NotebookFailed when a cell fails; the executed copy stays for reading then.
    """
    import nbclient.exceptions
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel

    notebook = locate(notebook)
    if not re.fullmatch(r"\w[\w.+=,@-]*", run_name):
        raise BookError(f"run name {run_name!r}: a folder's name is needed, of letters, digits and _-.+=,@, not starting with '.' or '-'")
    known = parameters(notebook)
    if "run_name" in known and params.setdefault("run_name", run_name) != run_name:
        raise BookError(f"run_name={params['run_name']!r} as a parameter contradicts the run name {run_name!r}: give it once")
    check(notebook, params)
    copy = ROOT / results / run_name / notebook.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.with_suffix(".html").unlink(missing_ok=True)  # of an earlier execution: it would contradict a failing copy
    print(f"{notebook.stem}: {run_name}", flush=True)
    began, echo = time.monotonic(), _Echo()
    try:
        with _kernel_environment():
            executed = papermill.execute_notebook(
                notebook, copy, params, kernel_name=kernel or "python3", language="python", progress_bar=False, stdout_file=echo,
                start_timeout=180, cwd=ROOT, config=_manager_config(),
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        where = f"{notebook.name}, cell [{error.exec_count}]"
        cause = _line(error.evalue) if error.ename == "BookError" else f"{error.ename}: {_line(error.evalue)}".rstrip(": ")
        raise NotebookFailed(f"{where}: {cause} (executed copy: {_shown(copy)})") from error
    except nbclient.exceptions.DeadKernelError as error:
        where = f"{notebook.name}, cell [{_started(copy)}]"
        raise NotebookFailed(f"{where}: the kernel died, most often for want of memory (executed copy: {_shown(copy)})") from error
    except NoSuchKernel as error:
        raise BookError(f"there is no Jupyter kernel {error.name!r} in this environment: run `make setup`, or leave the kernel out") from error
    finally:
        echo.close()
    for cell in executed.cells:  # papermill lets SystemExit(0) pass, and the run would look good
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            raise NotebookFailed(f"{notebook.name}, cell [{cell.execution_count}]: it quits with sys.exit (executed copy: {_shown(copy)})")
    told = render(copy) if html else copy
    print(f"{notebook.stem}: done in {time.monotonic() - began:.0f} s, {_shown(told)}", flush=True)
    return copy


class _Echo:
    """Where papermill writes the cells' stdout: whole lines go to the terminal, of a bar that redraws itself its last state."""

    rest = ""

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            line = line.rstrip().rsplit("\r", 1)[-1]
            if line:
                print(f"  {line}", flush=True)

    def flush(self) -> None:
        """Papermill calls this after each message; half a line waits for its end."""

    def close(self) -> None:
        self.write("\n")


@contextlib.contextmanager
def _kernel_environment():
    """What a kernel started here inherits; papermill's own log lines stay out of the terminal."""
    from papermill.log import logger

    before, level = dict(os.environ), logger.level
    os.environ.update(SOCO_HEADLESS="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        logger.setLevel(level)


def _manager_config():
    """Encrypt the kernel's sockets where jupyter_client can: newer kernels print a warning each start otherwise."""
    from jupyter_client import KernelManager
    from traitlets.config import Config

    return Config({"KernelManager": {"transport_encryption": "auto"}} if KernelManager.class_traits().get("transport_encryption") else {})
