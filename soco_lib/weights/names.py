"""What other programs call a detector's modules: tables of renames, read in both directions.

A table maps a module's name there, below the prefix that a layout gives, to ours (Detectron2's). In a name "#" is the
number of a residual block, the same on both sides. Where several of their names mean one of ours, the last is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

BACKBONE, BOX_HEAD, MASK_HEAD = "backbone.", "roi_heads.box_head.", "roi_heads.mask_head."
RPN, PREDICTOR = "proposal_generator.rpn_head.", "roi_heads.box_predictor."
LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
#: Most convolutions that a head of the tables has.
DEEPEST = 8


def rename(key: str, table: Mapping[str, str]) -> str | None:
    """`key` (module.leaf) with its module renamed by `table`; None if the table lacks it."""
    module, _, leaf = key.rpartition(".")
    new = table.get(module)
    for block in re.finditer(r"(?<=\.)\d+(?=\.)", module):
        if not new:
            new = table.get(f"{module[: block.start()]}#{module[block.end() :]}", "").replace("#", block[0])
    return f"{new}.{leaf}" if new and leaf in LEAVES else None


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    """Ours -> theirs."""
    return {ours: theirs for theirs, ours in table.items()}


def _under(prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    return {theirs: prefix + ours for theirs, ours in table.items()}


def _same(table: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Our names below our prefix: what Detectron2's own files hold."""
    return {ours.removeprefix(prefix): ours for ours in table.values()}


# --- ResNets ----------------------------------------------------------------------------------------------------------

_LAYERS = {f"conv{i}": f"conv{i}" for i in (1, 2, 3)} | {f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)}
_LAYERS |= {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}
_HF_LAYERS = {f"layer.{i}.{part}": f"conv{i + 1}{norm}" for i in range(3)
              for part, norm in (("convolution", ""), ("normalization", ".norm"))}  # fmt: skip
_HF_LAYERS |= {"shortcut.convolution": "shortcut", "shortcut.normalization": "shortcut.norm"}


def _resnet(stem: tuple[str, str], stages: tuple[str, ...], layers: Mapping[str, str] = _LAYERS) -> dict[str, str]:
    """`stem` names its convolution and norm, `stages` the four of its blocks, `layers` what a block holds."""
    blocks = {f"{s}.#.{old}": f"res{i}.#.{new}" for i, s in enumerate(stages, 2) for old, new in layers.items()}
    return _under(BACKBONE, {stem[0]: "stem.conv1", stem[1]: "stem.conv1.norm", **blocks})


RESNET = _resnet(("conv1", "bn1"), ("layer1", "layer2", "layer3", "layer4"))
#: torch.nn.Sequential(*resnet.children()): relu is child 2, the pooling 3.
CHILDREN = _resnet(("0", "1"), ("4", "5", "6", "7"))
HUGGING_FACE = _resnet(("embedder.embedder.convolution", "embedder.embedder.normalization"),
                       tuple(f"encoder.stages.{i}.layers" for i in range(4)), _HF_LAYERS)  # fmt: skip

# --- pyramids ---------------------------------------------------------------------------------------------------------

#: With norm, a Sequential of convolution and norm; there is neither a P2 nor an output convolution on P5.
RESIM_FPN = _under(BACKBONE, {
    f"{name}{theirs}": f"{name}{ours}"
    for name in ("fpn_lateral3", "fpn_lateral4", "fpn_lateral5", "fpn_output3", "fpn_output4")
    for theirs, ours in (("", ""), (".0", ""), (".1", ".norm"))
})  # fmt: skip


def _fpn(lateral: str, output: str, convolutions: tuple[str, ...], norm: str, lowest: int) -> dict[str, str]:
    """An FPN of `lowest` to 5, counted from 0 there; `convolutions` and `norm` are endings of a level's modules."""
    names = [*((ending, "") for ending in convolutions), (norm, ".norm")]
    return _under(BACKBONE, {
        f"{theirs}.{level - lowest}{ending}": f"fpn_{ours}{level}{part}"
        for level in range(lowest, 6) for theirs, ours in ((lateral, "lateral"), (output, "output"))
        for ending, part in names
    })  # fmt: skip


def mm_fpn(lowest: int) -> dict[str, str]:
    """MMDetection's."""
    return _fpn("lateral_convs", "fpn_convs", (".conv",), ".bn", lowest)


def tv_fpn(lowest: int) -> dict[str, str]:
    """torchvision's; files older than its 0.13 name a level's convolution without the .0."""
    return _fpn("inner_blocks", "layer_blocks", ("", ".0"), ".1", lowest)


MM_EXTRA = {f"fpn_convs.{i}.conv": f"backbone.top_block.p{i + 3}" for i in (3, 4)}
TV_EXTRA = {f"extra_blocks.p{i}": f"backbone.top_block.p{i}" for i in (6, 7)}

