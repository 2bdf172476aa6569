"""Detector configs as files: of Detectron2's model zoo, of its projects, of a finished run."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from soco_lib import BookError, locate
from soco_lib.runs.reasons import one_line

from detectron2 import model_zoo, projects
from detectron2.config import CfgNode, get_cfg

#: The settings, under MODEL, of a detector that comes from a Python config (see lazy.py).
LAZY = {"FILE": "", "OVERRIDES": [], "ARCHITECTURE": ""}
KINDS = (".yaml", ".yml", ".py")


def find(name: str) -> Path | None:
    """The file of a config: a zoo file's name, such as COCO-Detection/retinanet_R_50_FPN_1x.yaml, or a path; None: no
    such file.
    """
    path = Path(name)
    if path.suffix not in KINDS:
        return None
    if not path.is_absolute():
        try:
            return Path(model_zoo.get_config_file(name))
        except (RuntimeError, ValueError):  # what the zoo says of a file that it lacks, of a path that leaves it
            pass
    path = locate(name)
    return path if path.is_file() else None


def read(file: str | Path) -> CfgNode:
    """A YAML config on top of Detectron2's defaults, and of its installed projects' and this book's where it has their
    settings. Raises BookError for a setting that none knows and for a file that is no config.
    """
    for add in (lambda cfg: None, _add_lazy, _add_projects):
        cfg = get_cfg()
        add(cfg)
        try:
            cfg.merge_from_file(str(file))
            return cfg
        except Exception as found:
            error = found
            if not isinstance(found, KeyError):
                break
    more = "a project's own settings need its Python code: install it, or name its Python config (.py)"
    said = f"{file} is no config of Detectron2 and its installed projects"
    raise BookError(f"{said} ({one_line(error)}): {more}") from None


def _add_lazy(cfg: CfgNode) -> None:
    cfg.MODEL.LAZY = CfgNode(dict(LAZY))


def _add_projects(cfg: CfgNode) -> None:
    """Add the settings of Detectron2's installed projects, whose parts are in its registries from then on."""
    for found in pkgutil.iter_modules(projects.__path__):
        try:
            module = importlib.import_module(f"{projects.__name__}.{found.name}")
        except ImportError:  # it needs a package that is not there: then its settings stay unknown
            continue
        for name, add in vars(module).items():
            if name.startswith("add_") and name.endswith("_config"):
                add(cfg)
