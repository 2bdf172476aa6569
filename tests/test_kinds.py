"""Kinds of bad input, each with the sentence that names it and the remedy."""

import contextlib
import errno
import html
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from unittest import mock

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from soco_lib import ROOT, BookError
from soco_lib.config import Pretrain, View
from soco_lib.data import interchange
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.shards import write_shard
from soco_lib.data.sources import ImageSource, Unavailable, UnreadableImage, open_source
from soco_lib.data.store import ProposalStore, build_store
from soco_lib.detector import detector_config
from soco_lib.features import probe
from soco_lib.fields import from_dict, identity
from soco_lib.figures import plots
from soco_lib.figures.detections import class_bars
from soco_lib.runs import checkpoint, folder, processes, records, settings
from soco_lib.runs.folder import Run, write_text
from soco_lib.studies import rerun
from soco_lib.tables import pages, show
from soco_lib.train import build_model
from soco_lib.transfer import benchmarks, compare, predict, predictions
from soco_lib.transfer.benchmarks import Transfer
from soco_lib.weights.load import read_weights

PRETRAIN, TRANSFER = {"images": "a", "proposals": "b"}, {"train": "coco:a", "test": "coco:b"}
PARAMETERS = "notebooks/params/pretrain-toy.yaml"
ANCHORS = "MODEL.ANCHOR_GENERATOR.SIZES"

# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "values", "sentence"),
    [
        (Pretrain, {"base_lr": float("inf")}, "base_lr=inf must be a finite number"),
        (Pretrain, {"base_lr": ".inf"}, "base_lr='.inf' must be a finite number"),
        (Pretrain, {"epochs": float("nan")}, "epochs=nan must be a finite number"),
        (Pretrain, {"steps": float("inf")}, "steps=inf must be of type int"),
        (Pretrain, {"batch": float("nan")}, "batch=nan must be of type int"),
        (Pretrain, {"workers": -1}, "workers=-1 may not be negative"),
        (Pretrain, {"workers": 10**6}, "workers=1000000 must be at most 1024"),
        (Pretrain, {"k": 100_000}, "k=100000 must be at most 1024"),
        (Pretrain, {"seed": 2**70}, f"seed={2**70} must be at most"),
        (Pretrain, {"seed": -1}, "seed=-1 may not be negative"),
        (Pretrain, {"momentum": 5}, "momentum=5.0 must be at most"),
        (Pretrain, {"size": 1}, "size=1 must be at least 16"),
        (Pretrain, {"size": 10**6}, "size=1000000 must be at most 4096"),
        (Pretrain, {"views": [{"size": 1}]}, "view size=1 must be at least 16"),
        (Pretrain, {"views": [{"size": 64, "scale": [float("nan"), 1]}]}, r"scale\[0\]=nan must be a finite number"),
        (Pretrain, {"warmup_factor": -3}, "warmup_factor=-3.0 may not be negative"),
        (Pretrain, {"jitter": 40}, "jitter=40.0 must be at most 1"),
        (Pretrain, {"trust": 0}, "trust=0.0 must be positive"),
        (Pretrain, {"weight_decay": -1e-4}, "weight_decay=-0.0001 may not be negative"),
        (Pretrain, {"fixed_level": 9}, "fixed_level=9 must be at most 6"),
        (Pretrain, {"probe_every": -1}, "probe_every=-1.0 may not be negative"),
        (Transfer, {"momentum": 5}, "momentum=5.0 must be at most"),
        (Transfer, {"max_size": 1}, "max_size=1 must be at least 16"),
        (Transfer, {"test_size": 10**7}, "test_size=10000000 must be at most"),
        (Transfer, {"min_sizes": []}, r"min_sizes=\(\) needs at least one side"),
        (Transfer, {"min_sizes": [1]}, r"min_sizes=\(1,\) needs at least one side"),
        (Transfer, {"precise_bn": 10**9}, "precise_bn=1000000000 must be at most 10000"),
        (Transfer, {"seed": 2**64}, f"seed={2**64} must be at most"),
        (Transfer, {"lr": float("inf")}, "lr=inf must be a finite number"),
        (Transfer, {"milestones": [float("nan")]}, r"milestones\[0\]=nan must be a finite number"),
        (Transfer, {"workers": -2}, "workers=-2 may not be negative"),
        (ProposalConfig, {"count": 10**9}, "count=1000000000 must be at most"),
        (ProposalConfig, {"seed": 2**64}, "must be at most"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_the_start(cls, values, sentence):
    needed = {Pretrain: PRETRAIN, Transfer: TRANSFER}.get(cls, {})
    with pytest.raises(BookError, match=sentence):
        from_dict(cls, needed | values)


@pytest.mark.parametrize("make", [lambda: Pretrain("a", "b", base_lr=float("nan")), lambda: View(64, ratio=(1, 1e999))])
def test_so_it_is_in_python(make):
    with pytest.raises(BookError, match="base_lr=nan|ratio="):
        make()


@pytest.mark.parametrize("value", ["[]", "[[]]", "[[32],[]]", "[[-1]]", "[['a']]", "3", "[[0]]"])
def test_anchors_that_no_network_can_have_are_refused(value):
    with pytest.raises(BookError, match=f"{ANCHORS}.*positive numbers|override '{ANCHORS}"):
        detector_config("mask-rcnn-r50-fpn", (f"{ANCHORS}={value}",))


@pytest.mark.parametrize("item", ["MODEL.RESNETS.NORM=XX", "MODEL.FPN.OUT_CHANNELS=-4", "MODEL.RESNETS.DEPTH=7"])
def test_overrides_that_no_network_can_be_built_with_are_named(cfg, item):
    wrong = replace(cfg, overrides=(*cfg.overrides, item))
    with pytest.raises(BookError, match=f"mask-rcnn-r50-fpn' cannot be built with .*{item} .*: look at their values"):
        build_model(wrong, processes.start())


@pytest.mark.parametrize("value", ["[0,0,0]", "[1.0,1.0]", "['a',1,1]", "[1,1,-1]"])
def test_pixel_deviations_that_no_image_can_be_divided_by_are_refused(value):
    with pytest.raises(BookError, match="PIXEL_STD.*three positive|override 'MODEL.PIXEL_STD"):
        detector_config("mask-rcnn-r50-fpn", (f"MODEL.PIXEL_STD={value}",))


def test_compile_without_a_compiler_is_refused(cfg, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BookError, match="compile=true needs a compiler and none of g"):
        build_model(replace(cfg, compile=True), processes.start())


# --- proposal stores --------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(store, tmp_path):
    return Path(shutil.copytree(store, tmp_path / "store"))


def _cut(path, keep=0.5):
    os.truncate(path, int(path.stat().st_size * keep))


def _flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0xFF
    path.write_bytes(data)


def _edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda s: _cut(s / "boxes.npy"), "boxes.npy is damaged .it holds .*delete .* and build"),
        (lambda s: _cut(s / "boxes.npy", 0), "is damaged .*delete "),
        (lambda s: _cut(s / "boxes.npy", 0.001), "is damaged .*delete "),
        (lambda s: _cut(s / "offsets.npy"), "offsets.npy is damaged"),
        (lambda s: _cut(s / "sizes.npy", 0), "is damaged"),
        (lambda s: _cut(s / "images.parquet"), "images.parquet was cut short: delete"),
        (lambda s: _cut(s / "images.parquet", 0), "is damaged .*delete"),
        (lambda s: _cut(s / "store.json"), "store.json is damaged: delete"),
        (lambda s: (s / "store.json").write_text("[]"), "has store format None"),
        (lambda s: _edit(s / "store.json", format=7), "has store format 7, this is 1: delete"),
        (lambda s: _edit(s / "store.json", images=11), "offsets.npy is damaged .it holds"),
        (lambda s: np.save(s / "offsets.npy", np.load(s / "offsets.npy").astype(np.int32)), "offsets.npy is damaged"),
        (lambda s: np.save(s / "boxes.npy", np.load(s / "boxes.npy")[:-1]), "boxes.npy is damaged"),
        (lambda s: (s / "sizes.npy").unlink(), "lacks sizes.npy: delete"),
        (lambda s: np.save(s / "offsets.npy", np.load(s / "offsets.npy")[::-1].copy()), "offsets.npy is damaged: del"),
    ],
)
def test_a_damaged_store_is_named_with_the_remedy(copied, harm, sentence):
    harm(copied)
    with pytest.raises(BookError, match=sentence):
        ProposalStore.open(copied).readable.sum()


def test_a_store_that_is_cut_while_it_is_read_is_an_error_and_no_bus_error(copied):
    store = ProposalStore.open(copied)
    assert len(store.boxes(11)) > 0
    _cut(copied / "boxes.npy", 0.3)
    with pytest.raises(BookError, match="boxes.npy was changed while it was read: delete its folder"):
        store.boxes(11)


