"""The runner: plans, shares, goes on, survives; tables from records. Training is a stub but for the last tests."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from soco_lib import BookError
from soco_lib.book import study as book_study
from soco_lib.book.execute import execute
from soco_lib.runs import launch, locks, records, session, slurm
from soco_lib.runs.folder import Run
from soco_lib.scenes import write as scenes
from soco_lib.studies import runner
from soco_lib.studies import study as studies
from soco_lib.studies.study import ROOT
from soco_lib.tables import stats, study_table
from soco_lib.tables.__main__ import main as tables
from tests.conftest import TINY_PRETRAINING, TINY_TRANSFER
from tests.test_slurm import slow

BATCHES = {"batch-512": (2, 8), "batch-1024": (4, 4), "batch-2048": (6, 4)}  # batch, steps


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """Twelve scenes to pretrain on and to fine-tune on, six to test on."""
    folder = tmp_path_factory.mktemp("study")
    scenes.write_scenes(folder / "scenes", 12, 6, workers=1)
    return folder


def write_study(folder, pictured, name="tiny", **changes):
    """A study of three batch sizes on the scenes; changes: fields of its toy base. Returns its file."""
    data = {
        kind: f"coco:{pictured}/scenes/annotations/instances_{kind}.json@{pictured}/scenes/images"
        for kind in ("train", "val")
    }
    base = TINY_PRETRAINING | {"log_every": 1, "save_every": 50}
    base |= {"images": data["train"], "proposals": f"{pictured}/proposals", **changes}
    transfer = TINY_TRANSFER | {"train": data["train"], "test": data["val"]}
    variants = {}
    for variant, (batch, steps) in BATCHES.items():
        paper, toy = {"batch": int(variant[6:])}, {"batch": batch, "steps": steps}
        variants[variant] = {"row": variant.replace("-", " "), "paper": paper, "toy": toy}
    variants["batch-2048"]["paper"] = {}
    content = {
        "question": "Which batch?", "table": "5b", "benchmarks": ["coco-fpn-1x"], "metrics": ["AP_bb", "AP_mk"],
        "baseline": "batch-2048", "toy": base, "transfer": {"toy": transfer},
        "stores": {f"{pictured}/proposals": {"generator": "random", "count": 8}}, "variants": variants,
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


@pytest.fixture
def study(tmp_path, pictured):
    return write_study(tmp_path, pictured)


class Stub:
    """In place of a run's processes: finishes at once with an AP that follows from batch and seed, or goes wrong as
    told.
    """

    def __init__(self):
        self.begun, self.wrong, self.together, self.most = [], {}, 0, 0
        self.lock, self.minute = threading.Lock(), 0

    def __call__(self, run, how, say, env, stop):
        run = Run.read(run.folder)
        config, wrong = (
            run.record["config"],
            next((text for part, text in self.wrong.items() if part in run.name), None),
        )
        with self.lock:
            self.begun.append(run.name)
            self.together += 1
            self.most = max(self.most, self.together)
            self.minute += 1
            begin, end = (
                f"2026-01-01T{minute // 60:02d}:{minute % 60:02d}:00+0000" for minute in (self.minute, self.minute + 1)
            )
        time.sleep(0.05)
        run.record["status"] = "running"
        where = {
            "git": {"commit": "c" * 40, "dirty": False},
            "hardware": {"cpu": "CPU", "cores": 2, "gpus": []},
            "processes": 1,
        }
        run.record["sessions"].append({"start": begin, **where})
        run.log({"step": 1, "loss": 1.0, "images_per_s": 10.0, "spread": 0.5})
        with self.lock:
            self.together -= 1
        if wrong == "killed":
            run.write()
            raise BookError("step 1/4")
        run.record["sessions"][-1]["end"] = end
        if wrong:
            run.record["sessions"][-1]["error"], run.record["status"] = wrong, "failed"
            run.write()
            raise BookError(wrong)
        run.record["status"] = "done"
        run.write()
        if run.record["kind"] == "pretrain":
            metrics = {"steps": config["steps"], "images_seen": config["steps"] * config["batch"], "seconds": 60.0}
        else:
            batch = int(config["init"].split("batch-")[1].split("-")[0]) if config["init"] != "scratch" else 0
            ap = batch / 1000 + {0: (5, 5, 5), 512: (0, 1, 2), 1024: (0, 4, 2), 2048: (0, 2, 4)}[batch][config["seed"]]
            scores = {"AP": ap, "AP50": 1.0, "AP75": 1.0, "per_class": {}}
            metrics = {"bbox": scores, "segm": scores, "iterations": 2, "batch": 2, "seconds": 60.0}
        (run.folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def stub(monkeypatch):
    made = Stub()
    monkeypatch.setattr(runner, "launch", made)
    return made


def go(study, results, *words):
    """Run the study and make its table, as `make ablation-NAME` does; the runner's exit status."""
    status = runner.main([study, "--results", str(results), *words])
    if status != 1 and "--plan" not in words:
        tables(["--studies", study, "--results", str(results), "--profile", "toy"])
    return status


