"""What is asked is done, or refused in one sentence that names it: commands, variables, settings, retries, reasons."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from torch._utils import ExceptionWrapper

from soco_lib import ROOT, BookError
from soco_lib.book import asked, imports
from soco_lib.book.execute import _read_params
from soco_lib.book.parameters import declared
from soco_lib.config import Pretrain
from soco_lib.data import store as stores
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import ImageSource, open_source
from soco_lib.data.store import ProposalStore, build_store
from soco_lib.dataset import ProposalViews
from soco_lib.fields import to_dict
from soco_lib.runs import launch, loader, processes, session, settings
from soco_lib.runs.folder import Run
from soco_lib.runs.launch import Launch
from soco_lib.runs.reasons import one_line, reason
from soco_lib.runs.settings import changed, load
from soco_lib.train import train
from soco_lib.transfer import batches, benchmarks
from soco_lib.transfer.detectron import detectron_config, open_both

from .test_detection_data import write_coco
from .test_setup import SET_UP, make

TOY = "notebooks/params/pretrain-toy.yaml"
PYTHON = """#!/bin/sh
case "$1" in -IS) exec python3 "$@";; esac
printf '%s\\037' "$@" >> calls; echo >> calls
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout that is set up and has its scenes; its Python writes its arguments into the file `calls`."""
    for name in (*SET_UP, TOY):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("data/scenes/scenes.json", "data/scenes-test/scenes.json", ".venv/bin/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(PYTHON)
    (tmp_path / ".venv/bin/python").chmod(0o755)
    (tmp_path / ".venv/.soco-ready").write_text(f"{tmp_path}\npinned\n")
    return tmp_path


def calls(checkout: Path, *arguments: str) -> list[list[str]]:
    """The arguments of each Python that `make` with these starts."""
    done = make(*arguments, folder=checkout)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [call.split("\037") for call in (checkout / "calls").read_text().split("\037\n")[:-1]]


def after(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


# --- make -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pretrain", "IMAGE=x"], "there is no variable IMAGE=: did you mean IMAGES=?"),
        (["pretrain", "images=x"], "there is no variable images=: did you mean IMAGES=?"),
        (["transfer", "qqqqq=x"], "there is no variable qqqqq= (`make variables` lists all)"),
        (["pretrain", "PROFILE=big"], "PROFILE=big is no scale: paper toy"),
        (["pretrain", "PROFILE=%"], "PROFILE=% is no scale"),
        (["table9", "JOBS=0"], "JOBS=0 must be at least 1"),
        (["pretrain", "GPUS=0"], "GPUS=0 must be at least 1"),
        (["pretrain", "GPUS=two"], "GPUS=two must be a whole number"),
        (["pretrain", "SEED=x"], "SEED=x must be a whole number"),
        (["pretrain", "SEED="], "SEED= must be a whole number"),
        (["table9", "SEEDS=0;1"], "SEEDS=0;1 must be whole numbers joined by commas"),
        (["table9", "PLAN=0"], "PLAN=0 is a switch"),
        (["pretrain", "LAUNCHER=slurmm"], "LAUNCHER=slurmm is unknown: local or slurm"),
        (["pretrain", "RUN=a b"], "RUN=a b is no folder's name"),
        (["show", "RUN=x;touch f"], "RUN=x;touch f is no folder's name"),
        (["pretrain", "RESULTS="], "RESULTS= names no folder"),
        (["quickstart", "RESULTS=my runs"], "RESULTS=my runs will not do for the quickstart"),
        (["bench-;touch f"], "there is no target bench-;touch f"),
        (["test", "ARGS=-k 'a or b"], "ARGS=-k 'a or b ends within quotes"),
        (["data-check", "DEEP=yes"], "DEEP=yes is a switch"),
    ],
)
def test_make_refuses_before_anything_is_built(checkout, arguments, sentence):
    refused = make(*arguments, folder=checkout)
    assert refused.returncode and sentence in refused.stderr and refused.stderr.count("\n") == 1
    assert not (checkout / "calls").exists() and not (checkout / "f").exists()


@pytest.mark.parametrize(
    "text",
    ["it's (a) {b}", "a b", "x;touch f", "$(shell touch f)", "`touch f`", '"$HOME" #c', "\\", "train-{000..001}.tar"],
)
def test_make_hands_values_on_as_they_were_typed(checkout, text):
    images = f"folder:{text}/x"
    made = calls(checkout, "pretrain", f"IMAGES={images}", f"PROPOSALS={text}", f"RESULTS={text}")
    assert after(made[1], "--images") == images and after(made[1], "--out") == text
    assert after(made[2], "images") == images and after(made[2], "--results") == text
    (checkout / "calls").unlink()
    made = calls(checkout, "transfer", f"INIT={text}", f"TRAIN={text}", f"TEST={text}")[-1]
    assert [after(made, name) for name in ("init", "train", "test")] == [text] * 3
    (checkout / "calls").unlink()
    made = calls(checkout, "benchmark-coco-fpn-1x", "INIT=results/x/", f"TRAIN={text}", "SEED=3")[-1]
    assert after(made, "train") == text and after(made, "--run-name") == "x-coco-fpn-1x-toy-s3"
    assert not (checkout / "f").exists()


@pytest.mark.parametrize("name", ["it's mine", 'a "b" $HOME (c) #d'])
def test_a_checkout_may_lie_anywhere(checkout, tmp_path_factory, name):
    folder = Path(shutil.copytree(checkout, tmp_path_factory.mktemp("place") / name))
    (folder / ".venv/.soco-ready").write_text(f"{folder}\npinned\n")
    assert after(calls(folder, "pretrain", "IMAGES=x")[1], "--images") == "x"
    assert after(calls(folder, "transfer", "RUN=x")[-1], "--run-name") == "x"


@pytest.mark.parametrize("file", ["data/scenes/scenes.json", "Makefile"])
def test_a_file_from_the_future_stops_nothing(checkout, file):
    later = time.time() + 9000
    os.utime(checkout / file, (later, later))
    done = make("transfer", "RUN=x", folder=checkout)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "--run-name" in (checkout / "calls").read_text()


def test_arguments_of_other_programs_stay_words(checkout):
    text = """-k 'a or b' $(touch f) "it's" \\\\ #c"""
    words = ["-k", "a or b", "$(touch", "f)", "it's", "\\", "#c"]
    assert calls(checkout, "test", f"ARGS={text}")[-1][-len(words) :] == words
    assert not (checkout / "f").exists()


