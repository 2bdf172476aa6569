"""Weights out again, as files for other programs: a pretraining's encoder, or a fine-tuned detector whole.

Names are the layouts' of foreign.py, read the other way, so that what is written here is read there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from soco_lib import BookError
from soco_lib.detector import CfgNode, detector_config
from soco_lib.fields import one_of, require
from soco_lib.parts import zoo
from soco_lib.runs import checkpoint
from soco_lib.runs.files import replacing, writable
from soco_lib.weights import formats
from soco_lib.weights.foreign import LAYOUTS, Layout, one_convolution, ordered
from soco_lib.weights.load import NETWORKS, checkpoint_file, own_weights
from soco_lib.weights.names import BACKBONE, BOX_HEAD, rename

#: What `export` writes, by the layout.
WRITTEN = {
    "detectron2": "set MODEL.WEIGHTS to it",
    "torchvision": "a state dict for torchvision's ResNet, without fc: load_state_dict(..., strict=False)",
    "torchvision-detection": "Mask R-CNN or Faster R-CNN: load_state_dict(torch.load(...)['model'], strict=False)",
    "torchvision-retinanet": "RetinaNet: load_state_dict(torch.load(...)['model'], strict=False)",
    "torchvision-fcos": "FCOS: load_state_dict(torch.load(...)['model'], strict=False)",
    "mmdet": "Mask R-CNN or Faster R-CNN of MMDetection 3: set load_from to it",
    "mmdet-retinanet": "RetinaNet of MMDetection 3: set load_from to it",
    "timm": "a ResNet without fc: timm.models.load_checkpoint(model, file, strict=False)",
    "soco": "both networks, projector and predictor under the authors' names",
}
PARTS = ("encoder", "detector")
#: What of a fine-tuned detector a pretraining has too.
_ENCODER = r"backbone\.(?!top_block\.)|roi_heads\.(box_head|res5(?!\.norm))\."
#: A detector's ResNet, wherever it lies: below the FPN, as the whole backbone, its last stage in the RoI head.
_TRUNK = r"^(backbone\.bottom_up|backbone|roi_heads)\.(?=stem\.|res\d\.\d)"
#: Our keys that a layout has no part for, and that stay behind.
_NO_PART = {
    "ResNet": r"backbone\.fpn_|roi_heads\.box_head\.",
    "one stage": r"backbone\.fpn_(lateral|output)2\.|roi_heads\.box_head\.",
}
_MLP = {"0": "linear1", "1": "bn1", "3": "linear2"}


@dataclass(frozen=True)
class Source:
    """What leaves: tensors under our names, and the config of their detector."""

    tensors: dict[str, Tensor]
    d2: CfgNode
    said: str
    model: Mapping[str, Tensor]  # a pretraining's whole state

    @property
    def meta(self) -> dict:
        """How images enter this network; goes into the file."""
        given = {"input": self.d2.INPUT.FORMAT, "pixel_range": "0 to 255", "pixel_mean": list(self.d2.MODEL.PIXEL_MEAN)}
        stride = "1x1" if self.d2.MODEL.RESNETS.STRIDE_IN_1X1 else "3x3"
        return given | {"pixel_std": list(self.d2.MODEL.PIXEL_STD), "stride_in": stride, "source": self.said}


def export(
    path: str | Path,
    out: str | Path,
    network: str = "online",
    layout: str = "detectron2",
    what: str = "encoder",
    any_shape: bool = False,
    say: Callable = print,
) -> Path:
    """Write a run's weights as a file for others; returns its path. `say` gets what was written and what stays behind.

    path: run folder or checkpoint of a pretraining, or of a finished transfer. layout: see WRITTEN; soco writes both
    networks. what: encoder (what a pretraining trains) or a transfer's whole detector. any_shape: write too what fits
    none of torchvision's own models. Raises BookError naming the key, part or shape that has no place.
    """
    one_of("network", network, NETWORKS)
    one_of("layout", layout, WRITTEN)
    one_of("what", what, PARTS)
    out = Path(out).expanduser()
    require(out.suffix == ".pth", f"out={out} must end in .pth: Detectron2 tells formats by the ending")
    source = _source(path, network, what)
    lines = []
    if layout == "detectron2":  # the encoder's names are the detector's already
        content = {
            "model": source.tensors,
            "__author__": "soco-book",
            "matching_heuristics": False,
            "meta": source.meta,
        }
    elif layout == "soco":
        require(bool(source.model), "layout soco is of a pretraining: give its run folder, or take another layout")
        content = _soco(source.model)
    else:
        state, lines = _state(source, layout, what, any_shape)
        nest = "state_dict" if layout == "timm" or layout.startswith("mmdet") else "model"
        content = state if layout == "torchvision" else {"meta": source.meta, nest: state}
    with writable(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out, "wb") as file:
        torch.save(content, file)
    say(f"wrote {out}: {WRITTEN[layout]}")
    for line in [*lines, _input(source, layout)]:
        say(f"  {line}")
    return out


def _source(path: str | Path, network: str, what: str) -> Source:
    file = checkpoint_file(path)
    content = formats.read(file)
    if content.get("format") == checkpoint.FORMAT:
        require(what == "encoder", f"{file} is a pretraining's and holds no detector: fine-tune it, export that run")
        weights, cfg = own_weights(content, file, network), content["config"]
        d2 = detector_config(cfg["detector"], tuple(cfg.get("overrides", ())))
        return Source(weights.tensors, d2, weights.source, content["model"])
    config = file.parent / "config.yaml"
    known = config.is_file() and isinstance(content.get("model"), Mapping)
    require(known, f"{file} is no run's of this book (no config.yaml beside it): give a run folder")
    require(network == "online", f"{file} holds one network: use network=online")
    d2 = zoo.read(config)
    tensors = {k: v for k, v in content["model"].items() if what == "detector" or re.match(_ENCODER, k)}
    checkpoint.check_numbers(tensors, file)
    return Source(tensors, d2, f"{file} ({what} of a fine-tuned detector)", {})


def _input(source: Source, layout: str) -> str:
    meta = source.meta
    text = f"input: {meta['input']}, 0 to 255, mean {meta['pixel_mean']}, std {meta['pixel_std']}"
    if layout.startswith("torchvision") or layout == "timm":
        mean, std = ([round(x / 255, 4) for x in meta[name]] for name in ("pixel_mean", "pixel_std"))
        return f"{text}; as images in 0 to 1: mean {mean}, std {std}"
    if layout.startswith("mmdet"):
        swap, style = meta["input"] == "RGB", {"3x3": "pytorch", "1x1": "caffe"}[meta["stride_in"]]
        return f"{text}; data_preprocessor: bgr_to_rgb={swap}; backbone: style={style!r}"
    return text


def _state(source: Source, layout: str, what: str, any_shape: bool) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict in a layout of foreign.LAYOUTS, and what is said about it."""
    trunk_only = layout in ("torchvision", "timm")
    row = LAYOUTS["torchvision" if trunk_only else layout]
    tv = "torchvision" in layout or layout == "timm"
    bottleneck = any(".conv3." in key for key in source.tensors)
    strides = "strides lie in its 1x1 convolutions, in torchvision's ResNet in the 3x3: it would compute other features"
    require(not (tv and bottleneck and source.d2.MODEL.RESNETS.STRIDE_IN_1X1), f"{source.said}: {strides}")
    require(not (trunk_only and what == "detector"), f"layout={layout} is a ResNet: what=detector needs another layout")
    ours = ordered(source.tensors, row.rows, back=True)
    if tv:
        ours = one_convolution(ours, numbered=True)
    kind = "ResNet" if trunk_only else "one stage" if row.name.endswith(("retinanet", "fcos")) else ""
    state, behind = {}, []
    for key, value in ours.items():
        name = re.sub(_TRUNK, BACKBONE, key)
        if theirs := _head(name, ours) if row.name == "torchvision-detection" else row.written(name):
            state[theirs] = value
        elif what == "encoder" and kind and re.match(_NO_PART[kind], key):
            behind.append(key)
        else:
            raise BookError(f"{key} has no place in layout {layout} ({row.what}): take layout=detectron2")
    _check_whole(state, row, layout)
    lines = [f"{len(state)} keys of {source.said}"]
    if behind:
        lines.append(f"{len(behind)} keys stay behind, of parts that it has not: {', '.join(_modules(behind))}")
    if not trunk_only and tv:
        lines.append(_fit(state, row, any_shape))
    return state, lines


