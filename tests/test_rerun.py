"""A rerun: what counts as a number of the run, what it starts from, what differs is named."""

import json

import pytest

from soco_lib.runs.folder import Run, one_kind, processor, provenance
from soco_lib.studies import rerun
from soco_lib.studies import study as studies

NAN = float("nan")


def test_speed_is_no_number_of_the_run_and_nan_equals_nan():
    then = {"bbox": {"AP": 1.0, "per_class": {"car": NAN}}, "seconds": 3.0, "iterations": 2}
    assert rerun.flat(then) == {"bbox.AP": 1.0, "bbox.per_class.car": pytest.approx(NAN, nan_ok=True), "iterations": 2}
    assert not rerun.compare(then, {**then, "seconds": 9.0, "init": "elsewhere"})
    assert rerun.compare(then, {"bbox": {"AP": 1.5, "per_class": {"car": NAN}}}) == {
        "bbox.AP": (1.0, 1.5),
        "iterations": (2, None),
    }


def test_processors_of_one_name_and_two_designs_are_told_apart():
    of = "processor\t: {}\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: AMD EPYC\nstepping\t: 1\n\n".format
    assert processor(of(0, 26, 2) + of(1, 26, 2)) == "AMD EPYC (family 26, model 2)" != processor(of(0, 25, 1))
    assert processor("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n").endswith(
        "(implementer 0x41, part 0xd40)"
    )
    assert (
        one_kind(["AMD EPYC", "AMD EPYC (family 26, model 2)"]) and one_kind(["AMD EPYC"]) and one_kind([])
    )  # the name alone may be either
    assert not one_kind(
        ["AMD EPYC", "AMD EPYC (family 26, model 2)", "AMD EPYC (family 25, model 1)"]
    ) and not one_kind(["A", "B"])
    assert processor("") and "(" not in processor("") and provenance()["hardware"]["cpu"]


@pytest.fixture
def results(tmp_path):
    """A finished pretraining and a transfer from it, with threads in their records."""
    study = studies.read("labels")
    source = Run.start("soco", "pretrain", study.pretrain(study.variant("soco"), "toy", 0), tmp_path)
    transfer = Run.start("scored", "transfer", study.finetune("minicoco-5", "toy", 0, str(tmp_path / "soco")), tmp_path)
    for run, metrics in ((source, {"steps": 300}), (transfer, {"bbox": {"AP": 2.0}, "seconds": 5.0})):
        run.begin(threads=1)
        run.end("done", metrics)
    return tmp_path


def test_the_pretraining_runs_again_too_and_a_difference_is_named(results, monkeypatch, capsys):
    begun, ap = [], 2.0

    def stub(run, say):
        begun.append((run.name, run.record["config"].get("init")))
        run.begin()
        run.end("done", {"steps": 300} if run.record["kind"] == "pretrain" else {"bbox": {"AP": ap}, "seconds": 9.0})

    monkeypatch.setattr(rerun, "launch", stub)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert rerun.main(["scored", "--results", str(results)]) == 0
    assert begun == [("soco", None), ("scored", str(results / "reruns" / "soco"))]
    assert "scored: 1 of 1 numbers are the same to the last digit" in capsys.readouterr().out
    path = results / "reruns" / "scored" / "metrics.json"
    path.write_text(json.dumps({"bbox": {"AP": 2.5}}))
    monkeypatch.setattr(rerun, "launch", lambda *_, **__: None)  # it is there already
    assert rerun.main(["scored", "--results", str(results)]) == 1
    said = capsys.readouterr().out
    assert "bbox.AP: 2.0 then, 2.5 now" in said and "kind of processor" not in said
    record = json.loads((results / "scored" / "run.json").read_text())
    record["sessions"][-1]["hardware"]["cpu"] = "EPYC (family 25, model 1)"
    (results / "scored" / "run.json").write_text(json.dumps(record))
    assert rerun.main(["scored", "--results", str(results)]) == 1
    assert "then on EPYC (family 25, model 1), now on " in capsys.readouterr().out


def test_mistakes_are_one_line(results, capsys):
    assert rerun.main(["nothing", "--results", str(results)]) == 1
    assert "RUN=nothing: no run folder or record" in capsys.readouterr().err
