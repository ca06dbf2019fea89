"""Files made for a visitor: their world, and a video of what they have seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldmodel.server import protocol as p
from worldmodel.server import timeline as tl
from worldmodel.server.branches import NotPossible
from worldmodel.server.files import Files, FileTooLarge

VIDEO_SIDE = 512
"""Small worlds are enlarged in videos until their longer side has about so many pixels."""


async def save_world(state: Any, files: Files) -> p.Saved:
    """The file of a `WorldState`."""
    return await _store("world", "world.world", "application/octet-stream", files, state.save)


async def save_video(recording: list[bytes], fps: float, files: Files) -> p.Saved:
    """An mp4 of frames as `timeline.Timeline.recording` has them."""
    from worldmodel.video import write_mp4

    if not recording:
        raise NotPossible("There is nothing to make a video of yet.")

    def write(path: Path) -> None:
        longer = max(next(tl.pictures(recording[:1])).shape[:2])
        write_mp4(path, tl.pictures(recording), fps, scale=max(1, VIDEO_SIDE // longer))

    return await _store("video", "world.mp4", "video/mp4", files, write)


async def _store(kind: str, name: str, media_type: str, files: Files, write: Callable[[Path], None]) -> p.Saved:
    path = files.new_path()
    try:
        await asyncio.to_thread(write, path)
        key = files.add(path, name, media_type)
    except (OSError, ValueError) as error:
        path.unlink(missing_ok=True)
        reason = str(error) if isinstance(error, FileTooLarge) else "The disk is full or cannot be written."
        raise NotPossible(f"The {kind} could not be saved. {reason}") from error
    size = files.get(key).size
    return p.Saved(kind=kind, url=f"api/v1/files/{key}", name=name, bytes=size, expires_in_s=files.seconds)