def test_a_store_that_is_replaced_while_it_is_read_stays_what_it_was(copied, pictures):
    store = ProposalStore.open(copied)
    before = store.boxes(11).copy()
    shutil.rmtree(copied)
    build_store(open_source(str(pictures)), ProposalConfig(generator="whole"), copied, workers=1)
    assert np.array_equal(store.boxes(11), before)


@pytest.mark.parametrize(
    "harm", [_flip, lambda path: path.write_bytes(path.read_bytes()[:40] + path.read_bytes()[90:])]
)
def test_a_damaged_shard_is_made_anew(pictures, tmp_path, monkeypatch, harm):
    source, config = open_source(str(pictures)), ProposalConfig(generator="random")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("soco_lib.data.store._merge", mock.Mock(side_effect=KeyboardInterrupt))
        build_store(source, config, tmp_path / "s", workers=1, shard_size=6)
    harm(next((tmp_path / "s" / "shards").glob("*.npz")))
    try:  # unless it is seen at once
        build_store(source, config, tmp_path / "s", workers=1)
    except BookError as error:
        assert "damaged, and is removed: run again" in str(error)
        build_store(source, config, tmp_path / "s", workers=1)
    assert ProposalStore.open(tmp_path / "s").readable.all()


# --- images that are unavailable for a while --------------------------------------------------------------------------


@pytest.fixture
def many(pictures, tmp_path):
    """64 pictures in shards of 16."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(64):
        shutil.copy(pictures / f"{i % 12:02d}.jpg", folder / f"{i:03d}.jpg")
    return folder


def _same(a, b):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in ("boxes.npy", "offsets.npy", "sizes.npy"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_that_vanishes_stops_the_build_which_then_goes_on(many, tmp_path, workers):
    config, source = ProposalConfig(generator="random"), open_source(str(many))
    whole = build_store(source, config, tmp_path / "whole", workers=1)
    away = [many / f"{i:03d}.jpg" for i in range(20, 64)]
    for path in away:
        path.rename(path.with_suffix(".away"))
    with pytest.raises(BookError, match=r"16 images in a row are unavailable.*No such file.*is their disk there"):
        build_store(source, config, tmp_path / "s", workers=workers)
    assert not list((tmp_path / "s").rglob("*.tmp"))
    for path in away:
        path.with_suffix(".away").rename(path)
    build_store(source, config, tmp_path / "s", workers=workers)
    assert _same(whole.path, tmp_path / "s")


def test_an_image_that_was_unavailable_is_tried_again(many, tmp_path):
    config, source, said = ProposalConfig(generator="random"), open_source(str(many)), []
    whole = build_store(source, config, tmp_path / "whole", workers=1)
    away = many / "020.jpg"
    away.rename(many / "gone")
    store = build_store(source, config, tmp_path / "s", workers=1)
    assert store.summary()["error"] == 1
    build_store(source, config, tmp_path / "s", workers=1, progress=said.append)
    assert "found complete" in said[-1]
    (many / "gone").rename(away)
    build_store(source, config, tmp_path / "s", workers=1, progress=said.append)
    assert any("1 of 1 images that were unavailable are there now" in line for line in said)
    assert _same(whole.path, tmp_path / "s")


def test_an_image_that_is_damaged_is_not_tried_again(many, tmp_path):
    (many / "020.jpg").write_bytes(b"junk")
    source, said = open_source(str(many)), []
    for _ in range(2):
        build_store(source, ProposalConfig(generator="whole"), tmp_path / "s", workers=1, progress=said.append)
    assert "found complete" in said[-1]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES])
def test_which_errors_may_pass(pictures, number, monkeypatch):
    monkeypatch.setattr("builtins.open", mock.Mock(side_effect=OSError(number, os.strerror(number))))
    with pytest.raises(Unavailable, match="00.jpg: cannot be read from"):
        ImageSource("x", pictures, ("00.jpg",)).read(0)


# --- odd files --------------------------------------------------------------------------------------------------------


def _bomb(side: int) -> bytes:
    """A PNG that declares side x side pixels."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def _odd_pipe(folder):
    os.mkfifo(folder / "x.jpg")


def _odd_link_to_pipe(folder):
    os.mkfifo(folder / "pipe")
    (folder / "x.jpg").symlink_to(folder / "pipe")


