"""What features see: neighbours and similarity on features whose answer is known."""

import numpy as np
import pytest
import torch

from soco_lib import BookError
from soco_lib.config import Pretrain, View
from soco_lib.data.sources import open_source
from soco_lib.encoder import Encoder
from soco_lib.features import neighbours
from soco_lib.features.probe import batches
from soco_lib.scenes import write as scenes
from tests.conftest import TINY_DETECTOR

CFG = Pretrain("", "", size=64, views=(View(64),), detector="mask-rcnn-r50-fpn", overrides=TINY_DETECTOR)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = scenes.write_scenes(tmp_path_factory.mktemp("seen") / "scenes", 0, 5, workers=1, most=3, smallest=0.3)
    return open_source(f"coco:{folder}/annotations/instances_val.json")


def known(features, labels, images):
    return neighbours.Objects(
        torch.nn.functional.normalize(torch.tensor(features), dim=1), np.array(labels), [], np.array(images)
    )


def test_nearest_are_the_most_alike_of_other_images():
    found = known([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1]], [0, 0, 0, 1], [0, 0, 1, 2])
    assert neighbours.nearest(found, np.array([0, 3]), 2).tolist() == [[2, 3], [2, 1]]
    assert neighbours.agreement(known([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]], [0, 0, 1, 1], [0, 1, 2, 3]), 1) == 1.0
    assert neighbours.agreement(known([[1.0, 0], [0, 1], [1, 0.1]], [0, 0, 1], [0, 1, 2]), 1) == 0.0


def test_objects_are_the_labelled_ones_with_their_pictures(source):
    torch.manual_seed(0)
    found = neighbours.objects(Encoder(CFG), CFG, source, np.arange(5))
    assert len(found.labels) == len(found.crops) == len(found.images) == len(found.features) >= 5
    assert torch.allclose(found.features.norm(dim=1), torch.ones(len(found.labels)))
    assert found.images.max() == 4 and all(crop.size and crop.dtype == np.uint8 for crop in found.crops)
    image, boxes, _ = next(batches(source, CFG, np.arange(1)))
    x1, y1, x2, y2 = boxes[0][0].round().int().tolist()
    from soco_lib.views import resize  # the picture that the network sees

    assert np.abs(found.crops[0].astype(int) - resize(source.load(0), 64)[y1:y2, x1:x2]).max() <= 1
    figure = neighbours.draw_nearest({"a": found, "b": found}, [0, 1], source.classes, 2)
    assert len(figure.axes) == 2 * 2 * 3


def test_a_box_is_most_like_itself(source):
    torch.manual_seed(0)
    encoder = Encoder(CFG).eval()
    images, boxes, _ = next(batches(source, CFG, np.arange(1)))
    box = torch.tensor([0.0, 0.0, 20.0, 30.0])
    seen = neighbours.similarity(encoder, images[0], box, cells=4)
    assert seen.shape == (4, 4) and seen[0, 0] == pytest.approx(1, abs=1e-5) and seen.max() <= 1 + 1e-5
    assert len(neighbours.draw_similarity({"a": encoder, "b": encoder}, CFG, source, np.arange(5), rows=2).axes) == 6


def test_images_without_labels_are_one_line(pictures):
    with pytest.raises(BookError):
        neighbours.objects(Encoder(CFG), CFG, open_source(f"folder:{pictures}"), np.arange(1))
