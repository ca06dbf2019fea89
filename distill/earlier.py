"""Earlier weights measured by today's suite: an adapter that runs them with the code of their own time, in a process of its own.

    mkdir then && git archive COMMIT worldmodel | tar -x -C then
    worldmodel eval --adapter distill.earlier:load --model then --suite quick --walks 8 --out results

The model is the packaged ``tiny`` of that folder. Frames come back as they were made; only what `worldmodel eval` needs is asked.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

WORKER = """
import pickle, sys
answers, sys.stdout = sys.stdout.buffer, sys.stderr  # nothing that is printed gets between the answers
from worldmodel.actions import Action
from worldmodel.model import WorldModel
model, world = WorldModel.from_pretrained("tiny"), None
facts = {"size": tuple(model.config.size), "chunk_frames": model.chunk_frames, "fps": model.fps, "fingerprint": model.fingerprint}
def answer(what):
    pickle.dump(what, answers)
    answers.flush()
answer(facts | {"steps": model.config.sampler.steps})
while True:
    try:
        asked = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    if isinstance(asked, tuple):
        world = model.start(asked[0], asked[1], asked[2])
        answer(world.first_frame)
    else:
        answer(world.step([Action.from_vector(a) for a in asked]).frames)
"""


class EarlierModel:
    """The packaged model of a folder with an earlier ``worldmodel``; it has one world at a time."""

    def __init__(self, folder: str | Path) -> None:
        if not (Path(folder) / "worldmodel" / "model.py").exists():
            raise ValueError(f"{folder} has no worldmodel/ in it: `git archive COMMIT worldmodel | tar -x -C {folder}` puts one there.")
        place = {"cwd": folder, "env": os.environ | {"PYTHONPATH": str(Path(folder).resolve())}}
        self._process = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **place)
        facts = self._read()
        self.size, self.chunk_frames, self.fps = facts["size"], facts["chunk_frames"], facts["fps"]
        self.fingerprint = f"{facts['fingerprint']}-{facts['steps']}"

    def start(self, image: np.ndarray, prompt: str, seed: int) -> SimpleNamespace:
        """A new world in the place of the last one: `first_frame`, and `step(actions)` with its `frames` uint8 [T, H, W, 3]."""
        first = self._ask((np.asarray(image), prompt, seed))
        return SimpleNamespace(first_frame=first, step=lambda actions: SimpleNamespace(frames=self._ask([a.to_vector() for a in actions])))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, what: Any) -> Any:
        pickle.dump(what, self._process.stdin)
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        try:
            return pickle.load(self._process.stdout)  # from our own child
        except EOFError as error:
            raise RuntimeError(f"The earlier model ended with code {self._process.wait()}; what it said is above.") from error


load = EarlierModel