def test_names_of_runs_are_a_list(checkout):
    assert yaml.safe_load(after(calls(checkout, "report", "RUNS=a it's\tb#c")[-1], "runs")) == ["a", "it's", "b#c"]


def test_launch_options_survive_quotes(checkout):
    made = calls(checkout, "pretrain", "IMAGES=x", "GPUS=2", 'PARTITION=a "b" \\c')[-1]
    how = Launch.of(yaml.safe_load(after(made, "launch")))
    assert how.gpus == 2 and how.partition == 'a "b" \\c'


def test_data_sets_with_like_names_have_stores_of_their_own(checkout):
    store = lambda images: after(calls(checkout, "pretrain", f"IMAGES={images}")[-1], "proposals")
    cats = store("folder:photos/cats")
    assert cats != store("folder:pets/cats") and cats.startswith("data/cats-")
    assert cats == store("folder:photos/cats/") == store("photos/cats")
    assert store("coco:data/scenes/annotations/instances_train.json") == "data/scenes-proposals"
    others = [store(s) for s in ("coco:data/scenes/annotations/instances_val.json", "folder:data/scenes/images")]
    assert len({"data/scenes-proposals", *others}) == 3
    (checkout / "data/cats-proposals").mkdir()
    (checkout / "data/cats-proposals/store.json").write_text('{"source": "folder:photos/cats"}')
    assert store("folder:photos/cats") == "data/cats-proposals", "an older store of these images goes on being used"
    assert store("folder:pets/cats") not in (cats, "data/cats-proposals")


