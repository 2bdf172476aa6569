"""Files of tensors in any format, read without running code from them: torch, safetensors, pickled numpy arrays."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from soco_lib import BookError, locate
from soco_lib.data.pickles import ADMITTED, Arrays
from soco_lib.fields import require
from soco_lib.runs.files import require_intact

#: Classes of the dtypes in those arrays: torch names them apart.
_DTYPES = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
#: Command-line settings that the authors' and other releases save beside the weights: attributes, nothing that runs.
_SETTINGS = [argparse.Namespace]
#: How a file starts that torch.save wrote before torch 1.6; since then it is a zip archive.
_LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
SEPARATOR = "/"  # between the name of a nested state dict and a tensor's, in safetensors; no module has one


def _kind(path: Path) -> str:
    """torch, safetensors or pickle, from the first bytes: endings lie. Raises BookError for anything else."""
    with open(path, "rb") as file:
        head = file.read(32)
    size = path.stat().st_size
    require(size > 0, f"{path} is empty: download or copy it again")
    if head.startswith((b"PK", _LEGACY)):
        return "torch"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "safetensors"
    strange = f"it starts with {head[:12]!r}, as no torch, safetensors or pickle file does"
    require(head[:1] in (b"\x80", b"("), f"{path} cannot be read as weights: {strange}: download it again")
    return "pickle"


def _unpacked(path: Path, trust: bool):
    """What the file holds; `trust`: objects of any class too, whose code then runs."""
    kind = _kind(path)
    if kind == "safetensors":
        flat: dict = {}
        for key, value in load_file(path).items():
            nest, _, name = key.rpartition(SEPARATOR)
            (flat.setdefault(nest, {}) if nest else flat)[name] = value
        return flat
    if kind == "torch":
        arrays = [(f, name) for name, f in ADMITTED.items() if "numpy" in name]
        with torch.serialization.safe_globals(arrays + _DTYPES + _SETTINGS):
            return torch.load(path, map_location="cpu", weights_only=not trust)
    with open(path, "rb") as file:  # latin1: what Python 2's strings and arrays need
        return (pickle.Unpickler if trust else Arrays)(file, encoding="latin1").load()


def _state(part):
    """A module's state dict; anything else as it is."""
    return part.state_dict() if hasattr(part, "state_dict") else part


def read(path: str | Path, trust: bool = False) -> dict:
    """The dictionary in a file: .pth, .pth.tar, .pt, .ckpt (torch), .safetensors, .pkl (numpy arrays); tensors on the
    CPU. `trust`: other Python objects too, which runs the code that the file names.

    Raises BookError, one line, for a missing, empty, torn or foreign file and for one that holds other Python objects.
    """
    path = locate(path)
    require(path.is_file(), f"no file {path}")
    try:
        if not trust:
            require_intact(path)
        content = _state(_unpacked(path, trust))
    except BookError:
        raise
    except Exception as error:  # what a torn file raises depends on its first wrong byte
        found = re.search(r"unsupported (?:global: )?global (\S+)|(TorchScript)", str(error), re.IGNORECASE)
        if found and not trust:
            remedy = f"python -m soco_lib.weights convert {path} OUT.safetensors --trust, and use OUT.safetensors"
            raise BookError(
                f"{path} holds a Python object ({found[1] or found[2]}), and to load it would run code from the file: "
                f"if you trust its author, run {remedy}"
            ) from None
        if isinstance(error, ModuleNotFoundError):
            raise BookError(f"{path} holds objects of the package {error.name!r}: install it to convert it") from None
        said = (str(error).splitlines() or [repr(error)])[0]
        raise BookError(f"{path} cannot be read as weights ({said}): copy or download it again") from None
    require(isinstance(content, Mapping), f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    return dict(content)


def state_dicts(content: Mapping, below: str = "", depth: int = 4) -> dict[str, dict[str, Tensor]]:
    """The state dicts of a file's contents: where each lies ("": at the top; "a.b": content["a"]["b"]) -> its tensors;
    the rest is no weights.
    """
    array = lambda value: isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub"
    tensor = lambda value: torch.from_numpy(np.array(value)) if array(value) else value  # copied: it is read-only
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: found for key, value in named.items() if isinstance(found := tensor(value), Tensor)}
    found = {below: tensors} if tensors else {}
    for key, part in named.items():
        if isinstance(part, Mapping) and depth:
            found |= state_dicts(part, f"{below}.{key}" if below else key, depth - 1)
    return found


def convert(path: str | Path, out: str | Path, trust: bool = False) -> Path:
    """Write the state dicts of a file as safetensors, which `read` reads; returns the written path.

    The file is loaded in full, which runs whatever code it names: hence `trust`. Raises BookError without it.
    """
    path, out = locate(path), Path(out).expanduser()
    require(out.suffix == ".safetensors", f"out={out} must end in .safetensors")
    require(path.is_file(), f"no file {path}")
    plan = f"{path} will be loaded in full, which runs any code that its author put into it, for its tensors alone"
    require(trust, f"{plan}; nothing was done yet: add --trust if you trust that author")
    states = state_dicts({key: _state(part) for key, part in read(path, trust=True).items()})
    require(bool(states), f"{path} holds no state dict: neither at the top nor below it")
    flat = {f"{nest}{SEPARATOR}{k}" if nest else k: v for nest, tensors in states.items() for k, v in tensors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in flat.items()}, out)  # it refuses shared memory
    return out
