"""Castle courtyards and ruins: walls, corner towers in four colours, a floor of tiles, and landmarks in all directions.

A `Plan` holds what can be said about a castle; `GALLERY` are six fixed ones, `random_plan` mixes any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.scenes import buildings, hours, parts, strongholds
from distill.scenes.parts import Colour, Site, facing, shade
from distill.scenes.scene import Scene

REACH = 19.5  # metres from the centre that one can walk
WALL = 21.0  # metres from the centre to the middle of a wall

COLOURS: dict[str, Colour] = {
    "red": (0.86, 0.17, 0.15), "orange": (0.96, 0.54, 0.14), "yellow": (0.97, 0.80, 0.20), "green": (0.20, 0.64, 0.30), "teal": (0.08, 0.66, 0.64),
    "blue": (0.16, 0.38, 0.86), "purple": (0.54, 0.26, 0.76), "pink": (0.96, 0.46, 0.68), "cyan": (0.30, 0.84, 0.95), "white": (0.95, 0.95, 0.94),
    "crimson": (0.66, 0.08, 0.22), "golden": (0.95, 0.76, 0.28),
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """Stone, floor and plants of a kind of castle."""

    word: str
    stone: Colour
    paving: tuple[Colour, Colour]
    lawn: tuple[Colour, Colour, Colour]
    far: Colour
    mountain: Colour
    trees: tuple[tuple[str, Colour], ...]
    top: str = "cone"
    broken: float = 0.0
    snow: bool = False
    columns: int = 4
    moss: Colour | None = None
    cap: Colour | None = (0.96, 0.97, 0.98)


STYLES: dict[str, Style] = {
    "grey": Style("grey stone castle courtyard", (0.70, 0.71, 0.74), ((0.86, 0.82, 0.74), (0.72, 0.67, 0.60)), ((0.40, 0.74, 0.28), (0.48, 0.80, 0.32), (0.56, 0.84, 0.38)), (0.42, 0.70, 0.36), (0.48, 0.56, 0.70), (("round", (0.16, 0.56, 0.22)), ("round", (0.34, 0.66, 0.22)))),
    "sand": Style("sandstone palace courtyard", (0.94, 0.78, 0.52), ((0.20, 0.64, 0.66), (0.95, 0.90, 0.78)), ((0.95, 0.82, 0.54), (0.92, 0.76, 0.47), (0.97, 0.86, 0.62)), (0.94, 0.76, 0.46), (0.88, 0.62, 0.42), (("palm", (0.22, 0.62, 0.26)),), top="dome", cap=None),
    "marble": Style("marble ruin", (0.93, 0.90, 0.92), ((0.90, 0.86, 0.90), (0.66, 0.56, 0.74)), ((0.48, 0.72, 0.50), (0.56, 0.79, 0.54), (0.72, 0.76, 0.60)), (0.60, 0.58, 0.48), (0.56, 0.42, 0.64), (("tall", (0.16, 0.46, 0.34)),), top="broken", broken=0.75, columns=8, moss=(0.80, 0.66, 0.86)),
    "dark": Style("dark stone castle", (0.60, 0.54, 0.62), ((0.80, 0.70, 0.68), (0.50, 0.44, 0.54)), ((0.28, 0.60, 0.40), (0.34, 0.68, 0.42), (0.24, 0.52, 0.40)), (0.28, 0.48, 0.48), (0.34, 0.38, 0.60), (("round", (0.50, 0.26, 0.60)), ("pine", (0.12, 0.42, 0.40)))),
    "ice": Style("ice castle courtyard", (0.60, 0.83, 0.985), ((0.40, 0.74, 0.97), (0.90, 0.95, 0.98)), ((0.93, 0.96, 0.98), (0.88, 0.93, 0.98), (0.97, 0.97, 0.98)), (0.90, 0.94, 0.98), (0.62, 0.72, 0.88), (("pine", (0.12, 0.46, 0.46)),), snow=True),
    "jungle": Style("overgrown jungle ruin", (0.74, 0.70, 0.50), ((0.84, 0.78, 0.58), (0.58, 0.62, 0.38)), ((0.22, 0.56, 0.24), (0.30, 0.64, 0.26), (0.44, 0.70, 0.28)), (0.18, 0.50, 0.28), (0.28, 0.52, 0.44), (("round", (0.10, 0.50, 0.24)), ("palm", (0.30, 0.68, 0.22))), top="broken", broken=0.6, columns=6, moss=(0.36, 0.62, 0.28), cap=None),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A castle in words and numbers; azimuths are in degrees from east to north, distances in metres from the centre."""

    style: str
    hour: str
    sun: float
    roofs: tuple[str, str, str, str]
    """Colours of the corner towers in the north-east, north-west, south-west and south-east."""
    banners: tuple[str, str, str, str]
    """Colours of the banners on the walls in the east, north, west and south."""
    landmarks: tuple[tuple[str, str, float, float], ...]
    """(name, colour, azimuth, distance)."""
    floor: str = "cross"
    """What is paved: "cross", "checker" or "rings"."""