# --- heads ------------------------------------------------------------------------------------------------------------

SOCO_HEAD = _under(BOX_HEAD, {
    **{f"conv{i}": f"conv{i}" for i in range(1, 5)}, **{f"bn{i}": f"conv{i}.norm" for i in range(1, 5)}, "fc1": "fc1"
})  # fmt: skip


def _convs(prefix: str, theirs: str, ours: str, conv: str, norm: str) -> dict[str, str]:
    """A row of convolutions, counted from 0 there and from 1 here."""
    return {
        f"{theirs}{i}{a}": f"{prefix}{ours}{i + 1}{b}" for i in range(DEEPEST) for a, b in ((conv, ""), (norm, ".norm"))
    }


MM_HEAD = _convs(BOX_HEAD, "shared_convs.", "conv", ".conv", ".bn") | {"shared_fcs.0": f"{BOX_HEAD}fc1"}
MM_DETECTOR = {
    "roi_head.bbox_head.": MM_HEAD | {"shared_fcs.1": f"{BOX_HEAD}fc2", "fc_cls": f"{PREDICTOR}cls_score",
                                      "fc_reg": f"{PREDICTOR}bbox_pred"},
    "roi_head.mask_head.": _convs(MASK_HEAD, "convs.", "mask_fcn", ".conv", ".bn")
    | {"upsample": f"{MASK_HEAD}deconv", "conv_logits": f"{MASK_HEAD}predictor"},
    "rpn_head.": {f"rpn_conv.{i}.conv": f"{RPN}conv.conv{i}" for i in range(4)}
    | {"rpn_conv": f"{RPN}conv", "rpn_cls": f"{RPN}objectness_logits", "rpn_reg": f"{RPN}anchor_deltas"},
}  # fmt: skip
MM_RETINANET = {"bbox_head.": {
    **{f"{kind}_convs.{i}.conv": f"head.{ours}_subnet.{2 * i}" for kind, ours in (("cls", "cls"), ("reg", "bbox"))
       for i in range(4)}, "retina_cls": "head.cls_score", "retina_reg": "head.bbox_pred"}}  # fmt: skip
#: The linear layer's number is that of the convolutions plus one; two linear layers without convolutions have names.
_TV_BOX = {
    **{str(i): f"{BOX_HEAD}fc1" for i in range(1, DEEPEST + 2)},
    "fc6": f"{BOX_HEAD}fc1",
    "fc7": f"{BOX_HEAD}fc2",
}
TV_DETECTOR = {
    "roi_heads.box_head.": _TV_BOX | _convs(BOX_HEAD, "", "conv", ".0", ".1"),
    "roi_heads.box_predictor.": {name: f"{PREDICTOR}{name}" for name in ("cls_score", "bbox_pred")},
    "roi_heads.mask_head.": {f"mask_fcn{i}": f"{MASK_HEAD}mask_fcn{i}" for i in range(1, DEEPEST)}
    | _convs(MASK_HEAD, "", "mask_fcn", ".0", ".1"),
    "roi_heads.mask_predictor.": {"conv5_mask": f"{MASK_HEAD}deconv", "mask_fcn_logits": f"{MASK_HEAD}predictor"},
    "rpn.head.": {"conv": f"{RPN}conv", "cls_logits": f"{RPN}objectness_logits", "bbox_pred": f"{RPN}anchor_deltas",
                  **{f"conv.{i}.0": f"{RPN}conv.conv{i}" for i in range(4)}},
}  # fmt: skip
_SUBNETS = (("classification_head", "cls"), ("regression_head", "bbox"))
#: RetinaNet's convolutions are numbered one by one there, those of FCOS together with norm and activation as here.
TV_RETINANET = {"head.": {
    **{f"{theirs}.conv.{i}{end}": f"head.{ours}_subnet.{2 * i}" for theirs, ours in _SUBNETS for i in range(4)
       for end in ("", ".0")},
    "classification_head.cls_logits": "head.cls_score", "regression_head.bbox_reg": "head.bbox_pred"}}  # fmt: skip
TV_FCOS = {"head.": {
    **{f"{theirs}.conv.{i}": f"head.{ours}_subnet.{i}" for theirs, ours in _SUBNETS for i in range(3 * 4)},
    "classification_head.cls_logits": "head.cls_score", "regression_head.bbox_reg": "head.bbox_pred",
    "regression_head.bbox_ctrness": "head.ctrness"}}  # fmt: skip

D2_RESNET, D2_FPN, D2_HEAD = _same(RESNET, BACKBONE), _same(mm_fpn(2), BACKBONE), _same(MM_HEAD, BOX_HEAD)
D2_HEAD |= {"fc2": f"{BOX_HEAD}fc2"}
