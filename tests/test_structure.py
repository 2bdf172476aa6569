"""The library's shape: imports go one way, files stay small, names of parameters are the detector's."""

import ast
from pathlib import Path

import pytest

import soco_lib
from soco_lib.config import Pretrain
from soco_lib.encoder import Encoder
from tests.conftest import TINY_DETECTOR

from soco_lib.detector import detector_config  # isort: skip
from detectron2.modeling import build_model  # isort: skip

LIBRARY = Path(soco_lib.__file__).parent
#: Data flows down this list (design.md 2): a file may import from files above it only.
ORDER = """
config machine locks boxes decoding listings archives sources proposals shards store interchange views loader dataset coordinates res5 fcos detector
encoder loss soco optim results timing distributed checkpoint health session scene_textures scene_light scene_objects scene_picture scenes
probe probes meter
slurm launch train formats foreign key_report exports weights
benchmarks lvis_sample data_check layouts detection accumulation evaluation finetune transfer
gpu_checks gpu_group gpu_speed check_gpu
records pages paper starts tables report gallery errors class_subset predictions comparison plots bench_plots detection_plots drawing parameters
studies plans measure study_data study_records study_figure study_tables study_plots job crew runner
claims claims_plots trials neighbours rerun
plain_views plain_step bench_step bench_views bench_readers bench_startup bench_proposals bench_store bench book live
""".split()


def imports(path: Path) -> set[str]:
    """Modules of the library that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("soco_lib"):
            tail = node.module.split(".")[1:]
            found |= set(tail) or {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("soco_lib.")}
    return found & {p.stem for p in path.parent.glob("*.py")}


def test_every_file_has_its_place():
    assert sorted(ORDER) == sorted(p.stem for p in LIBRARY.glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_down_the_flow_only(name):
    against = imports(LIBRARY / f"{name}.py") - set(ORDER[: ORDER.index(name)])
    assert not against, f"{name}.py imports {', '.join(sorted(against))} against the flow of data"


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*.py")), ids=lambda p: p.stem)
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize(("detector", "parts"), [("mask-rcnn-r50-fpn", 3), ("mask-rcnn-r50-c4", 2)])
def test_parameter_names_are_the_detectors(detector, parts):
    overrides = TINY_DETECTOR if parts == 3 else TINY_DETECTOR[-3:]
    ours = Encoder(Pretrain("a", "b", detector=detector, overrides=overrides)).state_dict()
    theirs = build_model(detector_config(detector, overrides)).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: theirs[k].shape for k in ours if k in theirs}
    reached = {k for k in theirs if k.startswith(("backbone.", "roi_heads.box_head.", "roi_heads.res5."))}
    assert reached == set(ours)