def row_of(results, variant):
    """The variant's first row of the printed table, as its cells."""
    line = next(line for line in page(results).splitlines() if line.startswith(f"| {variant} "))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def page(results, name="tiny"):
    return (results / "tables" / f"{name}-toy.md").read_text()


def test_it_runs_what_is_missing_and_nothing_twice(study, tmp_path, stub, capsys):
    assert go(study, tmp_path / "r", "--plan") == 0
    said = capsys.readouterr().out
    assert "to run: 3 pretrainings, 3 transfers" in said and not (tmp_path / "r").exists()
    assert go(study, tmp_path / "r") == 0
    assert stub.begun[:2] == ["tiny-batch-512-toy-s0", "tiny-batch-512-toy-s0-coco-fpn-1x"] and len(stub.begun) == 6
    first = {path.name: path.read_bytes() for path in (tmp_path / "r" / "tables").iterdir()}
    assert go(study, tmp_path / "r") == 0 and len(stub.begun) == 6
    assert "nothing to run" in capsys.readouterr().out
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "r" / "tables").iterdir()}
    assert go(study, tmp_path / "r", "--seeds", "0,1") == 0 and len(stub.begun) == 12
    assert row_of(tmp_path / "r", "batch-512")[:4] == ["batch-512", "2", "1.01 ± 0.71 [s0][2] [s1][4]", "41.7"]


def test_tables_are_the_same_bytes_from_records_alone(study, tmp_path, stub):
    stub.wrong = {"batch-1024-toy-s1": "a reason"}
    assert go(study, tmp_path / "r", "--seeds", "0,1") == runner.FAILED
    clone = tmp_path / "clone"
    clone.mkdir()
    shutil.copy(tmp_path / "r" / "runs.jsonl", clone)
    tables(["--studies", study, "--results", str(clone)])
    for path in (tmp_path / "r" / "tables").iterdir():
        assert path.read_bytes() == (clone / "tables" / path.name).read_bytes()
    assert '\n[1]: ../runs.jsonl "make show RUN=tiny-batch-512-toy-s0"\n' in page(clone)
    assert "[tiny-batch-512-toy-s0][1]" in page(clone)


def test_a_variant_from_scratch_pretrains_nothing(tmp_path, pictured, stub, capsys):
    path = write_study(tmp_path, pictured)
    content = yaml.safe_load(Path(path).read_text())
    content["variants"] = {
        "scratch": {"scratch": True, "says": "random weights"},
        "batch-512": content["variants"]["batch-512"],
    }
    Path(path).write_text(yaml.safe_dump(content | {"baseline": "scratch"}, sort_keys=False))
    assert go(path, tmp_path / "r", "--plan") == 0
    said = capsys.readouterr().out
    assert "to run: 1 pretraining, 2 transfers" in said and "random weights" in said and "(the base)" in said
    assert go(path, tmp_path / "r") == 0
    assert stub.begun == [
        "tiny-scratch-toy-s0-coco-fpn-1x",
        "tiny-batch-512-toy-s0",
        "tiny-batch-512-toy-s0-coco-fpn-1x",
    ]
    assert row_of(tmp_path / "r", "scratch")[:3] == ["scratch", "1", "5.00 [s0][1]"]
    assert go(path, tmp_path / "r") == 0 and len(stub.begun) == 3


