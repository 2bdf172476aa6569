"""A store, a checkpoint and a run folder written before the library was divided into folders are read; the run goes on.

tests/data/before-the-move.tar.gz was written by commit 6957e10: four pictures, their proposals, and a pretraining of
four steps that SIGTERM stopped after the third.
"""

import tarfile
from pathlib import Path

import pytest
import torch

from soco_lib import train
from soco_lib.data.sources import open_source
from soco_lib.data.store import ProposalStore
from soco_lib.fields import from_dict, identity
from soco_lib.runs.folder import Run
from soco_lib.weights.load import read_weights

#: Of the last step, as the same run logged it when nothing stopped it.
LAST = {"step": 4, "spread": 0.74628, "effective_rank": 3.162, "tau": 0.9985355339059327}


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    with tarfile.open(Path(__file__).parent / "data" / "before-the-move.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setenv("SOCO_DATA", str(tmp_path))
    return tmp_path


def test_a_store_is_read(old):
    store = ProposalStore.open(old / "store")
    assert [len(store.boxes(i)) for i in range(len(store))] == [27, 22, 31, 29]
    assert store.boxes(0)[:2].tolist() == [[0, 0, 20, 29], [0, 0, 52, 36]] and store.size(0) == (64, 48)
    assert store.table()["key"].tolist() == list(open_source("folder:pictures").keys)


def test_a_stopped_run_goes_on_to_the_same_end(old):
    run = Run.read(old / "run")
    assert not run.done and run.record["identity"] == "c3d392de23b1"
    assert identity(from_dict(train.Pretrain, run.record["config"])) == run.record["identity"]
    assert train.main([str(run.folder)]) == 0
    run = Run.read(old / "run")
    assert run.done and {name: run.rows()[-1][name] for name in LAST} == pytest.approx(LAST, rel=1e-3)


def test_the_weights_of_a_checkpoint_are_read(old):
    checkpoint = old / "run" / "checkpoints" / "step_00000003.pt"
    weights = read_weights(checkpoint, "online").tensors
    assert weights and all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())
