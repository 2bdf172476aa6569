"""Encoded images to pixels: one reader for proposals, pretraining, probe, transfer, prediction and figures.

A picture is (H, W, 3) uint8 RGB, the same array wherever it is asked for:

- It is turned as its EXIF orientation says, as viewers and labelling tools show it, but where its labels state a
  size that is the stored picture's and not the turned one's: these labels are for the stored pixels, and so it stays.
  XMP's orientation alone turns nothing: browsers and OpenCV do not heed it either.
- 8-bit samples stay as they are. Of 16-bit ones the upper 8 of b bits are kept, where b is the least of 8, 10, 12, 14
  and 16 that holds the file's largest sample; a PNG's sBIT chunk names b instead, where no sample is beyond it.
- Gray is repeated in three channels, one bit becomes 0 and 255, a palette its colours, CMYK is converted by OpenCV
  without a colour profile. Alpha is dropped; a TIFF's is multiplied in.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from soco_lib import BookError

#: Number of the rule above, for what was made of pictures (store.json). 1: never turned, the upper 8 of 16 bits.
READER = 2
#: A JPEG decoded at a reduced size keeps this many pixels for one that is needed, so that the last resize still has
#: something to average. On photographs the finished view then differs from that of the whole image by 1.4 gray levels
#: of 255 in the mean (2.6 without a margin), and its edges are as sharp within 2 % (10 % sharper without).
MARGIN = 1.5
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
#: Markers of a JPEG's frame header, which states its size.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG, _PNG, _TIFF = b"\xff\xd8", b"\x89PNG", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: EXIF orientation -> how many quarter turns anticlockwise, and whether the result is mirrored left to right.
_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
Size = tuple[int, int]  # width, height
#: Gives the size that labels state for a picture, None where none do; asked only where it might be turned.
Stated = Callable[[], Size | None]

Image.MAX_IMAGE_PIXELS = None  # only headers are read with Pillow; OpenCV refuses more than 2^30 pixels


def without_waiting(path: str, flags: int) -> int:
    """An opener of regular files: a named pipe would be waited for, or /dev/zero be read, without end."""
    file = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(mode := os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "it is no regular file")
    return file


def decode(data: bytes, stated: Stated = lambda: None) -> np.ndarray:
    """An encoded image as (H, W, 3) uint8 RGB by the rule above. Raises BookError with the reason.

    A JPEG that ends early is refused, where some OpenCV versions return it padded with gray.
    """
    image = _decode(data, cv2.IMREAD_COLOR)
    return _turned(image, image.shape[1::-1], data, stated)[0]


def decode_near(data: bytes, side: int, stated: Stated = lambda: None) -> tuple[np.ndarray, Size]:
    """As `decode`, with the whole picture's (width, height); a large JPEG comes at 1/2, 1/4 or 1/8 of it.

    Both sides of the array stay >= MARGIN x `side` pixels, or it is the whole image. libjpeg drops the high frequencies
    that a smaller picture cannot hold instead of computing them, so that a large photograph costs little more than a
    small one. Sides are rounded up: the last of them may hold part of a pixel.
    """
    flag, size = cv2.IMREAD_COLOR, _jpeg_head(data)[0] if data[:2] == _JPEG else None
    if size:
        flag = next((reduced for by, reduced in _REDUCED if min(size) >= by * MARGIN * side), flag)
    image = _decode(data, flag)
    return _turned(image, image.shape[1::-1] if flag == cv2.IMREAD_COLOR else size, data, stated)


def header_size(data: bytes, stated: Stated = lambda: None) -> Size:
    """(width, height) of the picture that `decode` gives, from the file's header. Raises OSError."""
    return seen_size(*_header(data), stated)


def seen_size(stored: Size, orientation: int, stated: Stated) -> Size:
    """(width, height) that a picture with this stored size and EXIF orientation is seen in."""
    return stored[::-1] if orientation > 4 and not kept_as_stored(stored, orientation, stated) else stored


def read_differently(data: bytes, stated: Stated = lambda: None) -> bool:
    """Whether reader 1 may have seen another picture in this file: it is turned now, or has 16-bit samples."""
    try:
        size, orientation = _header(data)
    except OSError:
        return False
    if data[:4] in _TIFF:  # which OpenCV always turns
        return kept_as_stored(size, orientation, stated) or _sixteen(data)
    return (orientation > 1 and not kept_as_stored(size, orientation, stated)) or _sixteen(data)


def _sixteen(data: bytes) -> bool:
    if data[:4] == _PNG:
        return data[24] == 16
    if data[:4] not in _TIFF and data[:1] != b"P":
        return False
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH)
    return image is not None and image.dtype == np.uint16