def test_recorded_runs_need_not_run_again(study, tmp_path, stub, capsys):
    results = tmp_path / "r"
    assert go(study, results, "--variants", "batch-512") == 0
    for folder in results.glob("tiny-*"):  # a clone has the records alone
        shutil.rmtree(folder)
    assert go(study, results, "--variants", "batch-512", "--recorded") == 0 and len(stub.begun) == 2
    assert "nothing to run" in capsys.readouterr().out and row_of(results, "batch-512")[:2] == ["batch-512", "1"]
    lines = (results / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 2 and '"name": "tiny-batch-512-toy-s0-coco-fpn-1x"' in lines[1]
    (results / "runs.jsonl").write_text(lines[0] + "\n")
    assert go(study, results, "--variants", "batch-512", "--recorded") == 0  # it needs the pretraining's weights
    assert stub.begun[2:] == ["tiny-batch-512-toy-s0", "tiny-batch-512-toy-s0-coco-fpn-1x"]
    assert go(study, results, "--variants", "batch-512") == 0 and len(stub.begun) == 4


def test_a_finished_record_is_not_replaced_by_an_unfinished_run(study, tmp_path, stub):
    assert go(study, tmp_path / "r", "--variants", "batch-512") == 0
    before = page(tmp_path / "r")
    for path in (tmp_path / "r").glob("tiny-*/metrics.json"):
        path.unlink()
    study_table.build(studies.read(study), "toy", tmp_path / "r")
    assert page(tmp_path / "r") == before


def test_a_failing_variant_leaves_the_others_whole_and_is_tried_again(study, tmp_path, stub, capsys):
    stub.wrong = {"batch-1024": "no memory left"}
    assert go(study, tmp_path / "r") == runner.FAILED
    assert "tiny-batch-1024-toy-s0: failed: no memory left" in capsys.readouterr().err
    assert row_of(tmp_path / "r", "batch-1024") == [
        "batch-1024",
        "0",
        "",
        "41.9",
        "",
        "37.6",
        "failed: no memory left (s0)",
    ]
    assert page(tmp_path / "r").count("| done (s0)") == 2
    stub.wrong, done = {}, len(stub.begun)
    assert go(study, tmp_path / "r") == 0
    assert stub.begun[done:] == ["tiny-batch-1024-toy-s0", "tiny-batch-1024-toy-s0-coco-fpn-1x"]


@pytest.mark.parametrize("part", ["batch-512-toy-s0", "batch-512-toy-s0-coco"])
def test_divergence_is_a_result(study, tmp_path, stub, part):
    text = (
        "the loss is nan at step 7: lower it"
        if not part.endswith("coco")
        else "the loss is not finite at step 7: lower it"
    )
    stub.wrong = {part: text}
    assert go(study, tmp_path / "r") == 0
    assert row_of(tmp_path / "r", "batch-512")[-1] == "diverged at step 7 (s0)"
    assert "Without a score: batch-512" in page(tmp_path / "r")
    count = len(stub.begun)
    assert count == (6 if part.endswith("coco") else 5)  # nothing is transferred from a diverged network
    assert go(study, tmp_path / "r") == 0 and len(stub.begun) == count


def test_a_run_of_the_same_configuration_is_used_whatever_its_name(study, tmp_path, stub, pictured, capsys):
    other = write_study(tmp_path, pictured, "other")
    assert go(other, tmp_path / "r", "--variants", "batch-2048") == 0
    stub.begun.clear()
    assert go(study, tmp_path / "r") == 0
    assert not any("batch-2048" in name for name in stub.begun) and len(stub.begun) == 4
    assert "done (other-batch-2048-toy-s0)" in capsys.readouterr().out
    shared = {record.name: record.record["studies"] for record in records.tracked(tmp_path / "r")}
    assert shared["other-batch-2048-toy-s0-coco-fpn-1x"] == ["other-toy", "tiny-toy"]
    assert "other-batch-2048-toy-s0" in page(tmp_path / "r")


def test_of_two_runs_of_one_configuration_the_finished_one_is_used(study, tmp_path, stub, pictured, capsys):
    assert go(write_study(tmp_path, pictured, "other"), tmp_path / "r", "--variants", "batch-2048") == 0
    for name, status in (("aaa", "running"), ("zzz", "done")):
        shutil.copytree(tmp_path / "r" / "other-batch-2048-toy-s0", tmp_path / "r" / name)
        record = json.loads((tmp_path / "r" / name / "run.json").read_text())
        (tmp_path / "r" / name / "run.json").write_text(json.dumps(record | {"name": name, "status": status}))
    shutil.rmtree(tmp_path / "r" / "other-batch-2048-toy-s0")
    assert go(study, tmp_path / "r", "--plan", "--variants", "batch-2048") == 0
    assert "done (zzz)" in capsys.readouterr().out


def test_another_benchmark_is_scored_by_the_same_pretraining(study, tmp_path, stub):
    assert go(study, tmp_path / "r", "--variants", "batch-2048") == 0
    assert go(study, tmp_path / "r", "--variants", "batch-2048", "--benchmarks", "coco-fpn-2x,coco-retinanet-1x") == 0
    run = "tiny-batch-2048-toy-s0"
    assert stub.begun == [run, f"{run}-coco-fpn-1x", f"{run}-coco-fpn-2x", f"{run}-coco-retinanet-1x"]
    assert all(
        f"**{title}" in page(tmp_path / "r") for title in ("coco-fpn-1x: ", "coco-fpn-2x: ", "coco-retinanet-1x: ")
    )


def test_pretrainings_alone(study, tmp_path, stub, capsys):
    words = ("--variants", "batch-2048", "--benchmarks", "none")
    assert go(study, tmp_path / "r", *words, "--plan") == 0 and "to run: 1 pretraining, " in capsys.readouterr().out
    assert go(study, tmp_path / "r", *words) == 0 and stub.begun == ["tiny-batch-2048-toy-s0"]
    assert "pretrained" in page(tmp_path / "r")


def test_an_interrupted_run_of_another_study_is_continued(study, tmp_path, stub, pictured, capsys):
    stub.wrong = {"batch-2048": "killed"}
    assert go(write_study(tmp_path, pictured, "other"), tmp_path / "r", "--variants", "batch-2048") == runner.FAILED
    stub.wrong = {}
    capsys.readouterr()
    assert go(study, tmp_path / "r", "--plan") == 0
    assert "step 1 of 4 (other-batch-2048-toy-s0)" in capsys.readouterr().out
    assert go(study, tmp_path / "r", "--variants", "batch-2048") == 0
    assert stub.begun[-2:] == ["other-batch-2048-toy-s0", "tiny-batch-2048-toy-s0-coco-fpn-1x"]


def test_another_configuration_of_that_name_is_refused_by_field(study, tmp_path, stub, pictured, capsys):
    assert go(study, tmp_path / "r", "--variants", "batch-512") == 0
    write_study(tmp_path, pictured, tau=0.5)
    stub.begun.clear()
    assert go(study, tmp_path / "r") == runner.FAILED
    assert "tau: 0.99 there, 0.5 now" in capsys.readouterr().err
    assert {"tiny-batch-1024-toy-s0", "tiny-batch-2048-toy-s0"} <= {
        *stub.begun
    } and "tiny-batch-512-toy-s0" not in stub.begun
    assert row_of(tmp_path / "r", "batch-512")[1] == "0"  # the other configuration's number is not in this table


def test_a_run_killed_while_it_wrote_its_metrics_is_finished(study, tmp_path, stub):
    assert go(study, tmp_path / "r", "--variants", "batch-512") == 0
    folder = tmp_path / "r" / "tiny-batch-512-toy-s0"
    (folder / "metrics.json").rename(folder / ".metrics.json.123")
    assert go(study, tmp_path / "r", "--variants", "batch-512") == 0
    assert stub.begun.count("tiny-batch-512-toy-s0") == 2


@pytest.mark.parametrize("name", ["metrics.json", "run.json"])
def test_a_torn_file_fails_its_own_variant_only(study, tmp_path, stub, name, capsys):
    assert go(study, tmp_path / "r", "--variants", "batch-512") == 0
    torn = tmp_path / "r" / "tiny-batch-512-toy-s0" / name
    torn.write_text(torn.read_text()[:20])
    assert go(study, tmp_path / "r") == (runner.FAILED if name == "run.json" else 0)  # torn metrics are made again
    if name == "run.json":
        assert "run.json is not valid" in capsys.readouterr().err
    assert "tiny-batch-2048-toy-s0-coco-fpn-1x" in stub.begun


def test_a_transfer_from_other_weights_of_that_name_is_not_used(study, tmp_path, stub, capsys):
    assert go(study, tmp_path / "r", "--variants", "batch-512") == 0
    transfer = tmp_path / "r" / "tiny-batch-512-toy-s0-coco-fpn-1x"
    (transfer / "key_report.json").write_text(json.dumps({"step": 8}))
    assert go(study, tmp_path / "r", "--variants", "batch-512") == 0 and len(stub.begun) == 2
    (transfer / "key_report.json").write_text(json.dumps({"step": 4}))  # by hand, while it was pretraining
    assert go(study, tmp_path / "r", "--variants", "batch-512") == runner.FAILED and len(stub.begun) == 2
    (transfer / "key_report.json").unlink()
    shutil.rmtree(tmp_path / "r" / "tiny-batch-512-toy-s0")  # and made anew
    capsys.readouterr()
    assert go(study, tmp_path / "r", "--variants", "batch-512") == runner.FAILED
    assert "started from other weights than tiny-batch-512-toy-s0's: delete" in capsys.readouterr().err


def test_two_at_a_time(study, tmp_path, stub):
    assert go(study, tmp_path / "r", "--seeds", "0,1", "--jobs", "2") == 0
    assert stub.most == 2 and len(stub.begun) == 12


def test_losses_are_thinned_and_scores_are_not():
    lines = ["step 1/3  loss 2.0", "step 2/3  loss 1.9", "step 2/3  bbox AP 0.50", "step 3/3  loss 1.8", "the end"]
    said = []
    for line in map(runner.thinned(said.append), lines):
        assert line is None
    assert said == [lines[0], lines[2], lines[4]]


@pytest.mark.parametrize(
    ("visible", "jobs", "gpus", "expected"),
    [
        ("", 2, 2, ["0,1", "2,3"]),
        ("4,5,6,7", 2, 1, ["4", "5"]),
        ("", 4, 1, ["0", "1", "2", "3"]),
        ("", 2, 4, "JOBS=2 runs of GPUS=4 need 8 devices, 4 are visible"),
        ("", 0, 1, "JOBS=0"),
    ],
)
def test_devices_are_split_among_jobs(monkeypatch, visible, jobs, gpus, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if isinstance(expected, str):
        with pytest.raises(BookError, match=expected):
            launch.shares(jobs, launch.Launch(gpus))
    else:
        shares = launch.shares(jobs, launch.Launch(gpus))
        assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == expected


def test_a_second_runner_stops_with_one_line(study, tmp_path, stub, capsys):
    with locks.exclusive(tmp_path / ".tiny-toy.lock", "study"):
        assert go(study, tmp_path) == 1
    error = capsys.readouterr().err
    assert f"study tiny (toy) is being run by process {os.getpid()}" in error and error.count("\n") == 1
    assert not stub.begun


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "0,0"], "SEEDS=0,0: give each seed once"),
        (["--seeds", "one"], "SEEDS=one must be whole numbers"),
        (["--profile", "papr"], "PROFILE='papr' is unknown; did you mean 'paper'"),
        (["--launcher", "slrum"], "did you mean 'slurm'"),
        (["--benchmarks", "coco-fpn-3x"], "did you mean 'coco-fpn-"),
        (["--gpus", "4"], "variant batch-512: batch=2 cannot be split evenly over 4 processes"),
        (["--nodes", "2"], "NODES=2 needs RENDEZVOUS=host:port, the same on every node, or LAUNCHER=slurm"),
        (["--nodes", "2", "--rendezvous", "a:1"], "NODES=2: a study uses several nodes through LAUNCHER=slurm only"),
    ],
)
def test_wrong_values_are_told_before_anything_runs(study, tmp_path, stub, capsys, words, says):
    assert go(study, tmp_path / "r", *words) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not stub.begun and not (tmp_path / "r").exists()


