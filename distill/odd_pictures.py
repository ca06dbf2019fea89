"""Pictures of many kinds that nobody trained on: made by code, and photographs and drawings in packages that happen to be installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from worldmodel.images import load_start_image

SIDE = 128
PACKAGED = {
    "photographs": (
        "gradio/media_assets/images/cheetah1.jpg", "gradio/media_assets/images/cheetah.jpg", "gradio/media_assets/images/groot.jpeg",
        "gradio/media_assets/images/lion.jpg", "gradio/media_assets/images/tower.jpg", "gradio/test_data/cheetah2.jpg",
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg", "panda3d/models/maps/envir-rock1.jpg",
    ),
    "drawings and textures": (
        "gradio/media_assets/images/logo.png", "gradio/media_assets/images/hf-logo_transpng.png",
        "panda3d/models/maps/panda-model.jpg", "panda3d/models/maps/envir-mountain1.png", "panda3d/models/maps/envir-mountain2.png",
        "panda3d/models/maps/envir-tree2.png", "panda3d/models/maps/envir-bamboo.png", "panda3d/models/maps/envir-ground.jpg",
    ),
}  # fmt: skip
"""Kind -> files inside packages."""


def packaged_pictures(size: tuple[int, int] = (SIDE, SIDE)) -> dict[str, list[np.ndarray]]:
    """Kind -> pictures uint8 [H, W, 3], of those files that are here."""
    out: dict[str, list[np.ndarray]] = {}
    for kind, files in PACKAGED.items():
        for file in files:
            package, _, inside = file.partition("/")
            spec = find_spec(package)
            path = Path(next(iter(spec.submodule_search_locations))) / inside if spec and spec.submodule_search_locations else None
            if path is not None and path.exists():
                out.setdefault(kind, []).append(load_start_image(path, size))
    return out


def made_pictures(seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Kind -> pictures uint8 [256, 256, 3] made by code, of squares of 2x2 pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    grey = [rng.integers(0, 256, (SIDE, SIDE, 1)), *((x // k + y // k)[..., None] % 2 * 255 for k in (4, 16, 32))]
    noise, *boards = (np.repeat(picture, 3, 2).astype(np.uint8) for picture in grey)
    ramps = [x / SIDE * 255, y / SIDE * 255, np.hypot(x - 64, y - 64) * 2.8]
    tints = rng.uniform(0.4, 1, (3, 3))
    kinds = {
        "noise": [noise, rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)],
        "clouds of noise": [_clouds(rng, colour) for colour in (0.0, 0.4, 0.4)],
        "checkerboards": boards,
        "one colour": [np.full((SIDE, SIDE, 3), colour, np.uint8) for colour in ((0,) * 3, (255,) * 3, (80, 150, 230), (128, 96, 64))],
        "gradients": [(r[..., None] * tint).clip(0, 255).astype(np.uint8) for r, tint in zip(ramps, tints, strict=True)],
        "text": [_drawn(_text), _drawn(_text, "black")],
        "lines and circles": [_drawn(lambda d: _lines(d, rng)), _drawn(lambda d: _circles(d, rng)), _drawn(lambda d: _circles(d, rng))],
        "a drawn face": [_drawn(_face, (190, 180, 170))],
    }
    return {kind: [picture.repeat(2, 0).repeat(2, 1) for picture in pictures] for kind, pictures in kinds.items()}


def _clouds(rng: np.random.Generator, colour: float) -> np.ndarray:
    """Noise with the spectrum of photographs, 1/f, which differs by `colour` between channels"""
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    f[0, 0] = 1
    waves = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIDE, SIDE))) / f).real for _ in range(4)]
    common, *own = ((w - w.mean()) / w.std() for w in waves)
    return (128 + 45 * np.stack([common + colour * o for o in own], -1)).clip(0, 255).astype(np.uint8)


def _drawn(draw: Callable[[ImageDraw.ImageDraw], None], ground: str | tuple[int, ...] = "white") -> np.ndarray:
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    draw(ImageDraw.Draw(picture))
    return np.array(picture)


def _text(draw: ImageDraw.ImageDraw) -> None:
    for i in range(12):
        draw.text((2, 2 + 10 * i), "the quick brown fox jumps", fill=(90, 90, 90))


def _lines(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    for _ in range(30):
        draw.line([tuple(map(float, p)) for p in rng.uniform(0, SIDE, (3, 2))], fill="black")


def _circles(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    for _ in range(500):
        (cx, cy), r = rng.uniform(0, SIDE, 2), min(45, 2 / (rng.uniform() + 0.03))
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=tuple(map(int, rng.integers(0, 256, 3))))


def _face(draw: ImageDraw.ImageDraw) -> None:
    draw.ellipse((34, 20, 94, 100), fill=(230, 190, 160))
    draw.pieslice((30, 10, 98, 70), 180, 360, fill=(60, 40, 30))
    for left in (48, 70):
        draw.ellipse((left, 50, left + 10, 56), fill=(40, 30, 30))
    draw.arc((52, 66, 76, 84), 20, 160, fill=(150, 60, 60), width=3)
    draw.rectangle((24, 98, 104, 128), fill=(40, 60, 110))
