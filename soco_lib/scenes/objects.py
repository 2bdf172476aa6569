"""The objects of generated scenes: ten categories with varying outlines, and how they are lit and textured.

An object is a list of parts, back to front. A part is an outline in the object's own frame (x right, y down, about one
unit large) and a material. `render` turns the parts into a sprite: antialiased, textured, lit from the scene's light.
Every number comes from the generator that the caller passes, so an object is a function of its seed.
"""

import colorsys

import numpy as np

from soco_lib.scenes.light import Part, paint_part

# --- outlines: all return (K, 2) float64


def _smooth(points, n=7):
    """Closed Catmull-Rom curve through `points` (K, 2): (K * n, 2)."""
    p = np.asarray(points, float)
    around = p[(np.arange(len(p))[:, None] + (-1, 0, 1, 2)) % len(p)]  # (K, 4, 2)
    t = np.arange(n)[:, None] / n
    weights = 0.5 * np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2])
    return (weights @ around).reshape(-1, 2)


def _arc(cx, cy, rx, ry, start=0.0, stop=360.0, n=40):
    """Ellipse arc from `start` to `stop` degrees, clockwise on the screen."""
    a = np.radians(np.linspace(start, stop, n))
    return np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a)], axis=1)


def _box(x1, y1, x2, y2):
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], float)


def _ribbon(points, width):
    """A polyline (K, 2) thickened to `width` (a number or one a point)."""
    p = np.asarray(points, float)
    tangent = np.concatenate([p[1:], p[-1:]]) - np.concatenate([p[:1], p[:-1]])
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1) / (np.hypot(*tangent.T)[:, None] + 1e-9)
    half = 0.5 * np.broadcast_to(width, len(p))[:, None]
    return np.concatenate([p + normal * half, (p - normal * half)[::-1]])


def _revolved(profile, n=8):
    """Upright body of revolution from (height, radius) pairs, top to bottom."""
    y, r = np.asarray(profile, float).T
    s = np.linspace(0, len(y) - 1, n * len(y))
    ease = np.floor(s) + (lambda f: f * f * (3 - 2 * f))(s % 1)
    y, r = np.interp(s, np.arange(len(y)), y), np.interp(ease, np.arange(len(r)), r)
    return np.concatenate([np.stack([r, y], 1), np.stack([-r, y], 1)[::-1]])


# --- materials


def _rgb(rng, hue=None, saturation=(0.15, 0.8), value=(0.42, 0.95)):
    """A random colour; `hue`: a centre to stray from, or None: mostly the warm ones and blues of real paints."""
    if hue is None:
        hue = rng.choice((0.0, 0.03, 0.07, 0.11, 0.15, 0.3, 0.57, 0.62, rng.uniform()))
    hue = (hue + rng.normal(0, 0.035)) % 1.0
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(*saturation), rng.uniform(*value)))


def _paint(rng, names=("fine", "fine", "clouds", "stripes", "dots", "checks", "gravel", "brick"), hue=None, **given):
    """Random material: colour, a second one that is its darker neighbour or another hue, and a texture of `names`."""
    name = str(rng.choice(names))
    colour = _rgb(rng, hue)
    contrast = name in ("stripes", "dots", "checks") and rng.uniform() < 0.6
    second = _rgb(rng) if contrast else colour * rng.uniform(0.45, 0.7)
    repeat, turn, gloss, bump = rng.uniform((0.5, 0, 0.05, 0.2), (1.3, np.pi, 0.6, 0.8)).tolist()
    made = dict(colour=tuple(colour), second=tuple(second), texture=name, repeat=repeat, turn=turn, gloss=gloss)
    return made | dict(bump=bump) | given


def _plain(colour, **given):
    colour = np.asarray(colour, float)
    return dict(colour=tuple(colour), second=tuple(0.75 * colour), gloss=0.3) | given


# --- categories: rng -> parts


