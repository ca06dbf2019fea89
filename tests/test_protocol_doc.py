"""docs/protocol.md and worldmodel/server/protocol.py say the same: every message, field, default, code and flag."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from worldmodel.server import protocol as p

TEXT = (Path(__file__).parent.parent / "docs" / "protocol.md").read_text(encoding="utf-8")


def section(title):
    return re.split(r"^## ", TEXT.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.M)[0]


def rows(text):
    """Cells of the table rows whose first cell is `code`."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return {cells[0].strip().strip("`"): [c.strip() for c in cells[1:]] for cells in lines}


def described(title):
    """Message -> its text, of one chapter."""
    parts = re.split(r"^### `(\w+)`\n", section(title), flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def models(union):
    return {model.model_fields["type"].default: model for model in get_args(union)}


@pytest.mark.parametrize(("title", "union"), [("Client to server", p.ClientMessage), ("Server to client", p.ServerMessage)])
def test_messages_and_fields_are_the_documented_ones(title, union):
    texts, messages = described(title), models(union)
    assert texts.keys() == messages.keys()
    for name, model in messages.items():
        table = rows(texts[name].split("\n| code ")[0])
        assert table.keys() == model.model_fields.keys(), name
        for field, (kind, default, *_) in table.items():
            info = model.model_fields[field]
            if field == "type":
                assert kind == f'`"{name}"`'
            elif info.is_required():
                assert default == "", f"{name}.{field} has no default"
            else:
                value = json.loads(default.strip("`"))
                assert value == (list(info.default) if isinstance(info.default, tuple) else info.default), f"{name}.{field}"
            named = set(re.findall(r'`"(\w+)"`', kind))
            if named:
                assert named == set(get_args(info.annotation)), f"{name}.{field}"


def test_codes_and_flags_are_the_documented_ones():
    errors = rows(described("Server to client")["error"].split("\n| code ")[1])
    assert errors.keys() == set(get_args(p.Error.model_fields["code"].annotation))
    lines = re.findall(r"^\| (\d{4}) \| `(\w+)`", section("Close codes"), flags=re.M)
    assert {int(code): name for code, name in lines} == {code.value: code.name for code in p.CloseCode}
    frames = section("Binary frames")
    for offset, enum in ((5, p.Codec), (6, p.Flags)):
        line = next(line for line in frames.splitlines() if line.startswith(f"| {offset} |"))
        found = {name: int(value) for name, value in re.findall(r"`(\w+)` (\d+)", line)}
        assert found == {m.name: m.value for m in enum if m.value or enum is p.Codec}
    assert f"`{p.HEADER.format}`" in frames and f"{p.HEADER.size} bytes" in frames


def test_limits_are_the_documented_ones():
    assert f"at most {p.MAX_PROMPT} characters" in TEXT and f"Up to {p.MAX_PENDING_STEPS} steps may wait" in TEXT
    assert f"proto\":{p.PROTOCOL}" in TEXT and p.SUBPROTOCOL in TEXT
