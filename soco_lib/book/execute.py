"""Executing the book's notebooks, strictly, through papermill.

    python -m soco_lib.book notebooks/02_views.ipynb --run-name first-look -p seed 3 -p lr 1e-3

leaves `results/first-look/02_views.ipynb` and, when every cell ran, `02_views.html` beside it, readable without a
network. A parameter that the notebook does not have, a value of another type than its default's and a cell that quits
are errors of one line. `-p` wins over `-f params.yaml`; both are YAML, in which `1e-3` is a number here.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soco_lib import ROOT, BookError, locate, one_line_errors
from soco_lib.book.parameters import Parameter, check, declared
from soco_lib.fields import require
from soco_lib.runs.files import unwritable, writable
from soco_lib.runs.folder import write_text
from soco_lib.runs.reasons import reason
from soco_lib.runs.settings import read_yaml
from soco_lib.runs.stop import Stopped, StopRequests, requests

#: Where run folders go unless another folder is named.
RESULTS = ROOT / "results"
#: Seconds that a cell may take to end after the second Ctrl-C.
WAIT = 5.0
#: nbconvert's page without what it fetches from the network (require.js, MathJax, Mermaid): write formulas in Unicode.
_PAGE = "{% extends 'lab/index.html.j2' %}" + "".join(
    f"{{% block {block} %}}{{% endblock %}}"
    for block in ("html_head_js", "jupyter_widgets", "html_head_js_mathjax", "html_head_js_mermaidjs")
)


class NotebookFailed(BookError):
    """A cell raised, quit or took its kernel down; one line says which, why, and where the executed copy lies."""


def headless() -> bool:
    """True in a kernel that `execute` started: print sparse plain lines there instead of live figures and bars."""
    return os.environ.get("SOCO_HEADLESS", "") not in ("", "0")


def execute(notebook: str | Path, run_name: str, params: dict[str, Any], results: str | Path = RESULTS,
            html: bool = True, label: str = "") -> Path:  # fmt: skip
    """Execute a notebook from the checkout's root; returns its executed copy, `<results>/<run_name>/<notebook>.ipynb`.

    `params` override the parameters cell; `run_name` and `results` are injected too where the notebook declares them.
    What cells print appears on the terminal, each line with `[label]` before it if there is one. The kernel is this
    environment's `python3`, whatever the file's metadata says. Ctrl-C, SIGTERM and SIGHUP interrupt the running cell,
    as JupyterLab's stop button does. Raises BookError before anything runs, NotebookFailed when a cell fails, Stopped
    when it was interrupted; the executed copy then stays for reading.
    """
    import papermill  # slow imports wait until they are needed: a kernel imports this module for `headless`
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

    notebook = locate(notebook)
    params = _placed(notebook, run_name, results, params)
    check(notebook, params)
    copy = ROOT / results / run_name / notebook.name
    with writable(copy.parent):
        copy.parent.mkdir(parents=True, exist_ok=True)
    copy.with_suffix(".html").unlink(missing_ok=True)  # of an earlier execution: it would contradict a copy that fails
    say = functools.partial(print, *([f"[{label}]"] if label else []), flush=True)
    say(f"{notebook.stem} [{run_name}]")
    began, echo, stop = time.monotonic(), _Echo(say), _Interrupting()
    how = {"kernel_name": "python3", "language": "python", "cwd": ROOT, "start_timeout": 180}
    try:
        with _kernel_environment() as config, requests(into=stop):
            papermill.execute_notebook(
                notebook, copy, params, **how, config=config, progress_bar=False, stdout_file=echo,
                kernel_manager_class=stop.manager(), on_cell_start=stop.before_cell,
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        if stop or error.ename in ("Stopped", "KeyboardInterrupt"):  # within an import it may come as any error
            lines = error.evalue.splitlines() if error.ename == "Stopped" else []
            said = [line.strip() for line in lines if line.strip()][-1:]
            raise stop.ended(copy, *said) from error
        raise _failure(copy, error.exec_count, reason(error.ename, error.evalue)) from error
    except (
        Stopped,
        DeadKernelError,
        RuntimeError,
    ) as error:  # a RuntimeError: it ended at its start
        if stop:
            raise stop.ended(copy) from error
        if not isinstance(error, DeadKernelError):
            raise
        cell = sum(bool(cell.metadata.papermill.start_time) for cell in _code_cells(copy))  # the last that started
        raise _failure(copy, cell, "the kernel died, most often for want of memory") from error
    except OSError as error:
        raise unwritable(error, copy) or error from error
    except NoSuchKernel as error:
        raise BookError(f"this environment has no Jupyter kernel {error.name!r}: run `make setup`") from error
    finally:
        echo.close()
    for cell in _code_cells(copy):  # papermill lets `sys.exit(0)` pass, and the rest of the run looks good
        if any(output.output_type == "error" for output in cell.outputs):
            quits = "the cell quits (sys.exit); raise an error or end with the last cell"
            raise _failure(copy, cell.execution_count, quits)
    shown = render(copy) if html else copy
    say(f"{notebook.stem} done in {time.monotonic() - began:.0f} s: {_short(shown)}")
    return copy


def render(executed: Path) -> Path:
    """Write an executed notebook as one HTML file beside it, images embedded; returns the file."""
    from nbconvert import HTMLExporter

    resources = {"metadata": {"name": executed.stem, "path": str(executed.parent)}}
    page, _ = HTMLExporter(raw_template=_PAGE, embed_images=True).from_filename(str(executed), resources)
    write_text(executed.with_suffix(".html"), page)
    return executed.with_suffix(".html")


def _placed(notebook: Path, run_name: str, results: str | Path, params: dict) -> dict:
    """`params` with the run's place, its name and the folder of all runs, where the notebook declares them."""
    allowed = "use letters, digits and _ - . + = , @, a letter or digit first"
    require(re.fullmatch(r"\w[\w.+=,@-]*", run_name), f"run name {run_name!r} is no folder's name: {allowed}")
    place = {"run_name": run_name} | ({} if Path(results) == RESULTS else {"results": str(results)})
    place = {name: value for name, value in place.items() if name in declared(notebook)}
    for name, value in place.items():
        given = params.get(name, value)
        require(given == value, f"{name} = {given!r} contradicts {value!r}, which this command gives: leave it out")
    return params | place


