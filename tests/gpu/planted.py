"""A process of group.py with a fault in it: the tests see that the check's line fails. `python -m tests.gpu.planted
FOLDER`.
"""

import copy
import os
import sys

from torch import nn

from soco_lib.features import probe
from soco_lib.runs import checkpoint
from tests.gpu import group


def each_for_itself(folder, first, say=print):
    """Every process goes on from the newest checkpoint that it sees."""
    return checkpoint.newest(folder, say)


def synchronised(cfg, state=None, device="cpu"):
    """The probe measures an encoder that still has the training's SyncBatchNorm."""
    encoder = copy.deepcopy(_fresh(cfg, state, device))
    return encoder if state is None else nn.SyncBatchNorm.convert_sync_batchnorm(encoder)


_fresh = probe.fresh
if os.environ["PLANTED"] == "each for itself":
    checkpoint.chosen = each_for_itself
else:
    probe.fresh = synchronised

if __name__ == "__main__":
    sys.exit(group.main(sys.argv[1:]))