def _modules(keys: list[str]) -> list[str]:
    return sorted({".".join(key.split(".")[:2]) for key in keys})


def _head(name: str, ours: Mapping[str, Tensor]) -> str | None:
    """`written`, where torchvision's linear layer is numbered after the convolutions and the flattening."""
    convolutions = sum(bool(re.fullmatch(rf"{re.escape(BOX_HEAD)}conv\d\.weight", key)) for key in ours)
    if convolutions and name.startswith(f"{BOX_HEAD}fc1."):
        return f"{BOX_HEAD}{convolutions + 1}.{name.rpartition('.')[2]}"
    return LAYOUTS["torchvision-detection"].written(name)


def _check_whole(state: Mapping[str, Tensor], row: Layout, layout: str) -> None:
    """Raises BookError if a stage of the ResNet or a level of the pyramid was not pretrained."""
    prefix = next(iter(row.parts))
    stages = [f"{prefix}layer{i}." for i in range(1, 5)]
    levels = [name for name in row.marks if "inner_blocks" in name or "lateral_convs" in name]
    missing = [name for name in stages + levels if not any(key.startswith(name) for key in state)]
    whole = "ResNet" if set(missing) & set(stages) or not levels else "pyramid"
    short = ", ".join(name.removeprefix(prefix).rstrip(".") for name in missing)
    alone = "" if whole == "ResNet" else "; layout=torchvision writes the ResNet alone"
    require(
        not missing, f"there is no whole {whole} to write: {short} was not pretrained (alignment, overrides){alone}"
    )