class _Interrupting(StopRequests):
    """Requests to stop that interrupt the kernel's running cell; none is started after one.

    The second Ctrl-C interrupts it again; one that finds it still there WAIT seconds later kills the kernel.
    """

    kernel, running, last = None, False, 0.0

    def __call__(self, number: int, frame=None) -> None:
        again, now = self.at_once, time.monotonic()
        super().__call__(number, frame)
        if not self.running or (again and now - self.last < WAIT):  # one that still starts would end with a traceback
            return
        self.last = now
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.kernel.provisioner.pid, signal.SIGKILL if again else signal.SIGINT)

    def manager(self) -> type:
        """A class of kernel managers, whose kernel is the one that is interrupted."""
        from jupyter_client import AsyncKernelManager

        class Manager(AsyncKernelManager):
            def __init__(manager, *arguments, **options):
                super().__init__(*arguments, **options)
                self.kernel = manager

        return Manager

    def before_cell(self, **_) -> None:
        """Raises Stopped after a request."""
        if self:
            raise Stopped("before this cell")
        self.running = True

    def ended(self, copy: Path, said: str = "") -> Stopped:
        """The error to raise; said: the last line of the cell's own."""
        said = said or f"{copy.stem} was interrupted: the same command runs it again ({_short(copy)})"
        return self.stopped(said) if self else Stopped(said)


class _Echo:
    """Where papermill writes the cells' stdout: whole lines, and of a bar that redraws itself its last state."""

    def __init__(self, say: Callable[[str], None]):
        self.say, self.rest = say, ""

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            line = line.rstrip().rsplit("\r", 1)[-1]
            if line:
                self.say(f"  {line}")

    def flush(self) -> None:
        """Papermill calls this after each message; half a line waits for its end."""

    def close(self) -> None:
        self.write("\n")


@contextlib.contextmanager
def _kernel_environment():
    """Set what a kernel started here inherits, silence papermill's own log; yields the kernel manager's settings."""
    from jupyter_client import KernelManager
    from papermill.log import logger
    from traitlets.config import Config

    settings = Config()
    if "transport_encryption" in KernelManager.class_trait_names():
        # New kernels print a warning at each start unless their sockets are encrypted.
        settings.KernelManager.transport_encryption = "auto"
    # An interrupt between two cells, or while the kernel ends, is told here; the kernel's own words on it, with a
    # traceback, are none of the reader's.
    silent = "__import__('logging').getLogger('tornado.general').setLevel('CRITICAL')"
    settings.NotebookClient.extra_arguments = ["--log-level=CRITICAL", f"--IPKernelApp.exec_lines={silent}"]
    # The environment's own `python3` kernel goes before one in the user's home; no debugger, no words about it.
    inherited = {"SOCO_HEADLESS": "1", "JUPYTER_PREFER_ENV_PATH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    before, level = {name: os.environ.get(name) for name in inherited}, logger.level
    os.environ.update(inherited)
    logger.setLevel("ERROR")
    try:
        yield settings
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _code_cells(copy: Path) -> list:
    import nbformat

    return [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]


def _failure(copy: Path, number: int | None, reason: str) -> NotebookFailed:
    return NotebookFailed(f"{reason} ({copy.name}, cell [{number or '?'}]; executed copy: {_short(copy)})")


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _read_params(files: list[str], pairs: list[list[str]], known: dict[str, Parameter]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for path in map(locate, files):
        require(path.is_file(), f"there is no parameter file {path}: give -f a YAML file of `name: value` lines")
        params |= read_yaml(path)
    return params | {name: known.get(name, Parameter(None, None)).parse(text) for name, text in pairs}


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 1 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m soco_lib.book", description=__doc__.splitlines()[0])
    parser.add_argument("notebook", help="an .ipynb file with a parameters cell")
    parser.add_argument("--run-name", required=True, help="the folder under --results that takes the executed copy")
    words = {"action": "append", "default": []}
    parser.add_argument("-p", nargs=2, metavar=("NAME", "VALUE"), dest="pairs", help="set a parameter", **words)
    parser.add_argument("-f", metavar="FILE", dest="files", help="set parameters from a YAML file", **words)
    parser.add_argument("--results", default=RESULTS, help="default: results/ of the checkout")
    parser.add_argument("--label", default="", help="before each line, for notebooks that run side by side")
    parser.add_argument("--no-html", action="store_true", help="leave out the HTML page")
    args = parser.parse_args(arguments)
    params = _read_params(args.files, args.pairs, declared(args.notebook))
    execute(args.notebook, args.run_name, params, args.results, html=not args.no_html, label=args.label)
    return 0
