"""Models of Detectron2's Python ("lazy") configs, as a detector's settings name them: whole, or some of their parts.

Such a config describes objects where a YAML config holds settings, so the book's settings go where the description has
a place for them:

    nothing frozen        `freeze_at`, wherever it stands, is 0
    batch norm            every batch norm, frozen or synchronised, is MODEL.RESNETS.NORM's; an FPN without norm gets
                          MODEL.FPN.NORM; group and layer norms stay (a transformer has no batch norm)
    stride in the 3x3     `stride_in_1x1`, wherever it stands; a RegNet or a transformer has no such choice
    input                 `pixel_mean`, `pixel_std`, and `input_format` where it stands

Of the config only `model` is used: data, augmentation, schedule and optimiser are those of the book's own run.
"""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from soco_lib import BookError
from soco_lib.fields import require
from soco_lib.parts import zoo
from soco_lib.runs.reasons import one_line

from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.layers import FrozenBatchNorm2d, get_norm
from detectron2.modeling import META_ARCH_REGISTRY

#: What a PanopticFPN has beyond a GeneralizedRCNN.
PANOPTIC = ("sem_seg_head", "combine_overlap_thresh", "combine_stuff_area_thresh", "combine_instances_score_thresh")


def describe(d2: CfgNode, name: str, overrides: tuple[str, ...]) -> None:
    """Make `d2` the settings of the Python config `name`, overridden by "model.key=value": what it says of input,
    pooling, heads and classes, and META_ARCHITECTURE that builds its model. Raises BookError for a bad override and for
    a config without a detector.
    """
    d2.MODEL.META_ARCHITECTURE = LazyModel.__name__
    d2.MODEL.LAZY = CfgNode(zoo.LAZY | {"FILE": name, "OVERRIDES": list(overrides)})
    model = _read(d2)
    heads = model.get("roi_heads") or {}
    pooler = heads.get("box_pooler") or heads.get("pooler")
    d2.MODEL.LAZY.ARCHITECTURE = _name(model)
    d2.MODEL.ROI_HEADS.NAME = _name(heads) if heads else ""
    d2.MODEL.PIXEL_MEAN, d2.MODEL.PIXEL_STD = list(model.pixel_mean), list(model.pixel_std)
    d2.INPUT.FORMAT = model.get("input_format", d2.INPUT.FORMAT)
    strides = [node.stride_in_1x1 for node in _nodes(model) if "stride_in_1x1" in node]
    d2.MODEL.RESNETS.STRIDE_IN_1X1 = any(strides)
    d2.MODEL.MASK_ON, d2.MODEL.KEYPOINT_ON = (heads.get(f"{kind}_head") is not None for kind in ("mask", "keypoint"))
    classes = (heads if "num_classes" in heads else model).get("num_classes", 0)
    d2.MODEL.ROI_HEADS.NUM_CLASSES = d2.MODEL.RETINANET.NUM_CLASSES = classes
    if pooler:
        box = d2.MODEL.ROI_BOX_HEAD
        box.POOLER_RESOLUTION, box.POOLER_SAMPLING_RATIO = pooler.output_size, pooler.sampling_ratio
        box.POOLER_TYPE = pooler.pooler_type


def part(d2: CfgNode, name: str, whole_trunk: bool = False) -> nn.Module | None:
    """The model's `backbone` or `roi_heads` alone, None where it has none; whole_trunk: a C4 detector's ResNet with the
    res5 that its RoI head has otherwise.
    """
    node = _fitted(d2).get(name)
    if node is not None and whole_trunk and _name(node) == "ResNet":
        node.out_features = ["res5"]
    return None if node is None else _build(d2, node)


@META_ARCH_REGISTRY.register()
def LazyModel(cfg: CfgNode) -> nn.Module:
    """The model of the Python config that MODEL.LAZY names, with the settings' classes and heads."""
    model = _build(cfg, _fitted(cfg))
    if cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeadsExtraNorm":
        res5 = model.roi_heads.res5
        res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, res5[-1].out_channels))
    return model


def _name(node: DictConfig) -> str:
    """Of a node's class, which is the class itself or its dotted name."""
    target = node.get("_target_", "")
    return getattr(target, "__name__", str(target).rpartition(".")[2])


def _nodes(node) -> Iterator[DictConfig]:
    """A description's nodes, itself included; a reference to another one is not followed."""
    if isinstance(node, DictConfig):
        yield node
    if isinstance(node, (DictConfig, ListConfig)):
        keys = list(node) if isinstance(node, DictConfig) else range(len(node))
        for key in keys:
            if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
                yield from _nodes(node[key])


