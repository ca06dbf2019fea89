"""Messages that no client should send: valid ones of the schema, damaged in many ways. The same seed, the same messages."""

from __future__ import annotations

import json
import random
import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from worldmodel.actions import NUM_ACTIONS
from worldmodel.server import protocol as p

NASTY = (
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, 2**31, 2**32 - 1, 2**32, 2**64, 10**40, "", "0", "KeyW", "../../etc/passwd", "\x00",
    "\ud7ff\uffff", "ü" * 500, "x" * 5000, "%s%n{}", [], {}, [[]], [None], {"a": {}}, [1] * 1000, {"type": "hello"}, float("nan"),
    float("inf"),
)  # fmt: skip
RAW = ("", " ", "{", "}", "[]", "null", "0", '"hello"', "{}", '{"type":', '{"type":null}', "[" * 20_000, '{"type":"fly"}', "\ufeff{}")


class Fuzzer:
    """`malformed` gives text or bytes that no server should accept, `valid_text` a message that the schema allows."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._kinds = get_args(p.ClientMessage)

    def malformed(self) -> str | bytes:
        while True:
            message = self._message()
            if isinstance(message, bytes) or not _parses(message):
                return message

    def valid_text(self) -> str:
        while not _parses(text := json.dumps(self._valid())):
            pass
        return text

    def _valid(self, kind: type[BaseModel] | None = None) -> dict[str, Any]:
        """By the types of the fields, of any kind but `bye` and `hello`, that would end or begin the conversation."""
        kind = kind or self.random.choice([k for k in self._kinds if k not in (p.Bye, p.Hello)])
        told = {name: info for name, info in kind.model_fields.items() if info.is_required() or name == "type" or self._coin()}
        return {name: self._value(name, info.annotation) for name, info in told.items()}

    def _message(self) -> str | bytes:
        r = self.random
        match r.randrange(8):
            case 0:
                return r.choice(RAW)
            case 1:
                return r.randbytes(r.randrange(1, 300))
            case 2:
                text = json.dumps(self._valid())
                return text[: r.randrange(len(text))]
            case 3:
                return "".join(chr(r.choice([*range(32, 127), 0x1F600, 0x7F, 0x2028])) for _ in range(r.randrange(1, 200)))
            case 4:
                return json.dumps({"type": "pause", "x" * r.randrange(1, 60_000): r.choice(NASTY[:12])})
        data = self._valid(r.choice(self._kinds))
        match r.randrange(4):
            case 0:
                data.pop(r.choice(list(data)))
            case 1:
                data[r.choice(("admin", "path", "__proto__", "proto", "frame"))] = r.choice(NASTY)
            case _:
                data[r.choice(list(data))] = r.choice(NASTY)
        return json.dumps(data)

    def _coin(self) -> bool:
        return self.random.random() < 0.5

    def _value(self, name: str, annotation: Any) -> Any:
        r, origin = self.random, get_origin(annotation)
        if origin is Literal:
            return r.choice(get_args(annotation))
        if origin in (types.UnionType, Union):
            return self._value(name, r.choice(get_args(annotation)))
        if name == "keys":
            return r.sample(list(p.KEY_BINDINGS), r.randrange(5))
        if name == "actions":
            return [[r.uniform(0, 2) for _ in range(NUM_ACTIONS)] for _ in range(r.randrange(1, 9))]
        if origin is tuple:
            return [r.uniform(-360, 360) for _ in get_args(annotation)]
        if annotation is type(None):
            return None
        numbers = {"proto": 1, "window": r.randrange(1, 17), "quality": r.randrange(20, 96), "speed": r.uniform(0.5, 2.0)}
        if name in numbers:
            return numbers[name]
        if hasattr(annotation, "__metadata__"):
            return self._value(name, annotation.__origin__)
        return r.choice(("a", "red canyon", "snow", "ü")) if annotation is str else r.randrange(8) if annotation is int else r.random()


def _parses(text: str) -> bool:
    try:
        p.parse_client(text)
    except p.ProtocolError:
        return False
    return True
