"""Model and objective on a tiny detector."""

import copy

import pytest
import torch

from soco_lib.config import Pretrain, View
from soco_lib.detector import detector_config
from soco_lib.encoder import Encoder
from soco_lib.model import SoCo
from soco_lib.parts.pyramids import left_out, pyramid
from tests.conftest import TINY_DETECTOR

from detectron2.layers import ShapeSpec  # isort: skip
from detectron2.modeling import build_backbone  # isort: skip
from detectron2.modeling.backbone import Backbone, SimpleFeaturePyramid  # isort: skip
from detectron2.structures import Boxes  # isort: skip

SIZES = (64, 64, 48)


def cfg(**changes):
    base = dict(
        images="a", proposals="b", detector="mask-rcnn-r50-fpn", overrides=TINY_DETECTOR, hidden=32, embedding=8
    )
    return Pretrain(**{**base, "views": (View(64), View(48, "V2")), "size": 64, **changes})


def batch(sizes=SIZES, count=3, k=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    images = [torch.randn(count, 3, s, s, generator=g) for s in sizes]
    boxes = []
    for s in sizes:
        low, high = torch.rand(count, k, 2, generator=g) * s / 2, torch.rand(count, k, 2, generator=g) * s / 2 + s / 2
        boxes.append(torch.cat([low, high], -1))
    valid = [torch.ones(count, k, dtype=torch.bool) for _ in sizes]
    for v in valid[1:]:
        v[0, : k // 2] = False  # k = 1 keeps its box
    return images, boxes, valid


def pairs(model, images, boxes, valid):
    """(P,) both directions of every pair of views, with one graph over all views; their sum is the loss."""
    counted = model.count(boxes, valid)
    z = model.targets(images, counted.rois)
    return sum(model(j, images[j], counted.rois[j], counted.pairs, z) for j in range(len(images)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SoCo(cfg())


def test_gradient_reaches_the_online_network_only(model):
    model.zero_grad()
    pairs(model, *batch()).sum().backward()
    assert all(p.grad is not None for p in [*model.online.parameters(), *model.predictor.parameters()])
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())


def test_target_moves_by_one_minus_tau(model):
    name = "encoder.backbone.bottom_up.stem.conv1.weight"
    online, target = dict(model.online.named_parameters())[name], dict(model.target.named_parameters())[name]
    with torch.no_grad():
        target.fill_(1.0)
        online.fill_(3.0)
    model.update_target(0.75)
    assert torch.allclose(target, torch.full_like(target, 0.75 * 1 + 0.25 * 3))
    model.update_target(1.0)
    assert torch.allclose(target, torch.full_like(target, 1.5))


def test_target_starts_as_a_copy_and_lacks_the_predictor():
    fresh = SoCo(cfg())
    for a, b in zip(fresh.online.state_dict().items(), fresh.target.state_dict().items()):
        assert a[0] == b[0] and torch.equal(a[1], b[1])


@pytest.mark.parametrize("side", [64, 96])
def test_pyramid_equals_detectron2(side):
    fpn = build_backbone(detector_config("mask-rcnn-r50-fpn", TINY_DETECTOR)).eval()
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        ours, theirs = pyramid(fpn, x), fpn(x)
    assert sorted(ours) == ["p2", "p3", "p4", "p5"]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_pyramid_takes_sides_that_32_does_not_divide():
    maps = pyramid(Encoder(cfg()).backbone, torch.randn(1, 3, 112, 112))
    assert [maps[f"p{i}"].shape[-1] for i in (2, 3, 4, 5)] == [28, 14, 7, 4]


class Map(Backbone):
    """A backbone of one map."""

    def forward(self, x):
        return {"last": x}

    def output_shape(self):
        return {"last": ShapeSpec(channels=8, stride=16)}


@pytest.mark.parametrize("needed", [["p3"], ["p5"], ["p2", "p4"], ["p2", "p3", "p4", "p5"]])
@pytest.mark.parametrize("kind", ["fpn", "vit"])
def test_pyramid_computes_the_needed_levels_only(kind, needed):
    if kind == "fpn":
        whole, x = build_backbone(detector_config("mask-rcnn-r50-fpn", TINY_DETECTOR)), torch.randn(2, 3, 64, 64)
    else:
        whole, x = SimpleFeaturePyramid(Map(), "last", 8, (4.0, 2.0, 1.0, 0.5)), torch.randn(2, 8, 4, 4)
    maps, expected = pyramid(whole, x, needed), pyramid(whole, x)
    assert sorted(maps) == needed and all(torch.equal(maps[name], expected[name]) for name in needed)
    sum(m.sum() for m in maps.values()).backward()
    own = [p for name, p in whole.named_parameters() if not name.startswith("bottom_up")]
    unused = {id(p) for part in left_out(whole, needed) for p in part.parameters()}
    assert unused == {id(p) for p in own if p.grad is None}


def updated(model, sizes, boxes, agree=None):
    """Loss, gradients and buffers by name after one step on random images."""
    images, _, valid = batch(sizes)
    counted = model.count(boxes, valid)
    counted = counted.reaching(agree) if agree else counted
    z = model.targets(images, counted.rois)
    loss = sum(model(j, images[j], counted.rois[j], counted.pairs, z) for j in range(len(images))).sum()
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}, dict(model.named_buffers())


@pytest.mark.parametrize("reached", ["all", "those of another process"])
def test_a_level_without_boxes_changes_nothing_but_its_own_statistics(reached):
    """V1's boxes go to P3, those of the others to P2: loss and gradients to the last bit, zeros where nothing is."""
    sizes = (128, 128, 96)
    boxes = [torch.tensor([8.0, 8.0, 8.0 + s, 8.0 + s]).expand(3, 4, 4) for s in (64, 40, 30)]
    torch.manual_seed(0)
    model = SoCo(cfg(size=128, views=(View(128), View(96, "V2"))))
    plain = copy.deepcopy(model)
    others = (lambda flags: [True] * 12) if reached == "all" else lambda flags: [*flags[:2], True, *flags[3:]]
    loss, grads, seen = updated(model, sizes, boxes)
    expected, theirs, all_seen = updated(plain, sizes, boxes, others)
    assert torch.equal(loss, expected) and list(grads) == list(theirs)
    assert all(torch.equal(grads[name], theirs[name]) for name in grads)
    assert not grads["online.encoder.backbone.fpn_output5.weight"].any() and grads["predictor.0.weight"].any()
    differ = {name.split(".norm")[0] for name in seen if not torch.equal(seen[name], all_seen[name])}
    norms = {f"fpn_output{i}" for i in ((2, 3, 4, 5) if reached == "all" else (4,))}
    norms |= {"fpn_lateral2"} if reached == "all" else set()
    assert differ == {f"{network}.encoder.backbone.{norm}" for norm in norms for network in ("online", "target")}


@pytest.mark.parametrize(
    ("side", "level"), [(20, 2), (47.9, 2), (48.1, 3), (95.9, 3), (96.1, 4), (191.9, 4), (192.1, 5), (224, 5)]
)
def test_scale_aware_assignment(side, level):
    """Sec. 3.3: sides up to 48, 96, 192 and beyond go to P2, P3, P4, P5."""
    pooler = Encoder(cfg()).pooler
    maps = [torch.full((1, 1, 224 // s, 224 // s), float(p)) for p, s in zip((2, 3, 4, 5), (4, 8, 16, 32))]
    pooled = pooler(maps, [Boxes(torch.tensor([[0.0, 0.0, side, side]]))])
    assert pooled[..., 1:-1, 1:-1].round().unique().tolist() == [level]


@pytest.mark.parametrize(
    ("changes", "dim"),
    [
        ({}, 32),
        ({"alignment": "neck"}, 16),
        ({"alignment": "neck", "assignment": "fixed"}, 16),
        ({"alignment": "c5"}, 128),
        ({"alignment": "whole", "k": 1, "proposals": "whole"}, 128),
        ({"views": (View(64), View(48, "V2"), View(56))}, 32),
        ({"detector": "mask-rcnn-r50-c4", "views": (View(64),), "overrides": TINY_DETECTOR[-3:]}, 128),
        ({"detector": "fcos-r50-fpn", "overrides": (TINY_DETECTOR[0], *TINY_DETECTOR[-3:])}, 16),
        ({"detector": "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml"}, 32),
        (
            {
                "detector": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
                "overrides": (TINY_DETECTOR[0], *TINY_DETECTOR[-3:]),
            },
            16,
        ),
    ],
)
def test_variants_are_configuration(changes, dim):
    c = cfg(**changes)
    model = SoCo(c)
    images, boxes, valid = batch(c.view_sizes, k=c.k)
    out = pairs(model, images, boxes, valid)
    out.sum().backward()
    assert model.online.encoder.dim == dim
    assert out.shape == (len(c.views),)
    without = {n.split(".")[2] for n, p in model.online.named_parameters() if p.grad is None}
    assert not without or (c.assignment == "fixed" and all(n.startswith("fpn_") for n in without))
