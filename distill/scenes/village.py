"""Villages by biome and hour: houses, paths and trees around a walkable green, with landmarks in all directions.

A `Plan` holds everything that can be said about a village; `GALLERY` are six fixed ones, `random_plan` draws any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.scenes import buildings, hours, parts
from distill.scenes.parts import Colour, Site, facing, shade
from distill.scenes.scene import Scene

REACH = 22.0  # metres from the centre that one can walk

COLOURS: dict[str, Colour] = {
    "red": (0.86, 0.16, 0.14), "orange": (0.96, 0.52, 0.12), "yellow": (0.97, 0.80, 0.20), "green": (0.18, 0.58, 0.26), "teal": (0.08, 0.60, 0.60),
    "blue": (0.16, 0.38, 0.84), "purple": (0.52, 0.26, 0.72), "pink": (0.96, 0.50, 0.68), "white": (0.95, 0.95, 0.93), "cream": (0.95, 0.87, 0.70),
    "brown": (0.50, 0.32, 0.20), "grey": (0.62, 0.64, 0.68), "coral": (0.97, 0.50, 0.42), "golden": (0.95, 0.78, 0.34), "mint": (0.62, 0.88, 0.74),
}  # fmt: skip


@dataclass(frozen=True)
class Biome:
    """Colours and plants of a kind of land."""

    word: str
    tones: tuple[Colour, ...]
    far: Colour
    path: Colour
    trees: tuple[tuple[str, Colour], ...]
    mountain: Colour
    flowers: tuple[Colour, ...]
    stone: Colour = (0.66, 0.66, 0.66)
    woods: int = 38
    inner_trees: int = 10
    snow: bool = False
    cap: Colour | None = (0.96, 0.97, 0.98)
    plants: int = 24
    tree_height: float = 4.6


BIOMES: dict[str, Biome] = {
    "meadow": Biome("green meadow", ((0.38, 0.74, 0.26), (0.46, 0.80, 0.30), (0.56, 0.84, 0.34)), (0.40, 0.70, 0.34), (0.90, 0.78, 0.54), (("round", (0.16, 0.56, 0.20)), ("round", (0.30, 0.66, 0.20)), ("tall", (0.20, 0.60, 0.28))), (0.46, 0.56, 0.72), (COLOURS["red"], COLOURS["yellow"], COLOURS["white"], COLOURS["purple"])),
    "autumn": Biome("autumn", ((0.90, 0.68, 0.26), (0.95, 0.78, 0.36), (0.76, 0.74, 0.32)), (0.80, 0.58, 0.30), (0.66, 0.57, 0.62), (("round", (0.92, 0.42, 0.10)), ("round", (0.84, 0.20, 0.12)), ("tall", (0.97, 0.74, 0.16))), (0.60, 0.46, 0.46), (COLOURS["orange"], COLOURS["red"], COLOURS["yellow"])),
    "blossom": Biome("spring blossom", ((0.52, 0.70, 0.36), (0.60, 0.76, 0.42), (0.84, 0.66, 0.66)), (0.62, 0.66, 0.46), (0.86, 0.80, 0.76), (("round", (0.98, 0.62, 0.76)), ("round", (0.96, 0.46, 0.64)), ("round", (0.97, 0.84, 0.90))), (0.58, 0.44, 0.62), (COLOURS["pink"], COLOURS["white"], COLOURS["purple"])),
    "snow": Biome("snowy", ((0.88, 0.92, 0.97), (0.94, 0.96, 0.98), (0.80, 0.87, 0.95)), (0.86, 0.91, 0.96), (0.70, 0.66, 0.66), (("pine", (0.10, 0.40, 0.34)), ("pine", (0.16, 0.46, 0.42))), (0.52, 0.60, 0.76), (), (0.50, 0.55, 0.64), snow=True, plants=10, tree_height=6.0),
    "pine": Biome("pine forest", ((0.26, 0.50, 0.26), (0.32, 0.56, 0.28), (0.44, 0.58, 0.28)), (0.20, 0.44, 0.30), (0.64, 0.50, 0.36), (("pine", (0.08, 0.38, 0.24)), ("pine", (0.14, 0.48, 0.26)), ("tall", (0.62, 0.76, 0.26))), (0.42, 0.54, 0.62), (COLOURS["white"], COLOURS["purple"]), woods=48, inner_trees=13, tree_height=7.2),
    "lake": Biome("lakeside", ((0.42, 0.78, 0.38), (0.52, 0.84, 0.44), (0.90, 0.84, 0.56)), (0.48, 0.74, 0.46), (0.92, 0.66, 0.54), (("round", (0.24, 0.62, 0.36)), ("tall", (0.16, 0.52, 0.36)), ("round", (0.50, 0.72, 0.30))), (0.50, 0.54, 0.70), (COLOURS["coral"], COLOURS["yellow"], COLOURS["white"])),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A village in words and numbers; azimuths are in degrees from east to north, distances in metres from the centre."""

    biome: str
    hour: str
    sun: float
    landmarks: tuple[tuple, ...]
    """(name, colour, azimuth, distance) or with a fifth entry, the height above the ground."""
    houses: tuple[tuple[str, str, float, float], ...]
    """(wall, roof, azimuth, distance)."""
    lake: tuple[float, float, float] | None = None
    """Azimuth, distance, radius."""
    river: float | None = None
    """Azimuth of the side on which a river runs by."""
    water: str = "blue"
    peak: float = 90.0
    """Azimuth of the highest mountain."""


