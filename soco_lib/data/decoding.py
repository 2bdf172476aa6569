"""Encoded images to pixels, whole or no larger than is needed."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from soco_lib import BookError

#: A JPEG decoded at a reduced size keeps this many pixels for one that is needed, so that the last resize still has
#: something to average. On photographs the finished view then differs from that of the whole image by 1.4 gray levels
#: of 255 in the mean (2.6 without a margin), and its edges are as sharp within 2 % (10 % sharper without).
MARGIN = 1.5
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))


def decode(data: bytes) -> np.ndarray:
    """An encoded image as (H, W, 3) uint8 RGB; gray, alpha and 16 bit are converted. Raises BookError with the reason.

    EXIF orientation is ignored: the width and height that COCO and VOC boxes refer to, and the authors' loader sees,
    are those of the stored pixels. A JPEG that ends early is refused, where some OpenCV versions return it padded with
    gray.
    """
    return _decode(data, cv2.IMREAD_COLOR)


def decode_near(data: bytes, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """As `decode`, with the stored (width, height); a large JPEG comes at 1/2, 1/4 or 1/8 of it.

    Both sides of the array stay >= MARGIN x `side` pixels, or it is the whole image. libjpeg drops the high frequencies
    that a smaller picture cannot hold instead of computing them, so that a large photograph costs little more than a
    small one. Sides are rounded up: the last of them may hold part of a pixel.
    """
    flag, size = cv2.IMREAD_COLOR, None
    if data[:2] == b"\xff\xd8":
        try:
            size = Image.open(io.BytesIO(data)).size  # reads the header only
        except (OSError, Image.DecompressionBombError):
            pass  # OpenCV may still know it, or say why not
        else:
            flag = next((reduced for by, reduced in _REDUCED if min(size) >= by * MARGIN * side), flag)
    image = _decode(data, flag)
    if flag == cv2.IMREAD_COLOR:
        size = (image.shape[1], image.shape[0])
    return image, size


def _decode(data: bytes, flag: int) -> np.ndarray:
    if not data:
        raise BookError("the file is empty")
    if data[:2] == b"\xff\xd8" and data.find(b"\xff\xda", data.rfind(b"\xff\xd9") + 1) >= 0:  # a scan without an end
        raise BookError("the JPEG is cut short")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:  # such as its limit of pixels, by what the header declares
        raise BookError(f"OpenCV refuses it ({' '.join(str(error.err).split())})") from None
    if image is None:
        raise BookError("not an image that OpenCV can decode")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