GALLERY = (
    Plan("grey", "day", 230, ("red", "blue", "yellow", "green"), ("red", "blue", "yellow", "green"),
         (("fountain", "blue", 0, 0), ("keep", "blue", 90, 15), ("gate", "orange", 270, 19), ("great_tree", "green", 215, 12), ("stall", "red", 350, 13), ("stall", "yellow", 22, 14), ("well", "red", 160, 11))),
    Plan("sand", "golden", 245, ("teal", "orange", "teal", "crimson"), ("crimson", "teal", "orange", "purple"),
         (("fountain", "teal", 180, 8), ("gate", "teal", 0, 19), ("obelisk", "crimson", 262, 11), ("temple", "orange", 90, 14), ("stall", "purple", 225, 14), ("stall", "orange", 200, 15), ("tent", "crimson", 318, 13), ("ziggurat", "golden", 140, 62)), floor="checker"),
    Plan("marble", "dusk", 170, ("purple", "teal", "crimson", "golden"), ("purple", "teal", "crimson", "golden"),
         (("temple", "crimson", 85, 16), ("obelisk", "purple", 0, 0), ("arch", "teal", 180, 13), ("fountain", "golden", 300, 10), ("arch", "purple", 350, 14), ("great_tree", "pink", 245, 14)), floor="rings"),
    Plan("dark", "night", 80, ("purple", "crimson", "teal", "purple"), ("crimson", "purple", "purple", "teal"),
         (("keep", "purple", 180, 15), ("gate", "crimson", 90, 19), ("crystals", "cyan", 8, 10), ("crystals", "pink", 275, 11), ("well", "crimson", 130, 8), ("obelisk", "teal", 320, 14), ("crystals", "green", 42, 15))),
    Plan("ice", "dawn", 35, ("cyan", "blue", "cyan", "pink"), ("blue", "pink", "blue", "cyan"),
         (("keep", "blue", 270, 15), ("fountain", "cyan", 90, 8), ("crystals", "pink", 0, 12), ("crystals", "blue", 160, 12), ("snowman", "orange", 210, 9), ("giant_fir", "green", 62, 14), ("gate", "red", 180, 19), ("arch", "purple", 325, 11)), floor="rings"),
    Plan("jungle", "overcast", 130, ("orange", "green", "yellow", "red"), ("red", "yellow", "orange", "purple"),
         (("ziggurat", "red", 90, 14), ("great_tree", "green", 195, 13), ("arch", "orange", 0, 12), ("obelisk", "yellow", 305, 10), ("well", "purple", 250, 8), ("great_tree", "yellow", 335, 17), ("camp_fire", "orange", 150, 7))),
)  # fmt: skip