GALLERY = (
    Plan("meadow", "day", 215, (("barn", "red", 5, 20), ("windmill", "blue", 92, 20), ("flower_field", "purple", 48, 16), ("well", "orange", 300, 5), ("great_tree", "green", 238, 16), ("hay_bale", "golden", 18, 12), ("hay_bale", "golden", 342, 12), ("balloon", "red", 128, 60, 17)),
         (("cream", "orange", 275, 18), ("white", "blue", 318, 19), ("yellow", "brown", 148, 20)), lake=(188, 24, 11), peak=60),
    Plan("autumn", "golden", 200, (("church", "teal", 90, 20), ("windmill", "purple", 205, 21), ("stall", "red", 350, 11), ("well", "teal", 160, 6), ("hay_bale", "golden", 232, 11), ("hay_bale", "golden", 250, 13), ("hay_bale", "golden", 222, 14)),
         (("cream", "purple", 50, 16), ("coral", "brown", 140, 18), ("white", "red", 300, 18), ("yellow", "teal", 262, 21)), river=5, peak=170),
    Plan("blossom", "dusk", 160, (("pagoda", "red", 80, 18), ("torii", "red", 83, 10), ("pagoda", "teal", 318, 22), ("great_tree", "pink", 200, 15), ("stall", "purple", 20, 12), ("balloon", "purple", 250, 60, 14)),
         (("white", "purple", 125, 18), ("cream", "blue", 355, 20), ("cream", "red", 160, 21)), lake=(275, 19, 8.5), water="blue", peak=30),
    Plan("snow", "night", 120, (("giant_fir", "green", 90, 12), ("church", "red", 10, 21), ("snowman", "red", 215, 9), ("watch_tower", "blue", 305, 19), ("camp_fire", "orange", 330, 9)),
         (("brown", "red", 55, 18), ("coral", "brown", 130, 18), ("yellow", "blue", 165, 19), ("mint", "purple", 262, 18)), lake=(210, 23, 9), water="ice", peak=110),
    Plan("pine", "overcast", 60, (("watch_tower", "red", 92, 18), ("tent", "orange", 18, 12), ("tent", "blue", 340, 14), ("tent", "yellow", 0, 19), ("camp_fire", "orange", 350, 8), ("great_tree", "yellow", 222, 17)),
         (("brown", "red", 140, 18), ("brown", "teal", 270, 18)), river=180, peak=315),
    Plan("lake", "dawn", 20, (("lighthouse", "red", 30, 24), ("boat", "orange", 0, 19), ("boat", "teal", 40, 20), ("stall", "blue", 130, 10), ("well", "red", 245, 7), ("windmill", "orange", 250, 22), ("balloon", "yellow", 180, 60, 13)),
         (("coral", "brown", 108, 18), ("yellow", "blue", 138, 19), ("mint", "orange", 166, 18), ("pink", "purple", 195, 19), ("white", "teal", 300, 19)), lake=(20, 31, 18), peak=215),
)  # fmt: skip

