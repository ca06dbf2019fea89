"""Training worlds: seeded low-poly scenes, drawn in software, with exact poses and actions.

`render` is the one call; families of scenes live in their own modules, each with ``build(rng, variant) -> Scene``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from distill.dataset import Clip
from worldmodel.actions import Action, as_actions, to_array
from worldmodel.camera import intrinsics_from_fov

if TYPE_CHECKING:
    from distill.scenes.renderer import Renderer
    from distill.scenes.scene import Scene
    from distill.scenes.walk import Space

__all__ = [
    "FAMILIES", "GALLERY_SEEDS", "RESERVED_SEED", "RESERVED_START", "Clip", "build_scene", "check_trainable", "depth_maps", "family_of",
    "render", "start_pose",
]  # fmt: skip

FAMILIES = ("village", "castle", "rooms", "wild")
GALLERY_SEEDS = range(24)
"""Two dozen fixed worlds, six of each family, for training on few worlds."""
RESERVED_SEED = 1_000_000
"""Scenes from this seed on are for evaluation and never trained on."""
RESERVED_START = 1_000
"""Start views from this index on are for evaluation and never trained on."""
FOV = 70.0
FPS = 16.0


def family_of(seed: int) -> str:
    return FAMILIES[seed % len(FAMILIES)]


def build_scene(seed: int) -> Scene:
    """The scene of a seed; the gallery's seeds make clearly different variants of each family."""
    if seed < 0:
        raise ValueError(f"A scene seed is not negative, got {seed}.")
    family = import_module(f"distill.scenes.{family_of(seed)}")
    return family.build(np.random.default_rng(seed), variant=seed // len(FAMILIES) if seed in GALLERY_SEEDS else None)


def check_trainable(seed: int, start: int = 0) -> None:
    """Raise ValueError if a scene or start view is kept for evaluation."""
    if not 0 <= seed < RESERVED_SEED:
        raise ValueError(f"Scene seed {seed} is reserved for evaluation: train on seeds 0 to {RESERVED_SEED - 1}.")
    if not 0 <= start < RESERVED_START:
        raise ValueError(f"Start view {start} is reserved for evaluation: train on starts 0 to {RESERVED_START - 1}.")


@dataclass(frozen=True)
class _World:
    scene: Scene
    space: Space
    renderer: Renderer


@lru_cache(maxsize=24)
def _world(seed: int) -> _World:
    from distill.scenes.renderer import Renderer
    from distill.scenes.walk import Space

    scene = build_scene(seed)
    return _World(scene, Space(scene), Renderer(scene, (64, 64), supersample=1, fov=FOV))


@lru_cache(maxsize=4096)
def _start(seed: int, start: int) -> bytes:
    from distill.scenes.walk import start_view

    world = _world(seed)
    return start_view(world.space, seed, start, world.renderer.frame).tobytes()


def start_pose(seed: int, start: int) -> np.ndarray:
    """Camera-to-world float64 [4, 4] of a scene's start view, in scene axes."""
    return np.frombuffer(_start(seed, start)).reshape(4, 4).copy()


def render(
    seed: int, script_or_actions: str | np.ndarray | Iterable[Action], start: int = 0, size: tuple[int, int] = (128, 128), fps: float = FPS,
    depth: bool = False,
) -> Clip:  # fmt: skip
    """The clip of a walk: frame 0 is the start view, then one frame per action, so T = 1 + number of actions.

    Args:
        seed: which scene.
        script_or_actions: a script (``"w*16 left*8"``), an array [T - 1, 13], or actions; magnitudes are per frame at 16 fps.
        start: which start view.
        size: (height, width) in pixels.
        fps: frames per second; motion per frame is scaled by 16 / fps.
        depth: whether the clip gets its `depth` (see `depth_maps`).

    Returns:
        A `Clip` whose poses are in scene axes (x east, y north, z up, metres) and whose actions are what really happened:
        translations into obstacles are cut.
    """
    from distill.scenes.walk import walk

    world = _world(seed)
    wanted = to_array(as_actions(script_or_actions))
    if fps != FPS:
        wanted[:, :-1] *= FPS / fps
    poses, actions = walk(world.space, start_pose(seed, start), wanted)
    draw = world.renderer.at(tuple(size), supersample=2)
    frames = np.stack([draw.frame(pose) for pose in poses])
    return Clip(
        frames, poses.astype(np.float32), intrinsics_from_fov(FOV, size), actions, world.scene.caption, world.scene.step, seed, start, float(fps),
        depth_maps(seed, poses, size) if depth else None,
    )  # fmt: skip


def depth_maps(seed: int, poses: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth float32 [T, H, W] of a scene from poses [T, 4, 4]: metres along the camera's axis at the centre of each pixel.

    It comes in steps of 1/4096 of 120 m (20 m indoors), and is infinite beyond that and for the sky.
    """
    draw = _world(seed).renderer.at(tuple(size), supersample=1)
    return np.stack([draw.depth(pose) for pose in poses])