def _batch_norm(norm) -> bool:
    """Whether a `norm` argument, a name or what is called with the number of channels, gives one."""
    if not callable(norm) and norm not in ("BN", "SyncBN", "FrozenBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"):
        return False
    return isinstance(get_norm(norm, 32), (_BatchNorm, FrozenBatchNorm2d))


def _read(d2: CfgNode) -> DictConfig:
    """The description of the model with the book's settings (see above), then the overrides."""
    name, overrides = d2.MODEL.LAZY.FILE, d2.MODEL.LAZY.OVERRIDES
    path = zoo.find(name)
    require(path is not None, f"detector={name!r}: this config is not there any more")
    try:
        content = LazyConfig.load(str(path))
    except Exception as error:
        raise BookError(f"detector={name!r} is no Python config of Detectron2 ({one_line(error)})") from None
    model = content.get("model") if isinstance(content, DictConfig) else None
    given = model if isinstance(model, DictConfig) else {}
    lacks = [key for key in ("backbone", "pixel_mean", "pixel_std") if key not in given]
    require(
        not lacks,
        f"detector={name!r} describes no detector of Detectron2's (its model has no {', '.join(lacks)}): name a config "
        "whose model has a backbone that regions can be pooled from",
    )
    for node in _nodes(model):
        values = {"freeze_at": 0, "stride_in_1x1": d2.MODEL.RESNETS.STRIDE_IN_1X1}
        node.update({key: value for key, value in values.items() if key in node})
        for key in ("norm", "conv_norm"):
            if key in node and not OmegaConf.is_interpolation(node, key) and _batch_norm(node[key]):
                node[key] = d2.MODEL.RESNETS.NORM
        if _name(node) == "FPN" and node.get("norm", "") in ("", d2.MODEL.RESNETS.NORM):
            node.norm = d2.MODEL.FPN.NORM
    model.pixel_mean, model.pixel_std = d2.MODEL.PIXEL_MEAN, d2.MODEL.PIXEL_STD
    if "input_format" in model:
        model.input_format = d2.INPUT.FORMAT
    for item in overrides:
        _override(content, name, item)
    return content.model


def _override(content: DictConfig, name: str, item: str) -> None:
    """Set one "model.key=value". Raises BookError for anything else."""
    key, separator, _ = item.partition("=")
    require(bool(separator), f"detector override {item!r} must read KEY=value")
    where = f"detector override {item!r} is not a setting of {name}"
    require(key.startswith("model."), f"{where}: of a Python config only model.… is used, such as model.backbone.…")
    try:
        owner = OmegaConf.select(content, key.rpartition(".")[0])
        require(OmegaConf.is_config(owner), f"{where}: it has no {key.rpartition('.')[0]}")
        LazyConfig.apply_overrides(content, [item])
    except BookError:
        raise
    except Exception as error:
        raise BookError(f"{where} ({one_line(error)})"[:300]) from None


def _fitted(d2: CfgNode) -> DictConfig:
    """The description with the settings' classes, and without the heads that they switch off."""
    model = _read(d2)
    heads = model.get("roi_heads")
    owner = heads if heads and "num_classes" in heads else model
    if "num_classes" in owner:
        owner.num_classes = d2.MODEL.ROI_HEADS.NUM_CLASSES
    for on, kind in ((d2.MODEL.MASK_ON, "mask_"), (d2.MODEL.KEYPOINT_ON, "keypoint_")):
        for key in [key for key in heads or () if key.startswith(kind) and not on]:
            heads.pop(key)
    if (wanted := d2.MODEL.LAZY.ARCHITECTURE) != _name(model):  # a PanopticFPN without its semantic head
        model["_target_"] = META_ARCH_REGISTRY.get(wanted)
        for key in PANOPTIC:
            model.pop(key, None)
    return model


def _build(d2: CfgNode, node: DictConfig):
    try:
        return instantiate(node)
    except Exception as error:
        lazy = d2.MODEL.LAZY
        how = f" with overrides {', '.join(lazy.OVERRIDES)}" if lazy.OVERRIDES else ""
        remedy = "look at their values" if how else "it is not for this version of Detectron2"
        if isinstance(error, ModuleNotFoundError):
            remedy = f"install {error.name.partition('.')[0]}"
        raise BookError(f"detector={lazy.FILE!r} cannot be built{how} ({one_line(error)}): {remedy}") from None
