"""Weights of other methods and of trained detectors under our names: one table of layouts, recognised by their keys.

All layouts but the refused one are of RGB images, as our detectors are. Detectron2's own zoo is known to be of BGR
images, and its stem is converted (load.placed); other Caffe-style weights (BGR) cannot be told by their keys.
The "module." of DistributedDataParallel and the "_orig_mod." of torch.compile are no part of a layout. In a layout's
texts {} stands for the network, online or target, and | separates alternatives.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from soco_lib import BookError
from soco_lib.fields import one_of, require
from soco_lib.weights import names
from soco_lib.weights.formats import state_dicts
from soco_lib.weights.names import BOX_HEAD, CHILDREN, D2_FPN, D2_HEAD, D2_RESNET, HUGGING_FACE, RESNET, rename

# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How one method names what it saved."""

    name: str
    what: str  # for people
    marks: tuple[str, ...]  # beginnings of keys that must all be there
    parts: dict[str, dict[str, str]]  # prefix there -> renames of modules
    left: dict[str, str] = field(default_factory=dict)  # beginnings of keys that stay behind -> why
    nest: tuple[str, ...] = (
        "state_dict",
        "model",
        "model_state_dict",
        "",
    )  # where it may lie in the file; "": at the top
    networks: tuple[str, ...] = ("",)  # what {} is for the online and, if it is there, for the target network
    reach: tuple[str, ...] = ("backbone",)  # the parts that it trained
    same: tuple[str, ...] = ()  # beginnings of keys that are called as here
    rows: str = ""  # how layers that count classes and anchors are ordered, if not as in Detectron2: see _ordered
    refused: str = ""  # why it cannot be used, and what to do instead

    def word(self, network: str) -> str:
        """What {} stands for."""
        return self.networks[min(("online", "target").index(network), len(self.networks) - 1)]

    def lacks(self, tensors: Mapping[str, Tensor], network: str) -> list[str]:
        """The marks that are not there."""
        found = [bare(key) for key in tensors]
        marks = [mark.replace("{}", self.word(network)) for mark in self.marks]
        return [mark for mark in marks if not any(name.startswith(tuple(mark.split("|"))) for name in found)]

    def place(self, key: str, network: str) -> tuple[str | None, str]:
        """(our name, "") of a key, or (None, why it stays behind); (None, "") if the layout does not know it."""
        key, word = bare(key), self.word(network)
        for theirs, table in self.parts.items():
            prefix = theirs.replace("{}", word)
            if key.startswith(prefix) and (name := rename(key[len(prefix) :], table)):
                return name, ""
        for start, why in self.left.items():
            if key.startswith(start.replace("{}", word)):
                return None, why
        if key.startswith(self.same):
            return key, ""
        starts = [start for start in (*self.parts, *self.left) if "{}" in start]
        others = tuple(start.replace("{}", w) for start in starts for w in self.networks if w != word)
        other = "online" if network == "target" else "target"
        return None, f"{other} network" if key.startswith(others) else ""

    def written(self, name: str, word: str = "") -> str | None:
        """What our name is called in this layout, `word` standing for {}: `place` the other way."""
        for prefix, table in self.parts.items():
            if theirs := rename(name, names.inverse(table)):
                return prefix.replace("{}", word) + theirs
        return None


def bare(key: str) -> str:
    """A key without what DistributedDataParallel and torch.compile put into it."""
    return re.sub(r"^(module\.)+", "", key.replace("_orig_mod.", ""))


ALL = ("backbone", "neck", "head")
DETECTOR = (*ALL, "region proposals", "predictor", "mask head", "extra levels")
_SOCO = {"projector{}.": "projector", "predictor.": "predictor", "queue": "queue"}
_MOCO = {"encoder_{}.fc.": "projector", "queue": "queue"}
_BYOL = dict.fromkeys(("{}_network.projetion.", "{}_network.projection."), "projector") | {"predictor.": "predictor"}
_MM_SECOND = "roi_head{}.bbox_head.shared_fcs.1."  # of two linear layers after the convolutions; the detector has one
_MM_BOX = dict.fromkeys((_MM_SECOND, "roi_head{}.bbox_head.fc_cls."), "projector")
_MM_BOX |= {"rpn_head": "region proposals", "queue": "queue"}
_SAME = ("proposal_generator.rpn_head.", "roi_heads.box_predictor.", "roi_heads.mask_head.", "roi_heads.res5.norm.",
         "head.", "backbone.top_block.")  # fmt: skip