def test_a_folder_has_one_store_however_it_is_written(tmp_path, monkeypatch):
    root, data = tmp_path / "checkout", tmp_path / "disk"
    for folder in (root / "photos/cats", data / "dogs.v2", data / "a@b"):
        folder.mkdir(parents=True)
    (root / "pets").symlink_to(data)
    monkeypatch.setattr(asked, "ROOT", str(root))
    monkeypatch.setenv("SOCO_DATA", str(data))
    for name, ways in {
        "cats": ("photos/cats", "folder:photos/../photos/cats/", f"folder:{root}/photos/cats"),
        "dogs": ("dogs.v2", f"folder:{data}/dogs.v2", "folder:pets/dogs.v2/"),
        "a": ("folder:a@b", f"{data}/a@b", "folder:pets/a@b"),
        "instances_train": ("coco:a.json@photos", f"coco:{root}/a.json@{root}/photos/"),
    }.items():
        stores = {asked.proposals(way.replace("a.json", "instances_train.json")) for way in ways}
        assert len(stores) == 1 and re.fullmatch(rf"data/{name}-\d+-proposals", *stores), stores
    scenes = "data/scenes/annotations/instances_train.json"
    assert asked.proposals(f"coco:{scenes}") == asked.proposals(f"coco:{root}/{scenes}") == "data/scenes-proposals"
    assert asked.proposals("folder:a/b") == "data/b-3840401949-proposals", "`printf a/b | cksum`, as ever"

    def made(name: str, source: str, file: str = "store.json") -> None:
        path = root / "data" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"source": source}))

    made("cats-random-proposals", "folder:photos/cats")
    made("cats-1-proposals", "folder:pets/cats")
    (root / "data/cats-2-proposals").mkdir()
    (root / "data/cats-2-proposals/store.json").write_text("[")
    assert re.fullmatch(r"data/cats-\d{4,}-proposals", asked.proposals("photos/cats")), "another's store was taken"
    made("cats-77-proposals", f"folder:{root}/photos/cats", "shards/plan.json")
    assert asked.proposals("photos/cats") == "data/cats-77-proposals", "what was begun under an older name goes on"
    made("cats-9-proposals", "photos/cats")
    made("cats-8-proposals", f"{root}/photos/cats")
    assert asked.proposals("photos/cats") == "data/cats-9-proposals", "of two, that of this spelling"
    assert asked.proposals(f"{root}/photos/cats") == "data/cats-8-proposals"


def test_without_any_python_setup_says_so(checkout, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("make", "bash", "sed", "cmp", "awk", "rm", "printf"):
        (tools / name).symlink_to(shutil.which(name))
    (checkout / ".venv/bin/python").unlink()
    for target in ("setup", "pretrain", "quickstart"):
        refused = make(target, "GPUS=2", folder=checkout, PATH=str(tools))
        assert refused.returncode and refused.stderr.splitlines()[0].startswith("setup: no python3 on the PATH is not")
    assert make(folder=checkout, PATH=str(tools)).stdout.startswith("start\n")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("ImportError: libGL.so.1: cannot", "libGL.so.1: cannot: another OpenCV shadows the headless one; pip uninst"),
        ("No module named 'detectron2'", "'detectron2': try the pinned Detectron2, make setup DETECTRON2=pinned"),
        ("No module named 'torch'", "'torch': remove "),
    ],
)
def test_what_cannot_be_imported_has_a_remedy(monkeypatch, error, sentence):
    done = subprocess.CompletedProcess([], 1, None, f"Traceback\n  line\n{error}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert imports.main().startswith("setup: ") and sentence in imports.main() and "\n" not in imports.main()
    done.stderr, done.returncode = "", -4
    assert "ended with status -4: remove" in imports.main()
    done.stderr, done.returncode = "a warning", 0
    assert imports.main() is None


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("k:8, steps:5", "'k:8' has no value: write k: 8, with a space"),
        ("k=8, steps=5", "'k=8' has no value: write k: 8, with a space"),
        ("k: ", "'k' has no value: write k: 1"),
        ("kk: 8", "'kk' is unknown; did you mean 'k'?"),
        ("k: [", "is not plain YAML"),
        ("k: !!python/name:os.system ", "is not plain YAML"),
        ("k: many", "k='many' must be of type int"),
    ],
)
def test_settings_are_refused_before_proposals_are_made(capsys, text, sentence):
    assert settings.main([TOY, f"{{{text}}}"]) == 1
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_settings_without_a_value_are_refused_in_notebooks_too():
    for name in ("03_pretrain", "04_transfer"):
        with pytest.raises(BookError, match="'k:8' has no value: write k: 8"):
            _read_params([], [["overrides", "{k:8}"]], declared(f"notebooks/{name}.ipynb"))
    with pytest.raises(BookError, match="'k:8' has no value: write k: 8"):
        changed(Pretrain, {}, {"k:8": None})
    with pytest.raises(BookError, match="'kk' is unknown; did you mean 'k'"):
        changed(Pretrain, {}, {"kk": None})


