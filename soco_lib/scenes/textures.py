"""What generated scenes are made of: the photographs inside scikit-image's wheel and tileable textures."""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import skimage

from soco_lib import BookError

#: name -> how often it is a background, in proportion.
PHOTOGRAPHS = dict.fromkeys(("astronaut", "chelsea", "coffee", "motorcycle_left"), 3)
PHOTOGRAPHS |= {"motorcycle_right": 2, "rocket": 2, "gravel": 1.5, "brick": 1.5, "grass": 1.5, "hubble_deep_field": 1}
PHOTOGRAPHS |= {"ihc": 0.7, "retina": 0.7, "camera": 1, "moon": 0.5, "coins": 0.8}


@lru_cache(maxsize=1)
def photographs() -> dict[str, np.ndarray]:
    """The photographs inside scikit-image's wheel, name -> (H, W, 3) uint8 RGB; the retina without its black rim."""
    folder = Path(skimage.__file__).parent / "data"
    found = {p.stem: cv2.imread(str(p))[..., ::-1] for p in sorted(folder.glob("*.[jp][pn]g")) if p.stem in PHOTOGRAPHS}
    if missing := set(PHOTOGRAPHS) - set(found):
        raise BookError(f"scikit-image's wheel lacks {', '.join(sorted(missing))} in {folder}: install 0.25 or 0.26")
    found["retina"] = found["retina"][300:1111, 250:1161]
    return found


@lru_cache(maxsize=1)
def textures() -> dict[str, np.ndarray]:
    """Tileable textures, name -> (256, 256) float32 in 0..1: procedural ones and scikit-image's texture photographs."""
    rng, n = np.random.default_rng(0), 256
    y, x = np.mgrid[:n, :n] / n
    frequency = np.hypot(*np.meshgrid(*[n * np.fft.fftfreq(n)] * 2))
    low = lambda cut: np.fft.ifft2(np.fft.fft2(rng.normal(size=(n, n))) / (1 + (frequency / cut) ** 3)).real
    filtered = [low(3), low(24)]
    clouds, fine = (np.clip(0.5 + 0.25 * noise / noise.std(), 0, 1) for noise in filtered)
    wobble = 0.02 * (clouds - 0.5)
    soft = lambda v, k=6: 1 / (1 + np.exp(-k * v))
    bank = {
        "clouds": clouds,
        "fine": 0.75 + 0.25 * (0.5 * clouds + 0.5 * fine),
        "stripes": soft(np.sin(2 * np.pi * (6 * x + wobble * 6))) * (0.85 + 0.15 * fine),
        "checks": soft(4 * np.sin(8 * np.pi * x) * np.sin(8 * np.pi * y), 4) * (0.8 + 0.2 * clouds),
        "dots": soft(np.cos(12 * np.pi * x) + np.cos(12 * np.pi * y) - 0.7, 8) * (0.8 + 0.2 * fine),
        "scales": np.clip(
            0.25 + 1.5 * ((16 * x + 0.5 * (np.floor(16 * y) % 2)) % 1 - 0.5) ** 2 + 0.5 * ((16 * y) % 1), 0, 1
        ),
        "grain": np.clip(0.5 + 0.3 * np.sin(2 * np.pi * (9 * x + 3 * clouds)) + 0.5 * (fine - 0.5), 0, 1),
    }
    for name in ("brick", "gravel", "grass", "moon"):
        grey = cv2.cvtColor(np.ascontiguousarray(photographs()[name]), cv2.COLOR_RGB2GRAY)[:384, :384]
        grey = cv2.resize(grey, (n // 2, n // 2), interpolation=cv2.INTER_AREA)
        low, high = np.percentile(grey, (2, 98))
        grey = np.clip((grey - low) / (high - low), 0, 1)
        bank[name] = np.block([[grey, grey[:, ::-1]], [grey[::-1], grey[::-1, ::-1]]])  # mirrored: no seam
    return {name: np.ascontiguousarray(t, np.float32) for name, t in bank.items()}


@lru_cache(maxsize=64)
def shrunk(name: str, size: int) -> np.ndarray:
    """A texture at (size, size), for objects so small that the full one would alias."""
    return cv2.resize(textures()[name], (size, size), interpolation=cv2.INTER_AREA)
