"""What travels between a client and the server: typed JSON messages and binary frames (protocol 1).

Text frames of the WebSocket are JSON objects with a `type`; unknown types, unknown fields and wrong types are refused.
Binary frames (server to client only) are a 32-byte little-endian header and a picture:

    offset  0      4        5      6      7           8      12          16     20    24  26  28
    field   WMF1   version  codec  flags  header len  frame  action_seq  chunk  t_ms  w   h   payload len

`frame` counts sent frames of a session and never goes back, also across resets and reconnections. docs/protocol.md tells the whole
conversation; a test holds it against this file.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from worldmodel.actions import KEY_BINDINGS, NUM_ACTIONS

PROTOCOL = 1
SUBPROTOCOL = "wm.v1"
MAX_PROMPT = 1000
MIN_SPEED, MAX_SPEED = 0.5, 2.0
MAX_PENDING_STEPS = 8
"""Chunks that a lockstep client may have asked for whose frames are not made yet."""
MAX_STEP_FRAMES = 64

U32 = Annotated[int, Field(ge=0, lt=2**32)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Degrees = Annotated[float, Field(ge=-360.0, le=360.0)]
Magnitudes = Annotated[list[Annotated[float, Field(ge=0.0, le=100.0)]], Field(min_length=NUM_ACTIONS, max_length=NUM_ACTIONS)]


class ProtocolError(ValueError):
    """A message or frame that is not of this protocol. The message says what is wrong with it."""


class VersionError(ProtocolError):
    """A `hello` of a protocol that this server does not speak."""


class CloseCode(IntEnum):
    """WebSocket close codes. A client reconnects by itself on any other code (1001, 1006, 1012, ...)."""

    BAD_MESSAGE = 4400
    DENIED = 4401
    IDLE = 4408
    REPLACED = 4409
    VERSION = 4426
    BUSY = 4429
    ENGINE = 4500


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# ---- client to server -------------------------------------------------------------------------------------------------


class _Start(_Message):
    """Where a world begins: a gallery world, an uploaded image or an uploaded world file; a prompt, a seed."""

    gallery: Name | None = None
    image: Name | None = None
    world: Name | None = None
    prompt: Prompt | None = None
    seed: U32 | None = None

    @model_validator(mode="after")
    def _one_source(self) -> _Start:
        if sum(source is not None for source in (self.gallery, self.image, self.world)) > 1:
            raise ValueError("give one of gallery, image and world")
        if self.world is not None and (self.prompt is not None or self.seed is not None):
            raise ValueError("a world file has its own prompt and seed")
        return self


class Hello(_Start):
    """First message. `resume` is the token of an earlier `ready`; with it the same world goes on, and `frame` is the newest frame that
    came. Without it a world begins where `gallery` or `image`, `prompt` and `seed` say.
    """

    type: Literal["hello"] = "hello"
    proto: int
    ticket: str | None = Field(default=None, max_length=100)
    resume: str | None = Field(default=None, max_length=100)
    frame: U32 = 0
    mode: Literal["realtime", "lockstep"] = "realtime"
    codec: Literal["jpeg", "png"] = "jpeg"
    window: int = Field(default=3, ge=1, le=16)


class ActionMessage(_Message):
    """All keys held now, and how far the view was turned by mouse since the last message (degrees right, degrees down)."""

    type: Literal["action"] = "action"
    seq: U32
    keys: list[str] = Field(max_length=len(KEY_BINDINGS))
    look: tuple[Degrees, Degrees] = (0.0, 0.0)

    @field_validator("keys")
    @classmethod
    def _bound(cls, keys: list[str]) -> list[str]:
        for key in keys:
            if key not in KEY_BINDINGS:
                raise ValueError(f"unknown key {key[:32]!r}; bound keys are {', '.join(KEY_BINDINGS)}")
        return keys


class Ack(_Message):
    """Every frame up to and including `frame` was painted or skipped; gives their credit back."""

    type: Literal["ack"] = "ack"
    frame: U32


class Step(_Message):
    """Lockstep: make one chunk with these actions, one vector of magnitudes for each of its frames. `seq` counts up by one."""

    type: Literal["step"] = "step"
    seq: U32
    actions: list[Magnitudes] = Field(min_length=1, max_length=MAX_STEP_FRAMES)


class Reset(_Start):
    """Start anew from a gallery world or an uploaded image, go on in an uploaded world, or (none given) begin where this world began."""

    type: Literal["reset"] = "reset"


class Config(_Message):
    """Change what is given: the prompt, the speed of movement, the JPEG quality."""

    type: Literal["config"] = "config"
    prompt: Prompt | None = None
    speed: float | None = Field(default=None, ge=MIN_SPEED, le=MAX_SPEED)
    quality: int | None = Field(default=None, ge=20, le=95)


class Rewind(_Message):
    """Go back to when `at` chunks were made; what came after is forgotten."""

    type: Literal["rewind"] = "rewind"
    at: U32


class Fork(_Message):
    """Keep the world as it is as a branch, and go on in a copy of it, gone back to `at` if that is given."""

    type: Literal["fork"] = "fork"
    at: U32 | None = None


class Switch(_Message):
    """Go on in another branch; this one is kept."""

    type: Literal["switch"] = "switch"
    branch: U32


class Discard(_Message):
    """Forget a branch that one is not in."""

    type: Literal["discard"] = "discard"
    branch: U32


class Save(_Message):
    """Make a file to download: the world, or a video of what was seen."""

    type: Literal["save"] = "save"
    kind: Literal["world", "video"]


class Ask(_Message):
    """Send the timeline, or what the memory holds."""

    type: Literal["ask"] = "ask"
    about: Literal["timeline", "memory"]


class Pause(_Message):
    type: Literal["pause"] = "pause"


class Resume(_Message):
    type: Literal["resume"] = "resume"


class Ping(_Message):
    type: Literal["ping"] = "ping"
    t: float


class Bye(_Message):
    """The visitor leaves for good; the place is free at once."""

    type: Literal["bye"] = "bye"


ClientMessage = (
    Hello | ActionMessage | Step | Ack | Reset | Config | Rewind | Fork | Switch | Discard | Save | Ask | Pause | Resume | Ping | Bye
)
_CLIENT = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])

# ---- server to client -------------------------------------------------------------------------------------------------


class Ready(_Message):
    """Answer to `hello`: what will be streamed, which keys do what, and the token that resumes this session. `seq` is the newest `step`
    that has arrived. `notice` is a sentence for the visitor about the world that begins.
    """

    type: Literal["ready"] = "ready"
    proto: int = PROTOCOL
    session: str
    resume: str
    resumed: bool
    seq: int = 0
    mode: Literal["realtime", "lockstep"] = "realtime"
    codec: Literal["jpeg", "png"] = "jpeg"
    fps: float
    width: int
    height: int
    chunk: int
    window: int
    keys: dict[str, str]
    notice: str | None = None


Pose = Annotated[list[float], Field(min_length=12, max_length=12)]


class Branch(_Message):
    """A branch of the world, and where it left its `parent`."""

    branch: int
    parent: int | None
    at: int


class Queued(_Message):
    """All places are taken: the place in line, from 1, and how many wait. `eta_s` is at most how long, where a time limit says so."""

    type: Literal["queued"] = "queued"
    position: int
    of: int
    eta_s: float | None = None


class WorldState(_Message):
    """The world being walked through; sent after `ready` and whenever something of it changes. `notice` is as in `ready`."""

    type: Literal["world"] = "world"
    gallery: str | None
    image: str | None
    prompt: str
    seed: int
    speed: float
    paused: bool
    loading: bool = False
    branch: int = 0
    branches: list[Branch] = []
    notice: str | None = None


class ChunkInfo(_Message):
    """Before the first frame of every chunk: its number, the newest client message in it, how many frames, and where the time went."""

    type: Literal["chunk"] = "chunk"
    chunk: int
    action_seq: int
    frames: int
    made_ms: float
    timings: dict[str, float]
    pose: Pose
    thumbnail: str | None = None


class Moment(_Message):
    """After `at` chunks (0: the start picture): where the camera was, and the address of a small picture of what was seen."""

    at: int
    pose: Pose
    thumbnail: str | None = None


class Timeline(_Message):
    """The moments of a branch to which one can go back, from `first` to now, `at`. After a new world, a rewind, a fork, a switch and a
    resumption, and when it is asked for.
    """

    type: Literal["timeline"] = "timeline"
    branch: int
    at: int
    first: int
    moments: list[Moment]


class Tile(_Message):
    """One latent frame in the memory, pooled over `factor` x `factor` cells; `at`: made by chunk number at - 1, 0 is the start picture."""

    latent: int
    at: int
    factor: int
    tokens: int
    pose: Pose


class Memory(_Message):
    """What the next chunk looks back at, in the order of time."""

    type: Literal["memory"] = "memory"
    at: int
    tokens: int
    bytes: int
    tiles: list[Tile]


class Saved(_Message):
    """A file is ready at `url` for `expires_in_s` seconds; `name` is what to call it."""

    type: Literal["saved"] = "saved"
    kind: Literal["world", "video"]
    url: str
    name: str
    bytes: int
    expires_in_s: float


class Stats(_Message):
    """Once a second: frames a second sent, milliseconds a model step and an encode take, acknowledgement delay, drops."""

    type: Literal["stats"] = "stats"
    fps: float
    step_ms: float
    encode_ms: float
    latency_ms: float
    quality: int
    dropped: int
    first: int = 0
    memory_bytes: int = 0


class End(_Message):
    type: Literal["end"] = "end"
    reason: Literal["idle", "replaced", "shutdown"]


class Error(_Message):
    """`busy` comes with `retry_after_s`; `not_found`, `image`, `world`, and `busy` after `ready` leave the connection open, all others
    end it.
    """

    type: Literal["error"] = "error"
    code: Literal["busy", "bad_message", "version", "denied", "rate", "not_found", "image", "world", "engine"]
    message: str
    retry_after_s: float | None = None


class Pong(_Message):
    type: Literal["pong"] = "pong"
    t: float


ServerMessage = Ready | Queued | WorldState | ChunkInfo | Timeline | Memory | Saved | Stats | End | Error | Pong
_SERVER = TypeAdapter(Annotated[ServerMessage, Field(discriminator="type")])


def _parse(adapter: TypeAdapter, text: str | bytes):
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(f"Bad message{f' ({where})' if where else ''}: {first['msg'].removeprefix('Value error, ')}.") from None


def parse_client(text: str | bytes) -> ClientMessage:
    """Message of a client. Raises `ProtocolError` with one sentence that names the field; `VersionError` for another protocol's hello,
    whatever else that says.
    """
    try:
        message = _parse(_CLIENT, text)
    except ProtocolError:
        _check_version(text)
        raise
    if isinstance(message, Hello) and message.proto != PROTOCOL:
        raise _wrong_version(message.proto)
    return message


def _check_version(text: str | bytes) -> None:
    try:
        hello = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(hello, dict) and hello.get("type") == "hello" and type(hello.get("proto")) is int and hello["proto"] != PROTOCOL:
        raise _wrong_version(hello["proto"]) from None


def _wrong_version(proto: int) -> VersionError:
    return VersionError(f"Bad message: this server speaks protocol {PROTOCOL}, not {proto % 10**9}; update the older of the two.")


def parse_server(text: str | bytes) -> ServerMessage:
    """Message of a server (for Python clients and tests)."""
    return _parse(_SERVER, text)


_SERVER_TYPES = {model.model_fields["type"].default: model for model in get_args(ServerMessage)}


def read_server(text: str | bytes) -> ServerMessage | None:
    """`parse_server` for clients: types that it does not know are None, and fields that it does not know are passed over."""
    try:
        data = json.loads(text)
    except ValueError:
        raise ProtocolError("Bad message: not JSON.") from None
    model = _SERVER_TYPES.get(data.get("type")) if isinstance(data, dict) else None
    if model is None:
        return None
    return parse_server(json.dumps({key: value for key, value in data.items() if key in model.model_fields}))


# ---- binary frames ----------------------------------------------------------------------------------------------------

MAGIC = b"WMF1"
HEADER = struct.Struct("<4sBBBBIIIIHHI")
assert HEADER.size == 32


class Codec(IntEnum):
    RAW = 0
    JPEG = 1
    WEBP = 2
    H264 = 3
    PNG = 5


class Flags(IntFlag):
    NONE = 0
    KEY = 1
    CHUNK_START = 2
    RESET = 4
    REDUCED = 8


@dataclass(frozen=True)
class FrameHeader:
    """Header of one binary frame. `action_seq` is the newest `action` message that had a say in this picture."""

    frame: int
    action_seq: int
    chunk: int
    t_ms: int
    width: int
    height: int
    codec: Codec = Codec.JPEG
    flags: Flags = Flags.KEY


def pack_frame(header: FrameHeader, payload: bytes) -> bytes:
    """Header and payload as one binary frame."""
    h = header
    values = (h.frame, h.action_seq, h.chunk, h.t_ms & 0xFFFFFFFF, h.width, h.height, len(payload))
    try:
        return HEADER.pack(MAGIC, PROTOCOL, h.codec, h.flags, HEADER.size, *values) + payload
    except struct.error as error:
        raise ProtocolError(f"A frame header field is out of range ({error}): {header}.") from None


def unpack_frame(data: bytes) -> tuple[FrameHeader, bytes]:
    """Inverse of `pack_frame`. Raises `ProtocolError` when the bytes are no whole frame of this protocol."""
    if len(data) < HEADER.size:
        raise ProtocolError(f"A frame has at least {HEADER.size} bytes, got {len(data)}.")
    magic, version, codec, flags, size, frame, seq, chunk, t_ms, width, height, length = HEADER.unpack_from(data)
    if magic != MAGIC or version != PROTOCOL or size < HEADER.size:
        raise ProtocolError(f"Not a frame of protocol {PROTOCOL} (magic {magic!r}, version {version}, header of {size} bytes).")
    if len(data) != size + length:
        raise ProtocolError(f"The frame announces {length} bytes of picture and carries {len(data) - size}.")
    if codec not in Codec._value2member_map_:
        raise ProtocolError(f"Unknown codec {codec}.")
    return FrameHeader(frame, seq, chunk, t_ms, width, height, Codec(codec), Flags(flags)), data[size:]
