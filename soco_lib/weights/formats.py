"""Files of tensors in any format, read without running code from them: torch, safetensors, pickled numpy arrays.

`python -m soco_lib.weights.formats convert FILE OUT.safetensors --trust` makes a plain file of one that holds Python
objects.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from soco_lib import BookError, locate, one_line_errors
from soco_lib.fields import require

_array, _scalar = np.empty(0).__reduce__()[0], np.float32(0).__reduce__()[0]
_buffer = np.empty(1).__reduce_ex__(5)[0]


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode` for what protocol 2 makes of bytes, and for nothing else."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL _codecs.encode[{encoding}] ")
    return text.encode("latin1")


#: All that a pickle of arrays may name; under numpy 1's names too.
ADMITTED = {
    **{f"numpy.{core}.multiarray.{f.__name__}": f for core in ("core", "_core") for f in (_array, _scalar)},
    **{f"numpy.{core}.numeric._frombuffer": _buffer for core in ("core", "_core")},
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
}
#: Classes of the dtypes in those arrays: torch names them apart.
_DTYPES = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
#: Command-line settings that the authors' and other releases save beside the weights: attributes, and nothing that
#: runs.
_SETTINGS = [argparse.Namespace]
#: How a file starts that torch.save wrote before torch 1.6; since then it is a zip archive.
_LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
SEPARATOR = "/"  # between the name of a nested state dict and a tensor's, in safetensors; no module has one


class _Arrays(pickle.Unpickler):
    """Plain containers, strings, numbers and numpy arrays; any other name in the pickle is an error."""

    def find_class(self, module: str, name: str):
        if (found := ADMITTED.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name} ")
        return found


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
    require(head[:1] in (b"\x80", b"("), f"{path} cannot be read as weights: it starts with {head[:12]!r}, as no torch, "
                                         "safetensors or pickle file does: download it again")  # fmt: skip
    return "pickle"


def _load(path: Path, kind: str, trust: bool = False):
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
        return (pickle.Unpickler if trust else _Arrays)(file, encoding="latin1").load()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0]


def _dictionary(content, path: Path) -> dict:
    require(isinstance(content, Mapping), f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    return dict(content)


def read(path: str | Path) -> dict:
    """The dictionary in a file: .pth, .pth.tar, .pt, .ckpt (torch), .safetensors, .pkl (numpy arrays); tensors on the
    CPU.

    Raises BookError, one line, for a missing, empty, torn or foreign file and for one that holds other Python objects.
    """
    path = locate(path)
    require(path.is_file(), f"no file {path}")
    try:
        content = _load(path, _kind(path))
    except BookError:
        raise
    except Exception as error:  # what a torn file raises depends on its first wrong byte
        if found := re.search(r"unsupported (?:global: )?global (\S+)|(TorchScript)", str(error), re.IGNORECASE):
            raise BookError(
                f"{path} holds a Python object ({found[1] or found[2]}), and to load it would run code from the file: if you trust "
                f"its author, run python -m soco_lib.weights.formats convert {path} OUT.safetensors --trust, and use OUT.safetensors"
            ) from None
        raise BookError(f"{path} cannot be read as weights ({_first_line(error)})") from None
    return _dictionary(content, path)


def _is_tensor(value) -> bool:
    return isinstance(value, Tensor) or isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub"


def _tensor(value) -> Tensor:
    return (
        value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    )  # a pickle's array is read-only: copied


def state_dicts(content: Mapping) -> dict[str, dict[str, Tensor]]:
    """The state dicts of a file's contents: where each lies ("": at the top) -> its tensors; the rest is no weights."""
    found = {}
    for nest, part in {"": content, **content}.items():
        if isinstance(nest, str) and isinstance(part, Mapping):
            tensors = {k: _tensor(v) for k, v in part.items() if isinstance(k, str) and _is_tensor(v)}
            if tensors:
                found[nest] = tensors
    return found


def convert(path: str | Path, out: str | Path, trust: bool = False) -> Path:
    """Write the state dicts of a file as safetensors, which `read` reads; returns the written path.

    The file is loaded in full, which runs whatever code it names: hence `trust`. Raises BookError without it.
    """
    path, out = locate(path), Path(out).expanduser()
    require(out.suffix == ".safetensors", f"out={out} must end in .safetensors")
    require(path.is_file(), f"no file {path}")
    plan = f"{path} will be loaded in full, which runs any code that its author put into it, and its tensors alone written to {out}"
    require(trust, f"{plan}; nothing was done yet: add --trust if you trust that author")
    try:
        content = _load(path, _kind(path), trust=True)
    except ModuleNotFoundError as error:
        raise BookError(f"{path} holds objects of the package {error.name!r}: install it for the conversion") from None
    except BookError:
        raise
    except Exception as error:
        raise BookError(f"{path} cannot be read as weights ({_first_line(error)})") from None
    plain = lambda part: part.state_dict() if hasattr(part, "state_dict") else part
    content = _dictionary(plain(content), path)
    states = state_dicts({key: plain(part) for key, part in content.items()})
    require(bool(states), f"{path} holds no state dict: neither at the top nor one level down")
    flat = {f"{nest}{SEPARATOR}{k}" if nest else k: v for nest, tensors in states.items() for k, v in tensors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in flat.items()}, out)  # it refuses shared memory
    return out


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command = parser.add_subparsers(required=True, metavar="convert").add_parser(
        "convert", help="write a file's tensors alone"
    )
    command.add_argument("file", help="the file with Python objects in it")
    command.add_argument("out", help="the .safetensors file to write")
    command.add_argument("--trust", action="store_true", help="consent to running the code in the file")
    given = parser.parse_args(arguments)
    out = convert(given.file, given.out, given.trust)
    counts = ", ".join(f"{len(v)} in {k or 'the top level'}" for k, v in state_dicts(read(out)).items())
    print(f"wrote {out}: tensors {counts}; nothing else of the file was kept")


if __name__ == "__main__":
    sys.exit(main())