def test_a_batch_that_no_accumulation_reaches(tmp_path, pictured, stub, capsys):
    assert go(write_study(tmp_path, pictured, micro_batch=4), tmp_path / "r") == 1
    assert "variant batch-512: no accumulation reaches batch=2" in capsys.readouterr().err


def test_results_that_cannot_be_written(study, tmp_path, stub, capsys):
    (tmp_path / "file").write_text("")
    assert go(study, tmp_path / "file") == 1
    assert "cannot write the folder" in capsys.readouterr().err and not stub.begun


def test_hours_come_from_earlier_runs(study, tmp_path, stub, monkeypatch, capsys):
    assert go(study, tmp_path / "r", "--variants", "batch-2048") == 0
    capsys.readouterr()
    hardware = {"hardware": {"cpu": "CPU", "cores": 2, "gpus": []}}
    monkeypatch.setattr("soco_lib.studies.estimate.provenance", lambda: hardware)
    assert go(study, tmp_path / "r", "--variants", "batch-2048", "--seeds", "7", "--plan") == 0
    said = capsys.readouterr().out  # 6 x 4 images at 10 a second, and a minute
    assert f"{(2.4 + 60) / 3600:.2f}" in said and "time of a pretraining: as tiny-batch-2048-toy-s0" in said
    hardware["hardware"] = {"cpu": "CPU", "cores": 2, "gpus": ["H200"]}
    assert go(study, tmp_path / "r", "--variants", "batch-2048", "--seeds", "7", "--plan") == 0
    assert "unknown: no earlier run of these sizes on this hardware" in capsys.readouterr().out