_D2_LEFT = {"proposal_generator.anchor_generator.": "anchors", "pixel_": "input statistics"}
_SOLO = dict.fromkeys(("{}projector.", "{}classifier.", "{}head."), "projector")
_SOLO |= {"predictor.": "predictor", "queue": "queue", "prototypes.": "prototypes"}
_LIGHTLY = {"prediction_head.": "predictor", "online_classifier.": "classifier", "prototypes.": "prototypes",
            "criterion.": "queue", "memory_bank.": "queue"}  # fmt: skip
_MM1 = {"neck.": "projector", "head.": "predictor", "queue": "queue", "data_preprocessor.": "input statistics"}
_COPY = "copy of the online network"
_BGR = "it was trained on BGR images, with the stride in the 1x1 convolution, and this book's detectors read RGB images"

LAYOUTS: dict[str, Layout] = {row.name: row for row in (
    Layout("soco-fpn", "SoCo and SoCo*, FPN, as the authors released them",
           ("encoder{}.conv1.", "neck{}.", "head{}.conv1."),
           {"encoder{}.": RESNET, "neck{}.": names.mm_fpn(2), "head{}.": names.SOCO_HEAD}, _SOCO,
           networks=("", "_k"), reach=ALL),
    Layout("soco-c4", "SoCo, C4, as the authors released it",
           ("encoder{}.conv1.", "projector.linear1.", "predictor.linear1."), {"encoder{}.": RESNET}, _SOCO,
           networks=("", "_k")),
    Layout("torchvision", "torchvision's or timm's ResNet, supervised or out of a method's checkpoint",
           ("conv1.", "layer1.0."), {"": RESNET}, {"fc.": "classifier"}),
    Layout("moco", "MoCo v1 and v2", ("encoder_{}.conv1.",), {"encoder_{}.": RESNET}, _MOCO, networks=("q", "k")),
    Layout("resim", "ReSim, with the FPN's P3 to P5", ("encoder_{}.conv1.", "encoder_{}.fpn_lateral5."),
           {"encoder_{}.": RESNET | names.RESIM_FPN}, _MOCO, networks=("q", "k"),
           reach=("backbone", "part of the neck")),
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
           "neck.": "projector", "backbone.": _COPY}, networks=("q", "k")),
    Layout("backbone", "mmcls, mmselfsup and OpenSelfSup: the backbone, with or without a neck and head of its own",
           ("backbone.conv1.", "backbone.layer1."), {"backbone.": RESNET},
           {"neck.": "projector", "head.": "classifier", "data_preprocessor.": "input statistics"}),
    Layout("mmselfsup-moco", "MoCo and DenseCL of mmselfsup 1.x", ("{}conv1.", "encoder_k.module.0."), {"{}": RESNET},
           {**_MM1, "encoder_k.module.1.": "projector", "encoder_k.steps": "counter"},
           networks=("backbone.", "encoder_k.module.0.")),
    Layout("mmselfsup-byol", "BYOL of mmselfsup 1.x", ("{}conv1.", "target_net.module.0."), {"{}": RESNET},
           {**_MM1, "target_net.module.1.": "projector", "target_net.steps": "counter"},
           networks=("backbone.", "target_net.module.0.")),
    Layout("barlow-twins", "Barlow Twins and VICReg, full checkpoint", ("backbone.conv1.", "projector."),
           {"backbone.": RESNET}, {"projector.": "projector", "bn.": "projector", "predictor.": "predictor"}),
    Layout("dino", "DINO, full checkpoint: its teacher is taken for the online network, its student for the target",
           ("backbone.conv1.", "head."), {"backbone.": RESNET}, {"backbone.fc.": "classifier", "head.": "projector"},
           nest=("{}",), networks=("teacher", "student")),
    Layout("solo-learn", "solo-learn", ("{}backbone.conv1.|{}encoder.conv1.", "classifier."),
           {"{}backbone.": RESNET, "{}encoder.": RESNET}, _SOLO, networks=("", "momentum_")),
    Layout("lightly", "lightly: SimCLR, BYOL, MoCo and others with projection_head",
           ("backbone{}.", "projection_head."),
           {"backbone{}.": CHILDREN | RESNET}, {**_LIGHTLY, "projection_head{}.": "projector"},
           networks=("", "_momentum")),
    Layout("lightly-teacher", "lightly's BYOL benchmark", ("{}backbone.", "teacher_backbone.", "projection_head."),
           {"{}backbone.": CHILDREN | RESNET}, {**_LIGHTLY, "{}projection_head.": "projector"},
           networks=("", "teacher_")),
    Layout("lightly-query", "lightly's MoCo v2 benchmark", ("{}backbone.", "query_backbone.", "projection_head."),
           {"{}backbone.": CHILDREN | RESNET}, {**_LIGHTLY, "{}projection_head.": "projector"},
           networks=("query_", "")),
    Layout("vissl", "VISSL", ("_feature_blocks.conv1.",), {"_feature_blocks.": RESNET},
           nest=("classy_state_dict.base_model.model.trunk", "model_state_dict", "state_dict", "")),
    Layout("slotcon", "SlotCon", ("encoder_{}.conv1.", "grouping_{}."), {"encoder_{}.": RESNET},
           {"projector_{}.": "projector", "grouping_{}.": "prototypes", "predictor_slot.": "predictor",
           "center": "loss"}, networks=("q", "k")),
    Layout("hugging-face", "Hugging Face's ResNet", ("resnet.embedder.embedder.|embedder.embedder.",),
           {"resnet.": HUGGING_FACE, "": HUGGING_FACE}, {"classifier.": "classifier"}),
    Layout("pixpro", "PixPro", ("encoder{}.conv1.", "projector{}.linear1.", "value_transform."),
           {"encoder{}.": RESNET}, {"projector{}.": "projector", "projector_instance{}.": "projector",
           "predictor.": "predictor", "value_transform.": "predictor"}, networks=("", "_k")),
    Layout("insloc-fpn", "InsLoc, FPN",
           ("backbone{}.conv1.", "neck{}.lateral_convs.", "roi_head{}.bbox_head.shared_fcs.0.", "queue"),
           {"backbone{}.": RESNET, "neck{}.": names.mm_fpn(2), "roi_head{}.bbox_head.": names.MM_HEAD}, _MM_BOX,
           networks=("", "_k"), reach=ALL),
    Layout("insloc-c4", "InsLoc, C4", ("backbone{}.conv1.", "roi_head{}.shared_head.layer4."),
           {"backbone{}.": RESNET, "roi_head{}.shared_head.": RESNET}, _MM_BOX, networks=("", "_k")),
    Layout("detcon", "DetCon, PyTorch Lightning port", ("network.encoder.0.",), {"network.encoder.": CHILDREN},
           {"network.projector.": "projector", "predictor.": "predictor", "temperature": "loss"}),
    Layout("detectron2-converted", "a method's converter to Detectron2 (.pkl without prefixes)", ("stem.conv1.",),
           {"": D2_RESNET | D2_FPN, "backbone.": D2_FPN, "box_head.": D2_HEAD}, {"stem.fc.": "projector"}, reach=ALL),
    Layout("detectron2-fpn", "Detectron2's own names, FPN", ("backbone.bottom_up.stem.conv1.",),
           {"backbone.bottom_up.": D2_RESNET, "backbone.": D2_FPN, BOX_HEAD: D2_HEAD},
           {_MM_SECOND: "projector", **_D2_LEFT}, reach=DETECTOR, same=_SAME),
    Layout("detectron2-c4", "Detectron2's own names, C4", ("backbone.stem.conv1.",),
           {"backbone.": D2_RESNET, "roi_heads.": D2_RESNET}, _D2_LEFT, reach=DETECTOR, same=_SAME),
    Layout("torchvision-detection", "torchvision's Mask R-CNN and Faster R-CNN with FPN",
           ("backbone.body.conv1.", "backbone.fpn.inner_blocks.3."),
           {"backbone.body.": RESNET, "backbone.fpn.": names.tv_fpn(2), **names.TV_DETECTOR}, reach=DETECTOR,
           rows="background first"),
    Layout("torchvision-retinanet", "torchvision's RetinaNet", ("backbone.body.conv1.", "backbone.fpn.inner_blocks.2."),
           {"backbone.body.": RESNET, "backbone.fpn.": names.tv_fpn(3) | names.TV_EXTRA, **names.TV_RETINANET},
           reach=DETECTOR, rows="ratios first"),
    Layout("torchvision-fcos", "torchvision's FCOS", ("backbone.body.conv1.", "head.regression_head.bbox_ctrness."),
           {"backbone.body.": RESNET, "backbone.fpn.": names.tv_fpn(3) | names.TV_EXTRA, **names.TV_FCOS},
           reach=DETECTOR),
    Layout("mmdet", "MMDetection's Mask R-CNN and Faster R-CNN with FPN",
           ("backbone.conv1.", "neck.lateral_convs.3."),
           {"backbone.": RESNET, "neck.": names.mm_fpn(2), **names.MM_DETECTOR}, {"backbone.fc.": "classifier"},
           reach=DETECTOR),
    Layout("mmdet-retinanet", "MMDetection's RetinaNet", ("backbone.conv1.", "neck.lateral_convs.2."),
           {"backbone.": RESNET, "neck.": names.mm_fpn(3) | names.MM_EXTRA, **names.MM_RETINANET}, reach=DETECTOR,
           rows="ratios first"),
    Layout("caffe2", "Caffe2's ResNet (MSRA R-50.pkl)", ("conv1_w", "res2_0_branch2a_w"), {}, nest=("", "blobs"),
           refused=f"{_BGR}: take torchvision's supervised ResNet instead"),
)}  # fmt: skip

