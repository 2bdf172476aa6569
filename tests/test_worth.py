"""`make worth`: what is saved in labels, what is refused before anything runs, and the whole of it on a stub."""

import json
import math
import shutil
from contextlib import nullcontext

import pytest

from soco_lib import BookError
from soco_lib.book import worth as command
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import build_store
from soco_lib.runs.folder import Run
from soco_lib.scenes import write as scenes
from soco_lib.studies import runner, worth
from soco_lib.studies import study as studies
from soco_lib.studies.prepare import prepare
from soco_lib.tables import worth as tables
from soco_lib.tables.stats import FEWEST
from soco_lib.transfer import benchmarks
from tests.conftest import TINY_PRETRAINING, TINY_TRANSFER

SHARES = [0.1, 0.3, 1.0]


# --- labels saved -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "stays", "first"),
    [
        ([-2, -1, 1], math.sqrt(0.3), math.sqrt(0.3)),  # half-way between 0.3 and 1 on the logarithm
        ([-3, 1, 2], 0.1 * 3**0.75, 0.1 * 3**0.75),
        ([0, 1, 2], 0.1, 0.1),
        ([1, 1, 1], 0.1, 0.1),
        ([-1, -1, 0], 1, 1),  # a tie at the end
        ([-1, 0, 1], 0.3, 0.3),
        ([-3, -2, -1], math.inf, math.inf),
        ([1, 2, -1], math.inf, 0.1),  # it falls below again
        ([-1, 1, 0], 0.1 * math.sqrt(3), 0.1 * math.sqrt(3)),
        ([1, -1, 1], math.sqrt(0.3), 0.1),
        ([math.nan] * 3, math.inf, math.inf),
    ],
)
def test_where_a_curve_crosses(values, stays, first):
    assert tables.crossing(SHARES, values) == pytest.approx(stays)
    assert tables.crossing(SHARES, values, stays=False) == pytest.approx(first)


def saved(*curves, goal=10.0, spread=0.1, seeds=5):
    """Of a start whose mean at each share is given; seeds lie around it evenly, and the goal's with them."""
    shift = {seed: spread * (seed - (seeds - 1) / 2) for seed in range(seeds)}
    own = {seed: 0.5 * spread * (-1) ** seed for seed in shift}
    scores = {share: {s: mean + shift[s] + own[s] for s in shift} for share, mean in zip(SHARES, curves)}
    return tables.labels_saved(scores, {seed: goal + shift[seed] for seed in shift})


def test_a_clear_curve_saves_labels():
    found = saved(8.0, 12.0, 14.0)
    assert found.verdict == tables.SAVES and found.n == 5
    assert found.low < found.share < found.high < 0.3
    assert found.share == pytest.approx(0.1 * math.sqrt(3), abs=0.01)
    assert saved(11.0, 12.0, 14.0).percent(0.1) == "≤ 10 %" and saved(11.0, 12.0, 14.0).high == 0.1


def test_a_curve_that_stays_below_needs_more():
    found = saved(5.0, 6.0, 8.0)
    assert (found.share, found.low, found.high, found.verdict) == (math.inf, math.inf, math.inf, tables.MORE)
    assert found.percent(found.share) == "> 100 %"


def test_a_tie_and_noise_are_not_distinguishable():
    tie = saved(5.0, 7.0, 10.0)
    assert tie.verdict == tables.SAME and tie.low < 1 <= tie.high
    assert saved(9.0, 10.5, 11.0, spread=4.0).verdict == tables.SAME
    same = tables.labels_saved({1.0: {0: 5, 1: 6, 2: 7}, 0.1: {0: 3, 1: 4, 2: 5}}, {0: 5, 1: 6, 2: 7})
    assert same.share == 1 and same.verdict == tables.SAME


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_give_no_verdict(seeds):
    found = saved(30.0, 40.0, 50.0, seeds=seeds)
    assert seeds < FEWEST and found.verdict == tables.SAME and found.share == 0.1
    assert math.isnan(found.low) == (seeds == 1)