def test_a_measured_step(study, tmp_path, capsys):
    assert go(study, tmp_path / "r", "--variants", "batch-2048", "--plan", "--measure") == 0
    said = capsys.readouterr().out
    assert "a step timed here, without data loading and evaluation" in said and " ? " not in said


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({0: 1.0}, {1: 1.0}, (0, None, None, None)),
        ({0: 1.5}, {0: 1.0, 1: 9.0}, (1, 0.5, None, None)),
        ({0: 2.0, 1: 4.0}, {0: 1.0, 1: 1.0}, (2, 2.0, 2.0 - 12.7062, 2.0 + 12.7062)),  # t 12.706 x sd 1.414 / sqrt 2
        (
            {0: 1.1, 1: 5.2, 2: 9.3},
            {0: 0.0, 1: 4.0, 2: 8.0},
            (3, 1.2, 1.2 - 0.2484, 1.2 + 0.2484),
        ),  # t 4.303 x 0.1 / sqrt 3
    ],
)
def test_paired_differences(a, b, expected):
    found = stats.paired(a, b)
    assert found.n == expected[0]
    for number, wanted in zip((found.mean, found.low, found.high), expected[1:]):
        assert number != number if wanted is None else number == pytest.approx(wanted, abs=1e-3)


def test_the_reading_says_no_more_than_the_seeds_do(study, tmp_path, stub):
    assert go(study, tmp_path / "r") == 0
    assert "One seed each, of which nothing can be said: batch-512, batch-1024." in page(tmp_path / "r")
    assert go(study, tmp_path / "r", "--seeds", "0,1,2") == 0
    text = page(tmp_path / "r")
    assert "| -2.54 [-5.02, -0.05] | -0.6" in text
    assert "batch-512 (-2.54, -5.02 to -0.05, 3 seeds) differs." in text and "in 10% of such studies" in text
    assert "Not distinguishable from it: batch-1024 (-1.02, -5.99 to +3.94, 3 seeds)." in text
    assert (
        "not comparable with the paper's" in text and "41.7 (" not in text and "not all over the same seeds" not in text
    )


