"""``worldmodel serve --config server.toml``: everything an operator may set, in one file.

A table for each part; what is left out is as usual.

    [model]
    name = "tiny"             # any field of `model_settings.ModelSettings`: also memory, steps, device, threads, depth

    [runtime]                 # any field of `runtime.RuntimeConfig`
    precision = "auto"

    [listen]
    host = "127.0.0.1"
    port = 7860

    [server]                  # any field of `settings.ServerSettings`
    worlds = 4
    line = 16

    [autosave]                # any field of `autosave.AutosaveConfig`; without it nothing is saved
    folder = "worlds"

    [log]
    format = "json"           # or "text"
    level = "INFO"
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from worldmodel.autosave import AutosaveConfig
from worldmodel.model_settings import ModelSettings
from worldmodel.runtime import RuntimeConfig
from worldmodel.server.settings import ServerSettings


class ConfigError(ValueError):
    """The file cannot be used; one sentence that names the entry."""


@dataclass(frozen=True)
class ListenSettings:
    host: str = "127.0.0.1"
    port: int = 7860


@dataclass(frozen=True)
class LogSettings:
    format: str = "text"
    level: str = "INFO"

    def __post_init__(self) -> None:
        if self.format not in ("text", "json"):
            raise ValueError(f"format is text or json, got {self.format!r}.")
        if self.level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError(f"level is DEBUG, INFO, WARNING or ERROR, got {self.level!r}.")


@dataclass(frozen=True)
class ServeConfig:
    """What ``worldmodel serve`` runs with."""

    model: ModelSettings = field(default_factory=ModelSettings)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    listen: ListenSettings = field(default_factory=ListenSettings)
    server: ServerSettings = field(default_factory=lambda: ServerSettings(line=16))
    log: LogSettings = field(default_factory=LogSettings)

    @classmethod
    def read(cls, path: str | Path) -> ServeConfig:
        """The config in a TOML file. Raises `ConfigError`."""
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"The config {path} cannot be read: {error.strerror}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"The config {path} is not TOML: {error}.") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ServeConfig:
        kinds = {
            "model": ModelSettings, "runtime": RuntimeConfig, "listen": ListenSettings, "server": ServerSettings,
            "autosave": AutosaveConfig, "log": LogSettings,
        }  # fmt: skip
        unknown = data.keys() - kinds.keys()
        if unknown:
            raise ConfigError(f"The config has a section [{min(unknown)}]; known ones are {', '.join(kinds)}.")
        parts = {name: _filled(name, kinds[name], table) for name, table in data.items()}
        autosave = parts.pop("autosave", None)
        config = cls(**parts)
        return config if autosave is None else replace(config, server=replace(config.server, autosave=autosave))


def _filled(section: str, kind: type, table: Any) -> Any:
    known = {f.name: f for f in fields(kind) if f.name != "autosave"}
    if not isinstance(table, dict):
        raise ConfigError(f"The config's {section} is a section, [{section}].")
    for name, value in table.items():
        if name not in known:
            raise ConfigError(f"The config has {section}.{name}; known entries of [{section}] are {', '.join(known)}.")
        if not _fits(known[name].type, value):
            raise ConfigError(f"The config's {section}.{name} is {value!r}; it should be {known[name].type}.")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    if section == "server":
        values = {"line": 16} | values
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The config's [{section}]: {error}") from None


def _fits(annotation: str, value: Any) -> bool:
    """Whether a TOML value is of the annotated type of a field."""
    kinds = {"int": int, "float": (int, float), "str": str, "bool": bool, "Path": str}
    if annotation.startswith("tuple[str"):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    kind = kinds[annotation.removesuffix(" | None")]
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