def test_a_value_from_the_command_line_keeps_its_signs():
    known = declared("notebooks/03_pretrain.ipynb")
    for text in ("folder:a #1", "folder: x", "'a' or b", "tar:x/{0..1}.tar"):
        assert _read_params([], [["images", text]], known) == {"images": text}
    assert _read_params([], [["overrides", "{k: 8}"], ["gpus", "2"]], known) == {"overrides": {"k": 8}, "gpus": 2}


@pytest.mark.parametrize("text", ["k:\t8\n\tx: 1", "k: !!python/object:os.system {}", "k: [", "- 1", "k: !!int x"])
def test_a_tab_or_a_tag_in_a_parameter_file_is_one_sentence(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    for read in (lambda: load(Pretrain, tmp_path / "mine.yaml"), lambda: Launch.of(str(tmp_path / "mine.yaml"))):
        with pytest.raises(BookError, match="mine.yaml .*: write `name: value`") as error:
            read()
        assert "\n" not in str(error.value)


def test_a_misspelt_benchmark_or_probe_is_found_before_training(cfg, tmp_path):
    with pytest.raises(BookError, match="did you mean 'coco-fpn-1x'"):
        benchmarks.Transfer("coco:a", "coco:b", benchmark="coco-fpm-1x")
    for probe, sentence in (("coco:none.json", "none.json"), (cfg.images, "carries no labels")):
        run = Run.start("run", "pretrain", Pretrain(**vars(cfg) | {"probe": probe}), tmp_path)
        with pytest.raises(BookError, match=sentence):
            train(run, processes.Process(0, 0, 1, 1, processes.torch.device("cpu")))
        assert not run.rows()


def test_a_test_set_that_cannot_score_is_refused_before_training(tmp_path):
    def bare(content):
        for annotation in content["annotations"]:
            del annotation["segmentation"]

    train = write_coco(tmp_path, "train", 4)
    cfg = benchmarks.Transfer(train, write_coco(tmp_path, "bare", 4, edit=bare))
    with pytest.raises(BookError, match="bare.json.* cannot score masks.* TEST="):
        detectron_config(cfg, *open_both(cfg), tmp_path)
    empty = write_coco(tmp_path, "empty", 4, edit=lambda content: content["annotations"].clear())
    with pytest.raises(BookError, match="test images of .*empty.json.* hold no objects.* TEST="):
        open_both(benchmarks.Transfer(train, empty))


# --- retries ----------------------------------------------------------------------------------------------------------


def test_a_run_that_computed_nothing_takes_a_corrected_configuration(cfg, tmp_path):
    run = Run.start("run", "pretrain", Pretrain(**vars(cfg) | {"probe": "coco:none.json"}), tmp_path)
    assert (
        session.main("", lambda run, process, stop: train(run, process, stop), [str(run.folder)], fixed_sizes=True) == 1
    )
    right = Pretrain(**vars(cfg) | {"k": 2})
    again = Run.start("run", "pretrain", right, tmp_path)
    assert again.record["config"] == to_dict(right) and again.record["identity"] != run.record["identity"]
    again.log({"step": 1})
    with pytest.raises(BookError, match=f"another configuration .k: 2 there, 4 now.*, RUN=, or delete {again.folder}"):
        Run.start("run", "pretrain", cfg, tmp_path)


def test_a_second_command_in_the_same_run_is_told_of_the_first(cfg, tmp_path):
    run = Run.start("run", "pretrain", cfg, tmp_path)
    run.lock()
    (run.folder / "output.txt").write_text("step 2/8  loss -1.0\n")
    with pytest.raises(BookError, match="is being written by another process: wait for it"):
        next(launch.stream(Run.read(run.folder)))


# --- proposals --------------------------------------------------------------------------------------------------------


def test_a_complete_store_of_these_images_is_taken_as_it_is(pictures, tmp_path, capsys):
    images, out = f"folder:{pictures}", str(tmp_path / "random")
    build_store(open_source(images), ProposalConfig(generator="random"), out, workers=1)
    assert stores.main(["--images", images, "--out", out]) == 0
    assert "found complete, 12 images" in capsys.readouterr().out
    assert stores.main(["--images", images, "--out", out, "--generator", "selective_search"]) == 1
    assert f"delete {out}" in capsys.readouterr().err


def test_the_remedy_for_added_pictures_is_named_and_works(pictures, tmp_path, capsys):
    folder, out = shutil.copytree(pictures, tmp_path / "photos"), tmp_path / "store"
    asked = ["--images", f"folder:{folder}", "--out", str(out), "--generator", "random", "--workers", "1"]
    assert stores.main(asked) == 0
    shutil.copy(folder / "00.jpg", folder / "new.jpg")
    assert stores.main(asked) == 1
    assert f"delete {out} and they are made for these images" in capsys.readouterr().err
    shutil.rmtree(out)
    assert stores.main(asked) == 0 and len(ProposalStore.open(out)) == 13


# --- reasons ----------------------------------------------------------------------------------------------------------


def wrapped(error: Exception) -> BaseException:
    """The error as it comes out of a DataLoader whose worker raised it."""
    try:
        raise error
    except Exception:
        wrapper = ExceptionWrapper(sys.exc_info(), "in DataLoader worker process 0")
    with pytest.raises(Exception) as caught:
        wrapper.reraise()
    return caught.value


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("bbox"), "KeyError: bbox"),
        (ValueError(), "ValueError"),
        (BookError(""), "BookError"),
        (BookError("a.jpg is missing:\ngive it"), "a.jpg is missing: give it"),
        (
            RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
            "RuntimeError: CUDA error: out of memory",
        ),
    ],
)
def test_every_error_has_a_reason_of_one_line(error, sentence):
    assert one_line(error) == sentence
    assert str(loader.reason(wrapped(error))).replace("'bbox'", "bbox") == sentence
    assert reason("KeyError", "") == "KeyError"


