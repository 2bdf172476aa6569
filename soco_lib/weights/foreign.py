"""Weights of other methods under the detector's names: one table of layouts, recognised by their keys.

All layouts but the refused one are of methods that train on RGB images, as our detectors do; Caffe-style weights (BGR)
under torchvision's names cannot be told from others by their keys. The "module." that DistributedDataParallel puts
before every key is no part of a layout. In a layout's texts {} stands for the network: online or target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from soco_lib import BookError
from soco_lib.fields import one_of, require
from soco_lib.weights.formats import state_dicts

# --- renames of modules: theirs, below a prefix -> ours; "#" is the number of a residual block ------------------------

BACKBONE, BOX_HEAD = "backbone.", "roi_heads.box_head."


def _under(prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    return {theirs: prefix + ours for theirs, ours in table.items()}


def _resnet(stem: tuple[str, str], stages: tuple[str, ...]) -> dict[str, str]:
    """A ResNet with torchvision's blocks: `stem` names its convolution and norm, `stages` the four of its blocks."""
    layers = {f"conv{i}": f"conv{i}" for i in (1, 2, 3)} | {f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)}
    layers |= {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}
    blocks = {f"{s}.#.{old}": f"res{i}.#.{new}" for i, s in enumerate(stages, 2) for old, new in layers.items()}
    return _under(BACKBONE, {stem[0]: "stem.conv1", stem[1]: "stem.conv1.norm", **blocks})


