"""What glibc's allocator has to be told so that a server that worlds come to and go from does not grow.

Elsewhere than on glibc nothing here does anything.
"""

from __future__ import annotations

import ctypes
import gc
from functools import cache

ARENAS = 2
"""Heaps that threads share. By default there are eight for each core, and each keeps the largest hole that was ever made in it."""
_M_ARENA_MAX = -8  # malloc.h


def limit_arenas() -> bool:
    """Make no more than `ARENAS` heaps from now on, unless there are more already; returns whether the C library knows how."""
    mallopt = _glibc("mallopt")
    return mallopt is not None and mallopt(_M_ARENA_MAX, ARENAS) == 1


def trim_heap() -> bool:
    """Give back to the system what worlds that are gone have left in pieces; returns whether the C library knows how."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)
    return trim is not None


def tidy() -> None:
    """What is left of visits that are over, when nobody is waiting: cycles that hold worlds, and the heap."""
    gc.collect()
    trim_heap()


@cache
def _glibc(function: str) -> ctypes._CFuncPtr | None:
    """A function of the C library where that is glibc."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - others have functions of these names that do something else
        return getattr(library, function)
    except (OSError, TypeError, AttributeError):
        return None
