"""A run's record: what it says of itself, and in which order."""

import json
import multiprocessing

import pytest

from soco_lib import BookError
from soco_lib.data.proposals import ProposalConfig
from soco_lib.runs import folder, records
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


def _keep(folder, study):
    records.keep([Run.read(folder)], folder.parent, study=study)


def test_two_studies_that_end_at_the_same_time_keep_all_records(tmp_path):
    for name in "abcdefgh":
        Run.start(name, "pretrain", ProposalConfig(), tmp_path)
    work = [(tmp_path / name, study) for study in ("one", "two") for name in "abcdefgh"]
    children = [multiprocessing.Process(target=_keep, args=each) for each in work]
    for child in children:
        child.start()
    for child in children:
        child.join()
    kept = records.tracked(tmp_path)
    assert [record.name for record in kept] == list("abcdefgh")
    assert all(record.record["studies"] == ["one", "two"] for record in kept)


def test_a_record_says_what_the_folder_says_in_fewer_rows(run):
    for step in range(1, 302):
        run.log({"step": step, "loss": 1 / step, "lr": 0.1})
    run.end("done", {"bbox": {"AP": 1.5, "APs": float("nan")}})
    records.keep([Run.read(run.folder)], run.folder.parent, study="mine")
    (record,) = records.tracked(run.folder.parent)
    assert records.cost(record) == records.cost(run) and record.done and record.metrics["bbox"]["AP"] == 1.5
    rows = record.rows()
    assert len(rows) <= records.ROWS and rows[-1] == {"step": 301, "loss": 1 / 301}


def test_a_line_that_is_no_record_is_named_and_never_written_over(run):
    path = run.folder.parent / "runs.jsonl"
    path.write_text(json.dumps({"name": "x"}) + "\n")
    for attempt in (records.tracked, lambda results: records.keep([run], results)):
        with pytest.raises(BookError, match="runs.jsonl, line 1, is no run's record"):
            attempt(run.folder.parent)
    assert json.loads(path.read_text()) == {"name": "x"}
