"""Many walks to disk: which clip an index is, and worker processes that render and write them.

A clip depends on nothing but its index and the settings, so a run can be stopped and continued, and a longer run contains
the shorter one. Files are those of `distill.dataset`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from distill.dataset import paths, write_clip, write_index
from distill.scenes import RESERVED_START, check_trainable, family_of, render, start_pose

CACHED_SCENES = 24  # scenes that a worker keeps; with more seeds than that, clips are rendered seed by seed
_TRIES = 4  # scripts tried per clip, to find one that does not run into walls much
_BLOCKED = 0.12  # share of frames that may be cut without trying another script


@dataclass(frozen=True)
class Settings:
    """What a data set is made of."""

    seeds: tuple[int, ...]
    frames: int = 81
    size: int = 128  # pixels, height and width
    level: float = 1.0  # curriculum of `random_script`
    speed: tuple[float, float] = (1.0, 1.0)  # range of magnitudes, one drawn per clip
    draw: int = 0  # another number gives other walks in the same scenes

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("A data set needs at least one scene seed, for example --seeds 0-23.")
        for seed in self.seeds:
            check_trainable(seed)
        if self.frames < 2 or self.size < 8 or not 0 <= self.level <= 1 or not 0 < self.speed[0] <= self.speed[1]:
            raise ValueError(f"Settings need frames >= 2, size >= 8, level in 0..1 and 0 < slow <= fast speed, got {self}.")


def clip_stem(folder: str | Path, index: int) -> Path:
    return Path(folder) / f"clip{index:06d}"


def make_clip(settings: Settings, index: int):
    """The clip of an index from 1, and the kind of its script: (Clip, str)."""
    from distill.scenes import _world
    from distill.scenes.trajectories import KINDS, random_script
    from distill.scenes.walk import walk
    from worldmodel.actions import to_array

    seed = settings.seeds[(index - 1) % len(settings.seeds)]
    rng = np.random.default_rng([index, seed, settings.draw])
    start = int(rng.integers(RESERVED_START))
    check_trainable(seed, start)
    kind = KINDS[0] if rng.uniform() < 0.4 else KINDS[1 + int(rng.integers(len(KINDS) - 1))]
    best, least = None, np.inf
    for _ in range(_TRIES):
        wanted = to_array(random_script(rng, settings.frames - 1, settings.level, kind, settings.speed))
        _, done = walk(_world(seed).space, start_pose(seed, start), wanted)
        blocked = float((np.abs(done[1:] - wanted) > 1e-6).any(1).mean())
        if blocked < least:
            best, least = wanted, blocked
        if blocked <= _BLOCKED:
            break
    return render(seed, best, start, (settings.size, settings.size)), kind


def write_dataset(folder: str | Path, settings: Settings, clips: int, workers: int = 1) -> Iterator[int]:
    """Render clips 1..`clips` that are not there yet; yields the index of each as it is done.

    Closing the iterator (or Ctrl-C) lets the clips under way finish and writes the index.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder, settings)
    todo = missing(folder, clips)
    if len(settings.seeds) > CACHED_SCENES:
        todo.sort(key=lambda i: ((i - 1) % len(settings.seeds), i))
    try:
        if workers <= 1:
            for index in todo:
                _write(settings, str(folder), index)
                yield index
            return
        with one_thread_each():
            pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=start_worker)
            try:
                futures = {pool.submit(_write, settings, str(folder), index): index for index in todo}
                for future in as_completed(futures):
                    future.result()
                    yield futures[future]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    finally:
        write_index(folder)


def missing(folder: str | Path, clips: int) -> list[int]:
    """Indices in 1..`clips` whose files are not complete."""
    names = set(os.listdir(folder)) if Path(folder).exists() else set()
    return [i for i in range(1, clips + 1) if not all(p.name in names for p in paths(clip_stem(folder, i)))]


def contact_sheet(seeds: tuple[int, ...], size: int = 128, columns: int = 8) -> np.ndarray:
    """uint8 [len(seeds) * size, columns * size, 3]: the first start views of each scene, one row a scene."""
    rows = [np.concatenate([render(seed, np.zeros((0, 13)), k, (size, size)).frames[0] for k in range(columns)], 1) for seed in seeds]
    return np.concatenate(rows)


def _write(settings: Settings, folder: str, index: int) -> None:
    clip, kind = make_clip(settings, index)
    write_clip(clip_stem(folder, index), clip, family=family_of(clip.seed), level=settings.level, kind=kind)


def _check_settings(folder: Path, settings: Settings) -> None:
    """Refuse to mix clips of different settings in one folder."""
    file, mine = folder / "settings.json", json.loads(json.dumps(asdict(settings)))
    if file.exists() and (there := json.loads(file.read_text())) != mine:
        changed = ", ".join(f"{k} ({there.get(k)}, now {v})" for k, v in mine.items() if there.get(k) != v)
        raise ValueError(f"{folder} was begun with other settings: {changed}. Use the same settings or another folder.")
    file.write_text(json.dumps(mine) + "\n")


def start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; clips under way finish


@contextmanager
def one_thread_each():
    """Child processes started inside use one thread for their maths."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
