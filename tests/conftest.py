"""What the tests share: a small data set, a small experiment."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve the processes that tests start

import cv2
import numpy as np
import pytest


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
        cv2.rectangle(image, (int(x), int(y)), (int(x + 45), int(y + 40)), tuple(int(c) for c in rng.integers(150, 255, 3)), -1)
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