def _same(table: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Our names below our prefix: what Detectron2's own files hold."""
    return {ours.removeprefix(prefix): ours for ours in table.values()}


RESNET = _resnet(("conv1", "bn1"), ("layer1", "layer2", "layer3", "layer4"))
#: torch.nn.Sequential(*resnet.children()): relu is child 2, the pooling 3.
CHILDREN = _resnet(("0", "1"), ("4", "5", "6", "7"))
#: With norm, a Sequential of convolution and norm; there is neither a P2 nor an output convolution on P5.
RESIM_FPN = _under(BACKBONE, {
    f"{name}{theirs}": f"{name}{ours}"
    for name in ("fpn_lateral3", "fpn_lateral4", "fpn_lateral5", "fpn_output3", "fpn_output4")
    for theirs, ours in (("", ""), (".0", ""), (".1", ".norm"))
})  # fmt: skip
MM_FPN = _under(BACKBONE, {
    f"{theirs}_convs.{i}.{part}": f"fpn_{ours}{i + 2}{norm}"
    for i in range(4)
    for theirs, ours in (("lateral", "lateral"), ("fpn", "output"))
    for part, norm in (("conv", ""), ("bn", ".norm"))
})  # fmt: skip
SOCO_HEAD = _under(BOX_HEAD, {
    **{f"conv{i}": f"conv{i}" for i in range(1, 5)}, **{f"bn{i}": f"conv{i}.norm" for i in range(1, 5)}, "fc1": "fc1"
})  # fmt: skip
MM_HEAD = _under(BOX_HEAD, {
    **{f"shared_convs.{i}.{a}": f"conv{i + 1}{b}" for i in range(4) for a, b in (("conv", ""), ("bn", ".norm"))},
    "shared_fcs.0": "fc1",
})  # fmt: skip
D2_RESNET, D2_FPN, D2_HEAD = _same(RESNET, BACKBONE), _same(MM_FPN, BACKBONE), _same(SOCO_HEAD, BOX_HEAD)
LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def rename(key: str, table: Mapping[str, str]) -> str | None:
    """`key` (module.leaf) with its module renamed by `table`; None if the table lacks it."""
    module, _, leaf = key.rpartition(".")
    new, block = table.get(module), re.search(r"(?<=\.)\d+(?=\.)", module)
    if not new and block:
        new = table.get(f"{module[: block.start()]}#{module[block.end() :]}", "").replace("#", block[0])
    return f"{new}.{leaf}" if new and leaf in LEAVES else None


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How one method names what it saved."""

    name: str
    what: str  # for people
    marks: tuple[str, ...]  # beginnings of keys that must all be there
    parts: dict[str, dict[str, str]]  # prefix there -> renames of modules
    left: dict[str, str] = field(default_factory=dict)  # beginnings of keys that stay behind -> why
    nest: tuple[str, ...] = ("state_dict", "model", "")  # where the state dict may lie in the file; "": at the top
    networks: tuple[str, ...] = ("",)  # what {} is for the online and, if it is there, for the target network
    reach: tuple[str, ...] = ("backbone",)  # the parts that it trained
    refused: str = ""  # why it cannot be used, and what to do instead

    def word(self, network: str) -> str:
        """What {} stands for."""
        return self.networks[min(("online", "target").index(network), len(self.networks) - 1)]

    def lacks(self, tensors: Mapping[str, Tensor], network: str) -> list[str]:
        """The marks that are not there."""
        names = [key.removeprefix("module.") for key in tensors]
        marks = [mark.replace("{}", self.word(network)) for mark in self.marks]
        return [mark for mark in marks if not any(name.startswith(mark) for name in names)]

    def place(self, key: str, network: str) -> tuple[str | None, str]:
        """(our name, "") of a key, or (None, why it stays behind); (None, "") if the layout does not know it."""
        key, word = key.removeprefix("module."), self.word(network)
        for theirs, table in self.parts.items():
            prefix = theirs.replace("{}", word)
            if key.startswith(prefix) and (name := rename(key[len(prefix) :], table)):
                return name, ""
        for start, why in self.left.items():
            if key.startswith(start.replace("{}", word)):
                return None, why
        starts = [start for start in (*self.parts, *self.left) if "{}" in start]
        others = tuple(start.replace("{}", w) for start in starts for w in self.networks if w != word)
        other = "online" if network == "target" else "target"
        return None, f"{other} network" if key.startswith(others) else ""


ALL = ("backbone", "neck", "head")
_SOCO = {"projector{}.": "projector", "predictor.": "predictor", "queue": "queue"}
_MOCO = {"encoder_{}.fc.": "projector", "queue": "queue"}
_BYOL = dict.fromkeys(("{}_network.projetion.", "{}_network.projection."), "projector") | {"predictor.": "predictor"}
_MM_SECOND = "roi_head{}.bbox_head.shared_fcs.1."  # of two linear layers after the convolutions; the detector has one
_MM_BOX = dict.fromkeys((_MM_SECOND, "roi_head{}.bbox_head.fc_cls."), "projector")
_MM_BOX |= {"rpn_head": "region proposals", "queue": "queue"}
_COPY = "copy of the online network"
_BGR = "it was trained on BGR images, with the stride in the 1x1 convolution, and this book's detectors read RGB images"

LAYOUTS: dict[str, Layout] = {row.name: row for row in (
    Layout("soco-fpn", "SoCo and SoCo*, FPN, as the authors released them",
           ("encoder{}.conv1.", "neck{}.", "head{}.conv1."),
           {"encoder{}.": RESNET, "neck{}.": MM_FPN, "head{}.": SOCO_HEAD}, _SOCO, networks=("", "_k"), reach=ALL),
    Layout("soco-c4", "SoCo, C4, as the authors released it",
           ("encoder{}.conv1.", "projector.linear1.", "predictor.linear1."), {"encoder{}.": RESNET}, _SOCO,
           networks=("", "_k")),
    Layout("torchvision", "torchvision's or timm's ResNet, supervised or out of a method's checkpoint",
           ("conv1.", "layer1.0."), {"": RESNET}, {"fc.": "classifier"}),
    Layout("moco", "MoCo v1 and v2", ("encoder_{}.conv1.",), {"encoder_{}.": RESNET}, _MOCO, networks=("q", "k")),
    Layout("resim", "ReSim, with the FPN's P3 to P5", ("encoder_{}.conv1.", "encoder_{}.fpn_lateral5."),
           {"encoder_{}.": RESNET | RESIM_FPN}, _MOCO, networks=("q", "k"), reach=("backbone", "part of the neck")),
    Layout("simsiam", "SimSiam", ("encoder.conv1.", "encoder.fc.0.", "predictor.0."), {"encoder.": RESNET},
           {"encoder.fc.": "projector", "predictor.": "predictor"}),
    Layout("byol", "BYOL and DetCon, PyTorch ports with online_network", ("{}_network.encoder.0.",),
           {"{}_network.encoder.": CHILDREN}, _BYOL, networks=("online", "target")),
    Layout("byol-pytorch", "BYOL, PyTorch port with online_encoder", ("{}_encoder.net.conv1.",),
           {"{}_encoder.net.": RESNET}, {"{}_encoder.net.fc.": "classifier", "{}_encoder.projector.": "projector",
           "online_predictor.": "predictor", "net.": _COPY}, networks=("online", "target")),
    Layout("byol-openselfsup", "BYOL of OpenSelfSup", ("{}_net.0.conv1.",), {"{}_net.0.": RESNET},
           {"{}_net.1.": "projector", "neck.": "projector", "head.": "predictor", "backbone.": _COPY},
           networks=("online", "target")),
    Layout("simclr", "SimCLR, PyTorch port with backbone.fc", ("backbone.conv1.", "backbone.fc."),
           {"backbone.": RESNET}, {"backbone.fc.": "projector"}),
    Layout("simclr-convnet", "SimCLR, PyTorch port with convnet", ("convnet.conv1.",), {"convnet.": RESNET},
           {"convnet.fc.": "classifier", "projection.": "projector"}),
    Layout("simclr-encoder", "SimCLR, PyTorch port with encoder and projector", ("encoder.conv1.", "projector.0."),
           {"encoder.": RESNET}, {"encoder.fc.": "classifier", "projector.": "projector"}),
    Layout("swav", "SwAV and DeepCluster v2", ("conv1.", "projection_head.", "prototypes."), {"": RESNET},
           {"projection_head.": "projector", "prototypes.": "prototypes"}),
    Layout("infomin", "InfoMin and others of PyContrast", ("encoder.conv1.", "head.0."), {"encoder.": RESNET},
           {"head.": "projector", "head_jig.": "projector"}, nest=("model{}",), networks=("", "_ema")),
    Layout("densecl", "DenseCL and others of OpenSelfSup with encoder_q", ("encoder_{}.0.conv1.",),
           {"encoder_{}.0.": RESNET}, {"encoder_{}.1.": "projector", "queue": "queue", "head.": "projector",
           "backbone.": _COPY}, networks=("q", "k")),
    Layout("backbone", "mmcls and OpenSelfSup: the backbone, with or without a neck and head of its own",
           ("backbone.conv1.", "backbone.layer1."), {"backbone.": RESNET},
           {"neck.": "projector", "head.": "classifier", "projector.": "projector", "predictor.": "predictor"}),
    Layout("pixpro", "PixPro", ("encoder{}.conv1.", "projector{}.linear1.", "value_transform."),
           {"encoder{}.": RESNET}, {"projector{}.": "projector", "projector_instance{}.": "projector",
           "predictor.": "predictor", "value_transform.": "predictor"}, networks=("", "_k")),
    Layout("insloc-fpn", "InsLoc, FPN",
           ("backbone{}.conv1.", "neck{}.lateral_convs.", "roi_head{}.bbox_head.shared_fcs.0."),
           {"backbone{}.": RESNET, "neck{}.": MM_FPN, "roi_head{}.bbox_head.": MM_HEAD}, _MM_BOX,
           networks=("", "_k"), reach=ALL),
    Layout("insloc-c4", "InsLoc, C4", ("backbone{}.conv1.", "roi_head{}.shared_head.layer4."),
           {"backbone{}.": RESNET, "roi_head{}.shared_head.": RESNET}, _MM_BOX, networks=("", "_k")),
    Layout("detcon", "DetCon, PyTorch Lightning port", ("network.encoder.0.",), {"network.encoder.": CHILDREN},
           {"network.projector.": "projector", "predictor.": "predictor", "temperature": "loss"}),
    Layout("detectron2-converted", "a method's converter to Detectron2 (.pkl without prefixes)", ("stem.conv1.",),
           {"": D2_RESNET | D2_FPN, "backbone.": D2_FPN, "box_head.": D2_HEAD}, {"stem.fc.": "projector"}, reach=ALL),
    Layout("detectron2-fpn", "Detectron2's own names, FPN", ("backbone.bottom_up.stem.conv1.",),
           {"backbone.bottom_up.": D2_RESNET, "backbone.": D2_FPN, BOX_HEAD: D2_HEAD}, {_MM_SECOND: "projector"},
           reach=ALL),
    Layout("detectron2-c4", "Detectron2's own names, C4", ("backbone.stem.conv1.",),
           {"backbone.": D2_RESNET, "roi_heads.": D2_RESNET}),
    Layout("caffe2", "Caffe2's ResNet (MSRA R-50.pkl)", ("conv1_w", "res2_0_branch2a_w"), {}, nest=("", "blobs"),
           refused=f"{_BGR}: take torchvision's supervised ResNet instead"),
)}  # fmt: skip

# --- reading ----------------------------------------------------------------------------------------------------------

#: Parts of a layout's reach that a file may lack.
_PART = {"neck": "backbone.fpn_", "head": BOX_HEAD}


@dataclass(frozen=True)
class Translation:
    """A foreign file's tensors under our names, a ResNet's below `backbone.` for any detector (see load.placed)."""

    layout: Layout
    tensors: dict[str, Tensor]
    left: dict[str, str]  # its other keys, as they are in the file -> why they stay behind; "": unknown
    reach: tuple[str, ...]


def translate(content: Mapping, path: Path, network: str = "online", layout: str = "") -> Translation:
    """The contents of the file `path` (formats.read) by the layout they have, or by the one named.

    Raises BookError, naming the first unknown keys, if no layout fits or several fit equally; and for a refused one.
    """
    row, tensors = _recognise(state_dicts(content), path, network, layout)
    require(not row.refused, f"{path} is {row.what}: {row.refused}")
    require(network == "online" or len(row.networks) > 1, f"{path} ({row.what}) holds one network: use network=online")
    renamed, left = {}, {}
    for key, value in tensors.items():
        name, why = row.place(key, network)
        if name and name not in renamed:
            renamed[name] = value
        else:
            left[key] = why
    there = lambda part: part not in _PART or any(name.startswith(_PART[part]) for name in renamed)
    reach = tuple(filter(there, row.reach))
    return Translation(row, renamed, left, reach)


def _unknown(row: Layout, tensors: Mapping[str, Tensor], network: str) -> list[str]:
    return [key for key in tensors if row.place(key, network) == (None, "")]


def _recognise(states: dict[str, dict], path: Path, network: str, name: str) -> tuple[Layout, dict[str, Tensor]]:
    """The layout of a file's state dicts with the one that it lies in."""
    require(bool(states), f"{path} holds no state dict: neither at the top nor one level down")
    if name:
        one_of("layout", name, LAYOUTS)
    rows = [LAYOUTS[name]] if name else LAYOUTS.values()
    nests = [(row, nest.replace("{}", row.word(network))) for row in rows for nest in row.nest]
    places = [(row, states[nest]) for row, nest in nests if nest in states]
    only = f"{path} has state dicts under {', '.join(states)} only"  # one at the top is a place of most layouts
    require(bool(places), f"{only}, where no layout keeps its {network} network: save that state dict alone")
    count = lambda place: len(_unknown(*place, network))
    fitting = sorted((p for p in places if name or not p[0].lacks(p[1], network)), key=count)
    best = [p for p in fitting if count(p) == count(fitting[0])]
    if len({row.name for row, _ in best}) == 1:
        return best[0]
    known = f"known layouts: {', '.join(LAYOUTS)}"
    if best:
        raise BookError(f"{path} may be {' or '.join(row.name for row, _ in best)}: name one with layout= ({known})")
    row, tensors = min(places, key=count)
    lacking = f"none, but no {' and '.join(row.lacks(tensors, network))}"
    first, nearest = ", ".join(_unknown(row, tensors, network)[:3]) or lacking, f"{row.name}, {row.what}"
    raise BookError(f"{path} has no known layout: unknown keys {first} (nearest layout: {nearest}; {known})")
