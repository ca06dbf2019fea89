"""A stand-in for `WorldModel` with the same face: a picture that pans, zooms and rolls with the camera.

Deterministic: the same start picture and actions give the same pixels. `step_s` is how long a chunk takes.
"""

from __future__ import annotations

import asyncio
import copy
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from worldmodel.actions import Action, as_actions, to_array
from worldmodel.images import load_start_image

FAMILIES = {
    "meadow": ((86, 156, 233), (214, 236, 250), (96, 168, 72), (58, 120, 60)),
    "dusk": ((92, 74, 140), (246, 152, 122), (122, 104, 84), (72, 62, 70)),
    "snow": ((150, 188, 222), (236, 244, 250), (232, 238, 246), (176, 192, 214)),
    "desert": ((120, 178, 226), (250, 226, 186), (226, 186, 112), (178, 128, 80)),
    "night": ((16, 24, 62), (62, 72, 128), (44, 84, 84), (24, 46, 60)),
    "island": ((70, 170, 230), (196, 238, 246), (120, 200, 96), (64, 150, 170)),
}


@dataclass(frozen=True)
class GalleryWorld:
    name: str
    prompt: str
    image_path: Path
    family: str


@dataclass(frozen=True)
class MemoryTile:
    latent: int
    at: int
    factor: int
    tokens: int
    pose: np.ndarray


@dataclass(frozen=True)
class Chunk:
    frames: np.ndarray
    camera_to_world: np.ndarray
    actions: np.ndarray
    index: int
    timings: dict[str, float] = field(default_factory=dict)


def landscape(family: str, side: int) -> np.ndarray:
    """uint8 [side, side, 3]: sky, two ridges, some trees."""
    top, low, ground, far = (np.asarray(c, float) for c in FAMILIES[family])
    rng = np.random.default_rng(sum(map(ord, family)))
    y, x = np.mgrid[0:side, 0:side] / side
    picture = top + (low - top) * np.clip(y / 0.55, 0, 1)[..., None]
    for base, colour, height in ((0.52, far, 0.10), (0.66, ground, 0.05)):
        waves = sum(
            a * np.sin(2 * np.pi * (k * x[0] + ph))
            for k, a, ph in ((1, 0.6, rng.random()), (2, 0.3, rng.random()), (5, 0.15, rng.random()))
        )
        mask = y > (base - height * waves)[None]
        shade = 1.0 + 0.18 * (y - base) + 0.03 * np.sin(40 * (x + 2 * y))
        picture = np.where(mask[..., None], colour * shade[..., None], picture)
    for _ in range(9):
        cx, cy, r = rng.random(), 0.6 + 0.3 * rng.random(), 0.02 + 0.04 * rng.random()
        trunk = (abs(x - cx) < r / 6) & (y < cy) & (y > cy - 2 * r)
        crown = (x - cx) ** 2 + (y - (cy - 2.5 * r)) ** 2 < r * r
        picture[trunk] = (84, 62, 48)
        picture[crown] = far * 0.7
    return picture.clip(0, 255).astype(np.uint8)


def _assert_off_the_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise AssertionError("the model must not run on the event loop")


class FakeWorld:
    def __init__(self, model: FakeModel, first_frame: np.ndarray, prompt: str, seed: int) -> None:
        self._model, self.first_frame, self.prompt, self.seed = model, first_frame, prompt, seed
        self._source = Image.fromarray(np.tile(first_frame, (3, 3, 1)))
        self._x = self._y = self._zoom = self._roll = 0.0
        self.index, self._finalized = 0, True
        self.log: list[Action] = []
        self.last_frame = first_frame
        self.memory_bytes, self.memory_tokens, self.tiles = 1000, 10, [MemoryTile(0, 0, 1, 10, np.eye(4))]

    def step(self, actions: Action | list[Action]) -> Chunk:
        chunk = self.generate(actions)
        self.finalize()
        return chunk

    def generate(self, actions: Action | list[Action]) -> Chunk:
        _assert_off_the_event_loop()
        assert self._finalized, "generate was called before the last chunk was finalized"
        begun = time.perf_counter()
        if self._model.fail_next:
            self._model.fail_next = False
            raise RuntimeError("the double was told to fail")
        actions = [actions] * self._model.chunk_frames if isinstance(actions, Action) else as_actions(actions)
        frames = [self._render(action) for action in actions]
        self.log.extend(actions)
        self.last_frame = frames[-1]
        chunk = Chunk(np.stack(frames), np.tile(np.eye(4, dtype=np.float32), (len(frames), 1, 1)), to_array(actions), self.index)
        self.index, self._finalized = self.index + 1, False
        time.sleep(max(0.0, 0.8 * self._model.step_s - (time.perf_counter() - begun)))
        return chunk

    def finalize(self) -> None:
        _assert_off_the_event_loop()
        time.sleep(0.2 * self._model.step_s)
        self._finalized = True

    @property
    def reach(self) -> int:
        return self.index

    @property
    def path(self) -> list[tuple[int, np.ndarray]]:
        return [(at, np.eye(4)) for at in range(self.index + 1)]

    def rewinding(self, chunks: int):
        """In two pieces: what was done before is done again."""
        yield
        log = self.log[: (self.index - chunks) * self._model.chunk_frames]
        self._x = self._y = self._zoom = self._roll = 0.0
        self.last_frame = [self.first_frame, *(self._render(action) for action in log)][-1]
        self.index, self.log = self.index - chunks, log

    def fork(self) -> FakeWorld:
        other = copy.copy(self)
        other.log = list(self.log)
        self._model.worlds.append(other)
        return other

    def _render(self, action: Action) -> np.ndarray:
        height, width = self._model.size
        m = action.magnitudes
        self._x += (m[3] - m[2]) * width / 60 + (m[9] - m[8]) * width / 50
        self._y += (m[5] - m[4]) * height / 80 + (m[7] - m[6]) * height / 60
        self._zoom = float(np.clip(self._zoom + (m[0] - m[1]) * 0.015, -0.3, 1.2))
        self._roll += (m[10] - m[11]) * np.deg2rad(1.25)
        scale, c, s = np.exp(-self._zoom), np.cos(self._roll), np.sin(self._roll)
        a, b, d, e = scale * c, scale * s, -scale * s, scale * c
        cx, cy = (
            1.5 * width + self._x % width - width * (self._x % width > width / 2),
            1.5 * height + np.clip(self._y, -height / 2, height / 2),
        )
        affine = (a, b, cx - a * width / 2 - b * height / 2, d, e, cy - d * width / 2 - e * height / 2)
        return np.asarray(self._source.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))


class FakeModel:
    """`step_s` seconds a chunk; `folder` receives the gallery's pictures."""

    def __init__(self, folder: Path, size: tuple[int, int] = (128, 128), step_s: float = 0.02) -> None:
        self.size, self.fps, self.chunk_frames, self.step_s = size, 16, 4, step_s
        self.fail_next = False
        self.worlds: list[FakeWorld] = []
        self.gallery = []
        for family in FAMILIES:
            path = Path(folder) / f"{family}.png"
            Image.fromarray(landscape(family, max(size))).save(path)
            self.gallery.append(GalleryWorld(family, f"a {family} world, low-poly", path, family))

    def start(self, image: str | Path | Image.Image | None, prompt: str = "", seed: int = 0, history: int | None = None) -> FakeWorld:
        _assert_off_the_event_loop()
        if image is None:
            image = self.gallery[0].image_path
        self.worlds.append(FakeWorld(self, load_start_image(image, self.size), prompt, seed))
        return self.worlds[-1]
