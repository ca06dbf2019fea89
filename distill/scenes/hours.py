"""The light of an hour: a `Sky` for dawn, day, golden afternoon, dusk, overcast and night.

Each preset keeps the ambient light high and the clouds near white, which is what makes flat colours look clean; the sun
stands at a random or given azimuth. `LIT` tells which hours have lamps and windows lit, `WORDS` how a caption says it.
"""

from __future__ import annotations

import numpy as np

from distill.scenes.scene import Sky

HOURS = ("dawn", "day", "golden", "dusk", "overcast", "night")
LIT = frozenset({"dusk", "night"})
WORDS = {
    "dawn": "at dawn",
    "day": "on a clear day",
    "golden": "in the golden afternoon",
    "dusk": "at pink dusk",
    "overcast": "under an overcast sky",
    "night": "on a starry night",
}

# elevation is the height of the sun (the moon at night) above the horizon, in degrees.
_PRESETS: dict[str, dict] = {
    "dawn": {
        "zenith": (0.40, 0.60, 0.90), "horizon": (0.99, 0.84, 0.70), "elevation": 22, "sun_colour": (1.0, 0.86, 0.72), "sun_strength": 0.54,
        "ambient": 0.74, "ground_bounce": (0.56, 0.50, 0.48), "sun_glow": 0.55, "clouds": 9, "cloud_colour": (0.98, 0.86, 0.82), "fog_distance": 230.0,
    },
    "day": {
        "zenith": (0.20, 0.50, 0.94), "horizon": (0.74, 0.90, 0.98), "elevation": 48, "sun_colour": (1.0, 0.97, 0.88), "sun_strength": 0.52,
        "ambient": 0.66, "ground_bounce": (0.52, 0.54, 0.46), "sun_glow": 0.25, "clouds": 12, "cloud_colour": (0.97, 0.97, 0.98), "fog_distance": 330.0,
    },
    "golden": {
        "zenith": (0.36, 0.62, 0.90), "horizon": (0.99, 0.88, 0.62), "elevation": 33, "sun_colour": (1.0, 0.86, 0.58), "sun_strength": 0.60,
        "ambient": 0.70, "ground_bounce": (0.58, 0.50, 0.40), "sun_glow": 0.50, "clouds": 10, "cloud_colour": (0.98, 0.92, 0.82), "fog_distance": 300.0,
    },
    "dusk": {
        "zenith": (0.46, 0.34, 0.64), "horizon": (0.98, 0.60, 0.54), "elevation": 20, "sun_colour": (1.0, 0.70, 0.56), "sun_strength": 0.54,
        "ambient": 0.74, "ground_bounce": (0.56, 0.44, 0.48), "sun_glow": 0.60, "clouds": 12, "cloud_colour": (0.98, 0.62, 0.56), "fog_distance": 260.0,
    },
    "overcast": {
        "zenith": (0.70, 0.78, 0.86), "horizon": (0.88, 0.92, 0.94), "elevation": 58, "sun_colour": (0.97, 0.97, 1.0), "sun_strength": 0.28,
        "ambient": 0.84, "ground_bounce": (0.62, 0.62, 0.62), "sun_glow": 0.0, "clouds": 10, "cloud_colour": (0.96, 0.97, 0.98), "fog_distance": 190.0,
    },
    "night": {
        "zenith": (0.06, 0.10, 0.34), "horizon": (0.26, 0.36, 0.68), "elevation": 46, "sun_colour": (0.66, 0.78, 1.0), "sun_strength": 0.44,
        "ambient": 0.76, "ground_bounce": (0.36, 0.40, 0.56), "sun_glow": 0.12, "clouds": 4, "cloud_colour": (0.26, 0.34, 0.60), "stars": 220, "fog_distance": 260.0,
    },
}  # fmt: skip


def sky(rng: np.random.Generator, hour: str, azimuth: float | None = None) -> Sky:
    """The sky of `hour` (one of `HOURS`), a little different for every `rng`; `azimuth` of the sun in radians, 0 east."""
    if hour not in _PRESETS:
        raise ValueError(f"hour must be one of {HOURS}, got {hour!r}")
    preset = dict(_PRESETS[hour])
    turn = rng.uniform(0, 2 * np.pi) if azimuth is None else azimuth
    height = np.radians(preset.pop("elevation") + rng.uniform(-4, 4))
    tint = rng.uniform(-0.025, 0.025, 3)
    for name in ("zenith", "horizon"):
        preset[name] = tuple(float(c) for c in np.clip(np.array(preset[name]) + tint, 0.02, 0.985))
    direction = (np.cos(turn) * np.cos(height), np.sin(turn) * np.cos(height), np.sin(height))
    return Sky(sun_direction=tuple(float(c) for c in direction), **preset)


def lit(hour: str) -> bool:
    """Whether lamps and windows shine at `hour`."""
    return hour in LIT