def random_plan(rng: np.random.Generator) -> Plan:
    """Any style at any hour, with five to seven landmarks."""
    style = str(rng.choice(list(STYLES)))
    hues = [str(c) for c in rng.permutation([c for c in COLOURS if c not in ("white", "golden")])]
    main = str(rng.choice(["keep", "temple", "keep"] if STYLES[style].broken == 0 else ["temple", "ziggurat"]))
    pool = ["fountain", "arch", "obelisk", "crystals", "great_tree", "well", "stall", "tent", "camp_fire"] + (["snowman", "giant_fir"] if style == "ice" else [])
    names = [str(n) for n in rng.choice(pool, int(rng.integers(4, 7)), replace=False)]
    side = int(rng.integers(4)) * 90.0
    landmarks = [(main, hues[0], side, 15.0)]
    if STYLES[style].broken == 0:
        landmarks.append(("gate", hues[1], (side + float(rng.choice([90, 180, 270]))) % 360, 19.0))
    free = list(side + 55 + np.arange(len(names)) * (250 / max(1, len(names) - 1)) + rng.uniform(-8, 8, len(names)))
    for name, azimuth, hue in zip(names, rng.permutation(free), hues[2:], strict=False):
        landmarks.append((name, {"giant_fir": "green", "camp_fire": "orange"}.get(name, hue), float(azimuth), float(rng.uniform(8, 14))))
    return Plan(style, str(rng.choice(hours.HOURS)), float(rng.uniform(0, 360)), tuple(hues[4:8]), tuple(hues[:4]), tuple(landmarks), str(rng.choice(["cross", "checker", "rings"])))


def caption(plan: Plan) -> str:
    """One sentence: the place, the hour, and the first landmarks with their colours."""
    every = strongholds.LANDMARKS | buildings.LANDMARKS
    things = [buildings.phrase(every[name][1], colour) for name, colour, _, distance in plan.landmarks if distance < 40]
    style = STYLES[plan.style]
    towers = f"{plan.roofs[0]} and {plan.roofs[1]} towers" if style.broken == 0 and plan.roofs[0] != plan.roofs[1] else "broken walls" if style.broken else f"{plan.roofs[0]} towers"
    start = f"A{'n' if style.word[0] in 'aeiou' else ''} {style.word} {hours.WORDS[plan.hour]}"
    return buildings.sentence(start, things, towers)


def _at(azimuth: float, distance: float) -> tuple[float, float]:
    return distance * np.cos(np.radians(azimuth)), distance * np.sin(np.radians(azimuth))


def build(rng: np.random.Generator, variant: int | None = None) -> Scene:
    """A courtyard or ruin: one of the six of the gallery, or any other when `variant` is None."""
    return build_plan(rng, random_plan(rng) if variant is None else GALLERY[variant])


def build_plan(rng: np.random.Generator, plan: Plan) -> Scene:
    """What a plan says."""
    style, lit = STYLES[plan.style], hours.lit(plan.hour)
    site, height = Site(), parts.hills(rng, 42.0, 12.0)
    parts.ground(site.mesh, rng, height, [shade(t, 0.96) for t in style.lawn], style.far, cell=5.0, cells=5)
    _floor(site, rng, plan, style)
    for name, colour, azimuth, distance in plan.landmarks:
        if name in strongholds.LANDMARKS:
            part = strongholds.LANDMARKS[name][0](rng, COLOURS[colour], lit, style.stone)
        else:
            part = buildings.LANDMARKS[name][0](rng, COLOURS[colour], lit)
        x, y = _at(azimuth, distance)
        near = distance < REACH + 1
        turn = 0.0 if name in ("keep", "gate", "temple", "ziggurat") else rng.uniform(-0.25, 0.25)
        site.put(part, x, y, facing(np.radians(azimuth)) + turn, 1.0 if near else 1.8, focus=2.2 if near else None)
        if name in buildings.SHINING:
            site.lights.append((x, y, 1.2))
    _walls(site, rng, plan, style, lit)
    _furniture(site, rng, plan, style, lit)
    _outside(site, rng, plan, style, height)
    if lit:
        parts.lamplight(site)
    return Scene(
        family="castle", caption=caption(plan), mesh=site.mesh, sky=hours.sky(rng, plan.hour, np.radians(plan.sun)), colliders=site.colliders,
        ground=height, bounds=(-REACH, REACH, -REACH, REACH), ceiling=10.0, step=0.18, spots=site.spots(rng, REACH - 3, 2.8), focus=np.array(site.focus),
    )  # fmt: skip


