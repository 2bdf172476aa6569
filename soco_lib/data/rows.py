"""Rows of a .npy file that many processes read at once."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from soco_lib import BookError


class Rows:
    """Rows of a .npy file, each slice read by its position: were the file mapped, somebody who cuts it short meanwhile
    would end the process (a bus error). Processes share the pages all the same, as the system's cache.
    """

    def __init__(self, path: Path, kind: str, *shape: int):
        self.path, self.kind, self.tail = path, np.dtype(kind), shape[1:]
        self.row = self.kind.itemsize * math.prod(self.tail)
        self.file = open(path, "rb", buffering=0)
        version = np.lib.format.read_magic(self.file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        there, fortran, found = read(self.file)
        self.begin, size = self.file.tell(), os.fstat(self.file.fileno()).st_size
        wanted = self.begin + self.row * shape[0]
        if (there, found, fortran, size) != (shape, self.kind, False, wanted):
            raise ValueError(f"it holds {there} {found} in {size} bytes, not {shape} {kind} in {wanted}")

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, count = int(rows.start), int(rows.stop) - int(rows.start)
        data = os.pread(self.file.fileno(), count * self.row, self.begin + first * self.row) if count > 0 else b""
        if first < 0 or count < 0 or len(data) < count * self.row:
            raise BookError(f"{self.path} was changed while it was read: delete its folder, build the proposals again")
        return np.frombuffer(data, self.kind).reshape(count, *self.tail)