def _fit(state: Mapping[str, Tensor], row: Layout, any_shape: bool) -> str:
    """How a state dict fits the model of torchvision that it is for. Raises BookError naming the first key that does
    not, unless `any_shape`.
    """
    name, model = _stock(state, row.name)
    own = model.state_dict()
    shape = lambda tensor: "x".join(map(str, tensor.shape))
    wrong = [
        f"{key} ({f'{shape(x)} in the file, {shape(own[key])} there' if key in own else 'it has none'})"
        for key, x in state.items()
        if key not in own or own[key].shape != x.shape
    ]
    if not wrong:
        return f"all {len(state)} keys have a place of their shape in torchvision's {name}"
    said = f"{len(wrong)} of {len(state)} keys do not fit torchvision's {name}: {wrong[0]}"
    require(any_shape, f"{said}; --any-shape writes them all the same, for a model that you build with these sizes")
    return said


def _stock(state: Mapping[str, Tensor], layout: str) -> tuple[str, nn.Module]:
    """torchvision's own model that a state dict is for, without numbers, and how it is built."""
    from torchvision.models import detection  # here: it takes a while
    from torchvision.models.detection.rpn import RPNHead
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    rows = lambda key, default: len(state[key]) if key in state else default
    norm = "backbone.fpn.inner_blocks.0.1.weight" in state
    changes = []
    with torch.device("meta"):
        if layout == "torchvision-detection":
            box_only = any("box_predictor" in k for k in state) and not any("mask_head" in k for k in state)
            name = f"{'faster' if box_only else 'mask'}rcnn_resnet50_fpn{'_v2' if norm else ''}"
            classes = rows("roi_heads.box_predictor.cls_score.weight", 91)
            model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=classes)
            depth = sum(bool(re.fullmatch(r"rpn\.head\.conv\.\d\.0\.weight", key)) for key in state)
            if depth and depth != len(model.rpn.head.conv):
                model.rpn.head = RPNHead(256, 3, conv_depth=depth)
                changes.append(f"rpn.head = RPNHead(256, 3, conv_depth={depth})")
        else:
            name = f"{layout.removeprefix('torchvision-')}_resnet50_fpn"
            classes = rows("head.classification_head.cls_logits.weight", 91 * (9 if "retinanet" in name else 1))
            classes //= 9 if "retinanet" in name else 1
            model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=classes)
            extra = state.get("backbone.fpn.extra_blocks.p6.weight")
            if norm:
                blocks = LastLevelP6P7(256 if extra is None else extra.shape[1], 256)
                levels = [512, 1024, 2048]
                model.backbone.fpn = FeaturePyramidNetwork(levels, 256, blocks, norm_layer=nn.BatchNorm2d)
                changes.append("backbone.fpn = FeaturePyramidNetwork(..., norm_layer=BatchNorm2d)")
    return f"{name}(num_classes={classes}){' with ' if changes else ''}{', '.join(changes)}", model


# --- the authors' layout ----------------------------------------------------------------------------------------------


def _soco(model: Mapping[str, Tensor]) -> dict:
    """A SoCo's whole state dict under the authors' names, for their converters. Raises BookError naming a key that has
    no place there.
    """
    state = {}
    for key, value in model.items():
        owner, _, rest = key.partition(".")
        part, _, name = (owner, "", rest) if owner == "predictor" else rest.partition(".")
        suffix = "_k" if owner == "target" else ""
        if part == "encoder":
            theirs = LAYOUTS["soco-fpn"].written(re.sub(_TRUNK, BACKBONE, name), suffix)
        elif theirs := rename(name, _MLP):
            theirs = f"{part}{suffix}.{theirs}"
        if not theirs:
            raise BookError(f"{key} has no place in the authors' layout: it is for Mask R-CNN with FPN (P2 to P5), C4")
        state[f"module.{theirs}"] = value
    return {"model": state}
