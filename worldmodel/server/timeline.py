"""What a visitor has seen: a moment for every chunk, with a thumbnail and the frames as pictures, so that one can go back or take a video
home. Bounded in moments and bytes; the oldest go first.
"""

from __future__ import annotations

import asyncio
import io
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from worldmodel.server import protocol as p

THUMBNAIL_SIDE = 96
RECORDING_QUALITY = 90


@dataclass
class Moment:
    """After `at` chunks. `thumbnail` names the picture that was seen then; `frames` are the chunk's as JPEG, none where they are gone."""

    at: int
    pose: list[float]
    thumbnail: int | None = None
    frames: tuple[bytes, ...] = ()


class Thumbnails:
    """Small pictures by number, the newest `limit`; shared by all timelines of a session."""

    def __init__(self, limit: int) -> None:
        self._limit, self._last = limit, 0
        self._pictures: dict[int, bytes] = {}

    def number(self) -> int:
        """Of a picture that is put here in a moment."""
        self._last += 1
        return self._last

    def put(self, number: int, picture: bytes) -> None:
        self._pictures[number] = picture
        while len(self._pictures) > self._limit:
            del self._pictures[next(iter(self._pictures))]

    async def wait_for(self, number: int) -> bytes | None:
        """None when there is no such picture any more, or none came in time."""
        oldest = next(iter(self._pictures), 0)
        for _ in range(40):
            if number in self._pictures or not oldest <= number <= self._last:
                break
            await asyncio.sleep(0.025)
        return self._pictures.get(number)


class Timeline:
    """Moments in order, the newest `limit`; frames of at most `limit_bytes`."""

    def __init__(self, limit: int, limit_bytes: int, moments: Iterable[Moment] = ()) -> None:
        self._limit, self._limit_bytes = limit, limit_bytes
        self._moments: deque[Moment] = deque(moments)
        self._bytes = sum(len(frame) for moment in self._moments for frame in moment.frames)

    @property
    def moments(self) -> list[Moment]:
        return list(self._moments)

    @property
    def num_bytes(self) -> int:
        return self._bytes

    def add(self, moment: Moment) -> None:
        self._moments.append(moment)
        while len(self._moments) > self._limit:
            self._bytes -= sum(map(len, self._moments.popleft().frames))

    def fill(self, moment: Moment, frames: tuple[bytes, ...]) -> None:
        """The frames of one that was added, if it is still there."""
        if not any(moment is known for known in self._moments):
            return
        moment.frames = frames
        self._bytes += sum(map(len, frames))
        for old in self._moments:
            if self._bytes <= self._limit_bytes:
                break
            self._bytes -= sum(map(len, old.frames))
            old.frames = ()

    def cut(self, at: int) -> None:
        """What came after `at` chunks is forgotten."""
        while self._moments and self._moments[-1].at > at:
            self._bytes -= sum(map(len, self._moments.pop().frames))

    def fork(self) -> Timeline:
        return Timeline(self._limit, self._limit_bytes, (Moment(m.at, m.pose, m.thumbnail, m.frames) for m in self._moments))

    def recording(self) -> list[bytes]:
        """The frames that are still there, in order, as JPEG."""
        return [frame for moment in self._moments for frame in moment.frames]


def pose_numbers(pose: np.ndarray) -> list[float]:
    """The first three rows of a camera-to-world matrix, as they travel."""
    return [round(float(x), 4) for x in np.asarray(pose)[:3].reshape(-1)]


def encode(pixels: np.ndarray, quality: int = RECORDING_QUALITY) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorspace="RGB", colorsubsampling="420")


def thumbnail(pixels: np.ndarray) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return encode(np.asarray(picture), 80)


def pictures(recording: Iterable[bytes]) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3] of each frame of `Timeline.recording`."""
    for frame in recording:
        yield np.asarray(Image.open(io.BytesIO(frame), formats=("JPEG",)).convert("RGB"))


def address(key: str, number: int | None) -> str | None:
    """Where a thumbnail is fetched, relative to the server's root."""
    return None if number is None else f"api/v1/thumbnails/{key}/{number}"


def as_message(branch: int, first: int, moments: Iterable[Moment], key: str) -> p.Timeline:
    """What the client is told of a timeline."""
    told = [p.Moment(at=m.at, pose=m.pose, thumbnail=address(key, m.thumbnail)) for m in moments]
    return p.Timeline(branch=branch, at=told[-1].at if told else 0, first=first, moments=[m for m in told if m.at >= first])