# --- reading ----------------------------------------------------------------------------------------------------------

#: Beginnings of keys of the parts of a layout's reach that a file may lack.
_PART = {"neck": "backbone.fpn_", "head": BOX_HEAD, "region proposals": "proposal_generator.",
         "extra levels": "backbone.top_block.", "predictor": ("roi_heads.box_predictor.", "head."),
         "mask head": names.MASK_HEAD}  # fmt: skip
#: What Detectron2's model zoo says in its files, and the input of its detectors, BGR in 0 to 255; those with a norm in
#: the pyramid are of several kinds, and are taken as they are.
ZOO, ZOO_PIXELS = "Detectron2 Model Zoo", ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Translation:
    """A foreign file's tensors under our names, a ResNet's below `backbone.` for any detector (see load.placed)."""

    layout: Layout
    tensors: dict[str, Tensor]
    left: dict[str, str]  # its other keys, as they are in the file -> why they stay behind; "": unknown
    reach: tuple[str, ...]
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean and std of its input, if the file says so


def translate(content: Mapping, path: Path, network: str = "online", layout: str = "") -> Translation:
    """The contents of the file `path` (formats.read) by the layout they have, or by the one named.

    Raises BookError, naming the first unknown keys, if no layout fits or several fit equally; and for a refused one.
    """
    row, tensors = _recognise(state_dicts(content), path, network, layout)
    require(not row.refused, f"{path} is {row.what}: {row.refused}")
    require(network == "online" or len(row.networks) > 1, f"{path} ({row.what}) holds one network: use network=online")
    renamed, left, zoo = {}, {}, content.get("__author__") == ZOO
    for key, value in tensors.items():
        name, why = row.place(key, network)
        if name and name not in renamed:
            renamed[name] = value
        else:
            left[key] = why
    renamed = ordered(one_convolution(renamed), row.rows)
    there = lambda part: part not in _PART or any(name.startswith(_PART[part]) for name in renamed)
    pixels = ZOO_PIXELS if zoo and "backbone.fpn_lateral3.norm.weight" not in renamed else None
    if {"pixel_mean", "pixel_std"} <= tensors.keys():
        pixels = tuple(tuple(tensors[name].flatten().tolist()) for name in ("pixel_mean", "pixel_std"))
    return Translation(row, renamed, left, tuple(filter(there, row.reach)), pixels)


