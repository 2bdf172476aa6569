"""The object probe on features whose answer is known, and on a tiny labelled set."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from soco_lib import BookError
from soco_lib.config import Pretrain, View
from soco_lib.features import probe_table
from soco_lib.features.probe import class_mean, fresh, knn, linear, probe
from soco_lib.runs.folder import Run, write_json
from soco_lib.scenes import write as scenes
from tests.conftest import TINY_DETECTOR


def clusters(counts, spread, seed=0):
    """Unit vectors around one axis a class, `counts[c]` of class c."""
    g = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return F.normalize(F.one_hot(y, 8).float() + spread * torch.randn(len(y), 8, generator=g), dim=1), y


@pytest.mark.parametrize("classify", [knn, linear])
def test_separable_classes_are_told_apart(classify):
    x, y = clusters((200, 12, 12), 0.1)
    q, truth = clusters((100, 30, 30), 0.1, seed=1)
    assert class_mean(classify(x, y, q, 3), truth, 3) > 0.98


def test_votes_and_means_are_class_balanced():
    """The frequent class's answer everywhere is worth 1 / classes, and does not win by its number of neighbours."""
    _, truth = clusters((90, 5, 5), 0.1)
    assert class_mean(torch.zeros_like(truth), truth, 3) == pytest.approx(1 / 3)
    x, y = clusters((400, 10, 10), 0.6)
    q, truth = clusters((50, 50, 50), 0.6, seed=1)
    plain = y[(q @ x.T).topk(20).indices].mode(1).values
    assert class_mean(knn(x, y, q, 3), truth, 3) > class_mean(plain, truth, 3) + 0.1


def test_probe_of_a_network(tmp_path):
    scenes.write_scenes(tmp_path / "scenes", 60, 1, workers=1)
    cfg = Pretrain("a", "b", detector="mask-rcnn-r50-fpn", overrides=TINY_DETECTOR, size=64, views=(View(64),))
    encoder = fresh(cfg)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    scores = probe(encoder, cfg, f"coco:{tmp_path}/scenes/annotations/instances_train.json")
    assert scores.classes >= 8 and 0 <= scores.knn <= 1 and 0 <= scores.linear <= 1
    assert scores == probe(fresh(cfg), cfg, f"coco:{tmp_path}/scenes/annotations/instances_train.json")
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_an_encoder_that_trains_with_synchronised_norms_is_probed_apart_from_the_others(tmp_path):
    """A copy of it would wait for the other processes, or mix with their step; SyncBatchNorm refuses the CPU, where
    this is seen.
    """
    scenes.write_scenes(tmp_path / "scenes", 60, 1, workers=1)
    cfg = Pretrain("a", "b", detector="mask-rcnn-r50-fpn", overrides=TINY_DETECTOR, size=64, views=(View(64),))
    data, trains = (
        f"coco:{tmp_path}/scenes/annotations/instances_train.json",
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(fresh(cfg)),
    )
    before = torch.get_rng_state()
    assert probe(trains, cfg, data) == probe(fresh(cfg), cfg, data)
    assert torch.equal(before, torch.get_rng_state())


def test_a_second_set_gives_the_labels_and_a_whole_image_network_is_pooled_by_box(tmp_path):
    scenes.write_scenes(tmp_path / "scenes", 60, 40, workers=1)
    data = [f"coco:{tmp_path}/scenes/annotations/instances_{part}.json" for part in ("val", "train")]
    detector = {"detector": "mask-rcnn-r50-fpn", "overrides": TINY_DETECTOR}
    cfg = Pretrain("a", "whole", **detector, size=64, views=(View(64),), k=1, alignment="whole")
    whole = fresh(cfg)
    scores = probe(whole, cfg, data[0], fit=data[1])
    assert scores.images == 100
    pooled = replace(cfg, alignment="c5")
    assert scores == probe(fresh(pooled), pooled, data[0], fit=data[1])
    with pytest.raises(BookError, match="different classes"):
        write_voc(tmp_path / "voc")
        probe(whole, cfg, f"voc:{tmp_path / 'voc'}@trainval", fit=data[1])


def write_voc(root):
    """The smallest VOC layout: one picture of one class."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/trainval.txt").write_text("a\n")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    (root / "Annotations/a.xml").write_text(f"<annotation><object><name>cat</name>{box}</object></annotation>")


def test_images_without_labels_are_refused(pictures):
    with pytest.raises(BookError, match="no labels"):
        probe(torch.nn.Identity(), Pretrain("a", "b"), f"folder:{pictures}")


def probed(folder, name, seed, alignment, knn):
    """A finished run folder as a pretraining and `make probe` leave it; random weights score 2 %."""
    cfg = Pretrain("a", "whole", k=1, seed=seed, alignment=alignment, profile="toy")
    run = Run.start(name, "pretrain", cfg, folder)
    run.lock()
    run.begin()
    run.log({"step": 1, "loss": 0.0})
    run.end("done", {"images_seen": 100})
    scores = lambda value: {"knn": value, "linear": value, "classes": 10}
    write_json(
        run.folder / "probe.json", {"data": "voc:x@test", "fit": "", "random": scores(0.02), "trained": scores(knn)}
    )
    return run.folder


def test_table_of_probes_pairs_seeds_and_keeps_its_records(tmp_path, capsys):
    runs = [probed(tmp_path, f"soco-{s}", s, "head", v) for s, v in ((1, 0.05), (2, 0.06), (3, 0.07))]
    runs += [probed(tmp_path, f"whole-{s}", s, "whole", v) for s, v in ((1, 0.04), (2, 0.04), (3, 0.04))]
    assert probe_table.main([str(tmp_path / "table"), *map(str, runs)]) == 0
    said = capsys.readouterr().out
    assert "6.0 ± 1.0" in said and "+4.0 [+1.5, +6.5]" in said  # mean of 3, 4, 5; t(2) 4.303 x 1 / sqrt(3)
    assert "k-NN, head against whole: +2.0 [-0.5, +4.5] points over 3 seeds" in said
    assert probe_table.collect([tmp_path / "table" / run.name for run in runs])["knn"].tolist() == pytest.approx(
        [5, 6, 7, 4, 4, 4]
    )
    unfinished = Run.start("x", "pretrain", Pretrain("a", "b"), tmp_path).folder
    assert probe_table.main([str(tmp_path / "table"), str(unfinished)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
