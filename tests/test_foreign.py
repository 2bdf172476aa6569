"""Other methods' checkpoints: every layout, every format, and what is refused. torchvision's own ResNet is the judge of
names.
"""

import argparse
import os
import pickle
import re
from fractions import Fraction

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from soco_lib import BookError
from soco_lib.detector import detector_config
from soco_lib.weights import formats
from soco_lib.weights.__main__ import main
from soco_lib.weights.foreign import LAYOUTS
from soco_lib.weights.load import compare, load_into, read_weights
from tests.conftest import TINY_DETECTOR

from detectron2.modeling import build_model  # isort: skip

#: torchvision's ResNet-50 with narrow bottlenecks, on both sides.
NARROW = ("MODEL.RESNETS.WIDTH_PER_GROUP=4",)
HEAD = (
    *(item for item in TINY_DETECTOR if "RESNETS" not in item and "NUM_CONV" not in item),
    "MODEL.ROI_BOX_HEAD.NUM_CONV=4",
)
FPN_DETECTOR, C4_DETECTOR = ("mask-rcnn-r50-fpn", (*NARROW, *HEAD)), ("mask-rcnn-r50-c4", NARROW)


def build(name, overrides, seed=1):
    torch.manual_seed(seed)
    return build_model(detector_config(name, overrides))


def judge(seed):
    """torchvision's ResNet with used batch norms."""
    torch.manual_seed(seed)
    model = ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=4).train()
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    return model.eval()


HF_PARTS = {"conv": "convolution", "bn": "normalization"}


