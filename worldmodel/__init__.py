"""An interactive video world model: from one picture and one sentence to a place that a person walks through.

Importing the package loads neither torch nor diffusers; the names below are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worldmodel.actions import Action
    from worldmodel.model import WorldModel
    from worldmodel.world import Chunk, World

__version__ = "0.1.0"
__all__ = ["Action", "Chunk", "World", "WorldModel", "__version__"]

_HOMES = {"Action": "worldmodel.actions", "Chunk": "worldmodel.world", "World": "worldmodel.world", "WorldModel": "worldmodel.model"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