def _header(data: bytes) -> tuple[Size, int]:
    """Stored (width, height) and EXIF orientation. Raises OSError."""
    with Image.open(io.BytesIO(data)) as image:
        return stored_size(image, orientation := _orientation(data)), orientation


def stored_size(image: Image.Image, orientation: int) -> Size:
    """(width, height) of an opened picture's stored pixels; Pillow turns a TIFF's."""
    return image.size[::-1] if image.format == "TIFF" and orientation > 4 else image.size


def exif_orientation(image: Image.Image) -> int:
    """An opened picture's EXIF orientation, 1 where there is none. Raises what a damaged EXIF block makes of Pillow."""
    if image.format == "TIFF":
        found = image.tag_v2.get(0x0112)
    else:
        if image.format == "PNG" and "exif" not in image.info:
            image.load()  # it may lie behind the pixels
        exif = Image.Exif()  # image.getexif() would ask XMP too
        exif.load(image.info.get("exif", b""))
        found = exif.get(0x0112)
    return found if found in _TURNS else 1


def _decode(data: bytes, flag: int) -> np.ndarray:
    """The stored pixels, but a TIFF's, which OpenCV turns."""
    if not data:
        raise BookError("the file is empty")
    if data[:2] == _JPEG:
        if data.find(b"\xff\xda", data.rfind(b"\xff\xd9") + 1) >= 0:  # a scan without an end
            raise BookError("the JPEG is cut short")
        flag ^= cv2.IMREAD_COLOR | cv2.IMREAD_COLOR_RGB  # the one in place of the other; wrong for a TIFF of 16 bits
    else:
        flag |= cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise BookError(f"OpenCV cannot decode it ({' '.join(str(error).split())})") from None
    if image is None:
        raise BookError("not an image that OpenCV can decode")
    if image.dtype == np.uint16:
        image = (image >> (_bits(data, int(image.max())) - 8)).astype(np.uint8)
    if image.dtype != np.uint8:
        raise BookError(f"its samples are {image.dtype}, of a range that nothing states: save it with 8 or 16 bits")
    return image if flag & cv2.IMREAD_COLOR_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _bits(data: bytes, largest: int) -> int:
    """Bits of a 16-bit file's samples, by the rule above."""
    if data[:4] == _PNG and (at := data.find(b"sBIT", 0, data.find(b"IDAT"))) > 0:
        (length,) = struct.unpack(">I", data[at - 4 : at])
        named = max(data[at + 4 : at + 4 + length], default=16)
        return min(max(named, 8), 16) if largest < 1 << named else 16
    return next(bits for bits in (8, 10, 12, 14, 16) if largest < 1 << bits)


def _orientation(data: bytes) -> int:
    """The EXIF orientation, 1 where there is none."""
    if data[:2] == _JPEG:
        has_exif = _jpeg_head(data)[1]
    else:
        has_exif = (
            data[:4] in _TIFF or (data[:4] == _PNG and b"eXIf" in data) or (data[:4] == b"RIFF" and b"EXIF" in data)
        )
    if not has_exif:
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            return exif_orientation(image)
    except Exception:  # of a damaged EXIF block, by what is wrong in it
        return 1


def _jpeg_head(data: bytes) -> tuple[Size | None, bool]:
    """Stored (width, height), None where no frame says it, and whether there is EXIF, by the segments before the first
    scan: a tenth of the time that Pillow takes, a hundredth of searching the file.
    """
    at, size, has_exif = 2, None, False
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b""):
        kind = data[at + 1]
        if kind in _FRAMES:
            size = struct.unpack(">HH", data[at + 5 : at + 9])[::-1] if len(data) >= at + 9 else None
        elif kind == 0xE1 and data[at + 4 : at + 9] == b"Exif\0":
            has_exif = True
        at += 1 if kind == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return size, has_exif


def kept_as_stored(stored: Size, orientation: int, stated: Stated) -> bool:
    """Whether the labels of a picture with this stored size are for its stored pixels."""
    return orientation > 4 and stored[0] != stored[1] and stated() == stored


def _turned(image: np.ndarray, size: Size, data: bytes, stated: Stated) -> tuple[np.ndarray, Size]:
    """What `_decode` gave, whole or reduced, and the whole one's size, as they are to be seen."""
    orientation, tiff = _orientation(data), data[:4] in _TIFF
    if orientation == 1 or tiff != kept_as_stored(size[::-1] if tiff else size, orientation, stated):
        return image, size
    if tiff:
        orientation = {6: 8, 8: 6}.get(orientation, orientation)  # back to the stored pixels
    quarters, mirrored = _TURNS[orientation]
    image = np.rot90(image, quarters)
    return np.ascontiguousarray(image[:, ::-1] if mirrored else image), size[::-1] if orientation > 4 else size
