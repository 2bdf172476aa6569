"""The book in a real JupyterLab, in a real browser: what a reader sees and clicks on.

    @pytest.fixture(scope="module")
    def lab(tmp_path_factory):
        with browser.lab(tmp_path_factory.mktemp("lab")) as opened:
            yield opened

    page = lab.open("03_pretrain", run_name="mine", results=str(tmp_path))  # a copy, with these parameters
    page.run_all()
    page.until(lambda: "step 3 of" in page.output(3))
    page.stop()  # the toolbar's button
    page.ended()
    assert page.errors() == []
    page.picture(tmp_path / "seen.png")

Skips, with the reason, where Playwright (`pip install playwright`) or a Chromium is missing. Each Lab has a port, a
token and Jupyter folders of its own. Notebooks are copies below the given folder: the committed ones stay as they are.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from soco_lib import ROOT

#: Seconds that a busy machine may take for what takes one of its own.
SLOW = 120.0
#: Every cell is drawn, also outside the window; no question about news.
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "@jupyterlab/notebook-extension/tracker": '{"windowingMode": "none"}',
}


def chromium() -> str:
    """Path of a Chromium. Skips the test that asks where there is none, or no Playwright."""
    pytest.importorskip("playwright.sync_api", reason="no browser tests: pip install playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip("no browser tests: there is no Chromium on the PATH")


def until(ready, seconds=SLOW, every=0.05):
    """Wait for `ready()` to be true, and return what it returned. Raises AssertionError when `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"{getattr(ready, '__name__', ready)}: not within {seconds:.0f} s"
        time.sleep(every)
    return found


@contextlib.contextmanager
def lab(folder: Path, width=1280, height=1000):
    """A JupyterLab, as `make lab` starts it, and a browser for it; yields a Lab. Its files are all below `folder`."""
    executable = chromium()
    from jupyter_server.serverapp import list_running_servers
    from playwright.sync_api import sync_playwright

    for name, text in SETTINGS.items():
        path = folder / "config/lab/user-settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "notebooks").mkdir()
    places = {f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in ("config", "data", "runtime")}
    paths = {name: os.pathsep.join([first, os.environ.get(name, "")]).rstrip(os.pathsep) for name, first in (
        ("PATH", str(Path(sys.executable).parent)), ("PYTHONPATH", str(ROOT)),
    )}  # fmt: skip
    env = {**os.environ, **places, **paths, "IPYTHONDIR": str(folder / "ipython"), "JUPYTER_PREFER_ENV_PATH": "1"}
    env.pop("SOCO_HEADLESS", None)
    words = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}", "--no-browser", "--port=0"]
    words += ["--LabApp.default_url=/lab/tree/notebooks", "--LabApp.extension_manager=readonly"]  # no look for news
    words += ["--allow-root"] * (os.geteuid() == 0)
    with open(folder / "server.txt", "w") as output:
        server = subprocess.Popen(words, env=env, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    try:
        running = lambda: server.poll() is not None or [*list_running_servers(str(folder / "runtime"))]
        found = until(running, every=0.2)
        assert found is not True, (folder / "server.txt").read_text()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(1000 * SLOW)
            yield Lab(folder, found[0], server, page)
            browser.close()
    finally:
        server.terminate()  # it shuts its kernels down
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


class Lab:
    """A running JupyterLab."""

    def __init__(self, folder, info, server, page):
        self.folder, self.info, self.server, self.page = folder, info, server, page

    def open(self, name: str, **parameters) -> "Notebook":
        """A copy of notebooks/<name>.ipynb with these parameters, open, its kernel idle."""
        from papermill.iorw import load_notebook_node
        from papermill.parameterize import parameterize_notebook

        given = load_notebook_node(str(ROOT / "notebooks" / f"{name}.ipynb"))
        nbformat.write(parameterize_notebook(given, parameters), self.folder / "notebooks" / f"{name}.ipynb")
        self.page.goto(f"{self.info['url']}lab/tree/notebooks/{name}.ipynb?reset&token={self.info['token']}")
        notebook = Notebook(self.page)
        notebook.idle()
        return notebook


class Notebook:
    """A notebook that is open in the browser; `page` is Playwright's. Code cells are counted from 0, the parameters
    cell, and the cell with the parameters that were given is 1.
    """

    def __init__(self, page):
        self.page = page

    def idle(self) -> None:
        """Wait until the kernel is there and does nothing."""
        self.page.locator("#jp-main-statusbar").get_by_text("(ipykernel) | Idle").wait_for()

    def menu(self, *words: str) -> None:
        """Choose from the menu bar, such as menu("Kernel", "Restart Kernel…")."""
        self.page.locator(".lm-MenuBar-itemLabel").get_by_text(words[0], exact=True).click()
        for word in words[1:]:
            self.page.locator(".lm-Menu-itemLabel").get_by_text(word, exact=True).click()

    def run_all(self) -> None:
        """Run > Run All Cells."""
        self.menu("Run", "Run All Cells")

    def stop(self) -> None:
        """Press the toolbar's stop button."""
        self.page.locator(".jp-NotebookPanel-toolbar [data-jp-item-name=interrupt]").click()

    def restart(self) -> None:
        """Press the toolbar's restart button and confirm."""
        self.page.locator(".jp-NotebookPanel-toolbar [data-jp-item-name=restart]").click()
        self.page.locator(".jp-Dialog .jp-mod-accept").click()

    def until(self, ready, seconds=SLOW):
        """Wait for `ready()` to be true; returns what it returned."""
        return until(lambda: self.page.wait_for_timeout(50) or ready(), seconds)

    def running(self) -> bool:
        """Whether a cell runs or waits for its turn."""
        return self.page.locator(".jp-InputPrompt", has_text="[*]").count() > 0

    def ended(self, seconds=SLOW) -> None:
        """Wait until no cell runs or waits for its turn."""
        self.until(lambda: not self.running(), seconds)

    def cell(self, number: int):
        """Playwright's locator of a code cell."""
        return self.page.locator(".jp-CodeCell").nth(number)

    def output(self, number: int) -> str:
        """Text of what a code cell has put out."""
        return "\n".join(self.cell(number).locator(".jp-OutputArea-output").all_inner_texts())

    def errors(self) -> list[str]:
        """Texts of all errors, with their tracebacks, and of what was written to stderr: what Lab shows in red."""
        return self.page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts()

    def picture(self, path: Path, cell: int | None = None) -> Path:
        """Write a PNG of the window, or of a code cell after scrolling to it; returns its path."""
        (self.page if cell is None else self.cell(cell)).screenshot(path=path)
        return path