def one_convolution(tensors: Mapping[str, Tensor], numbered: bool = False) -> dict[str, Tensor]:
    """The one convolution of a region proposal head, which has a number in torchvision (`numbered`) and none here."""
    plain, first = f"{names.RPN}conv.", f"{names.RPN}conv.conv0."
    if any(name.startswith(f"{names.RPN}conv.conv{0 if numbered else 1}.") for name in tensors):
        return dict(tensors)
    old, new = (plain, first) if numbered else (first, plain)
    return {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in tensors.items()}


def ordered(tensors: Mapping[str, Tensor], rows: str, back: bool = False) -> dict[str, Tensor]:
    """Layers whose rows count classes or anchors, from the order of a layout to Detectron2's, or `back`.

    "background first": class 0 is the background, which Detectron2 has last, and has no box or mask for. "ratios
    first": of 3x3 anchors a place the ratio counts first, which in Detectron2 the size does.
    """
    new = dict(tensors)
    for name, x in tensors.items():
        layer, blank = name.rpartition(".")[0], 0
        if rows == "background first":
            if layer == f"{names.PREDICTOR}cls_score":
                new[name] = x.roll(1 if back else -1, 0)
            blank = {f"{names.PREDICTOR}bbox_pred": 4, f"{names.MASK_HEAD}predictor": 1}.get(layer, 0)
        elif rows == "ratios first" and layer in ("head.cls_score", "head.bbox_pred") and x.shape[0] % 9 == 0:
            new[name] = x.unflatten(0, (3, 3, -1)).transpose(0, 1).flatten(0, 2)
        if blank:
            new[name] = torch.cat([torch.zeros_like(x[:blank]), x]) if back else x[blank:]
    return new