def _bottle(rng):
    r, neck, shoulder, top = rng.uniform((0.22, 0.08, -0.45, -0.95), (0.36, 0.13, -0.05, -0.7))
    glass = _paint(rng, ("fine", "clouds"), gloss=rng.uniform(0.5, 0.9), tube=(0, r))
    waist = r * rng.uniform(0.85, 1.05)
    body = _revolved([(top, neck), (shoulder - 0.22, neck), (shoulder, r), (0.5, waist), (0.92, r), (0.99, 0.85 * r)])
    label = _box(-0.97 * r, shoulder + rng.uniform(0.12, 0.3), 0.97 * r, rng.uniform(0.5, 0.8))
    return [
        Part([body], **glass),
        Part([label], **_paint(rng, tube=(0, r), bump=0.1)),
        Part([_box(-1.25 * neck, top - 0.14, 1.25 * neck, top + 0.02)], **_plain(_rgb(rng), tube=(0, 1.25 * neck))),
    ]


def _car(rng):
    roof, front, rear, nose, wheel = rng.uniform((-0.5, -0.55, 0.45, -0.14, 0.17), (-0.34, -0.25, 0.9, -0.04, 0.22))
    paint = _paint(rng, ("fine", "fine", "fine", "clouds"), gloss=0.9, bump=0.05, relief=0.7)
    bonnet = [(-1, 0.16), (-1, 0.02), (-0.9, nose), (front - 0.08, nose - 0.06)]
    cabin = [(front + 0.22, roof), (0.1, roof - 0.03), (rear - 0.22, roof + 0.02)]
    body = _smooth(bonnet + cabin + [(rear, -0.1), (0.97, -0.07), (1, 0.16), (0.9, 0.21), (-0.9, 0.21)])
    pillar, sill = rng.uniform(0.02, 0.2), nose - 0.05
    glass = _plain((0.2, 0.26, 0.32), gloss=0.8, relief=0.5, texture="clouds", repeat=0.4)
    windows = [
        [(front + 0.06, sill), (front + 0.26, roof + 0.06), (pillar - 0.03, roof + 0.05), (pillar - 0.03, sill)],
        [(pillar + 0.03, sill), (pillar + 0.03, roof + 0.05), (rear - 0.27, roof + 0.07), (rear - 0.12, sill)],
    ]
    parts = [Part([body], **paint)] + [Part([np.array(w)], **glass) for w in windows]
    parts += [
        Part([_box(-0.98, 0.1, 0.98, 0.2)], **_plain(0.35 * np.array(paint["colour"]), relief=0.5)),
        Part([_arc(-0.93, nose + 0.09, 0.05, 0.05)], **_plain((0.95, 0.92, 0.75), gloss=1)),
        Part([_arc(0.96, 0.02, 0.03, 0.06)], **_plain((0.8, 0.1, 0.08), gloss=1)),
    ]
    for x in (-0.58, 0.58):
        disc = lambda y, r, x=x: [_arc(x, y, r * wheel, r * wheel)]
        parts += [
            Part(disc(0.2, 1.18), **_plain((0.06, 0.06, 0.07), gloss=0)),
            Part(disc(0.22, 1.0), **_plain((0.16, 0.16, 0.17), relief=0.4, texture="clouds", repeat=3)),
            Part(disc(0.22, 0.55), **_plain((0.75, 0.76, 0.78), gloss=0.9, texture="clouds", repeat=4)),
        ]
    return parts


