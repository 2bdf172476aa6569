"""A run's record: what it says of itself, and in which order."""

import pytest

from soco_lib.data.proposals import ProposalConfig
from soco_lib.runs import folder
from soco_lib.runs.folder import Run
from soco_lib.runs.records import state_of


@pytest.fixture
def run(tmp_path):
    run = Run.start("run", "pretrain", ProposalConfig(), tmp_path)
    run.begin()
    return run


def test_a_record_says_done_only_when_its_metrics_are_there(run, monkeypatch):
    seen, write = [], folder.write_json

    def watched(path, value):
        write(path, value)
        there = Run.read(run.folder)
        seen.append((path.name, there.record["status"], there.metrics))

    monkeypatch.setattr(folder, "write_json", watched)
    run.end("done", {"steps": 3})
    assert seen == [("metrics.json", "running", {"steps": 3}), ("run.json", "done", {"steps": 3})]


def test_killed_between_its_metrics_and_its_last_word_a_run_is_not_done(run, monkeypatch):
    monkeypatch.setattr(Run, "write", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.end("done", {"steps": 3})
    there = Run.read(run.folder)
    assert (run.folder / "metrics.json").exists() and not there.done and state_of(there).word == "begun"