def test_the_reading_names_what_ran_on_other_seeds_than_the_base(study, tmp_path, stub):
    assert go(study, tmp_path / "r", "--seeds", "0,1", "--variants", "batch-2048,batch-512") == 0
    assert go(study, tmp_path / "r", "--seeds", "2", "--variants", "batch-1024") == 0
    text = page(tmp_path / "r")
    assert (
        "Scored on no seed of its: batch-1024. The means above are not all over the same seeds; the differences are."
        in text
    )
    figure = (tmp_path / "r" / "tables" / "tiny-toy.svg").read_text()
    assert "1 to 2 seeds" in figure


def test_the_notebook_shows_half_a_study(study, tmp_path, stub):
    stub.wrong = {"batch-1024": "the loss is nan at step 7: lower it", "batch-2048-toy-s0-coco": "killed"}
    assert go(study, tmp_path / "r") == runner.FAILED
    words = {"results": str(tmp_path / "r"), "study": study}
    for state in ("half", "nothing"):
        results = tmp_path / "r" if state == "half" else tmp_path / "empty"
        copy = execute(
            ROOT / "notebooks" / "08_ablation.ipynb", "ablation", words | {"results": str(results)}, results=results
        )
        html = copy.with_suffix(".html").read_text()
        assert "Traceback" not in html and "ResNet + FPN + box head" in html and "41.7" in html
        assert ("diverged at step 7" in html) == (state == "half") == ("step 1 of 2" in html)
        assert Run.read(copy.parent).metrics["finished"] == (2 if state == "half" else 0)