def _fish(rng):
    h, tail, bulge = rng.uniform(0.24, 0.48), rng.uniform(0.22, 0.42), rng.uniform(-0.45, -0.1)
    skin = _paint(rng, ("scales", "scales", "stripes", "dots"), turn=rng.uniform(-0.3, 0.3), gloss=0.6)
    pale = tuple(0.9 * np.array(skin["second"]) + 0.08)
    fin = _paint(rng, ("grain",), repeat=1.2, turn=np.pi / 2, relief=0.3, colour=pale)
    above = [(-0.95, 0.02), (-0.75, -0.55 * h), (bulge, -h), (0.25, -0.6 * h), (0.66, -0.09)]
    body = _smooth(above + [(x, -y) for x, y in above[:0:-1]])
    fork, sail = rng.uniform((0.72, 0.12), (0.92, 0.28))
    back = [(bulge - 0.1, -0.9 * h), (bulge + 0.15, -h - sail), (0.4, -0.62 * h - 0.1), (0.4, -0.35 * h)]
    end = [(0.58, 0), (0.8, -0.8 * tail), (1.02, -tail), (fork, 0), (1.02, tail), (0.8, 0.8 * tail)]
    return [
        Part([_smooth(end)], **fin),
        Part([_smooth(back), _smooth([(bulge, 0.8 * h), (bulge + 0.3, h + 0.14), (bulge + 0.35, 0.6 * h)])], **fin),
        Part([body], **skin),
        Part([_smooth([(-0.35, 0.05), (-0.1, 0.02), (0.02, 0.2), (-0.15, 0.24)])], **fin | dict(lift=0.03)),
        Part([_arc(-0.68, -0.12 * h - 0.03, 0.065, 0.065)], **_plain((0.93, 0.9, 0.8))),
        Part([_arc(-0.69, -0.12 * h - 0.03, 0.035, 0.035)], **_plain((0.03, 0.03, 0.03), gloss=1)),
        Part([_ribbon([(-0.94, 0.06), (-0.85, 0.1), (-0.78, 0.1)], 0.02)], **_plain(0.3 * np.array(skin["colour"]))),
    ]


def _house(rng):
    w, h, ridge, eave = rng.uniform((0.5, 0.4, 0.35, 0.06), (0.8, 0.8, 0.65, 0.16))
    wall = _paint(rng, ("brick", "brick", "grain", "fine"), turn=0.0, repeat=0.7, relief=0.08, gloss=0.02)
    roof = _paint(rng, ("scales", "scales", "stripes", "brick"), turn=0.0, repeat=0.8, relief=0.1, gloss=0.05)
    side, depth = rng.choice([-1, 1]), rng.uniform(0, 0.5)
    x0, x1, back = side * w, side * (w + depth), 0.12 * depth
    tip = np.array([0.0, -ridge])
    shift = np.array([side * depth, -back])
    slope = np.array([x0 + side * eave, 0.6 * eave])
    parts = [Part([_box(side * 0.25, -ridge - 0.1, side * 0.45, 0)], **wall | dict(tone=0.85))]  # the chimney
    if depth > 0.1:
        parts += [
            Part([np.array([(x0, 0), (x1, -back), (x1, h - back), (x0, h)])], **wall | dict(tone=0.62)),
            Part([np.array([tip, tip + shift, slope + shift, slope])], **roof | dict(tone=0.9, lift=0.04)),
        ]
    parts += [Part([np.array([(-w, 0), tip, (w, 0), (w, h), (-w, h)])], **wall)]
    rim = _ribbon(np.array([[-w - eave, 0.6 * eave], tip, [w + eave, 0.6 * eave]]), 0.13)
    parts += [Part([rim], **roof | dict(lift=0.05))]
    door = rng.uniform(-0.6, 0.25) * w
    parts += [Part([_box(door, 0.35 * h, door + 0.35 * w, h)], **_paint(rng, ("grain",), turn=np.pi / 2, relief=0.15))]
    beside = [x for x in (-0.75 * w, 0.4 * w) if abs(x - door) > 0.38 * w]
    frame, pane = _plain((0.92, 0.9, 0.85), relief=0.2), _plain((0.2, 0.28, 0.36), gloss=0.9, texture="clouds")
    window = lambda x, inset: _box(x + inset, 0.2 * h + inset, x + 0.35 * w - inset, 0.62 * h - inset)
    if beside:
        parts += [Part([window(x, 0) for x in beside], **frame), Part([window(x, 0.04) for x in beside], **pane)]
    return parts + [Part([_arc(0, -0.35 * ridge, 0.1, 0.1)], **pane)]