class Parts:
    """One pretrained network in torchvision's names, with an FPN and a box head in Detectron2's."""

    def __init__(self, seed):
        self.resnet = judge(seed)
        state = self.resnet.state_dict()
        self.trunk = {k: v for k, v in state.items() if not k.startswith("fc.")}
        self.fc = {k: v for k, v in state.items() if k.startswith("fc.")}
        detector = build(*FPN_DETECTOR, seed).state_dict()
        self.fpn = {k.removeprefix("backbone."): v for k, v in detector.items() if k.startswith("backbone.fpn_")}
        self.head = {k.split("box_head.")[1]: v for k, v in detector.items() if ".box_head." in k}

    def children(self):
        numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
        return {f"{numbers[k.split('.')[0]]}.{k.split('.', 1)[1]}": v for k, v in self.trunk.items()}

    def detectron(self):
        """As the converters of MoCo and its successors write them."""
        replaced = [("downsample.1", "shortcut.norm"), ("downsample.0", "shortcut")]
        replaced += [(f"bn{i}", f"conv{i}.norm") for i in (1, 2, 3)] + [
            (f"layer{i}", f"res{i + 1}") for i in (4, 3, 2, 1)
        ]
        out = {}
        for key, value in self.trunk.items():
            for old, new in replaced:
                key = key.replace(old, new)
            out[key if key.startswith("res") else f"stem.{key}"] = value
        return out

    def hugging_face(self):
        out = {}
        for key, value in self.trunk.items():
            key = re.sub(r"^layer(\d)", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers", key)
            key = re.sub(r"(?<=\.)(conv|bn)(\d)", lambda m: f"layer.{int(m[2]) - 1}.{HF_PARTS[m[1]]}", key)
            key = key.replace("downsample.0", "shortcut.convolution").replace("downsample.1", "shortcut.normalization")
            key = re.sub("^(conv|bn)1", lambda m: f"embedder.embedder.{HF_PARTS[m[1]]}", key)
            out[key] = value
        return out

    def mm_neck(self):
        out = {}
        for kind, theirs in (("lateral", "lateral_convs"), ("output", "fpn_convs")):
            for level in (2, 3, 4, 5):
                for key, value in self.fpn.items():
                    name, _, leaf = key.partition(".")
                    if name == f"fpn_{kind}{level}":
                        leaf = f"bn.{leaf[5:]}" if leaf.startswith("norm.") else f"conv.{leaf}"
                        out[f"{theirs}.{level - 2}.{leaf}"] = value
        return out

    def soco_head(self):
        return {(f"bn{k[4]}.{k[11:]}" if ".norm." in k else k): v for k, v in self.head.items()}

    def mm_head(self):
        out = {k.replace("fc1", "shared_fcs.0"): v for k, v in self.head.items() if k.startswith("fc")}
        for key, value in self.head.items():
            if key.startswith("conv"):
                leaf = f"bn.{key[11:]}" if ".norm." in key else f"conv.{key[6:]}"
                out[f"shared_convs.{int(key[4]) - 1}.{leaf}"] = value
        return out


@pytest.fixture(scope="module")
def online():
    return Parts(2)


@pytest.fixture(scope="module")
def target():
    return Parts(3)


@pytest.fixture(scope="module")
def fpn_detector():
    return build(*FPN_DETECTOR)


def under(prefix, *states):
    return {f"{prefix}{k}": v for state in states for k, v in state.items()}


def both(prefix, words, one, two):
    """`one` below the prefix with the first word for {}, `two` with the second."""
    return under(prefix.replace("{}", words[0]), one) | under(prefix.replace("{}", words[1]), two)


def ones(prefix, names):
    """Keys that stay behind."""
    return {prefix + name: torch.ones(2) for name in names.split()}


def resim_fpn(parts):
    """A Sequential of convolution and norm a level; without P2 and without an output convolution on P5."""
    levels = ("fpn_lateral3.", "fpn_lateral4.", "fpn_lateral5.", "fpn_output3.", "fpn_output4.")
    kept = {k: v for k, v in parts.fpn.items() if k.startswith(levels)}
    return {
        k.replace(".norm.", ".1.") if ".norm." in k else k.replace(".weight", ".0.weight"): v for k, v in kept.items()
    }


#: layout -> the content of such a file, from an online and a target network
FILES = {
    "soco-fpn": lambda o, t: {"epoch": 400, "model": under("module.", (
        both("encoder{}.", ("", "_k"), o.trunk, t.trunk) | both("neck{}.", ("", "_k"), o.mm_neck(), t.mm_neck())
        | both("head{}.", ("", "_k"), o.soco_head(), t.soco_head())
        | ones("", "projector.linear1.weight projector.bn1.bias projector_k.linear2.bias predictor.linear1.weight")))},
    "soco-c4": lambda o, t: {"model": under("module.", (
        both("encoder{}.", ("", "_k"), o.trunk, t.trunk)
        | ones("", "projector.linear1.weight projector_k.bn1.bias predictor.linear1.weight queue queue_ptr")))},
    "torchvision": lambda o, t: {**o.trunk, **o.fc},
    "moco": lambda o, t: {"epoch": 200, "arch": "resnet50", "state_dict": under("module.", (
        both("encoder_{}.", "qk", o.trunk, t.trunk)
        | ones("", "encoder_q.fc.0.weight encoder_q.fc.2.bias encoder_k.fc.0.weight queue queue_ptr")))},
    "resim": lambda o, t: {"state_dict": under("module.", (
        both("encoder_{}.", "qk", o.trunk | resim_fpn(o), t.trunk | resim_fpn(t))
        | ones("", "encoder_q.fc.0.weight encoder_k.fc.2.weight queue queue_ptr")))},
    "simsiam": lambda o, t: {"state_dict": under("module.", (
        under("encoder.", o.trunk) | ones("", "encoder.fc.0.weight encoder.fc.7.running_var predictor.0.weight")))},
    "byol": lambda o, t: {"model": under("module.", (
        both("{}_network.encoder.", ("online", "target"), o.children(), t.children())
        | ones("", "online_network.projetion.l1.weight target_network.projetion.l1.weight "
                   "predictor.predictor.l1.weight")))},
    "byol-pytorch": lambda o, t: (
        both("{}_encoder.net.", ("online", "target"), o.trunk | o.fc, t.trunk | t.fc) | under("net.", o.trunk, o.fc)
        | ones("", "online_encoder.projector.0.weight target_encoder.projector.0.weight online_predictor.0.weight")),
    "byol-openselfsup": lambda o, t: {"state_dict": (
        both("{}_net.0.", ("online", "target"), o.trunk, t.trunk) | under("backbone.", o.trunk)
        | ones("", "online_net.1.fc0.weight target_net.1.fc0.weight head.predictor.fc0.weight"))},
    "simclr": lambda o, t: {"state_dict": under("backbone.", o.trunk | ones("", "fc.0.weight fc.2.bias"))},
    "simclr-convnet": lambda o, t: {
        "state_dict": under("convnet.", o.trunk, o.fc) | ones("projection.", "fc1.weight bn2.bias")},
    "simclr-encoder": lambda o, t: under("encoder.", o.trunk) | ones("projector.", "0.weight 2.weight"),
    "swav": lambda o, t: under(
        "module.", o.trunk | ones("", "projection_head.0.weight projection_head.3.bias prototypes.weight")),
    "infomin": lambda o, t: {
        "model": under(
            "module.", under("encoder.", o.trunk) | ones("", "head.0.weight head.2.bias head_jig.fc1.0.weight")),
        "model_ema": under("encoder.", t.trunk) | ones("", "head.0.weight head_jig.fc2.bias")},
    "densecl": lambda o, t: {"meta": {}, "state_dict": (
        both("encoder_{}.0.", "qk", o.trunk, t.trunk) | under("backbone.", o.trunk)
        | ones("", "encoder_q.1.mlp.0.weight encoder_k.1.mlp2.0.weight queue queue_ptr queue2 queue2_ptr"))},
    "mmselfsup-moco": lambda o, t: {"meta": {}, "state_dict": (
        both("{}", ("backbone.", "encoder_k.module.0."), o.trunk, t.trunk)
        | ones("", "neck.mlp.0.weight encoder_k.module.1.mlp.0.weight encoder_k.steps queue queue_ptr"))},
    "mmselfsup-byol": lambda o, t: {"meta": {}, "state_dict": (
        both("{}", ("backbone.", "target_net.module.0."), o.trunk, t.trunk)
        | ones("", "neck.fc0.weight target_net.module.1.fc0.weight target_net.steps head.predictor.fc0.weight"))},
    "barlow-twins": lambda o, t: {"epoch": 3, "model": under("module.", under("backbone.", o.trunk) | ones(
        "", "projector.0.weight projector.1.running_var bn.running_mean bn.running_var"))},
    "dino": lambda o, t: {
        "teacher": under("backbone.", o.trunk) | ones("", "head.mlp.0.weight head.last_layer.weight_g"),
        "student": under("module.backbone.", t.trunk) | ones("module.", "head.mlp.0.weight head.last_layer.weight_g"),
        "epoch": 7, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "solo-learn": lambda o, t: {"state_dict": (
        both("{}backbone.", ("", "momentum_"), o.trunk, t.trunk)
        | ones("", "classifier.weight projector.0.weight momentum_projector.0.weight momentum_classifier.bias queue "
                   "predictor.0.weight"))},
    "lightly": lambda o, t: {"state_dict": (
        both("backbone{}.", ("", "_momentum"), o.children(), t.children())
        | ones("", "projection_head.layers.0.weight projection_head_momentum.layers.0.weight "
                   "prediction_head.layers.0.weight"))},
    "lightly-teacher": lambda o, t: {"state_dict": (
        both("{}backbone.", ("", "teacher_"), o.trunk, t.trunk)
        | ones("", "projection_head.layers.0.weight teacher_projection_head.layers.0.weight "
                   "online_classifier.linear.weight"))},
    "lightly-query": lambda o, t: {"state_dict": (
        both("{}backbone.", ("query_", ""), o.trunk, t.trunk)
        | ones("", "projection_head.layers.0.weight query_projection_head.layers.0.weight "
                   "criterion.memory_bank.bank online_classifier.linear.bias"))},
    "vissl": lambda o, t: {"phase_idx": 1, "classy_state_dict": {"base_model": {"model": {
        "trunk": under("_feature_blocks.", o.trunk), "heads": ones("", "0.clf.0.weight")}}}},
    "slotcon": lambda o, t: {"model": under("module.", (
        both("encoder_{}.", "qk", o.trunk, t.trunk)
        | ones("", "projector_q.mlp.0.weight projector_k.mlp.0.weight grouping_q.slot_embed.weight "
                   "grouping_k.slot_embed.weight predictor_slot.mlp.0.weight center")))},
    "hugging-face": lambda o, t: under("resnet.", o.hugging_face()) | ones("", "classifier.1.weight classifier.1.bias"),
    "backbone": lambda o, t: {"meta": {}, "state_dict": under("backbone.", o.trunk) | ones("", "head.fc.weight")},
    "pixpro": lambda o, t: {"model": under("module.", (
        both("encoder{}.", ("", "_k"), o.trunk, t.trunk)
        | ones("", "projector.linear1.weight projector_k.linear1.weight value_transform.weight predictor.linear2.bias")
        | ones("projector_instance", ".bn1.bias _k.bn1.bias")))},
    "insloc-fpn": lambda o, t: {"state_dict": (
        both("backbone{}.", ("", "_k"), o.trunk, t.trunk) | both("neck{}.", ("", "_k"), o.mm_neck(), t.mm_neck())
        | both("roi_head{}.bbox_head.", ("", "_k"), o.mm_head(), t.mm_head())
        | ones("roi_head", ".bbox_head.shared_fcs.1.weight .bbox_head.fc_cls.weight _k.bbox_head.fc_cls.weight")
        | ones("queue", "s _ptr"))},
    "insloc-c4": lambda o, t: {"state_dict": (
        {("roi_head.shared_head." if k.startswith("layer4") else "backbone.") + k: v for k, v in o.trunk.items()}
        | {("roi_head_k.shared_head." if k.startswith("layer4") else "backbone_k.") + k: v for k, v in t.trunk.items()}
        | ones("", "roi_head.bbox_head.fc_cls.weight queue queue_ptr"))},
    "detcon": lambda o, t: {"state_dict": (
        under("network.encoder.", o.children()) | ones("", "network.projector.0.weight predictor.3.bias temperature"))},
    "detectron2-converted": lambda o, t: {"__author__": "MOCO", "matching_heuristics": True, "model": (
        o.detectron() | o.fpn | under("box_head.", o.head) | ones("stem.", "fc.0.weight fc.2.bias"))},
    "detectron2-fpn": lambda o, t: {"model": under("backbone.bottom_up.", o.detectron()) | under("backbone.", o.fpn)
                                    | under("roi_heads.box_head.", o.head)},
    "detectron2-c4": lambda o, t: {"model": {
        ("roi_heads." if k.startswith("res5") else "backbone.") + k: v for k, v in o.detectron().items()}},
}  # fmt: skip
WITH_NECK_AND_HEAD = {"soco-fpn", "insloc-fpn", "detectron2-converted", "detectron2-fpn"}
#: Keys of a ResNet by torchvision and by Detectron2, written by hand.
NAMES = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.running_mean": "stem.conv1.norm.running_mean",
    "layer1.0.conv1.weight": "res2.0.conv1.weight",
    "layer1.2.bn3.num_batches_tracked": "res2.2.conv3.norm.num_batches_tracked",
    "layer2.0.downsample.0.weight": "res3.0.shortcut.weight",
    "layer2.0.downsample.1.running_var": "res3.0.shortcut.norm.running_var",
    "layer3.5.conv2.weight": "res4.5.conv2.weight",
    "layer4.1.bn2.bias": "res5.1.conv2.norm.bias",
}


#: Layouts of whole detectors, which test_export.py has.
DETECTORS = {name for name in LAYOUTS if name.startswith(("torchvision-", "mmdet"))}


def state_of(content):
    """The state dict of the online network."""
    for nest in ("state_dict", "model", "teacher", "classy_state_dict", "base_model", "model", "trunk"):
        content = content.get(nest, content)
    return content


def save(content, path):
    torch.save(content, path)
    return path


def assert_loaded(detector, parts, fpn):
    state = detector.state_dict()
    for theirs, ours in NAMES.items():
        assert torch.equal(state[f"backbone.bottom_up.{ours}"], parts.trunk[theirs]), theirs
    if fpn:
        for key, value in {**under("backbone.", parts.fpn), **under("roi_heads.box_head.", parts.head)}.items():
            assert torch.equal(state[key], value), key


def test_the_table_is_covered():
    assert set(FILES) == set(LAYOUTS) - {"caffe2"} - DETECTORS


@pytest.mark.parametrize("name", FILES)
def test_every_layout_loads_with_no_unexplained_key(name, online, target, fpn_detector, tmp_path):
    path = save(FILES[name](online, target), tmp_path / "file.pth.tar")
    networks = ("online", "target") if len(LAYOUTS[name].networks) > 1 else ("online",)
    for network in networks:
        weights = read_weights(path, network)
        assert LAYOUTS[name].what in weights.source and (len(networks) == 1 or f"{network} network" in weights.source)
        report = load_into(fpn_detector, weights)
        assert not any(report.unexplained.values())
        assert_loaded(fpn_detector, online if network == "online" else target, name in WITH_NECK_AND_HEAD)
        whole = name in WITH_NECK_AND_HEAD
        assert {k for k in fpn_detector.state_dict() if k.startswith("backbone.bottom_up.")} <= set(report.loaded)
        not_pretrained = {key for key, why in report.new.items() if "not pretrained" in why}
        if name == "resim":
            assert {k.split(".")[1] for k in not_pretrained if "fpn" in k} == {
                "fpn_lateral2",
                "fpn_output2",
                "fpn_output5",
            }
        else:
            assert bool(not_pretrained) != whole and weights.reach == (
                ("backbone", "neck", "head") if whole else ("backbone",)
            )
        assert ("other" not in report.frame().index) and "" not in report.left_behind.values()


#: A key of the neck and one of the head.
NECK_AND_HEAD = {
    "soco-fpn": ("module.neck.fpn_convs.1.bn.bias", "module.head.bn2.weight"),
    "insloc-fpn": ("neck.lateral_convs.3.conv.weight", "roi_head.bbox_head.shared_convs.2.bn.running_var"),
    "detectron2-converted": ("fpn_output3.norm.weight", "box_head.fc1.bias"),
    "detectron2-fpn": ("backbone.fpn_lateral2.weight", "roi_heads.box_head.conv3.weight"),
    "resim": ("module.encoder_q.fpn_lateral4.1.running_mean",),
}


IN_A_TRUNK = [(name, ".1.conv2.weight") for name in FILES if name != "hugging-face"]
IN_A_TRUNK.append(("hugging-face", ".1.layer.1.convolution.weight"))


@pytest.mark.parametrize(
    "name, old", IN_A_TRUNK + [(name, key) for name in NECK_AND_HEAD for key in NECK_AND_HEAD[name]]
)
def test_one_renamed_key_stops_with_its_name(name, old, online, target, fpn_detector, tmp_path):
    content = FILES[name](online, target)
    state = state_of(content)
    old = next(k for k in state if k.endswith(old) and "_k" not in k)
    new = f"{old}s"
    state[new] = state.pop(old)
    before = {k: v.clone() for k, v in fpn_detector.state_dict().items()}
    with pytest.raises(BookError) as caught:
        load_into(fpn_detector, read_weights(save(content, tmp_path / "file.pth")))
    assert new in str(caught.value) and "\n" not in str(caught.value) and name in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in fpn_detector.state_dict().items())