@pytest.mark.parametrize(
    ("runs", "table", "made", "ends"), [(0, 0, 2, 0), (3, 0, 2, 3), (143, 0, 0, 143), (3, 1, 1, 1), (1, 0, 0, 1)]
)
def test_table_and_notebook_show_what_there_is(monkeypatch, runs, table, made, ends):
    asked = []
    monkeypatch.setattr(book_study, "tables", lambda arguments: asked.append(arguments) or table)
    monkeypatch.setattr(book_study.execute, "main", lambda arguments: asked.append(arguments) or 0)
    assert book_study.main(["labels", "--profile", "paper", "--results", "a b", "--after", str(runs)]) == ends
    assert len(asked) == made
    if made:
        assert asked[0] == ["--studies", "labels", "--profile", "paper", "--results", "a b"]
    if made > 1:
        assert asked[1][:3] == ["notebooks/08_ablation.ipynb", "--run-name", "study-labels-paper"]


# --- real runs --------------------------------------------------------------------------------------------------------


def start(study, results, *words):
    words = [sys.executable, "-m", "soco_lib.studies", study, "--results", str(results), *words]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(words, cwd=ROOT, start_new_session=True, **pipe)


def wait_for(run, rows, child):
    while child.poll() is None and not (run / "log.jsonl").exists() or len(Run.read(run).rows()) < rows:
        assert child.poll() is None, child.stdout.read()
        time.sleep(0.05)


def change(path, variant, **toy):
    content = yaml.safe_load(open(path))
    content["variants"][variant]["toy"] |= toy
    open(path, "w").write(yaml.safe_dump(content, sort_keys=False))


def test_stopped_and_killed_it_goes_on(study, tmp_path):
    change(study, "batch-512", steps=60)
    run = tmp_path / "r" / "tiny-batch-512-toy-s0"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        made = len(Run.read(run).rows()) if run.exists() else 0
        child = start(study, tmp_path / "r", "--variants", "batch-512")
        wait_for(run, made + 3, child)
        os.killpg(child.pid, number)  # as a terminal does
        said = child.communicate()[0]
        if number != signal.SIGKILL:
            assert child.returncode == session.STOPPED
        if number == signal.SIGINT:
            assert "stopped; the same command goes on" in said
            assert Run.read(run).record["status"] == "stopped" and "its table: python -m" in said
            tables(["--studies", study, "--results", str(tmp_path / "r"), "--profile", "toy"])
            assert "step " in row_of(tmp_path / "r", "batch-512")[-1]
    assert go(study, tmp_path / "r", "--variants", "batch-512") == 0  # waits for the killed runner's run to save
    sessions = Run.read(run).record["sessions"]
    assert Run.read(run).done and len(sessions) == 5 and all("told to stop" in s["error"] for s in sessions[:4])
    assert row_of(tmp_path / "r", "batch-512")[-1] == "done (s0)"
    assert Run.read(tmp_path / "r" / "tiny-batch-512-toy-s0-coco-fpn-1x").metrics["images"] == 6


def test_a_real_failure_is_told_by_its_own_line(study, tmp_path, capsys):
    change(study, "batch-1024", overrides=["MODEL.NOPE=1"])
    assert go(study, tmp_path / "r", "--variants", "batch-1024") == runner.FAILED
    assert "detector override 'MODEL.NOPE=1' is not a setting" in capsys.readouterr().err
    assert row_of(tmp_path / "r", "batch-1024")[-1].startswith("failed: detector override")


@slow
def test_slurm_runs_two_jobs_at_a_time(cluster, study, tmp_path, capsys):
    if slurm.ask("sinfo", "--noheader", "--format", "%c").startswith("1"):
        pytest.skip("two jobs at a time need two cores")
    for variant in ("batch-512", "batch-1024"):
        change(study, variant, steps=40)
    words = ["--launcher", "slurm", "--minutes", "30", "--jobs", "2", "--variants", "batch-512,batch-1024"]
    assert go(study, tmp_path / "r", *words) == 0
    assert "SLURM job" in capsys.readouterr().out
    one, other = (
        Run.read(tmp_path / "r" / f"tiny-{name}-toy-s0").record["sessions"][0] for name in ("batch-512", "batch-1024")
    )
    assert one["start"] < other["end"] and other["start"] < one["end"]
    assert row_of(tmp_path / "r", "batch-512")[-1] == row_of(tmp_path / "r", "batch-1024")[-1] == "done (s0)"