def _key(rng):
    colour = _rgb(rng, rng.choice([0.12, 0.08, 0.6]), (0.08, 0.6), (0.6, 0.9))
    metal = _plain(colour, gloss=1.0, texture="clouds", repeat=1.5, relief=0.8)
    r, hole, shaft = rng.uniform((0.3, 0.4, 0.055), (0.42, 0.62, 0.085))
    a, lobes = np.radians(np.arange(0, 360, 6)), rng.choice([0, 0, 3, 4])
    bow = r * (1 + 0.16 * np.cos(lobes * a)) if lobes else np.full(len(a), r)
    ring = np.stack([-0.62 + bow * np.cos(a) * rng.uniform(0.75, 1.05), bow * np.sin(a)], 1)
    teeth = rng.uniform(0.12, 0.3, int(rng.integers(2, 5)))
    edge, x = [(-0.4, shaft), (0.95 - 0.15 * len(teeth), shaft)], 0.95 - 0.15 * len(teeth)
    for t in teeth:
        edge += [(x, shaft + t), (x + 0.1, shaft + t), (x + 0.1, shaft), (x + 0.15, shaft)]
        x += 0.15
    blade = np.array(edge + [(1, 0), (0.97, -shaft), (-0.4, -shaft)])
    return [
        Part([blade], **metal),
        Part([ring], hole=_arc(-0.62, 0, 0.9 * hole * r, hole * r), **metal),
        Part([_ribbon([(-0.28, -1.7 * shaft), (-0.28, 0), (-0.28, 1.7 * shaft)], 0.07)], **metal),
    ]


def _leaf(rng):
    w, peak = rng.uniform((0.28, 0.6), (0.55, 1.3))
    lobes, depth = int(rng.integers(5, 12)), rng.choice([0.03, 0.12, 0.3])
    t = np.linspace(0, 1, 90)
    half = w * np.sin(np.pi * t**peak) ** 0.9 * (1 - depth * (lobes * t % 1) * (t < 0.97))
    bend = rng.uniform(-0.25, 0.25)
    spine = lambda s: np.stack([2 * s - 1, bend * (4 * s * (1 - s))], -1)
    blade = np.concatenate([spine(t) + np.stack([0 * t, half], 1), (spine(t) - np.stack([0 * t, half], 1))[::-1]])
    hue = rng.choice([0.28, 0.22, 0.1, 0.02, rng.uniform()])
    skin = _paint(rng, ("clouds", "fine", "grass"), hue, gloss=0.35, relief=0.8)
    vein = _plain(np.minimum(1, np.array(skin["colour"]) * 1.25 + 0.08), relief=1.0)
    stalk = np.concatenate([[spine(0.0) + (-0.3, rng.uniform(-0.12, 0.12))], spine(np.linspace(0, 0.97, 20))])
    veins = [_ribbon(stalk, np.linspace(0.055, 0.015, 21))]
    for s in np.linspace(0.16, 0.78, 5):
        for sign in (-1, 1):
            end = spine(s + 0.13) + (0, sign * 0.78 * np.interp(s + 0.13, t, half))
            veins.append(_ribbon([spine(s), 0.5 * (spine(s) + end) + (0.03, 0), end], 0.018))
    return [Part([blade], **skin), Part(veins, **vein)]