@pytest.mark.parametrize(
    ("make", "key", "sentence"),
    [
        (_odd_pipe, "x.jpg", "damaged .*it is no regular file"),
        (_odd_link_to_pipe, "x.jpg", "damaged .*it is no regular file"),
        (lambda f: (f / "x.jpg").symlink_to(f / "nowhere"), "x.jpg", "cannot be read from .*No such file"),
        (lambda f: (f / "x.jpg").mkdir(), "x.jpg", "damaged|no regular file"),
        (lambda f: (f / "x.png").write_bytes(_bomb(60_000)), "x.png", "OpenCV cannot decode it|not an image"),
        (lambda f: (f / "x.jpg").write_bytes(b""), "x.jpg", "the file is empty"),
    ],
)
def test_an_odd_file_is_unreadable_with_a_reason(pictures, tmp_path, make, key, sentence):
    shutil.copy(pictures / "00.jpg", tmp_path / "00.jpg")
    make(tmp_path)
    with pytest.raises(UnreadableImage, match=f"{key}: {sentence}"):
        ImageSource("x", tmp_path, (key,)).load(0)
    source = open_source(str(tmp_path))  # whether it is listed or not, the rest is proposed for
    assert build_store(source, ProposalConfig(generator="whole"), tmp_path / "s", workers=1).readable[0]
    assert interchange._heads(ImageSource("x", tmp_path, (key,)))  # of boxes from elsewhere, only the header is read


# --- a full disk, and one that may not be written ---------------------------------------------------------------------


def _full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _saved(folder):
    checkpoint.save(folder, 1, {}, 2, model={"a": torch.zeros(10)})