def test_a_new_key_beside_the_network_stops(online, target, fpn_detector, tmp_path):
    content = FILES["moco"](online, target)
    content["state_dict"]["module.memory"] = torch.ones(1)
    with pytest.raises(
        BookError, match="1 key of the file without a place in the detector: module.memory: .*layout 'moco'"
    ):
        load_into(fpn_detector, read_weights(save(content, tmp_path / "file.pth")))


@torch.no_grad()
def test_features_equal_torchvisions(online, fpn_detector, tmp_path):
    path = save(FILES["torchvision"](online, None), tmp_path / "resnet50.pth")
    images, resnet = torch.randn(2, 3, 64, 64, dtype=torch.float64), judge(2).double()
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    features = [x := getattr(resnet, f"layer{i}")(x) for i in range(1, 5)]

    load_into(fpn_detector, read_weights(path))
    bottom_up = build(*FPN_DETECTOR).backbone.bottom_up
    bottom_up.load_state_dict(fpn_detector.backbone.bottom_up.state_dict())
    ours = bottom_up.double().eval()(images)
    for i, theirs in enumerate(features, 2):
        torch.testing.assert_close(ours[f"res{i}"], theirs, atol=1e-5, rtol=0)
        assert theirs.std() > 1e-2

    c4 = build(*C4_DETECTOR)
    report = load_into(c4, read_weights(path))
    assert any(key.startswith("roi_heads.res5.2.") for key in report.loaded)
    c4 = c4.double().eval()
    res4 = c4.backbone(images)["res4"]
    torch.testing.assert_close(res4, features[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(c4.roi_heads.res5(res4), features[3], atol=1e-5, rtol=0)


def test_c4_must_get_a_whole_res5(online, tmp_path):
    finetuned = build(C4_DETECTOR[0], (*C4_DETECTOR[1], "MODEL.ROI_HEADS.NAME=Res5ROIHeadsExtraNorm"))
    report = load_into(finetuned, read_weights(save(online.trunk, tmp_path / "file.pth")))
    assert set(report.new.values()) == {"region proposals", "predictor", "mask head", "norm after res5"}
    trunk = {k: v for k, v in online.trunk.items() if k != "layer4.0.conv1.weight"}
    with pytest.raises(BookError, match="1 key of the detector without weights: roi_heads.res5.0.conv1.weight"):
        load_into(build(*C4_DETECTOR), read_weights(save(trunk, tmp_path / "file.pth")))


def test_batch_counters_may_be_missing_on_either_side(online, fpn_detector, tmp_path):
    old = {k: v for k, v in online.trunk.items() if "num_batches" not in k}
    report = load_into(fpn_detector, read_weights(save(old, tmp_path / "old.pth")))
    assert {k.rsplit(".", 1)[1] for k, why in report.new.items() if "batch counters" in why} == {"num_batches_tracked"}
    norms = ("MODEL.RESNETS.NORM=FrozenBN", "MODEL.FPN.NORM=", "MODEL.ROI_BOX_HEAD.NORM=", "MODEL.ROI_MASK_HEAD.NORM=")
    frozen = build(FPN_DETECTOR[0], (*FPN_DETECTOR[1], *norms))
    report = load_into(frozen, read_weights(save(online.trunk, tmp_path / "new.pth")))
    assert set(report.left_behind.values()) == {"batch counters (not in this detector)"}


def test_another_depth_is_one_line(fpn_detector, tmp_path):
    path = save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(
        BookError, match=r"resnet18.pth .*\d+ keys of another shape: .* read as layout 'torchvision'"
    ) as caught:
        load_into(fpn_detector, read_weights(path))
    assert "\n" not in str(caught.value)


def test_unknown_and_ambiguous_layouts_are_one_line(online, fpn_detector, tmp_path):
    strange = save({f"model.{k}": v for k, v in online.trunk.items()}, tmp_path / "strange.pth")
    unknown = (
        r"strange.pth has no known layout: no key of it belongs to one; 318 of its keys are a ResNet's below 'model.'"
    )
    with pytest.raises(
        BookError, match=unknown + r': add Layout\(.*\{"model.": RESNET\}.*known layouts: soco-'
    ) as caught:
        read_weights(strange)
    assert "\n" not in str(caught.value)
    both = save({**online.trunk, **under("encoder_q.", online.trunk)}, tmp_path / "both.pth")
    with pytest.raises(BookError, match="both.pth may be torchvision or moco: name one with layout="):
        read_weights(both)
    assert "conv1.weight" in read_weights(both, layout="moco").left
    with pytest.raises(BookError, match="layout='mocco' is unknown; did you mean 'moco'"):
        read_weights(both, layout="mocco")
    with pytest.raises(BookError, match="holds one network: use network=online"):
        read_weights(save(online.trunk, tmp_path / "one.pth"), "target")
    with pytest.raises(
        BookError, match="mentor.pth has state dicts under mentor only, where no layout keeps its online network"
    ):
        read_weights(save({"mentor": online.trunk}, tmp_path / "mentor.pth"))


def test_the_nearest_layout_is_that_of_most_keys(online, tmp_path):
    """Half of a MoCo under another name: its share, what is missing and strange, and the row that would read it."""
    changed = {k.replace("encoder_q.", "net." if ".layer" in k else "stem_q."): v
               for k, v in under("encoder_q.", online.trunk).items()} | under("encoder_k.", online.trunk)  # fmt: skip
    with pytest.raises(BookError) as caught:
        read_weights(save({"state_dict": changed}, tmp_path / "half.pth"))
    said = str(caught.value)
    assert "nearest is " in said and "of its 636 keys belong; of that it lacks" in said and "\n" not in said
    assert "strange to it are" in said and "soco_lib/weights/foreign.py" in said


def test_compiled_and_distributed_prefixes_are_no_layout(online, tmp_path):
    compiled = {"module._orig_mod.backbone._orig_mod." + k: v for k, v in online.trunk.items()}
    weights = read_weights(save({"state_dict": compiled}, tmp_path / "compiled.pth"))
    assert len(weights.tensors) == len(online.trunk) and not weights.left
    dino = read_weights(save(FILES["dino"](online, online), tmp_path / "dino.pth"))
    assert "its teacher is taken for the online network" in dino.source


def test_caffe2_weights_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "R-50.pkl"
    names = ("conv1_w", "conv1_b", "res_conv1_bn_s", "res2_0_branch2a_w", "res5_2_branch2c_bn_b")
    path.write_bytes(pickle.dumps({name: torch.ones(2).numpy() for name in names}, protocol=2))
    with pytest.raises(BookError, match="R-50.pkl is Caffe2's ResNet.*BGR.*take torchvision's") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


# --- formats ----------------------------------------------------------------------------------------------------------

WRITERS = {
    ".pth": torch.save,
    ".pth.tar": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    ".pt": torch.save,
    ".ckpt": lambda content, path: torch.save(
        {"state_dict": content, "epoch": 3, "best": torch.ones(()).numpy()[()]}, path
    ),
    ".safetensors": lambda content, path: save_file(content, path),
    ".2.pkl": lambda content, path: path.write_bytes(pickle.dumps(arrays(content), protocol=2)),
    ".4.pkl": lambda content, path: path.write_bytes(pickle.dumps(arrays(content), protocol=4)),
    ".5.pkl": lambda content, path: path.write_bytes(pickle.dumps(arrays(content), protocol=5)),
    ".torch.pkl": lambda content, path: torch.save(arrays(content), path),  # ReSim's converter
}


def arrays(content):
    return {"model": {k: v.numpy() for k, v in content.items()}, "__author__": "MOCO", "matching_heuristics": True}


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format(ending, online, tmp_path):
    content = {**online.trunk, **online.fc} if "pkl" not in ending else online.detectron()
    path = tmp_path / f"weights{ending}"
    WRITERS[ending](content, path)
    weights = read_weights(path)
    assert set(weights.left.values()) <= {"classifier"} and len(weights.tensors) == len(online.trunk)
    for theirs, ours in NAMES.items():
        assert torch.equal(weights.tensors[f"backbone.{ours}"], online.trunk[theirs])


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("found", ["fractions.Fraction", "posix.mkdir"])
@pytest.mark.parametrize("ending", [".pth", ".pth.tar", ".pkl"])
def test_a_file_of_objects_is_refused_unrun_and_converted_with_consent(found, ending, online, tmp_path, capsys):
    trap, path, out = tmp_path / "trap", tmp_path / f"weights{ending}", tmp_path / "out" / "weights.safetensors"
    tensors = {k: v.numpy() for k, v in online.detectron().items()}
    content = {"opt": Fraction(1, 3) if "Fraction" in found else Trap(trap), "model": tensors}
    WRITERS.get(ending, lambda content, path: path.write_bytes(pickle.dumps(content)))(content, path)
    with pytest.raises(
        BookError, match=rf"holds a Python object \({found}\).* convert \S+ OUT.safetensors --trust"
    ) as caught:
        read_weights(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    assert main(["convert", str(path), str(out)]) == 1
    assert "runs any code" in capsys.readouterr().err and not out.exists() and not trap.exists()
    assert main(["convert", str(path), str(out), "--trust"]) == 0
    assert trap.exists() == (found == "posix.mkdir") and f"{len(tensors)} in model" in capsys.readouterr().out
    weights = read_weights(out)
    assert len(weights.tensors) == len(online.trunk) and not weights.left


def test_settings_beside_the_weights_need_no_consent(online, tmp_path):
    """The authors' raw checkpoints hold their command line as an argparse.Namespace."""
    torch.save(
        {"opt": argparse.Namespace(lr=1, output_dir="x"), "model": online.detectron()}, tmp_path / "ckpt_epoch_100.pth"
    )
    assert len(read_weights(tmp_path / "ckpt_epoch_100.pth").tensors) == len(online.trunk)


@pytest.mark.filterwarnings("ignore")  # torch deprecates TorchScript
def test_converter_takes_whole_modules_and_torchscript(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 1, 1))
    torch.save(module, tmp_path / "module.pth")
    torch.jit.script(module).save(tmp_path / "script.pth")
    for name, found in (("module", r"torch.nn.modules.container.Sequential"), ("script", "TorchScript")):
        with pytest.raises(BookError, match=rf"holds a Python object \({found}\)"):
            formats.read(tmp_path / f"{name}.pth")
        out = formats.convert(tmp_path / f"{name}.pth", tmp_path / f"{name}.safetensors", trust=True)
        assert torch.equal(formats.read(out)["0.weight"], module[0].weight)
    with pytest.raises(BookError, match="must end in .safetensors"):
        formats.convert(tmp_path / "module.pth", tmp_path / "out.pth", trust=True)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "cannot be read as weights: it starts with b'<!DOCTYPE"),
        (b"PK\x03\x04 torn", "cannot be read as weights"),
        (pickle.dumps({"a": [1, 2, 3]})[:-4], "cannot be read as weights"),
        (pickle.dumps([1, 2]), "holds a list, not a dictionary"),
        (pickle.dumps({"epoch": 3}), "holds no state dict"),
    ],
)
def test_broken_and_foreign_files_are_one_line(content, message, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(BookError, match=message) as caught:
        read_weights(path)
    assert "weights.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_compare_of_foreign_weights_never_raises(online, fpn_detector, tmp_path):
    content = FILES["moco"](online, online)
    content["state_dict"]["module.memory"] = torch.ones(1)
    report = compare(fpn_detector, read_weights(save(content, tmp_path / "file.pth")))
    assert report.unexplained["left_behind"] == ["module.memory"]