def _mug(rng):
    w, h, taper = rng.uniform(0.42, 0.6), rng.uniform(0.5, 0.75), rng.uniform(0.72, 1.0)
    lip = w * rng.uniform(0.16, 0.34)
    glaze = _paint(rng, gloss=rng.uniform(0.4, 0.9), bump=0.15, tube=(0, w))
    bottom = _arc(0, h, taper * w, 0.8 * lip, 0, 180)
    outer, thick = rng.uniform(0.26, 0.4), rng.uniform(0.09, 0.14)
    handle = _ribbon(_arc(0.92 * w, -0.02 + 0.05 * h, outer, rng.uniform(0.55, 0.75) * h, -100, 100), thick)
    drink = _rgb(rng, rng.choice([0.06, 0.09, 0.3]), (0.3, 0.8), (0.15, 0.7))
    return [
        Part([handle], **glaze | dict(tube=None)),
        Part([np.concatenate([_arc(0, -h, w, lip, 180, 0), bottom])], **glaze),
        Part([_arc(0, -h, w, lip)], **glaze | dict(tube=None, relief=0.2, tone=1.08)),
        Part([_arc(0, -h, 0.9 * w, 0.84 * lip)], **_plain(0.6 * np.array(glaze["colour"]), tube=(0, -w), tone=0.8)),
        Part([_arc(0, -h + 0.25 * lip, 0.82 * w, 0.58 * lip)], **_plain(drink, gloss=0.5, relief=0.1)),
    ]


def _mushroom(rng):
    cap, dome, stem, foot = rng.uniform((0.55, 0.4, 0.12, 1.0), (0.85, 0.8, 0.22, 1.7))
    hue = rng.choice([0.02, 0.07, 0.1, rng.uniform()])
    skin = _paint(rng, ("clouds", "fine", "moon", "gravel"), hue, gloss=0.5)
    rim = 0.25 * cap * rng.uniform(0.6, 1.2)
    stalk = _revolved([(-0.1, stem), (0.3, 0.9 * stem), (0.75, stem * foot), (0.9, 0.8 * stem * foot)])
    lean = rng.uniform(-0.15, 0.15)
    stalk[:, 0] += lean * stalk[:, 1]
    cream = _rgb(rng, 0.11, (0.08, 0.3), (0.75, 0.95))
    crown = np.concatenate([_arc(0, 0, cap, dome, 180, 360), _arc(0, 0, cap, 0.55 * rim, 0, 180)])
    parts = [
        Part([_arc(0, 0, 0.97 * cap, rim)], **_plain(0.62 * cream, texture="stripes", repeat=2.0, gloss=0)),
        Part([stalk], **_plain(cream, texture="grain", tube=(0, 1.2 * stem), lift=0.0)),
        Part([crown], **skin | dict(lift=0.08)),
    ]
    spots = []
    for _ in range(int(rng.integers(0, 9))):
        a, s, size = np.radians(rng.uniform(200, 340)), rng.uniform(0.1, 0.8), rng.uniform(0.04, 0.1)
        spots.append(_arc(s * cap * np.cos(a), s * dome * np.sin(a), 1.2 * size, size, n=14))
    return parts + ([Part(spots, **_plain(cream, gloss=0.1, lift=0.01))] if spots else [])


def _starfish(rng):
    arms, inner, wave = int(rng.choice([5, 5, 5, 6])), rng.uniform(0.26, 0.42), rng.uniform(-0.25, 0.25)
    points = []
    for i in range(arms):
        a, reach = 2 * np.pi * i / arms + rng.normal(0, 0.06), rng.uniform(0.85, 1.05)
        arm = [(-0.13, 0.62 * reach), (wave * 0.5 - 0.06, reach), (wave * 0.5 + 0.06, reach), (0.13, 0.62 * reach)]
        points += [(r * np.cos(a + turn), r * np.sin(a + turn)) for turn, r in [*arm, (np.pi / arms, inner)]]
    names, repeat = ("dots", "gravel", "moon", "clouds"), rng.uniform(0.9, 1.6)
    skin = _paint(rng, names, repeat=repeat, bump=1.0, relief=0.9, gloss=0.25)
    angles = 2 * np.pi * np.arange(arms) / arms
    knobs = [_arc(s * np.cos(a), s * np.sin(a), 0.035, 0.035, n=12) for a in angles for s in (0.22, 0.42, 0.6)]
    pale = np.minimum(1, np.array(skin["colour"]) + 0.2)
    return [Part([_smooth(points)], **skin), Part(knobs, **_plain(pale, lift=0.01))]