@pytest.mark.parametrize(
    ("patched", "write"),
    [
        ("torch.save", _saved),
        ("os.fsync", _saved),
        ("os.replace", _saved),
        ("os.replace", lambda folder: write_text(folder / "run.json", "{}")),
        ("numpy.savez", lambda f: write_shard(f / "0-1.npz", [((1, 1), np.zeros((1, 4), np.float32), "whole", "")])),
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(tmp_path, monkeypatch, patched, write):
    with monkeypatch.context() as patch:
        patch.setattr(patched, _full)
        with pytest.raises(
            BookError, match=r"cannot write /.*\(No space left on device\): make room there and run again"
        ):
            write(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    write(tmp_path)  # after room was made


@pytest.fixture
def small_disk(tmp_path):
    """A mount of 4 MB."""
    if os.geteuid():
        pytest.skip("only root can mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no mount here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_while_a_checkpoint_a_store_and_a_log_are_written(small_disk, pictures):
    (small_disk / "ballast").write_bytes(bytes(3_900_000))
    with pytest.raises(BookError, match="step_00000001.pt .No space left on device.: make room"):
        checkpoint.save(small_disk, 1, {}, 2, model={"a": torch.randn(1_000_000)})
    assert not list((small_disk / "checkpoints").iterdir())
    run = Run(small_disk, {"name": "x"})
    with pytest.raises(BookError, match="log.jsonl .No space left on device.: make room"):
        for step in range(9):
            run.log({"step": step, "text": "x" * 90_000})
    rows = len(run.rows())
    (small_disk / "more").unlink(missing_ok=True)
    source, config = open_source(str(pictures)), ProposalConfig(generator="random", count=20_000)
    with pytest.raises(BookError, match="No space left on device.: make room"):
        build_store(source, config, small_disk / "s", workers=1, shard_size=4)
    (small_disk / "ballast").unlink()
    run.log({"step": 9})
    assert len(run.rows()) == rows + 1 and run.rows()[-1] == {"step": 9}
    store = build_store(source, ProposalConfig(generator="random", count=900), small_disk / "t", workers=1)
    assert store.readable.all() and not list(small_disk.rglob("*.tmp"))


@pytest.fixture
def read_only(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no mount here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_what_may_not_be_written_is_one_sentence(read_only, pictures, cfg):
    allow = "(Read-only file system|Permission denied).: allow writing there, or choose another folder"
    for write in (
        lambda: Run.start("x", "pretrain", cfg, read_only),
        lambda: _saved(read_only),
        lambda: build_store(open_source(str(pictures)), ProposalConfig(), read_only / "s", workers=1),
        lambda: write_text(read_only / "x", ""),
        lambda: Run(read_only, {"name": "x"}).log({}),
        lambda: records.keep([Run(read_only / "x", {"name": "x"})], read_only),
    ):
        with pytest.raises(BookError, match=allow):
            write()


def test_proposals_that_may_not_be_written_are_read_all_the_same(store, read_only, tmp_path):
    for path in store.iterdir():
        path.chmod(0o444)
    assert len(ProposalStore.open(store).boxes(0)) > 0


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pretraining's checkpoint as it is saved, of a network of three layers."""
    folder = tmp_path_factory.mktemp("run")
    model = {f"online.encoder.backbone.res2.0.conv{i}.weight": torch.randn(8, 8, 3, 3) for i in (1, 2, 3)}
    config = {"alignment": "head", "detector": "mask-rcnn-r50-fpn"}
    return torch.load(checkpoint.save(folder, 5, config, 2, model=model))


FIRST = "online.encoder.backbone.res2.0.conv1.weight"


def _model(change):
    return lambda state: state["model"].update({FIRST: change(state["model"][FIRST])})


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda state: state.pop("config"), "lacks its config, so it was changed: take another"),
        (lambda state: state.pop("step"), "lacks its step"),
        (lambda state: state.update(config=[]), "lacks its config"),
        (lambda state: state.pop("model"), "lacks its model"),
        (lambda state: state.update(model=torch.zeros(1)), "lacks its model"),
        (lambda state: state.update(config={}), "holds no pretraining"),
        (lambda state: state["config"].update(alignment="heads"), "holds no pretraining"),
        (_model(lambda x: x * torch.nan), f"{FIRST} holds NaN or infinite numbers: take a checkpoint from before"),
        (_model(lambda x: x.to_sparse()), f"{FIRST} is sparse .*to_dense"),
        (_model(lambda x: x.to("meta")), f"{FIRST} was saved without its numbers"),
        (_model(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)), f"{FIRST} is quantised"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named(trained, tmp_path, harm, sentence):
    state = dict(trained, config=dict(trained["config"]), model=dict(trained["model"]))
    harm(state)
    torch.save(state, tmp_path / "step.pt")
    with pytest.raises(BookError, match=f"step.pt.*{sentence}"):
        read_weights(tmp_path / "step.pt")
    torch.save({"state_dict": {"conv1.weight": torch.full((4,), torch.nan), "layer1.0.conv1.weight": torch.ones(4)}},
               tmp_path / "their.pth")  # fmt: skip
    with pytest.raises(BookError, match="their.pth: .*conv1.weight holds NaN"):
        read_weights(tmp_path / "their.pth")


@pytest.mark.parametrize("where", [0.05, 0.3, 0.5, 0.7])
def test_one_wrong_byte_is_seen(trained, tmp_path, where):
    for name in ("step.pt", "their.pth"):
        torch.save(trained if name == "step.pt" else trained["model"], tmp_path / name)
        _flip(tmp_path / name, where)
        with pytest.raises(BookError, match=f"{name} (is damaged .checksum|cannot be read|has no known|is not a che)"):
            read_weights(tmp_path / name)


def test_a_broken_checkpoint_is_passed_over_for_the_one_before_it(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {}, 9, model={"a": torch.ones(3000)})
    _flip(checkpoint.of_step(tmp_path, 3))
    torch.save({**checkpoint.read(checkpoint.of_step(tmp_path, 2)), "model": {"a": torch.full((9,), torch.nan)}},
               checkpoint.of_step(tmp_path, 2))  # fmt: skip
    said = []
    assert checkpoint.newest(tmp_path, said.append)["step"] == 1
    assert "damaged" in said[0] and "a holds NaN" in said[1]


def test_a_checkpoint_of_another_network_is_named(tmp_path):
    with pytest.raises(BookError, match="step_00000003.pt does not fit this run .*size mismatch.*: delete it"):
        with checkpoint.fitting(tmp_path, 3):
            torch.nn.Linear(2, 2).load_state_dict(torch.nn.Linear(3, 2).state_dict())
    with pytest.raises(BookError, match="does not fit this run .'scaler'"), checkpoint.fitting(tmp_path, 3):
        {}["scaler"]


# --- where the code comes from ----------------------------------------------------------------------------------------


def _repository(folder):
    git = lambda *words: subprocess.run(["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *words],
                                        check=True, capture_output=True)  # fmt: skip
    folder.mkdir()
    (folder / "a.py").write_text("a = 1\n")
    git("init", "-q"), git("add", "a.py"), git("commit", "-q", "-m", "first")
    return folder


def _clean(folder):
    return folder


def _edited(folder):
    (folder / "a.py").write_text("a = 2\n")
    return folder


def _only_results(folder):
    (folder / "results").mkdir()
    (folder / "results" / "x").write_text("x")
    return folder


def _anothers(folder):
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    subprocess.run(["chown", "-R", "12345:12345", folder], check=True)
    return folder


def _inside(folder):
    (folder / "archive").mkdir()
    return folder / "archive"


def _no_repository(folder):
    shutil.rmtree(folder / ".git")
    return folder


@pytest.mark.parametrize(
    ("place", "known", "dirty"),
    [
        (_clean, True, False), (_edited, True, True), (_only_results, True, False), (_anothers, True, False),
        (_inside, False, None), (_no_repository, False, None),
    ],
)  # fmt: skip
def test_code_is_known_or_null_and_never_a_strangers(tmp_path, monkeypatch, place, known, dirty):
    monkeypatch.setattr(folder, "ROOT", place(_repository(tmp_path / "it's a checkout")))
    found = folder.code()
    assert (found["commit"] is not None, found["dirty"]) == (known, dirty)
    assert not known or len(found["commit"]) == 40
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))  # as in a hook of another repository
    assert folder.code() == found


def test_without_git_the_code_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert folder.code() == {"commit": None, "dirty": None}
    assert records.commit({"git": folder.code()}) == ""


# --- names and places -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["folder:x/", "folder:x//", " folder:x "])
def test_a_slash_at_the_end_is_the_same_experiment(text):
    assert identity(Pretrain(text, "p/")) == identity(Pretrain("folder:x", "p"))
    assert identity(Transfer("coco:a", "coco:b", "results/x/")) == identity(Transfer("coco:a", "coco:b", "results/x"))
    assert Pretrain("folder:/", "p").images == "folder:/"


def test_a_slash_at_the_end_is_the_same_store(pictures, tmp_path):
    config = ProposalConfig(generator="whole")
    made = build_store(open_source(f"folder:{pictures}/"), config, tmp_path / "s", workers=1)
    assert made.meta["source"] == f"folder:{pictures}"
    build_store(open_source(f"{pictures}"), config, f"{tmp_path}/s/")


@pytest.mark.parametrize("begun", [False, True])
def test_data_sets_with_the_same_names_do_not_share_a_store(pictures, tmp_path, monkeypatch, begun):
    others, config = tmp_path / "others", ProposalConfig(generator="whole")
    others.mkdir()
    for path in pictures.iterdir():
        shutil.copy(pictures / f"{11 - int(path.stem):02d}.jpg", others / path.name)
    with monkeypatch.context() as patch:
        if begun:
            patch.setattr("soco_lib.data.store._merge", mock.Mock(side_effect=KeyboardInterrupt))
        try:
            build_store(open_source(str(pictures)), config, tmp_path / "s", workers=1)
        except KeyboardInterrupt:
            pass
    with pytest.raises(BookError, match="other images with the same names .*others.*delete it, or give PROPOSALS="):
        build_store(open_source(str(others)), config, tmp_path / "s", workers=1)
    build_store(open_source(str(pictures)), config, tmp_path / "s", workers=1).check(open_source(str(pictures)))


def test_a_checkout_and_data_with_an_apostrophe(pictures, tmp_path):
    folder = Path(shutil.copytree(pictures, tmp_path / "it's {mine} $5 #1"))
    config = ProposalConfig(generator="whole")
    assert build_store(open_source(f"folder:{folder}"), config, tmp_path / "it's", workers=2).readable.all()


def test_a_user_without_passwd_entry_and_home(tmp_path):
    code = """
import os, pwd
for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "SOCO_CACHE"):
    os.environ.pop(name, None)
def unknown(*_):
    raise KeyError("uid not found")
pwd.getpwuid = unknown
from soco_lib import locate
from soco_lib.data.listings import cache_folder
import matplotlib
print(cache_folder(), locate("~/x"), matplotlib.get_cachedir())
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0 and done.stdout.count("soco-home-") == 3 and done.stderr == ""


def test_another_user_reads_what_is_there_and_is_told_what_may_not_be_written(store, pictures, tmp_path):
    may_read = [f"--{kind}-caps=-all,+dac_read_search" for kind in ("inh", "ambient")]  # the tests' own folders
    as_another = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", *may_read]
    code = f"""
import os
from soco_lib.data.store import main
assert os.geteuid() == 12345
asked = ["--images", {str(pictures)!r}, "--workers", "1", "--out"]
print(main([*asked, {str(store)!r}]), main([*asked, {str(tmp_path / "s")!r}]))
"""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("only root, with setpriv, can be another user")
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*as_another, sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          env=environment, timeout=300)  # fmt: skip
    if "setpriv:" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.stdout.endswith("0 1\n") and done.stderr.count("\n") == 1
    # access(2) takes away what setpriv gave, so that it may be reading that fails
    assert re.search(rf"error: cannot (read|write) {tmp_path}/s .Permission denied.: allow (read|writ)", done.stderr)


NAMES = ["$5 - $10", "a|b", "<b>", "人", "it's", "x_1^2", "\\alpha", "$"]


def test_class_names_in_figures_and_tables():
    figure = class_bars({"bbox": {name: float(i) for i, name in enumerate(NAMES)}}, "$1 and $2", "AP")
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg")
    for name in NAMES:
        assert f">{html.escape(name, quote=False)}<" in drawn.getvalue().decode(), name
    lines = pages.markdown(pd.DataFrame({"class": NAMES, "a|b": 1})).splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines) and "&lt;b>" in "".join(lines)


def test_letters_without_a_font_are_told_once(monkeypatch, capsys):
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["sans-serif"])
    plots._letters.cache_clear()
    plots._hint.cache_clear()
    class_bars({"bbox": {"人": 1.0, "狗": 2.0, "ä": 3.0}}, "AP", "AP").savefig(io.BytesIO(), format="png")
    plots._letters.cache_clear()
    said = capsys.readouterr().out
    assert said.startswith("no font here has CJK letters") and said.count("\n") == 1


# --- records of runs --------------------------------------------------------------------------------------------------


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _itself(path):
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda path: path.write_text(""), "is not valid .*: delete it and run again"),
        (lambda path: path.write_text("[]"), "is not valid .it holds a list, not a dict"),
        (lambda path: path.write_text("[" * 100_000), "is not valid"),
        (lambda path: path.write_bytes(b"\xff\xfe\0{"), "is not valid"),
        (lambda path: path.write_text("{}"), "is no run's record: delete it and run again"),
        (lambda path: _edit(path, sessions=["x"]), "is no run's record"),
        (lambda path: _edit(path, config=None), "is no run's record"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read .it is no regular file"),
        (_pipe, "cannot be read .it is no regular file"),
        (_itself, "is missing|cannot be read .Too many levels"),
        (Path.unlink, "is missing: that run was not started or not finished"),
    ],
)
def test_a_record_that_is_none_is_named_whoever_reads_it(cfg, tmp_path, harm, sentence):
    path = Run.start("run", "pretrain", cfg, tmp_path).folder / "run.json"
    harm(path)
    with pytest.raises(BookError, match=f"run.json {sentence}"):
        Run.read(path.parent)


@pytest.mark.parametrize(
    "session",
    [
        {},
        {"start": 5, "end": "x", "hardware": [], "git": "x"},
        {"hardware": {"gpus": 5}},
        {"start": "2026-01-02T00:00:00+0000"},
    ],
)
def test_a_record_with_odd_sessions_is_shown(cfg, tmp_path, session):
    run = Run.start("run", "pretrain", cfg, tmp_path)
    _edit(run.folder / "run.json", sessions=[session])
    (run.folder / "log.jsonl").write_bytes(b'5\n[1]\n{"step": "x"}\n\xff\n{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert "loss" in show.text(Run.read(run.folder)) and len(run.rows()) == 1


@pytest.mark.parametrize("harm", [lambda path: path.mkdir(), os.mkfifo])
def test_a_checkpoint_that_is_no_file_is_passed_over(tmp_path, harm):
    checkpoint.save(tmp_path, 1, {}, 9, model={"a": torch.ones(3)})
    harm(checkpoint.of_step(tmp_path, 2))
    said = []
    assert checkpoint.newest(tmp_path, said.append)["step"] == 1 and "step_00000002.pt is no regular file" in said[0]


def test_places_that_cannot_be_are_told_as_such(pictures, tmp_path):
    for images in ("folder:~nobody-here/x", "folder:/nowhere", f"folder:{pictures}/00.jpg/x", "folder:a\0b"):
        with pytest.raises(BookError, match="no image folder"):
            open_source(images)
    with pytest.raises(BookError, match="File name too long.: choose a shorter name"):
        Run.start("x" * 300, "pretrain", Pretrain("a", "b"), tmp_path)
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(BookError, match="move what stands in its place"):
        _saved(tmp_path)


def test_a_run_that_names_no_test_data_has_no_detections(cfg, tmp_path):
    run = Run.start("run", "pretrain", cfg, tmp_path)
    write_text(run.folder / "metrics.json", "{}")
    with pytest.raises(BookError, match="run.json names no test data: give the folder of a transfer"):
        predictions.read(run.folder)


def test_a_clock_that_was_set_back_leaves_the_time_unknown():
    told = {"start": "2026-01-02T00:00:00+0000", "end": "2026-01-01T00:00:00+0000"}
    assert np.isnan(records.minutes(told)) and records.minutes(told | {"end": "2026-01-02T00:01:00+0000"}) == 1


@pytest.mark.parametrize(
    ("main", "words", "sentence"),
    [
        (show.main, ["rnu"], "RUN=rnu: no run folder or record of that name in .*; did you mean run?"),
        (rerun.main, ["rnu"], "RUN=rnu: no run folder or record of that name in .*; did you mean run?"),
        (compare.main, ["rnu", "run"], "A=rnu: no run folder or record of that name in .*; did you mean run?"),
        (compare.main, ["run", "zzz"], "B=zzz: no run folder or record of that name in .*; did you mean run?"),
    ],
)
def test_a_run_that_is_not_there_is_named_with_the_nearest(cfg, tmp_path, capsys, main, words, sentence):
    Run.start("run", "pretrain", cfg, tmp_path)
    assert main([*words, "--results", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert re.search(sentence, said) and said.count("\n") == 1


def test_what_a_command_names_is_looked_up_before_it_works(tmp_path, capsys):
    for call, sentence in (
        (lambda: probe.main(["zzz", "--data", "coco:x"]), "INIT=zzz: no run folder"),
        (lambda: settings.main([PARAMETERS, "{}", "{LAUNCH: nowhere.yaml}"]), "no parameter file .*nowhere.yaml"),
        (lambda: settings.main([PARAMETERS, "{}", "{GPUS: x}"]), "gpus='x' must be of type int"),
        (lambda: benchmarks.main(["coco-fpn-1x", "coco-fpm-2x"]), "did you mean 'coco-fpn-2x'"),
    ):
        assert call() == 1
        said = capsys.readouterr().err
        assert re.search(sentence, said) and said.count("\n") == 1
    assert benchmarks.main([]) == 0 and "benchmark-coco-fpn-1x" in capsys.readouterr().out.split()
    with pytest.raises(BookError, match="init is empty: give .*, or init=scratch"):
        read_weights(Transfer("coco:a", "coco:b", init=" ").init)
    (tmp_path / "empty").mkdir()
    for init, sentence in ((tmp_path / "none", "does not exist: give"), (tmp_path / "empty", "holds no checkpoints: ")):
        with pytest.raises(BookError, match=f"{init.name}.* {sentence}"):
            read_weights(init)
    for model, sentence in (("", "MODEL= is empty: give"), (f"{tmp_path}/x", "MODEL='.*x': no run at .*: give the")):
        with pytest.raises(BookError, match=sentence):
            predict.finished(model)


# --- zip files whose directory is broken ------------------------------------------------------------------------------


def _directory(at: int, value: bytes, mark=b"PK\x01\x02"):
    """Overwrites bytes of a zip's directory: of its first entry, or of the end record (PK 5 6)."""

    def harm(path):
        data = bytearray(path.read_bytes())
        begin = data.rfind(mark) if mark == b"PK\x05\x06" else data.find(mark)
        data[begin + at : begin + at + len(value)] = value
        path.write_bytes(data)

    return harm


BROKEN = {
    "mark": _directory(0, b"XXXX"),
    "length of a name": _directory(28, b"\xff\xff"),
    "length of the extra part": _directory(30, b"\xff\xff"),
    "place of a member": _directory(42, b"\xf0\xff\xff\x7f"),
    "size of a member": _directory(20, b"\xf0\xff\xff\x7f"),
    "method": _directory(10, b"\x63\x00"),
    "count": _directory(10, b"\xff\x7f", b"PK\x05\x06"),
    "place": _directory(16, b"\xff\xff\xff\x7f", b"PK\x05\x06"),
    "size": _directory(12, b"\xff\xff\xff\x7f", b"PK\x05\x06"),
    "none": lambda path: path.write_bytes(path.read_bytes()[: path.read_bytes().rfind(b"PK\x05\x06")]),
}


@pytest.mark.parametrize("harm", BROKEN.values(), ids=BROKEN)
def test_a_zip_with_a_broken_directory_is_one_sentence(pictures, trained, tmp_path, harm):
    torch.save(trained, tmp_path / "step.pt")
    harm(tmp_path / "step.pt")
    with contextlib.suppress(BookError):  # where all bytes are still found
        read_weights(tmp_path / "step.pt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(pictures.iterdir()):
            archive.write(path, path.name)
    harm(tmp_path / "a.zip")
    with contextlib.suppress(BookError):
        source = open_source(f"zip:{tmp_path}/a.zip")
        for index in range(len(source)):
            with contextlib.suppress(UnreadableImage):
                assert source.load(index).shape == (96, 128, 3)