class Broken(ImageSource):
    """Raises what nobody foresaw."""

    def load_near(self, index, side):
        raise KeyError(side)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_loader_names_the_file_and_the_remedy(cfg, tmp_path, monkeypatch, capfd, workers):
    monkeypatch.setattr(ImageSource, "load_near", Broken.load_near)
    run = Run.start("run", "pretrain", Pretrain(**vars(cfg) | {"workers": workers}), tmp_path)
    assert (
        session.main("", lambda run, process, stop: train(run, process, stop), [str(run.folder)], fixed_sizes=True) == 1
    )
    last, recorded = capfd.readouterr().err.splitlines()[-1], Run.read(run.folder).last_session["error"]
    assert last == f"error: {recorded}" and ".jpg: KeyError: 64: look at this file" in last


def test_a_transfers_picture_is_named_too(monkeypatch):
    samples = object.__new__(batches.Samples)
    samples.seed, samples.records, samples.mapper = 0, [{"file_name": "a.jpg"}], lambda record: 1 / 0
    with pytest.raises(loader.LoaderError, match="a.jpg: ZeroDivisionError: .*: look at this file"):
        samples[0, 0]


def test_missing_images_name_the_variables(cfg, store, pictures, tmp_path):
    with pytest.raises(BookError, match="give IMAGES=folder:PATH.* SOCO_DATA"):
        open_source("folder:no-such-folder")
    folder = shutil.copytree(pictures, tmp_path / "photos")
    views = ProposalViews(Pretrain(**vars(cfg) | {"images": f"folder:{folder}"}))
    for file in folder.glob("*.jpg"):
        file.unlink()
    with pytest.raises(BookError, match="images in a row: look at IMAGES=folder:.* and SOCO_DATA="):
        views[0, 0]