def _unknown(row: Layout, tensors: Mapping[str, Tensor], network: str) -> list[str]:
    return [key for key in tensors if row.place(key, network) == (None, "")]


def _recognise(states: dict[str, dict], path: Path, network: str, name: str) -> tuple[Layout, dict[str, Tensor]]:
    """The layout of a file's state dicts with the one that it lies in."""
    require(bool(states), f"{path} holds no state dict: neither at the top nor below it")
    if name:
        one_of("layout", name, LAYOUTS)
    rows = [LAYOUTS[name]] if name else LAYOUTS.values()
    nests = [(row, nest.replace("{}", row.word(network))) for row in rows for nest in row.nest]
    places = [(row, states[nest]) for row, nest in nests if nest in states]
    found = ", ".join(list(states)[:6])
    only = f"{path} has state dicts under {found} only"  # one at the top is a place of most layouts
    require(bool(places), f"{only}, where no layout keeps its {network} network: save that state dict alone")
    count = lambda place: len(_unknown(*place, network))
    fitting = sorted((p for p in places if name or not p[0].lacks(p[1], network)), key=count)
    best = [p for p in fitting if count(p) == count(fitting[0])]
    if len({row.name for row, _ in best}) == 1:
        return best[0]
    known = f"known layouts: {', '.join(LAYOUTS)}"
    if best:
        raise BookError(f"{path} may be {' or '.join(row.name for row, _ in best)}: name one with layout= ({known})")
    raise BookError(f"{path} has no known layout: {_nearest(places, network)}; {known}")


def _nearest(places: list[tuple[Layout, dict[str, Tensor]]], network: str) -> str:
    """The layout that most of a file's keys belong to, what it misses, and how a row of the file's own would begin."""
    share = lambda place: 1 - len(_unknown(*place, network)) / len(place[1])
    row, tensors = max(places, key=share)
    lacking = ", ".join(mark.replace("|", " or ") for mark in row.lacks(tensors, network)) or "nothing"
    unknown = _unknown(row, tensors, network)
    said = f"nearest is {row.name} ({row.what}), to which {share((row, tensors)):.0%} of its {len(tensors)} keys belong"
    said += f"; of that it lacks {lacking}, and strange to it are {', '.join(unknown[:3]) or 'none'}"
    said = said if share((row, tensors)) else "no key of it belongs to one"
    tables = {"RESNET": RESNET, "CHILDREN": CHILDREN, "HUGGING_FACE": HUGGING_FACE, "D2_RESNET": D2_RESNET}
    found: Counter[tuple[str, str]] = Counter()
    for key in map(bare, max((state for _, state in places), key=len)):
        starts = [0, *(i + 1 for i, letter in enumerate(key) if letter == ".")]
        found.update((key[:i], table) for i in starts for table in tables if rename(key[i:], tables[table]))
    if not found:
        return f"{said}; no ResNet was found under any prefix"
    (prefix, table), hits = found.most_common(1)[0]
    row = f'Layout("name", "what it is", ("{prefix}",), {{"{prefix}": {table}}}, {{"prefix left behind": "why"}})'
    return f"{said}; {hits} of its keys are a ResNet's below {prefix!r}: add {row} in soco_lib/weights/foreign.py"