def _floor(site: Site, rng: np.random.Generator, plan: Plan, style: Style, size: float = 1.75, half: int = 12) -> None:
    """Irregular tiles: paving in two tones where the plan says so, lawn elsewhere."""
    axis = np.arange(-half, half + 1) * size
    x, y = np.meshgrid(axis, axis)
    x, y = x + rng.uniform(-0.22, 0.22, x.shape), y + rng.uniform(-0.22, 0.22, y.shape)
    p = np.stack([x, y, np.full(x.shape, 0.05)], -1)
    a, b, c, d = p[:-1, :-1], p[:-1, 1:], p[1:, 1:], p[1:, :-1]
    middle = (a + c)[..., :2] / 2
    mx, my, r = middle[..., 0], middle[..., 1], np.hypot(middle[..., 0], middle[..., 1])
    row, column = np.indices(mx.shape)
    checker = (row + column) % 2
    if plan.floor == "checker":
        paved, tone = r < 17, checker
    elif plan.floor == "rings":
        paved, tone = (r < 11.5) | ((np.abs(mx) < 2) ^ (np.abs(my) < 2)), (r // 3.6).astype(int) % 2
    else:
        paved, tone = (r < 6.5) | (np.abs(mx) < 2.7) | (np.abs(my) < 2.7), np.where(r < 6.5, checker, rng.uniform(size=r.shape) < 0.3).astype(int)
    if style.broken:
        paved = paved & (rng.uniform(size=r.shape) > 0.18)
    lawn = np.clip((parts.patches(rng, 10.0)(mx, my) + 1) * 1.5 + rng.uniform(-0.3, 0.3, r.shape), 0, 2.99).astype(int)
    colour = np.where(paved[..., None], np.array(style.paving)[tone], np.array(style.lawn)[lawn])
    colour = np.repeat(colour.reshape(-1, 3), 2, axis=0)
    same = np.repeat(rng.uniform(-0.06, 0.06, len(colour) // 2), 2) + np.where(np.repeat(paved.reshape(-1), 2), 0.0, rng.uniform(-0.05, 0.05, len(colour)))
    triangles = np.stack([np.stack([a, b, c], -2), np.stack([a, c, d], -2)], 2).reshape(-1, 3, 3)
    site.mesh.add(triangles, np.clip(colour * (1 + same[:, None]), 0, 0.985))


def _walls(site: Site, rng: np.random.Generator, plan: Plan, style: Style, lit: bool) -> None:
    snow = (0.96, 0.97, 0.985) if style.snow else None
    for side in range(4):
        azimuth = side * 90.0
        part = strongholds.wall(rng, 2 * WALL - 4, shade(style.stone, 0.97 + 0.03 * side), broken=style.broken, cap=snow, moss=style.moss)
        if not style.broken:
            for x in (-12.5, -7.5, 7.5, 12.5):
                part.mesh.place(strongholds.banner(COLOURS[plan.banners[side]]), x, -0.82, 4.5)
        x, y = _at(azimuth, WALL)
        site.put(part, x, y, facing(np.radians(azimuth)))
        site.focus.append((x * 0.95, y * 0.95, 2.0))
    for k, azimuth in enumerate((45.0, 135.0, 225.0, 315.0)):
        top, tall = style.top, 9.0
        if style.top == "broken":
            tall, top = float(rng.uniform(4.0, 8.0)), ("flat", "broken")[k % 2]
        part = strongholds.tower(rng, style.stone, COLOURS[plan.roofs[k]], lit, 3.2, tall, top)
        x, y = _at(azimuth, (WALL - 0.6) * 2**0.5)
        site.put(part, x, y, np.radians(azimuth), focus=2.6)
    if not style.broken:
        gate = next((a for name, _, a, _ in plan.landmarks if name == "gate"), 0.0)
        azimuth = (gate + 180.0) % 360 if (gate + 180.0) % 360 not in [a for n, _, a, _ in plan.landmarks if n in ("keep", "temple")] else (gate + 90.0) % 360
        along = np.radians(azimuth + 90)
        x, y = np.array(_at(azimuth, WALL - 1.8)) + 11.5 * np.array([np.cos(along), np.sin(along)])
        site.put(strongholds.stairs(rng, style.stone), x, y, along)


def _furniture(site: Site, rng: np.random.Generator, plan: Plan, style: Style, lit: bool) -> None:
    """Columns, fallen ones, crates, barrels, torches, trees, bushes and stones inside the walls."""
    for k in range(style.columns):
        a = (k + 0.5) * 2 * np.pi / style.columns
        x, y = 8.8 * np.cos(a), 8.8 * np.sin(a)
        if site.free(x, y, 0.9):
            site.put(strongholds.column(rng, shade(style.stone, 1.08), broken=bool(style.broken) and rng.uniform() < 0.45), x, y)
    if style.broken:
        for x, y in site.scatter(rng, 4, 7, 18, 1.6):
            site.put(strongholds.fallen(rng, shade(style.stone, 1.05)), x, y, rng.uniform(0, np.pi))
    if plan.hour in ("night", "dusk", "dawn"):
        for x, y in site.scatter(rng, 9 if lit else 5, 5, 18, 0.8):
            site.put(strongholds.torch(rng), x, y)
            site.lights.append((x, y, 1.8))
    for x, y in site.scatter(rng, 4, 9, 18.5, 1.2):
        if rng.uniform() < 0.65:
            site.put(parts.crate(rng, rng.uniform(0.8, 1.1)), x, y, rng.uniform(0, 1.5))
            site.put(parts.crate(rng, 0.7, (0.80, 0.58, 0.34)), x + 1.1, y + 0.2, rng.uniform(0, 1.5))
        else:
            site.put(parts.barrel(), x, y)
    for x, y in site.scatter(rng, 6, 11, 18.5, 1.6):
        site.put(_tree(rng, style, True), x, y, rng.uniform(0, 6))
    for x, y in site.scatter(rng, 7, 8, 19, 0.9):
        if style.broken or style.snow or rng.uniform() < 0.3:
            site.put(parts.rock(rng, shade(style.stone, 0.88), rng.uniform(0.4, 0.85), 0, (0.96, 0.97, 0.985) if style.snow else None), x, y, rng.uniform(0, 6))
        elif style.cap is not None:
            site.put(parts.bush(rng, shade(style.trees[0][1], 1.1), rng.uniform(0.5, 0.75)), x, y)
    for x, y in site.scatter(rng, 26, 3, 19, 0.4):
        site.put(parts.pebble(rng, shade(style.paving[int(rng.integers(2))], 0.85), rng.uniform(0.25, 0.55)), x, y)
    if not style.snow and style.cap is not None or style.top == "broken":
        tones = [COLOURS[c] for c in plan.banners]
        for x, y in site.scatter(rng, 22, 6.8, 19, 0.3):
            if min(abs(x), abs(y)) > 3.2:
                site.mesh.place(parts.flower(rng, tones[int(rng.integers(4))], 0.19).mesh, x, y)


def _tree(rng: np.random.Generator, style: Style, near: bool) -> parts.Part:
    kind, leaf = style.trees[int(rng.integers(len(style.trees)))]
    if kind == "palm":
        return parts.palm_tree(rng, leaf, rng.uniform(4.6, 6.6))
    extra = {"snow": True} if kind == "pine" and style.snow else {}
    return parts.TREES[kind](rng, leaf, rng.uniform(4.2, 5.6) * (1.35 if kind != "round" else 1.0), near=near, **extra)


def _outside(site: Site, rng: np.random.Generator, plan: Plan, style: Style, height) -> None:
    """Trees behind the walls (many around ruins) and mountains, the highest beyond the main landmark."""
    count = 44 if style.broken else 20
    for x, y in site.scatter(rng, count, 28, 56, 1.5):
        part = _tree(rng, style, False)
        site.mesh.place(part.mesh, x, y, float(height(np.array(x), np.array(y))) - 0.3, rng.uniform(0, 6), 1.7 if not style.broken else 1.3)
    peak = plan.landmarks[0][2] + 60
    for i in range(12):
        azimuth = i * 30 + rng.uniform(-8, 8)
        tall = rng.uniform(24, 36) + 34 * max(0.0, np.cos(np.radians(azimuth - peak))) ** 2
        x, y = _at(azimuth, rng.uniform(150, 185))
        tint = np.array([0.07, 0.0, -0.06]) * np.cos(np.radians(azimuth - peak + 90))
        site.mesh.place(parts.mountain(rng, tall * rng.uniform(0.9, 1.2), tall, tuple(np.clip(np.array(style.mountain) + tint, 0, 0.98)), style.cap if tall > 32 else None).mesh, x, y, -2.0)
