"""Pickles of numpy arrays, read without running code from them."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import numpy as np

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


class Arrays(pickle.Unpickler):
    """Plain containers, strings, numbers and numpy arrays; any other name in the pickle is an error."""

    def find_class(self, module: str, name: str):
        if (found := ADMITTED.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name} ")
        return found