def test_there_must_be_something_to_reach():
    assert saved(0.4, 0.5, 0.6, goal=0.5).verdict == tables.LOW
    assert tables.labels_saved({}, {}).verdict == tables.UNRUN
    assert tables.labels_saved({0.1: {0: 1.0}}, {1: 2.0}).verdict == tables.UNRUN  # no seed of both


def test_a_benchmark_on_a_share_of_its_labels():
    whole, part = (benchmarks.settings(name, "toy") for name in ("coco-fpn-1x", "coco-fpn-1x-0.3"))
    assert (whole.labelled, part.labelled, part.benchmark, part.profile) == (1, 0.3, "coco-fpn-1x", "toy")
    assert benchmarks.find("coco-fpn-1x-0.3").title.endswith("30 % of the labels")
    assert benchmarks.settings("minicoco-10", "toy").labelled == 0.1  # a name of its own
    for wrong in ("coco-fpn-1x-x", "coco-fpn-9x-0.3", "coco-fpn-1x-0"):
        with pytest.raises(BookError):
            benchmarks.settings(wrong, "toy")


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixteen scenes to learn from, six to score on; field -> value of Asked."""
    folder = tmp_path_factory.mktemp("mine")
    scenes.write_scenes(folder / "scenes", 16, 6, workers=1)
    kinds = {kind: f"coco:{folder}/scenes/annotations/instances_{kind}.json@{folder}/scenes/images"
             for kind in ("train", "val")}  # fmt: skip
    pretraining = {name: value for name, value in TINY_PRETRAINING.items() if name != "workers"}
    given = {"name": "mine", "train": kinds["train"], "test": kinds["val"], "images": kinds["train"]}
    given |= {"proposals": "whole", "fractions": "0.5,1", "seeds": "0,1,2"}
    tuning = TINY_TRANSFER | {"eval_every": 0}
    return given | {"settings": json.dumps({**pretraining, "workers": 0, "transfer": tuning})}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": ""}, "TRAIN= is missing"),
        ({"test": ""}, "TEST= is missing"),
        ({"images": ""}, "IMAGES= is missing"),
        ({"images": "folder:nowhere"}, "no image folder"),
        ({"test": "coco:nowhere.json"}, "nowhere.json"),
        ({"fractions": "0,1"}, r"lies in \(0, 1\], not 0"),
        ({"fractions": "0.5,1.5,1"}, r"lies in \(0, 1\], not 1.5"),
        ({"fractions": "half,1"}, "'half' is no number"),
        ({"fractions": "0.1,0.5"}, "lacks 1"),
        ({"fractions": "1"}, "a share below 1 too"),
        ({"fractions": "0.5,0.5,1"}, "each share once"),
        ({"fractions": "0.01,1"}, "the share 0.01 of 16 images leaves 0"),
        ({"fractions": "0.07,1"}, "leaves 1 .seed 0., 1 of them with an object: fewer than a batch of 2"),
        ({"starts": "soco"}, "scratch and one other"),
        ({"starts": "scratch"}, "scratch and one other"),
        ({"starts": "scratch scratch soco"}, "each start once"),
        ({"starts": "scratch nowhere.pth"}, "start 'nowhere.pth' is not there"),
        ({"starts": "scratch 'soco"}, "cannot be taken apart"),
        ({"starts": "scratch notebooks", "settings": "{}"}, "start notebooks: .* holds no checkpoints"),
        ({"seeds": "0,x"}, "SEEDS=0,x must be different whole numbers"),
        ({"profile": "big"}, "PROFILE='big' is unknown"),
        ({"benchmark": "coco-fpn-9x"}, "BENCHMARK='coco-fpn-9x' is unknown"),
        ({"settings": "{step: 4}"}, "field='step' is unknown; did you mean 'steps'"),
        ({"settings": "{transfer: 3}"}, "`transfer` holds fields of the fine-tuning"),
        ({"settings": "{transfer: {batch: 32}}"}, "fewer than a batch of 32"),
        ({"settings": "{batch: 64, transfer: {batch: 2}}"}, "batch=64 is larger than the 16 usable images"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(data, tmp_path, changes, said):
    with pytest.raises(BookError, match=said):
        worth.write(worth.Asked(**data | changes), tmp_path / "worth-mine.yaml")


def test_images_to_learn_from_and_to_score_on_are_others(data, tmp_path):
    with pytest.raises(BookError, match="TRAIN and TEST are the same images"):
        worth.write(worth.Asked(**data | {"test": data["train"]}), tmp_path / "worth-mine.yaml")
    file, folder = data["test"].removeprefix("coco:").split("@")
    copy = tmp_path / "images" / "val"
    shutil.copytree(f"{folder}/val", copy)
    shutil.copyfile(f"{folder}/train/000001.jpg", copy / "000002.jpg")  # under another name
    with pytest.raises(BookError, match="1 of the 6 images of TEST are in TRAIN too, e.g. 000002.jpg"):
        worth.write(worth.Asked(**data | {"test": f"coco:{file}@{tmp_path}/images"}), tmp_path / "worth-mine.yaml")


def test_proposals_of_other_images_are_refused_early(data, tmp_path):
    build_store(open_source(data["test"]), ProposalConfig("random"), tmp_path / "store", workers=1)
    for changes in ({"images": data["test"]}, {}):
        asked = worth.Asked(**data | {"proposals": str(tmp_path / "store")} | changes)
        with nullcontext() if changes else pytest.raises(BookError, match="store .* do not belong to .*delete"):
            said = worth.write(asked, tmp_path / "worth-mine.yaml")
    assert said[0].endswith("which are there")
    study = studies.read(str(tmp_path / "worth-mine.yaml"))
    with pytest.raises(BookError, match="store .* do not belong to .*delete"):
        prepare(study, [study.pretrain(study.variant("soco"), "toy")], print)


def test_a_start_that_does_not_fit_is_refused_early(data, tmp_path):
    import torch

    torch.save({"state_dict": {"conv1.weight": torch.zeros(3, 3)}}, tmp_path / "other.pth")
    with pytest.raises(BookError, match="start other: "):
        changes = {"starts": f"scratch {tmp_path}/other.pth", "settings": "{transfer: {batch: 2}}"}
        worth.write(worth.Asked(**data | changes), tmp_path / "worth-mine.yaml")


def test_a_start_that_is_not_finished_is_refused(data, tmp_path):
    Run.start("begun", "transfer", benchmarks.settings("coco-fpn-1x", "toy"), tmp_path)
    with pytest.raises(BookError, match="/begun' is not finished"):
        worth.Asked(**data | {"starts": f"scratch {tmp_path}/begun"}).variants()


def test_a_start_that_has_seen_all_labels_is_refused(data, tmp_path):
    made = Run.start("tuned", "transfer", benchmarks.settings("coco-fpn-1x", "toy", train=data["train"]), tmp_path)
    made.record |= {"status": "done", "sessions": [{}]}
    made.write()
    (made.folder / "metrics.json").write_text('{"iterations": 2}')
    with pytest.raises(BookError, match="/tuned' has learnt from all labels of TRAIN"):
        worth.Asked(**data | {"starts": f"scratch {tmp_path}/tuned"}).variants()


def test_the_papers_scale_follows_the_data():
    assert worth.paper_pretraining(1_281_167) == {}
    assert worth.paper_pretraining(118_000) == {"batch": 2048, "epochs": 400}
    assert worth.paper_pretraining(10_000) == {"batch": 256, "epochs": 400}
    assert worth.paper_pretraining(100) == {"batch": 64, "epochs": 400}
    assert worth.paper_transfer(16_551) == {"iterations": 24_000}  # the paper's for VOC
    assert worth.paper_transfer(500) == {"iterations": 12_000}
    assert worth.paper_transfer(118_287) == {"iterations": 90_000}


# --- the whole --------------------------------------------------------------------------------------------------------


class Stub:
    """In place of a run's processes: finishes at once with an AP that follows from start, share and seed."""

    def __init__(self, stop_at=""):
        self.begun, self.stop_at = [], stop_at

    def __call__(self, run, how, say, env, stop):
        run, config = Run.read(run.folder), run.record["config"]
        if self.stop_at and self.stop_at in run.name:
            raise BookError("killed")
        self.begun.append(run.name)
        run.record["sessions"].append(
            {"start": "2026-01-01T00:00:00+0000", "end": "2026-01-01T00:02:00+0000", "processes": 1,
             "hardware": {"cpu": "CPU", "cores": 2, "gpus": []}, "git": {}}
        )  # fmt: skip
        run.log({"step": 1, "loss": 1.0, "images_per_s": 10.0})
        run.record["status"] = "done"
        run.write()
        metrics = {"steps": config.get("steps"), "images_seen": 8, "seconds": 60.0}
        if run.record["kind"] == "transfer":
            ap = (10 + 0.1 * config["seed"]) * config["labelled"]
            ap += (config["init"] != "scratch") * (6 + 0.1 * config["seed"])
            scores = {"AP": ap, "AP50": 2 * ap, "APs": ap, "per_class": {"cup": ap, "cat": ap - 1, "tie": math.nan}}
            metrics = {"bbox": scores, "segm": scores, "iterations": 2, "batch": 2, "seconds": 60.0}
            metrics["train_images"] = round(16 * config["labelled"])
        (run.folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def go(data, tmp_path, monkeypatch):
    """Runs the command on a stub; returns its status and the stub."""
    words = [word for name, value in data.items() if name != "name" for word in (f"--{name}", value)]
    monkeypatch.setattr(command.odd_data, "page", lambda sets: "")

    def run(*more, **stub):
        monkeypatch.setattr(runner, "launch", made := Stub(**stub))
        return command.main(["--run", "mine", *words, "--results", str(tmp_path), *more]), made

    return run


def test_the_plan_says_what_it_costs_and_runs_nothing(go, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("soco_lib.studies.step_time.pretrain_step", lambda cfg: 2.0)
    monkeypatch.setattr("soco_lib.studies.step_time.transfer_step", lambda cfg: 3.0)
    status, stub = go("--plan")
    said = capsys.readouterr().out
    assert status == 0 and not stub.begun and not [*tmp_path.glob("*/run.json")]
    assert "to run: 3 pretrainings, 12 transfers, about 4 minutes" in said
    assert "as coco-fpn-1x-0.5, but for labelled=1.0" in said and "(Table" not in said


def test_the_whole_killed_once_and_continued(go, tmp_path, monkeypatch):
    page, made = tmp_path / "worth-mine-toy" / "12_worth.html", []
    with monkeypatch.context() as patch:  # what the page would say then, without the seconds of a kernel
        patch.setattr(command, "execute", lambda *given: made.append(given))
        status, first = go(stop_at="soco-toy-s1")
    assert status == runner.FAILED and len(made) == 1
    found = tables.build(studies.read(made[0][2]["study"]), "toy", tmp_path)
    assert found.missing == 2 and found.next_steps()[0].startswith("Run the same command again")
    status, second = go()
    assert status == 0 and not {*first.begun} & {*second.begun}
    assert len(first.begun) + len(second.begun) == 3 + 12
    assert "worth-mine-soco-toy-s0-coco-fpn-1x-0.5" in first.begun
    text = page.read_text()
    assert "soco: saves labels." in text and "labelled images reaches" in text
    record = Run.read(page.parent).metrics
    assert record["missing"] == 0 and record["starts"]["soco"]["verdict"] == tables.SAVES
    assert record["starts"]["scratch"]["needed"] == "100 %"
    for name in ("curves", "classes-soco"):
        assert (page.parent / f"{name}.png").is_file()
    assert (page.parent / "data-check" / "index.html").is_file()


def test_two_files_of_one_name_are_two_starts(data, tmp_path):
    from soco_lib.studies.plans import RunIndex

    asked = worth.Asked(**data)
    cfg = benchmarks.settings("coco-fpn-1x", "toy", train=asked.train, test=asked.test, init="a/model.pth")
    run = Run.start("other", "transfer", cfg, tmp_path)
    index = RunIndex.of_folders(tmp_path)
    assert index.find("transfer", cfg).name == run.name
    other = benchmarks.settings("coco-fpn-1x", "toy", train=asked.train, test=asked.test, init="b/model.pth")
    assert index.find("transfer", other) is None
