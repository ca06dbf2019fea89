"""Where a world begins, and the note beside a saved one from which that is known again."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from worldmodel.images import ImageError, load_start_image
from worldmodel.server import protocol as p
from worldmodel.server.branches import NotPossible


@dataclass(frozen=True)
class Origin:
    """A gallery world or a picture, a prompt, a seed."""

    picture: Path | Image.Image | None
    prompt: str
    seed: int
    gallery: str | None = None
    image: str | None = None
    file: Path | None = None  # an uploaded world, in which everything else is told
    notice: str | None = None  # what the visitor is to be told of their picture

    @classmethod
    def in_gallery(cls, entry: Any) -> Origin:
        return cls(Path(entry.image_path), entry.prompt, 0, gallery=entry.name)

    def changed(self, wanted: p.Reset | p.Hello) -> Origin:
        """With the prompt and seed of a message, where it has any."""
        changes = {name: getattr(wanted, name) for name in ("prompt", "seed") if getattr(wanted, name) is not None}
        return replace(self, **changes) if changes else self

    @cached_property
    def png(self) -> str | None:
        """An uploaded picture, for the note; gallery pictures are found by name."""
        if not isinstance(self.picture, Image.Image):
            return None
        out = io.BytesIO()
        self.picture.save(out, "PNG")
        return base64.b64encode(out.getvalue()).decode()

    def note(self) -> dict[str, Any]:
        """What is saved of it, as JSON."""
        return {"gallery": self.gallery, "image": self.image, "png": self.png, "prompt": self.prompt, "seed": self.seed}

    @classmethod
    def from_note(cls, note: dict[str, Any], meta: dict[str, Any], gallery: Iterable[Any], size: tuple[int, int]) -> Origin:
        """The origin of a saved world. The file may be anybody's, so nothing in it is taken at its word."""
        entry = next((e for e in gallery if e.name == note.get("gallery")), None)
        picture = Path(entry.image_path) if entry else None
        if picture is None and isinstance(note.get("png"), str):
            try:
                picture = Image.fromarray(load_start_image(base64.b64decode(note["png"]), size))
            except (ImageError, ValueError):
                picture = None  # the world goes on all the same; it begins in the first gallery world when it is reset
        prompt = note.get("prompt", meta.get("start_prompt", ""))
        seed = note.get("seed", meta.get("seed", 0))
        return cls(
            picture,
            prompt[: p.MAX_PROMPT] if isinstance(prompt, str) else "",
            seed if isinstance(seed, int) and 0 <= seed < 2**32 else 0,
            entry.name if entry else None,
            note["image"] if isinstance(note.get("image"), str) and entry is None else None,
        )


def depth_of_start(model: Any, picture: Any) -> dict[str, Any]:
    """What the model's `start` takes of a picture's depth; not for the event loop, nor for the thread in which worlds are stepped: an
    estimator may take a second. Raises ImageError."""
    known = getattr(model, "start_depth", None)
    depth = None if known is None or picture is None else known(picture)
    return {} if depth is None else {"depth": depth}


def read_world(path: Path, model: Any) -> Any:
    """The `WorldState` in a visitor's file; raises `NotPossible` when it is none of this model's."""
    from worldmodel.world_file import WorldError, WorldState  # with torch, which a server of doubles does without

    try:
        return WorldState.load(path, model)
    except WorldError as error:
        raise NotPossible(str(error).replace(str(path), "The file")) from None
