"""What the tests share: a small data set, a small experiment."""

import os
from pathlib import Path

# Before torch: the networks here are too small to share out, and spinning threads starve the processes that tests
# start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import numpy as np
import pytest

from soco_lib.config import Pretrain, View
from soco_lib.data.proposals import ProposalConfig
from soco_lib.data.sources import open_source
from soco_lib.data.store import build_store


@pytest.fixture(scope="session")
def data_root() -> Path:
    """$SOCO_DATA, for tests on real photographs; they skip where it is not set."""
    root = os.environ.get("SOCO_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("SOCO_DATA names no folder with real data")
    return Path(root).resolve()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of 12 small textured pictures with a bright rectangle each."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(12):
        image = cv2.resize(rng.integers(0, 120, (12, 16, 3), dtype=np.uint8), (128, 96), interpolation=cv2.INTER_CUBIC)
        x, y = rng.integers(10, 60), rng.integers(10, 40)
        cv2.rectangle(
            image, (int(x), int(y)), (int(x + 45), int(y + 40)), tuple(int(c) for c in rng.integers(150, 255, 3)), -1
        )
        cv2.imwrite(str(folder / f"{i:02d}.jpg"), image)
    return folder


#: A detector that a test builds in a moment: narrow ResNet-50 FPN, box head of one convolution.
TINY_DETECTOR = (
    "MODEL.FPN.OUT_CHANNELS=16",
    "MODEL.ROI_BOX_HEAD.CONV_DIM=16",
    "MODEL.ROI_BOX_HEAD.NUM_CONV=1",
    "MODEL.ROI_BOX_HEAD.FC_DIM=32",
    "MODEL.RESNETS.STEM_OUT_CHANNELS=8",
    "MODEL.RESNETS.WIDTH_PER_GROUP=4",
    "MODEL.RESNETS.RES2_OUT_CHANNELS=16",
)


@pytest.fixture(scope="session")
def store(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "proposals"
    build_store(open_source(f"folder:{pictures}"), ProposalConfig(), out, workers=1)
    return out


@pytest.fixture
def cfg(pictures, store):
    return Pretrain(
        images=f"folder:{pictures}", proposals=str(store), detector="mask-rcnn-r50-fpn", overrides=TINY_DETECTOR,
        size=64, views=(View(64), View(32, "V2")), hidden=32, embedding=16, optimizer="sgd", base_lr=3.2, weight_decay=1e-4,
        batch=4, steps=8, warmup_epochs=10, precision="fp32", workers=0, log_every=2, save_every=2, keep=2, profile="toy",
    )  # fmt: skip
