"""A disk that fills up under a run: one sentence, nothing half written left on it, and after room is made the result
of a run that never lacked any.
"""

import os
import subprocess
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from soco_lib import BookError
from soco_lib.data import store as stores
from soco_lib.fields import from_dict
from soco_lib.runs import checkpoint, records
from soco_lib.runs.folder import Run
from soco_lib.studies import runner
from soco_lib.train import main as pretrain
from soco_lib.transfer import predict
from soco_lib.transfer.benchmarks import Transfer
from soco_lib.transfer.run import main as transfer
from tests.conftest import TINY_TRANSFER
from tests.test_detection_data import write_coco
from tests.test_runner import pictured, write_study  # noqa: F401 (a fixture)

SIZE = 40 * 2**20


@pytest.fixture
def disk(tmp_path):
    """A disk of 40 MB that others fill: a file system in a file, or where there is no loop device, in memory."""
    if os.geteuid():
        pytest.skip("only root can mount")
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(SIZE)
    quiet = dict(capture_output=True)
    made = subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], **quiet)
    looped = not made.returncode and not subprocess.run(["mount", "-o", "loop", image, folder], **quiet).returncode
    if (
        not looped
        and subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], **quiet).returncode
    ):
        pytest.skip("no mount here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk, leave: int) -> None:
    """Write a file that leaves `leave` bytes free."""
    free = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - leave)))


def left(disk) -> list:
    return [path for path in disk.rglob("*") if path.name.endswith(".tmp")]


def one_sentence(main, folder, capfd) -> None:
    """The command fails with one sentence, which the record has as well unless there was no room for it."""
    assert main([str(folder)]) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said and "No space left on device" in said.splitlines()[-1], said
    assert "make room there and run again" in said and not left(folder)


def test_a_pretraining_goes_on_after_room_was_made(disk, cfg, tmp_path, one_thread, capfd):
    whole = Run.start("whole", "pretrain", cfg, tmp_path)
    assert pretrain([str(whole.folder)]) == 0
    size = checkpoint.paths(whole.folder)[-1].stat().st_size
    run = Run.start("run", "pretrain", cfg, disk)
    fill(disk, size + size // 2)  # the first checkpoint, and not the second beside it
    capfd.readouterr()
    one_sentence(pretrain, run.folder, capfd)
    assert [path.name for path in checkpoint.paths(run.folder)] == ["step_00000002.pt"]
    one_sentence(pretrain, run.folder, capfd)  # as often as it is tried
    (disk / "ballast").unlink()
    assert pretrain([str(run.folder)]) == 0
    models = [checkpoint.newest(each.folder)["model"] for each in (whole, run)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.fixture(scope="module")
def fine_tuning(tmp_path_factory):
    """A transfer of two iterations, saved after the first."""
    folder = tmp_path_factory.mktemp("coco")
    data = {"train": write_coco(folder, "train", 4), "test": write_coco(folder, "test", 2)}
    return from_dict(Transfer, TINY_TRANSFER | data | {"save_every": 1, "keep": 1})


@pytest.fixture(scope="module")
def fine_tuned(fine_tuning, tmp_path_factory):
    run = Run.start("whole", "transfer", fine_tuning, tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        assert transfer([str(run.folder)]) == 0
    return run


@pytest.mark.parametrize("part", [0.5, 1.5, 2.5])
def test_a_transfer_goes_on_after_room_was_made(disk, fine_tuning, fine_tuned, one_thread, capfd, part):
    size = max(path.stat().st_size for path in (fine_tuned.folder / "detectron2/checkpoints").glob("*.pt"))
    run = Run.start("run", "transfer", fine_tuning, disk)
    fill(disk, int(part * size))
    one_sentence(transfer, run.folder, capfd)
    (disk / "ballast").unlink()
    assert transfer([str(run.folder)]) == 0
    assert Run.read(run.folder).metrics["bbox"] == fine_tuned.metrics["bbox"]
    assert [row["loss"] for row in run.rows()] == [row["loss"] for row in fine_tuned.rows()]


def test_a_prediction_is_made_after_room_was_made(disk, fine_tuned, pictures, tmp_path, capfd):
    cfg = predict.settings(model=str(fine_tuned.folder), images=str(pictures), score=0.0, workers=0)
    whole, run = (Run.start("run", "predict", cfg, place) for place in (tmp_path, disk))
    assert predict.main([str(whole.folder)]) == 0
    fill(disk, 8192)
    one_sentence(predict.main, run.folder, capfd)
    (disk / "ballast").unlink()
    assert predict.main([str(run.folder)]) == 0
    both = [(each.folder / "detections.json").read_bytes() for each in (whole, run)]
    assert both[0] == both[1]


def test_proposals_are_made_after_room_was_made(disk, pictures, tmp_path, capfd):
    asked = ["--images", str(pictures), "--generator", "random", "--count", "3000", "--workers", "2"]
    assert stores.main([*asked, "--out", str(tmp_path / "whole")]) == 0
    fill(disk, 200_000)
    capfd.readouterr()
    assert stores.main([*asked, "--out", str(disk / "store")]) == 1
    said = capfd.readouterr().err
    assert "No space left on device): make room there and run again" in said and said.count("\n") == 1
    assert not left(disk)
    (disk / "ballast").unlink()
    assert stores.main([*asked, "--out", str(disk / "store")]) == 0
    for name in ("boxes.npy", "offsets.npy", "sizes.npy"):
        assert (disk / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_study_goes_on_after_room_was_made(disk, pictured, tmp_path, monkeypatch, one_thread, capfd):
    def launch(run, how, say, env, stop):
        main = {"pretrain": pretrain, "transfer": transfer}[run.record["kind"]]
        if main([str(run.folder)]):
            raise BookError(Run.read(run.folder).last_session["error"])

    def go(results) -> int:
        return runner.main([study, "--results", str(results), "--variants", "batch-512"])

    monkeypatch.setattr(runner, "launch", launch)  # in this process, and so in its main thread
    monkeypatch.setattr(runner, "ThreadPoolExecutor", lambda jobs: nullcontext(SimpleNamespace(map=map)))
    study = write_study(tmp_path, pictured)
    assert go(tmp_path / "r") == 0
    fill(disk, 400_000)
    capfd.readouterr()
    assert go(disk) == runner.FAILED
    said = capfd.readouterr().err
    assert "No space left on device): make room there and run again" in said and "Traceback" not in said
    assert not left(disk)
    (disk / "ballast").unlink()
    assert go(disk) == 0
    runs = [{run.name: run for run in records.read_all(results)[0]} for results in (tmp_path / "r", disk)]
    assert runs[0].keys() == runs[1].keys() and len(runs[0]) == 2
    scored = "tiny-batch-512-toy-s0-coco-fpn-1x"
    assert runs[0][scored].metrics["bbox"] == runs[1][scored].metrics["bbox"]
    assert runs[0][scored].metrics["loss"] == runs[1][scored].metrics["loss"]
