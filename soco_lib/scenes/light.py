"""How a part of an object in a generated scene is covered, textured and lit."""

from dataclasses import dataclass

import cv2
import numpy as np

from soco_lib.scenes.textures import shrunk


@dataclass(frozen=True)
class Part:
    """One painted surface: the union of `rings`, each (K, 2) in the object's frame, less the ring `hole`."""

    rings: list
    colour: tuple = (0.5, 0.5, 0.5)  #: RGB in 0..1 where the texture is 1
    second: tuple = (0.4, 0.4, 0.4)  #: RGB in 0..1 where the texture is 0
    texture: str = "fine"  #: a name in `textures()`
    repeat: float = 1.0  #: texture tiles a unit of the object's frame
    turn: float = 0.0  #: texture angle in radians
    relief: float = 1.0  #: rounded rim as a fraction of the part's half thickness: 1 a pillow, 0.1 a plate
    tube: tuple | None = None  #: (centre x, radius): lit as an upright cylinder instead of a pillow
    gloss: float = 0.2  #: strength of the highlight, 0..1
    bump: float = 0.5  #: how strongly the texture tilts the surface
    tone: float = 1.0  #: factor on the light this face gets
    hole: np.ndarray | None = None  #: (K, 2), cut out of the union
    lift: float = 0.0  #: height above the parts beneath, in object units: the length of the shadow on them


def paint_part(sprite, part, to_canvas, scale, light):
    """Light one part and lay it over the sprite, in place and only inside the part's own rectangle."""
    rings = [ring @ to_canvas[:, :2].T + to_canvas[:, 2] for ring in part.rings]
    every = np.concatenate(rings)
    x1, y1 = np.maximum(np.floor(every.min(0)).astype(int) - 2, 0)
    x2, y2 = np.minimum(np.ceil(every.max(0)).astype(int) + 3, sprite.shape[:0:-1])
    holes = [] if part.hole is None else [part.hole @ to_canvas[:, :2].T + to_canvas[:, 2]]
    alpha, depth = _cover(rings, holes, x1, y1, x2, y2)
    back = cv2.invertAffineTransform(to_canvas)  # canvas pixel -> object frame
    back[:, 2] += back[:, :2] @ (x1, y1)
    texture = _texture(part, back, scale, alpha.shape)
    slope_x, slope_y = _slopes(part, back, scale, depth, texture)

    tilt = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    along = lambda v: np.maximum((np.float32(v[2]) - np.float32(v[0]) * slope_x - np.float32(v[1]) * slope_y) * tilt, 0)
    halfway = light + (0, 0, 1)
    shine = along(halfway / np.linalg.norm(halfway))
    for _ in range(4 if part.gloss < 0.5 else 5):  # to the power of 16 or 32
        shine *= shine
    rim = np.minimum(depth * np.float32(0.18 / (1 + 0.2 * depth.max())), np.float32(0.18))
    lit = np.float32(0.42) + np.float32(0.12) * slope_y * tilt + np.float32(0.78) * along(light)
    lit *= (np.float32(0.82) + rim) * np.float32(part.tone)

    if part.lift:
        _shade_beneath(sprite, alpha, (x1, y1), part.lift * scale, light)
    roi = sprite[:, y1:y2, x1:x2]
    roi *= 1 - alpha
    roi[3] += alpha
    lit *= alpha
    shine *= alpha * np.float32(0.55 * part.gloss)
    for plane, first, second in zip(roi, part.colour, part.second):
        plane += (texture * np.float32(first - second) + np.float32(second)) * lit + shine


def _cover(rings, holes, x1, y1, x2, y2):
    """A part's alpha in 0..1 and its pixels' distance to the outline, both (y2 - y1, x2 - x1) float32."""
    w, h = int(x2 - x1), int(y2 - y1)
    twice = np.zeros((2 * h, 2 * w), np.uint8)  # then averaged: smoother than OpenCV's antialiasing alone
    for ring, value in [(r, 255) for r in rings] + [(r, 0) for r in holes]:
        cv2.fillPoly(twice, [np.round((2 * (ring - (x1, y1)) + 0.5) * 16).astype(np.int32)], value, cv2.LINE_AA, 4)
    alpha = cv2.resize(twice, (w, h), interpolation=cv2.INTER_AREA)
    depth = cv2.distanceTransform(cv2.compare(alpha, 127, cv2.CMP_GT), cv2.DIST_L2, 3)
    return alpha * np.float32(1 / 255), depth


def _texture(part, back, scale, shape):
    """The part's texture seen through `back` (pixel -> object frame): `shape` float32 in 0..1."""
    c, s = np.cos(part.turn), np.sin(part.turn)
    size, per_unit = 256, 256 * part.repeat
    while per_unit > 1.5 * scale and size > 32:  # a small object takes a smaller copy, else the pattern aliases
        size, per_unit = size // 2, per_unit / 2
    move = per_unit * np.array([[c, s], [-s, c]]) @ back
    move[:, 2] += 40
    how = dict(flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_WRAP)
    return cv2.warpAffine(shrunk(part.texture, size), move, shape[::-1], **how)


def _slopes(part, back, scale, depth, texture):
    """How the surface rises to the right and downwards at each pixel: rounded rim, texture relief, cylinder."""
    radius = max(part.relief * float(depth.max()), 1.6)
    t = np.minimum(depth * np.float32(1 / radius), 1)
    height = np.sqrt(t * (2 - t)) * np.float32(radius * (0.15 if part.tube else 0.75))
    height += texture * np.float32(0.02 * scale * part.bump)
    height = cv2.stackBlur(height, 2 * [2 * int(1 + 0.2 * min(radius, 16)) + 1])  # no ridge along the middle
    slope_x, slope_y = (cv2.Sobel(height, cv2.CV_32F, dx, 1 - dx, scale=0.125) for dx in (1, 0))
    if part.tube:
        centre, half = part.tube
        x, y = np.arange(depth.shape[1], dtype=np.float32), np.arange(depth.shape[0], dtype=np.float32)[:, None]
        a, b, c = ((back[0] - (0, 0, centre)) / half).astype(np.float32)
        u = np.clip(a * x + b * y + c, -0.94, 0.94)
        rise = -u / np.sqrt(1 - u * u)
        axis = (back[0, :2] / np.hypot(*back[0, :2])).astype(np.float32)
        slope_x, slope_y = slope_x + rise * axis[0], slope_y + rise * axis[1]
    return slope_x, slope_y


def _shade_beneath(sprite, alpha, corner, reach, light):
    """Darken what lies under a raised part: its alpha, moved away from the light by `reach` pixels and blurred."""
    pad = int(2.2 * reach) + 2
    shadow = cv2.copyMakeBorder(alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    shift = np.float32([[1, 0, -light[0] * reach * 1.2], [0, 1, -light[1] * reach * 1.2]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(shadow, shift, shadow.shape[::-1]), (0, 0), 0.5 + 0.4 * reach)
    x, y = corner[0] - pad, corner[1] - pad
    roi = sprite[:3, max(y, 0) : y + shadow.shape[0], max(x, 0) : x + shadow.shape[1]]
    roi *= 1 - np.float32(0.5) * shadow[max(-y, 0) :, max(-x, 0) :][: roi.shape[1], : roi.shape[2]]
