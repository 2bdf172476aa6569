"""`make check-gpu` on a CPU: every line passes, and a planted fault makes its line fail."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from torchvision.ops import roi_align

from soco_lib import ROOT
from tests.gpu import check as check_gpu
from tests.gpu import checks as gpu_checks
from tests.gpu import group as gpu_group
from tests.gpu import speed as gpu_speed

from detectron2.layers import ROIAlign  # isort: skip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checks")


@pytest.fixture(scope="module")
def data(folder):
    return check_gpu.drawn(folder)


def line(name, folder, data):
    (found,) = check_gpu.checks([name], CPU, folder, data, quick=True)
    return found


@pytest.mark.parametrize("name", [*gpu_checks.CHECKS, *check_gpu.GROUP])
def test_a_sound_machine_passes(name, folder, data):
    found = line(name, folder, data)
    assert found.passed is (None if name in gpu_checks.SLOW else True), str(found)


def rounded(self, maps, rois):
    """Detectron2's own: boxes in the maps' type."""
    return roi_align(maps, rois.to(maps.dtype), self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)


def test_boxes_in_bf16_fail(folder, data, monkeypatch):
    monkeypatch.setattr(ROIAlign, "forward", rounded)
    found = line("regions of 600 images, bf16", folder, data)
    assert found.passed is False and "from another image" in found.said and str(found).startswith("FAILED")


def test_a_wait_of_the_host_fails(folder, data, monkeypatch):
    update = gpu_checks.Trainer.update
    monkeypatch.setattr(gpu_checks.Trainer, "update", lambda self, *args: {"loss": update(self, *args)["loss"].item()})
    found = line("waits of the host, bf16", folder, data)
    assert found.passed is False and "1 in an update" in found.said and "local_scalar_dense" in found.said


@pytest.mark.parametrize(
    "op",
    [
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), x.sum()),
    ],
)
def test_what_would_wait_is_seen(op):
    with gpu_checks.counted_waits(CPU) as found:
        op(torch.arange(3.0))
    assert found


def planted(fault, monkeypatch):
    monkeypatch.setenv("PLANTED", fault)
    monkeypatch.setattr(gpu_group, "MODULE", "tests.gpu.planted")


def test_a_process_with_another_checkpoint_fails(folder, data, monkeypatch, tmp_path):
    planted("each for itself", monkeypatch)
    gpu_group.alike(CPU, tmp_path / "alike")
    found = gpu_group.one_checkpoint(tmp_path / "alike")
    assert found.passed is False and "went on from steps 4, 2" in found.said


def test_synchronised_norms_in_the_probe_fail(folder, data, monkeypatch, tmp_path):
    planted("synchronised norms", monkeypatch)
    monkeypatch.setattr(gpu_group, "LIMIT", 60.0)
    found = line("probe, and a killed process", tmp_path, data)
    assert found.passed is False, found.said


def test_the_command_says_what_failed_and_its_status_does_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ROIAlign, "forward", rounded)
    assert check_gpu.main(["float32", "regions of 600 images, bf16", "--quick"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "say nothing of a GPU" in said[0] and said[-1].endswith("FAILED: regions of 600 images, bf16")
    assert check_gpu.main(["flot32"]) == 1
    assert "did you mean 'float32'" in capsys.readouterr().err


def test_arming_cudas_own_word_for_a_wait_is_none(monkeypatch):
    """It warns of itself, once a process, in words that are like those for a wait."""
    monkeypatch.setattr(
        torch.cuda,
        "set_sync_debug_mode",
        lambda mode: warnings.warn("Synchronization debug mode is a prototype", stacklevel=1),
    )
    with gpu_checks.counted_waits(torch.device("cuda")) as found:
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
    assert found == ["called a synchronizing CUDA operation (Triggered internally)"]


def test_what_cannot_be_measured_leaves_the_record_of_the_checks(tmp_path, monkeypatch):
    monkeypatch.setattr(
        gpu_speed, "step", lambda cfg, device: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    )
    assert {row["why"] for row in gpu_speed.sweep(CPU, quick=True)} == {"out of memory"}
    monkeypatch.setattr(check_gpu, "speeds", lambda *_: (_ for _ in ()).throw(RuntimeError("no compiler")))
    monkeypatch.setattr(check_gpu, "checks", lambda *_: [check_gpu.Line("float32", True, "", 0.0)])
    with pytest.raises(RuntimeError, match="no compiler"):
        check_gpu.main(["--quick", "--results", str(tmp_path)])
    assert json.loads((tmp_path / "gpu/cpu.json").read_text())["checks"][0]["passed"] is True


def test_the_outlook_is_the_papers_arithmetic():
    assert gpu_speed.hours(64, 16) == pytest.approx(34.8, abs=0.1)  # about 35 hours on 16 V100
    said = check_gpu.outlook("NVIDIA H100", 1000.0, 900.0, 3)
    assert "the loader binds" in said[0] and "4 workers feed it" in said[0]
    assert (
        "35.6 on 1, 4.4 on 8, 2.2 on 16" in said[1]
        and "35 on 16 V100, 64 images/s" in said[1]
        and ": reached, 1000" in said[2]
    )


def test_it_runs_from_a_plain_checkout_without_what_a_bare_gpu_machine_lacks(tmp_path):
    """No Jupyter, papermill, submitit, nor OpenCV's contrib part: the whole command, quick, with its record."""
    code = """
import sys
jupyter = "jupyterlab nbconvert nbclient nbformat ipykernel IPython ipywidgets"
for name in f"{jupyter} papermill submitit lvis pytest".split():
    sys.modules[name] = None
import cv2
del cv2.ximgproc
sys.modules["cv2.ximgproc"] = None
from tests.gpu import check as check_gpu
sys.exit(check_gpu.main(["--quick", "--results", sys.argv[1]]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "gpu/cpu.json").read_text())
    assert record["scale"] == "small, CPU" and [row["name"] for row in record["checks"]] == [
        *gpu_checks.CHECKS,
        *check_gpu.GROUP,
    ]
    assert (
        all(row["images/s"] > 0 and row["waits"] == 0 for row in record["step"])
        and record["transfer"]
        and record["loader"]
    )
