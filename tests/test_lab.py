"""JupyterLab in a browser: training is watched, stopped by the button and goes on; closing it loses nothing."""

import pytest

from soco_lib.runs.folder import Run
from tests import browser
from tests.test_stop import ENDS, is_stopped, rows, tiny_work

#: So that they last a few seconds.
STEPS = 60


@pytest.fixture(scope="module")
def work(pictures, store, tmp_path_factory):
    browser.chromium()
    with tiny_work(pictures, store, tmp_path_factory.mktemp("work"), STEPS) as made:
        yield made


@pytest.fixture(scope="module")
def lab(work, tmp_path_factory):
    with browser.lab(tmp_path_factory.mktemp("lab")) as opened:
        yield opened


def watching(lab, work, results, kind):
    """The notebook of a training, whose live curve is shown."""
    name = {"pretrain": "03_pretrain", "transfer": "04_transfer"}[kind]
    page = lab.open(name, run_name="run", results=str(results), config=str(work.configs[kind]))
    page.run_all()
    page.until(lambda: page.cell(4).locator("img").count() and rows(results / "run", 3)())
    return page


@pytest.mark.parametrize("kind", ["pretrain", "transfer"])
def test_the_stop_button_saves_and_the_cells_run_again_go_on(lab, work, tmp_path, kind):
    page = watching(lab, work, tmp_path, kind)
    page.picture(tmp_path / "watched.png")
    page.stop()
    page.ended(ENDS)
    page.picture(tmp_path / "stopped.png")
    [said] = page.errors()
    assert said.startswith("Stopped: run was stopped")
    is_stopped(tmp_path / "run", said)
    page.run_all()
    page.ended()
    assert page.errors() == [] and page.output(4)
    page.picture(tmp_path / "done.png", cell=4)
    work.goes_on_to_the_same_end(tmp_path / "run")


def saved(page, folder):
    """The process of the training has noticed that nobody watches, and saved."""
    page.until(lambda: Run.read(folder).record["status"] == "stopped", ENDS)
    is_stopped(folder, f"was stopped: {Run.read(folder).last_session['error']}")


def test_a_restarted_kernel_loses_nothing(lab, work, tmp_path):
    page = watching(lab, work, tmp_path, "pretrain")
    page.restart()
    saved(page, tmp_path / "run")
    page.idle()
    work.goes_on_to_the_same_end(tmp_path / "run")


def test_a_lab_that_is_shut_down_loses_nothing(lab, work, tmp_path):
    page = watching(lab, work, tmp_path, "pretrain")
    lab.server.terminate()
    saved(page, tmp_path / "run")
    work.goes_on_to_the_same_end(tmp_path / "run")
