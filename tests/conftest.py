"""What the tests share: a small data set, a small experiment."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from unittest import mock

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
from soco_lib.runs import checkpoint, slurm

# What tests start hears Ctrl-C and a closed terminal, also where nohup or a shell's `&` has these tests ignore them.
signal.signal(signal.SIGHUP, lambda *_: None)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def listings_of_its_own(tmp_path_factory) -> None:
    """Listings that an earlier session of tests kept would pass for those of a later one, in folders named alike."""
    os.environ["SOCO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


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
        x, y = int(rng.integers(10, 60)), int(rng.integers(10, 40))
        cv2.rectangle(image, (x, y), (x + 45, y + 40), rng.integers(150, 255, 3).tolist(), -1)
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
        size=64, views=(View(64), View(32, "V2")), hidden=32, embedding=16, precision="fp32", workers=0, profile="toy",
        optimizer="sgd", base_lr=3.2, weight_decay=1e-4, batch=4, steps=8, warmup_epochs=10, log_every=2, save_every=2,
        keep=2,
    )  # fmt: skip


#: A pretraining and a transfer that are over in seconds, as parameter files have them.
TINY_PRETRAINING = {
    "detector": "mask-rcnn-r50-fpn", "overrides": list(TINY_DETECTOR),
    "size": 64, "views": [{"size": 64}, {"size": 32, "source": "V2"}], "hidden": 32, "embedding": 16,
    "batch": 4, "steps": 4, "workers": 0,
}  # fmt: skip
TINY_TRANSFER = {
    "detector": "mask-rcnn-r50-fpn",
    "overrides": [
        *TINY_DETECTOR, "MODEL.ROI_MASK_HEAD.CONV_DIM=16", "MODEL.ROI_MASK_HEAD.NUM_CONV=1",
        "MODEL.RPN.POST_NMS_TOPK_TRAIN=50", "MODEL.RPN.POST_NMS_TOPK_TEST=20",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE=16",
    ],
    "iterations": 2, "warmup": 1, "batch": 2, "log_every": 1, "precise_bn": 0, "workers": 0,
    "min_sizes": [64], "max_size": 96, "test_size": 64,
}  # fmt: skip


class Cut(BaseException):
    """Ends a run in a test, unlike anything that the book itself catches."""


@contextlib.contextmanager
def stopped_after_saving(step: int):
    """Within, writing the checkpoint of `step` ends the run."""
    save = checkpoint.save

    def save_then_stop(folder, at, *args, **state):
        save(folder, at, *args, **state)
        if at == step:
            raise Cut

    with mock.patch.object(checkpoint, "save", save_then_stop), pytest.raises(Cut):
        yield


@pytest.fixture
def one_thread(monkeypatch):
    """Sums come out bit-equal only with as many threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """SLURM_CONF of a running cluster in the environment."""
    where = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path=where)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    if os.geteuid():
        pytest.skip("the test cluster's daemons start jobs as root only")
    cluster_script, folder = Path(__file__).with_name("slurm_cluster.sh"), tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        subprocess.run([cluster_script, "start", folder], check=True, timeout=60, stdout=subprocess.DEVNULL)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setattr(slurm, "POLL", 0.5)
        yield folder
        subprocess.run([cluster_script, "stop", folder], check=True, timeout=60)