_WATER = {"blue": (0.20, 0.56, 0.92), "ice": (0.62, 0.84, 0.97)}


def random_plan(rng: np.random.Generator) -> Plan:
    """Any biome at any hour, with five to seven landmarks around the green."""
    biome = str(rng.choice(list(BIOMES)))
    pool = ["barn", "windmill", "church", "well", "great_tree", "stall", "watch_tower", "balloon", "tent", "camp_fire"]
    pool += {"snow": ["snowman", "giant_fir"], "blossom": ["pagoda", "torii"], "autumn": ["hay_bale"], "meadow": ["flower_field", "hay_bale"], "pine": ["tent"], "lake": ["lighthouse", "boat"]}[biome]
    names = rng.choice(pool, int(rng.integers(5, 8)), replace=False)
    hues = rng.permutation(["red", "orange", "yellow", "teal", "blue", "purple", "pink"])
    count = len(names) + 5
    azimuths = rng.uniform(0, 360) + np.arange(count) * 360 / count + rng.uniform(-6, 6, count)
    order = rng.permutation(count)
    near = {"well", "stall", "camp_fire", "snowman", "tent", "hay_bale", "torii", "flower_field"}
    landmarks = []
    for i, name in enumerate(map(str, names)):
        hue = {"giant_fir": "green", "hay_bale": "golden", "camp_fire": "orange"}.get(name, str(hues[i]))
        far = 58.0 if name == "balloon" else rng.uniform(8, 14) if name in near else rng.uniform(16, 21)
        landmarks.append((name, hue, float(azimuths[order[i]]), float(far)) + ((float(rng.uniform(11, 18)),) if name == "balloon" else ()))
    walls, roofs = rng.permutation(["cream", "white", "coral", "yellow", "mint", "brown", "grey"]), rng.permutation(["red", "blue", "purple", "teal", "orange", "brown"])
    houses = tuple((str(walls[i]), str(roofs[i]), float(azimuths[order[len(names) + i]]), float(rng.uniform(16, 21))) for i in range(4))
    side = float(azimuths[order[-1]])
    wet = rng.uniform()
    lake = (side, float(rng.uniform(22, 30)), float(rng.uniform(7, 12))) if wet < 0.45 or biome == "lake" else None
    if lake:
        landmarks = [(name, hue, lake[0] + 8, lake[1] - 2.5) if name == "boat" else (name, hue, *rest) for name, hue, *rest in landmarks]
    river = side if lake is None and wet < 0.75 else None
    return Plan(biome, str(rng.choice(hours.HOURS)), float(rng.uniform(0, 360)), tuple(landmarks), houses, lake, river, "ice" if biome == "snow" else "blue", float(rng.uniform(0, 360)))


def caption(plan: Plan) -> str:
    """One sentence: biome, hour, and the first landmarks with their colours."""
    things = [buildings.phrase(buildings.LANDMARKS[name][1], colour) for name, colour, *_ in plan.landmarks]
    water = {"ice": "a frozen pond"}.get(plan.water, "a blue lake") if plan.lake else "a blue river" if plan.river is not None else f"houses with {plan.houses[0][1]} roofs"
    word = BIOMES[plan.biome].word
    start = f"A{'n' if word[0] in 'aeiou' else ''} {word} village {hours.WORDS[plan.hour]}"
    return buildings.sentence(start, things, water)


def _at(azimuth: float, distance: float) -> tuple[float, float]:
    return distance * np.cos(np.radians(azimuth)), distance * np.sin(np.radians(azimuth))


def build(rng: np.random.Generator, variant: int | None = None) -> Scene:
    """A village: one of the six of the gallery, or any other when `variant` is None."""
    return build_plan(rng, random_plan(rng) if variant is None else GALLERY[variant])


