"""An RPN that is pretrained with the objects: its loss is Detectron2's, and all of it arrives in the detector."""

import dataclasses

import numpy as np
import pytest
import torch

from soco_lib import BookError, train
from soco_lib import boxes as box_math
from soco_lib.dataset import ProposalViews, collate
from soco_lib.encoder import Encoder
from soco_lib.fields import from_dict
from soco_lib.model import SoCo
from soco_lib.parts.regions import region_loss, region_term
from soco_lib.runs import launch
from soco_lib.runs.folder import Run, read_json
from soco_lib.transfer import run as transfer
from soco_lib.transfer.benchmarks import Transfer
from tests.conftest import TINY_TRANSFER, stopped_after_saving
from tests.test_train import final_weights, same
from tests.test_transfer import write_coco

from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

BOXES = [torch.tensor([[4.0, 4.0, 40.0, 36.0], [20.0, 10.0, 60.0, 62.0]]), torch.tensor([[0.0, 0.0, 30.0, 30.0]])]


@pytest.fixture
def with_rpn(cfg):
    return dataclasses.replace(cfg, alignment="rpn")


def test_the_loss_is_detectron2s(with_rpn):
    torch.manual_seed(0)
    encoder, images = Encoder(with_rpn), torch.randn(2, 3, 64, 64)
    rpn, maps = encoder.proposal_generator, encoder.backbone(images)
    assert set(rpn.in_features) == {*maps} == {"p2", "p3", "p4", "p5", "p6"}
    rpn.batch_size_per_image = 10**6  # all anchors: nothing is drawn
    objects = [Instances((64, 64), gt_boxes=Boxes(b)) for b in BOXES]
    with EventStorage():
        _, theirs = rpn(ImageList(images, [(64, 64)] * 2), maps, objects)
    torch.testing.assert_close(region_loss(rpn, maps, 64, BOXES), sum(theirs.values()), rtol=1e-6, atol=1e-6)
    ours = region_term(encoder, encoder.maps(images), 64, BOXES)  # with its own pyramid, which lacks P6
    torch.testing.assert_close(ours, sum(theirs.values()), rtol=1e-4, atol=1e-5)


def test_anchors_are_drawn_for_an_image_alone(with_rpn):
    torch.manual_seed(0)
    encoder, images = Encoder(with_rpn).eval(), torch.randn(2, 3, 64, 64)  # each image by itself: norms are fixed
    before = torch.get_rng_state()
    loss = lambda i, boxes: region_term(encoder, encoder.maps(images[i]), 64, boxes)
    both, alone = loss(slice(0, 2), BOXES), [loss(slice(i, i + 1), BOXES[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(both, sum(alone) / 2)
    assert loss(slice(0, 1), [BOXES[0].flip(0)]) != alone[0], "another order of the boxes draws other anchors"
    assert torch.equal(torch.get_rng_state(), before), "and nobody else's draws change"


def test_v1_brings_every_proposal(with_rpn):
    plain, all_of_them = (ProposalViews(c) for c in (dataclasses.replace(with_rpn, alignment="head"), with_rpn))
    for number in range(6):
        (views, _), (same_views, _) = all_of_them[number, 0], plain[number, 0]
        for view, other in zip(views, same_views):
            assert np.array_equal(view.image, other.image) and np.array_equal(view.boxes, other.boxes)
        size = all_of_them.store.size(0)
        mapped = box_math.crop_resize(all_of_them.store.boxes(0), (0, 0, *size), (64, 64))
        mapped = box_math.hflip(mapped, 64) if views[0].flip else mapped
        rows = lambda boxes: sorted(map(tuple, np.round(boxes, 2)))
        assert rows(views[0].regions) == rows(mapped) and views[0].regions.dtype == np.float32
    batch = collate([all_of_them[0, 0], all_of_them[1, 1]])
    assert len(batch.regions) == 2 and collate([plain[0, 0]]).regions is None


def test_the_objects_loss_and_gradients_stay(with_rpn):
    batch = collate([ProposalViews(with_rpn)[i, i] for i in range(2)])
    torch.manual_seed(0)
    model, images = SoCo(with_rpn), [train.normalize(x) for x in batch.images]
    counted = model.count(batch.boxes, batch.valid)
    with torch.no_grad():
        z = model.targets(images, counted.rois)
    for j, regions in ((0, batch.regions), (1, batch.regions)):
        plain = model(j, images[j], counted.rois[j], counted.pairs, z)
        both = model(j, images[j], counted.rois[j], counted.pairs, z, regions)
        assert len(both) == len(plain) + 1 and (both[-1] > 0) == (j == 0)
        torch.testing.assert_close(both[:-1], plain)
        model.zero_grad()
        both.sum().backward()
        assert all(p.grad is not None for p in model.online.encoder.proposal_generator.parameters())


def test_it_trains_goes_on_and_all_of_it_arrives(with_rpn, tmp_path, one_thread):
    runs = [Run.start(name, "pretrain", with_rpn, tmp_path) for name in ("whole", "stopped")]
    assert train.main([str(runs[0].folder)]) == 0
    with stopped_after_saving(4):
        train.main([str(runs[1].folder)])
    assert train.main([str(runs[1].folder)]) == 0 and same(*map(final_weights, runs))
    rows = runs[0].rows()
    assert all(len(row["pairs"]) == 2 and row["regions"] > 0 for row in rows)
    assert rows[-1]["loss"] == pytest.approx(sum(rows[-1]["pairs"]) + rows[-1]["regions"], abs=1e-3)
    data = {part: write_coco(tmp_path, split, 4) for part, split in (("train", "train"), ("test", "val"))}
    config = from_dict(Transfer, {**TINY_TRANSFER, "profile": "toy", "init": str(runs[0].folder), **data})
    run = Run.start("detector", "transfer", config, tmp_path)
    assert transfer.main([str(run.folder)]) == 0
    keys = read_json(run.folder / "key_report.json")["keys"]
    assert "regions" in keys["reach"] and sum("rpn_head" in key for key in keys["loaded"]) == 6
    assert not any("proposal_generator" in key for key in keys["new"])


def test_what_has_no_rpn_and_what_has_nothing_to_learn(cfg):
    with pytest.raises(BookError, match="'rpn': 'retinanet-r50-fpn' has no RPN"):
        Encoder(dataclasses.replace(cfg, alignment="rpn", detector="retinanet-r50-fpn", overrides=()))
    with pytest.raises(BookError, match="learns proposals: PROPOSALS=whole has none"):
        dataclasses.replace(cfg, alignment="rpn", proposals="whole")


def test_two_processes_train_it(with_rpn, tmp_path):
    run = Run.start("two", "pretrain", with_rpn, tmp_path)
    metrics = launch.launch(run, launch.Launch(2), say=lambda line: None)
    assert metrics["processes"] == 2 and all(row["regions"] > 0 for row in Run.read(run.folder).rows())
