"""Boxes keep their corners and their image in half precision: Detectron2's poolers and FCOS's boxes, as training and
evaluation use them.
"""

import pytest
import torch

from soco_lib.config import Pretrain, View
from soco_lib.encoder import Encoder
from tests.conftest import TINY_DETECTOR
from tests.gpu.checks import IMAGES, number, numbered

from detectron2.modeling.box_regression import Box2BoxTransformLinear  # isort: skip
from detectron2.modeling.poolers import ROIPooler  # isort: skip
from detectron2.structures import Boxes  # isort: skip

HALVES = [torch.bfloat16, torch.float16]
STRIDES, CPU = (4, 8, 16, 32), torch.device("cpu")


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("strides", [STRIDES, (16,)], ids=["pyramid", "one map"])
@pytest.mark.parametrize("kind", ["ROIAlignV2", "ROIAlign", "ROIPool"])
@pytest.mark.parametrize("dtype", HALVES)
def test_600_images_give_each_box_its_own_images_feature(dtype, kind, strides, autocast):
    pooler = ROIPooler(7, [1 / s for s in strides], 2, kind, canonical_box_size=24)
    corner = 12 + 20 * torch.rand(IMAGES, 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([corner, corner + torch.tensor([8.0, 30.0])], 1)
    boxes[::2, 2:] = boxes[::2, :2] + 9  # two sizes: two levels
    with torch.autocast("cpu", dtype, enabled=autocast):
        pooled = pooler(numbered(dtype, CPU, strides), [Boxes(box[None]) for box in boxes])
    assert pooled.dtype == dtype and number(pooled) == list(range(IMAGES))


@pytest.mark.parametrize("kind", ["ROIAlignV2", "ROIAlign", "ROIPool"])
@pytest.mark.parametrize("dtype", HALVES)
def test_corners_at_1333_pixels_are_exact(dtype, kind):
    """Small boxes far to the right, where bf16's step is 8 pixels: as from the same maps in float32, rounded once."""
    g = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 8, 200, 334, generator=g).to(dtype)
    corner = torch.rand(50, 2, generator=g) * torch.tensor([100.0, 700.0]) + torch.tensor([1200.0, 50.0])
    boxes = [Boxes(torch.cat([corner, corner + 20], 1))]
    pooler = ROIPooler(7, [1 / 4], 2, kind)
    with torch.autocast("cpu", dtype):
        pooled = pooler([maps], boxes)
    assert torch.equal(pooled, pooler([maps.float()], boxes).to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_the_encoder_pools_600_images_exactly(dtype, monkeypatch):
    encoder = Encoder(
        Pretrain("a", "b", overrides=TINY_DETECTOR, size=64, views=(View(64),), canonical=24, alignment="neck")
    )
    monkeypatch.setattr(encoder, "maps", lambda images: dict(zip(encoder.levels, numbered(dtype, CPU))))
    seen = []
    pool = encoder.pool
    monkeypatch.setattr(encoder, "pool", lambda maps, rois: seen.append(pool(maps, rois)) or seen[-1])
    boxes = torch.tensor([[10.0, 10, 20, 20], [4, 4, 60, 60], [8, 20, 31, 44]])
    with torch.autocast("cpu", dtype):
        encoder(torch.zeros(IMAGES, 3, 64, 64), [boxes] * IMAGES)
    assert number(seen[0]) == [n for n in range(IMAGES) for _ in boxes]


@pytest.mark.parametrize("dtype", HALVES)
def test_fcos_boxes_are_decoded_in_float32(dtype):
    points = torch.tensor([[1203.0, 515.0, 1211.0, 523.0]])
    boxes = Box2BoxTransformLinear(normalize_by_size=True).apply_deltas(torch.ones(1, 4, dtype=dtype), points)
    assert boxes.tolist() == [[1199.0, 511.0, 1215.0, 527.0]]