def build_plan(rng: np.random.Generator, plan: Plan) -> Scene:
    """What a plan says."""
    biome, lit = BIOMES[plan.biome], hours.lit(plan.hour)
    site, height = Site(), parts.hills(rng, 40.0, 13.0)
    parts.ground(site.mesh, rng, height, list(biome.tones), biome.far)
    _water(site, rng, plan, biome)
    for name, colour, azimuth, distance, *lift in plan.landmarks:
        part = buildings.LANDMARKS[name][0](rng, COLOURS[colour], lit)
        x, y = _at(azimuth, distance)
        focus = None if lift else min(3.0, 1.0 + distance / 8)
        site.put(part, x, y, facing(np.radians(azimuth)) + rng.uniform(-0.25, 0.25), focus=focus, z=lift[0] if lift else 0.0)
        if name in buildings.SHINING:
            site.lights.append((x, y, 1.0))
    for wall, roof, azimuth, distance in plan.houses:
        size = (rng.uniform(5.6, 7.2), rng.uniform(4.8, 5.8), rng.uniform(2.7, 3.4))
        x, y = _at(azimuth, distance)
        part = parts.house(COLOURS[wall], COLOURS[roof], size, lit, shade(COLOURS[roof], 0.6), snow=biome.snow)
        site.put(part, x, y, facing(np.radians(azimuth)) + rng.uniform(-0.3, 0.3), focus=2.2)
    _paths(site, rng, plan, biome, lit)
    _plants(site, rng, biome, height)
    _mountains(site, rng, plan, biome)
    if lit:
        parts.lamplight(site)
    return Scene(
        family="village", caption=caption(plan), mesh=site.mesh, sky=hours.sky(rng, plan.hour, np.radians(plan.sun)), colliders=site.colliders,
        ground=height, bounds=(-REACH, REACH, -REACH, REACH), ceiling=9.0, step=0.18, spots=site.spots(rng, REACH - 4), focus=np.array(site.focus),
    )  # fmt: skip


def _water(site: Site, rng: np.random.Generator, plan: Plan, biome: Biome) -> None:
    colour = _WATER[plan.water]
    if plan.lake:
        azimuth, distance, radius = plan.lake
        x, y = _at(azimuth, distance)
        shore = (0.80, 0.86, 0.93) if biome.snow else (0.93, 0.85, 0.62)
        parts.pool(site.mesh, rng, x, y, radius, colour, shore=shore)
        afloat = {"boat", "lighthouse"}
        if not any(name in afloat for name, *_ in plan.landmarks):
            site.focus.append((x * 0.8, y * 0.8, 1.0))
        for r, a in [(0.0, 0.0)] + [(0.62, k * np.pi / 3) for k in range(6)]:
            site.take(x + r * radius * np.cos(a), y + r * radius * np.sin(a), radius * 0.5)
    if plan.river is not None:
        a = np.radians(plan.river)
        out, along = np.array([np.cos(a), np.sin(a)]), np.array([-np.sin(a), np.cos(a)])
        bends = [out * (16 + 2.0 * np.sin(t / 9)) + along * t for t in np.linspace(-40, 40, 9)]
        parts.ribbon(site.mesh, rng, bends, 6.4, (0.86, 0.78, 0.58) if not biome.snow else (0.8, 0.86, 0.93), z=0.03, across=1, pace=4.0)
        line = parts.ribbon(site.mesh, rng, bends, 4.6, colour, z=0.07, across=2, pace=1.6, jitter=0.10, glow=0.12)
        for x, y in line[::2]:
            site.take(x, y, 2.6)
        site.focus.append((*(out * 16), 0.8))


