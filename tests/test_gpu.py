"""What only a GPU shows: the checks of `make check-gpu` on correctness and on several processes, one test each."""

import dataclasses
import itertools

import pytest
import torch

from soco_lib.runs import processes
from soco_lib.studies import step_time
from tests.gpu import check as check_gpu
from tests.gpu import checks as gpu_checks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    processes.arithmetic(fixed_sizes=True)
    return tmp_path_factory.mktemp("checks")


@pytest.fixture(scope="module")
def data(folder):
    return check_gpu.drawn(folder)


@pytest.mark.parametrize("name", [*gpu_checks.CHECKS, *check_gpu.GROUP])
def test_check(name, folder, data):
    (line,) = check_gpu.checks([name], DEVICE, folder, data, quick=False)
    assert line.passed, line.said


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_update_keeps_the_host_waiting_nowhere(precision):
    """CUDA itself raises at the line that waits, where the check only counts."""
    cfg = dataclasses.replace(gpu_checks.PAPER, precision=precision, micro_batch=4)
    trainer = step_time.lone_trainer(cfg, DEVICE)
    batches = itertools.repeat(step_time.as_loaded(step_time.random_batch(cfg, 4), trainer.model, DEVICE))
    trainer.update(0, batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.update(1, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
