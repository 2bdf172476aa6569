"""The library's shape: imports go one way, files stay small, names of parameters are the detector's."""

import ast
from pathlib import Path

import pytest

import soco_lib
from soco_lib.config import Pretrain
from soco_lib.detector import detector_config
from soco_lib.encoder import Encoder
from tests.conftest import TINY_DETECTOR

from detectron2.modeling import build_model

LIBRARY = Path(soco_lib.__file__).parent
#: Data flows down this list. A module may import from its own entry and from those above it; a wing is named, a module
#: of the top too.
FLOW = """
fields boxes
config
runs
scenes
data
views
dataset
loss
parts
detector
encoder
optim
model
features weights
train
transfer
studies
tables
figures
book
""".split("\n")[1:-1]
LEVEL = {name: number for number, line in enumerate(FLOW) for name in line.split()}
MODULES = sorted(path.relative_to(LIBRARY).with_suffix("").as_posix() for path in LIBRARY.rglob("*.py"))
MODULES = [name for name in MODULES if not name.endswith("__init__")]


def imports(path: Path) -> set[str]:
    """Entries of FLOW that a file imports from, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "soco_lib":
            tail = node.module.split(".")[1:]
            found |= {tail[0]} if tail else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("soco_lib.")}
    return found & LEVEL.keys()


def against(name: str, text: Path) -> set[tuple[str, str]]:
    """Imports of a module, such as "runs/meter", that run against the flow."""
    own = LEVEL[name.split("/")[0]]
    return {(name, other) for other in imports(text) if LEVEL[other] > own}


def test_every_file_has_its_place():
    assert {name.split("/")[0] for name in MODULES} == LEVEL.keys()


# A wing's command may bring wings together, since nothing imports it: `python -m soco_lib.tables` draws as well.
@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_imports_go_down_the_flow_only(name):
    wrong = against(name, LIBRARY / f"{name}.py")
    assert not wrong, f"{name} imports {', '.join(other for _, other in wrong)} against the flow of data"


def test_an_import_against_the_flow_is_seen(tmp_path):
    for text in (
        "from soco_lib import train",
        "import soco_lib.train",
        "def f():\n    from soco_lib.tables import pages",
    ):
        (tmp_path / "planted.py").write_text(text)
        assert against("data/sources", tmp_path / "planted.py")
    (tmp_path / "planted.py").write_text(
        "from soco_lib import BookError\nfrom soco_lib.runs import locks\nfrom soco_lib.config import require"
    )
    assert not against("data/sources", tmp_path / "planted.py")


@pytest.mark.parametrize("wing", sorted(path.parent.name for path in LIBRARY.glob("*/__init__.py")))
def test_a_wings_door_names_its_files(wing):
    doors = ast.parse((LIBRARY / wing / "__init__.py").read_text())
    assert len(doors.body) == 1, "a door re-exports nothing"
    said = {line.split()[0] for line in ast.get_docstring(doors).splitlines()[2:]}
    assert said == {path.stem for path in (LIBRARY / wing).glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("name", MODULES)
def test_files_stay_readable(name):
    assert len((LIBRARY / f"{name}.py").read_text().splitlines()) <= 400


@pytest.mark.parametrize(("detector", "parts"), [("mask-rcnn-r50-fpn", 3), ("mask-rcnn-r50-c4", 2)])
def test_parameter_names_are_the_detectors(detector, parts):
    overrides = TINY_DETECTOR if parts == 3 else TINY_DETECTOR[-3:]
    ours = Encoder(Pretrain("a", "b", detector=detector, overrides=overrides)).state_dict()
    theirs = build_model(detector_config(detector, overrides)).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: theirs[k].shape for k in ours if k in theirs}
    reached = {k for k in theirs if k.startswith(("backbone.", "roi_heads.box_head.", "roi_heads.res5."))}
    assert reached == set(ours)