def _paths(site: Site, rng: np.random.Generator, plan: Plan, biome: Biome, lit: bool) -> None:
    """Paths from the green to every house and large landmark, lamps and a few fences beside them."""
    post = (0.22, 0.23, 0.27)
    goals = [(h[2], h[3] - 3.4) for h in plan.houses] + [(m[2], m[3] - 4.5) for m in plan.landmarks if m[0] in ("barn", "windmill", "church", "pagoda", "watch_tower")]
    sides = 12
    angle = np.arange(sides) * 2 * np.pi / sides
    ring = np.column_stack([3.6 * np.cos(angle), 3.6 * np.sin(angle), np.full(sides, 0.09)])
    for i in range(sides):  # the green has a paved middle
        j = (i + 1) % sides
        site.mesh.polygon([ring[i], ring[j], ring[j] * (0.5, 0.5, 1), ring[i] * (0.5, 0.5, 1)], shade(biome.path, 0.92 if i % 2 else 1.06))
        site.mesh.polygon([ring[i] * (0.5, 0.5, 1), ring[j] * (0.5, 0.5, 1), (0, 0, 0.09)], shade(biome.path, 1.08 if i % 2 else 0.88))
    for k, (azimuth, distance) in enumerate(goals):
        end, a = np.array(_at(azimuth, distance)), np.radians(azimuth)
        bend = np.array([-np.sin(a), np.cos(a)]) * rng.uniform(-2.2, 2.2)
        line = parts.ribbon(site.mesh, rng, [_at(azimuth, 2.8), end * 0.5 + bend, end], 1.9, biome.path, z=0.04 + 0.006 * k, across=2, pace=1.15)
        for x, y in line[2::2]:
            site.taken.append((x, y, 0.9))
        if k % 2 == 0 or lit:
            x, y = line[len(line) * 2 // 3] + np.array([-np.sin(a), np.cos(a)]) * 1.9
            if site.free(x, y, 0.3):
                site.put(parts.lamp(lit, post), x, y)
                site.lights.append((x, y, 2.2))
    for x, y in site.scatter(rng, 4, 15, 24, 2.8):
        site.put(parts.fence(4.8, parts.WOOD if biome.snow else parts.WHITE), x, y, np.arctan2(y, x) + np.pi / 2)


def _plants(site: Site, rng: np.random.Generator, biome: Biome, height) -> None:
    def tree(near: bool) -> parts.Part:
        kind, leaf = biome.trees[int(rng.integers(len(biome.trees)))]
        tall = biome.tree_height * rng.uniform(0.85, 1.3) * (1.3 if kind == "tall" else 1.0)
        extra = {"snow": True} if kind == "pine" and biome.snow else {}
        return parts.TREES[kind](rng, leaf, tall, near=near, **extra)

    for x, y in site.scatter(rng, biome.inner_trees, 9, 25, 2.0):
        site.put(tree(True), x, y, rng.uniform(0, 6))
    for x, y in site.scatter(rng, biome.woods, 25, 58, 1.2):
        site.put(tree(False), x, y, rng.uniform(0, 6), 1.15, z=float(height(np.array(x), np.array(y))) - 0.3)
    for x, y in site.scatter(rng, 7, 7, 24, 1.0):
        if biome.snow or rng.uniform() < 0.5:
            site.put(parts.rock(rng, biome.stone, rng.uniform(0.5, 1.0), 0, (0.95, 0.97, 0.985) if biome.snow else None), x, y, rng.uniform(0, 6))
        else:
            site.put(parts.bush(rng, shade(biome.trees[int(rng.integers(len(biome.trees)))][1], 1.05), rng.uniform(0.55, 0.8)), x, y)
    for x, y in site.scatter(rng, 34, 3, 23, 0.4):
        site.put(parts.pebble(rng, biome.stone if rng.uniform() < 0.6 else shade(biome.path, 0.85), rng.uniform(0.25, 0.7)), x, y)
    for x, y in site.scatter(rng, biome.plants, 4, 23, 0.3):
        for _ in range(2 if biome.flowers else 1):
            dx, dy = rng.uniform(-0.6, 0.6, 2)
            if biome.flowers and rng.uniform() < 0.6:
                site.mesh.place(parts.flower(rng, biome.flowers[int(rng.integers(len(biome.flowers)))], 0.17).mesh, x + dx, y + dy)
            else:
                site.mesh.place(parts.tuft(rng, shade(biome.tones[0], 0.72)).mesh, x + dx, y + dy, 0, rng.uniform(0, 6))


def _mountains(site: Site, rng: np.random.Generator, plan: Plan, biome: Biome) -> None:
    count = 13
    for i in range(count):
        azimuth = i * 360 / count + rng.uniform(-8, 8)
        near_peak = max(0.0, np.cos(np.radians(azimuth - plan.peak))) ** 2
        tall = rng.uniform(20, 34) + 34 * near_peak
        x, y = _at(azimuth, rng.uniform(150, 185))
        tint = np.array([0.06, 0.0, -0.05]) * np.cos(np.radians(azimuth - plan.peak + 90))
        site.mesh.place(parts.mountain(rng, tall * rng.uniform(1.0, 1.3), tall, tuple(np.clip(np.array(biome.mountain) + tint, 0, 0.98)), biome.cap if tall > 30 else shade(biome.mountain, 1.1)).mesh, x, y, -2.0)