def _umbrella(rng):
    dome, sag, length, hook = rng.uniform((0.5, 0.05, 0.7, 0.1), (0.85, 0.16, 1.1, 0.17))
    ribs, side, two = int(rng.integers(4, 8)), rng.choice([-1, 1]), rng.uniform() < 0.5
    cloth, other = _paint(rng, gloss=0.25, bump=0.2, relief=0.9), _rgb(rng)
    crook = _arc(side * hook, length, hook, hook, *((180, 10) if side > 0 else (0, 170)), n=16)
    shaft = _ribbon(np.concatenate([[(0, -dome - 0.12), (0, 0), (0, length - 0.02)], crook]), 0.055)
    parts = [
        Part([_arc(0, 0, 0.93, 0.16)], **_plain(0.4 * np.array(cloth["colour"]), relief=0.3)),
        Part([shaft], **_plain(_rgb(rng, 0.07, (0.2, 0.7), (0.25, 0.6)), gloss=0.6)),
    ]
    edges, s = -np.cos(np.pi * np.arange(ribs + 1) / ribs), np.linspace(0, 1, 10)
    rib = lambda x: np.stack([x * np.sin(np.pi / 2 * s), -dome * np.cos(np.pi / 2 * s)], 1)
    for i, (a, b) in enumerate(zip(edges[:-1], edges[1:])):
        hem = np.stack([a + (b - a) * s, -sag * np.sin(np.pi * s)], 1)
        face = dict(colour=tuple(other)) if two and i % 2 else {}
        tone = dict(tone=0.85 + 0.25 * np.sin(np.pi * (i + 0.5) / ribs))
        parts.append(Part([np.concatenate([rib(a), hem, rib(b)[::-1]])], **cloth | face | tone))
    return parts


#: name -> (parts from a generator, largest rotation either way in degrees, may be mirrored)
_SHAPES = {
    "bottle": (_bottle, 75, False),
    "car": (_car, 16, True),
    "fish": (_fish, 40, True),
    "house": (_house, 8, False),
    "key": (_key, 180, True),
    "leaf": (_leaf, 180, False),
    "mug": (_mug, 22, True),
    "mushroom": (_mushroom, 28, False),
    "starfish": (_starfish, 180, False),
    "umbrella": (_umbrella, 40, False),
}
CATEGORIES: tuple[str, ...] = tuple(_SHAPES)


def render(category: str, side: float, light: np.ndarray, rng: np.random.Generator, fit: tuple) -> np.ndarray:
    """Draw one object as a sprite.

    `side`: square root of its box area in pixels, less where the box would exceed `fit` (height, width). `light`: unit
    vector towards the light (x right, y down, z to the viewer). Returns (4, h, w) float32, 3 pixels wider than the
    object all around: RGB in 0..1, already multiplied by alpha, then alpha in 0..1. Raises KeyError for a category not
    in `CATEGORIES`.
    """
    build, swing, mirrored = _SHAPES[category]
    parts = build(rng)
    angle, aspect = np.radians(swing * rng.uniform(-1, 1)), np.exp(rng.uniform(-0.12, 0.12))
    flip = -1 if mirrored and rng.uniform() < 0.5 else 1
    c, s = np.cos(angle), np.sin(angle)
    pose = np.array([[c, -s], [s, c]]) @ np.diag([flip * aspect, 1 / aspect])
    points = np.concatenate([ring for part in parts for ring in part.rings]) @ pose.T
    low, extent = points.min(0), np.ptp(points, axis=0)
    scale = min(side / np.sqrt(extent.prod()), fit[1] / extent[0], fit[0] / extent[1])
    to_canvas = np.hstack([scale * pose, (3 - scale * low)[:, None]])
    w, h = np.ceil(scale * extent).astype(int) + 6
    sprite = np.zeros((4, h, w), np.float32)  # planes, not pixels: four times the speed of the arithmetic below
    for part in parts:
        paint_part(sprite, part, to_canvas, scale, light)
    return sprite
