"""Landmarks of villages: each `Part` has one clear silhouette and its own colour, so that it tells where one is looking.

All take `rng`, a main colour and whether lights are on; `LANDMARKS` names them for plans and captions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from distill.scenes.mesh import Colour, Mesh
from distill.scenes.parts import (
    DARK_WOOD,
    GLASS,
    LAMP_LIGHT,
    STONE,
    WHITE,
    WOOD,
    Part,
    pine_tree,
    shade,
)
from distill.scenes.scene import Box, Cylinder


def barn(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    mesh, (w, d, h) = Mesh(), (8.0, 7.0, 4.0)
    mesh.box((0, 0, h / 2), (w, d, h), colour)
    roof = (0.30, 0.32, 0.38)
    profile = [(-d / 2 - 0.4, h - 0.2), (-d / 3.2, h + 2.0), (0, h + 3.1), (d / 3.2, h + 2.0), (d / 2 + 0.4, h - 0.2)]
    for (x0, z0), (x1, z1) in itertools.pairwise(profile):  # ridge along y, front towards -y
        x0, x1 = x0 * w / d, x1 * w / d
        for back, lower in ((1, 0.0), (-1, 0.2)):
            quad = [(x0, -d / 2 - 0.5, z0 - lower), (x0, d / 2 + 0.5, z0 - lower), (x1, d / 2 + 0.5, z1 - lower), (x1, -d / 2 - 0.5, z1 - lower)]
            mesh.polygon(quad[::-back], roof if back == 1 else shade(roof, 0.7))
    front = np.array([(x * w / d * 0.92, -d / 2, z - 0.1) for x, z in profile])
    mesh.polygon(front[::-1], colour).polygon(front * (1, -1, 1), colour)
    y = -d / 2 - 0.07
    mesh.box((0, y, 1.6), (3.5, 0.14, 3.2), WHITE).box((0, y - 0.06, 1.55), (3.0, 0.14, 2.9), shade(colour, 0.75))
    for tilt in (1, -1):
        p = np.array([(-1.5 * tilt, 0.1), (-1.15 * tilt, 0.1), (1.5 * tilt, 3.0), (1.15 * tilt, 3.0)])
        quad = np.column_stack([p[:, 0], np.full(4, y - 0.16), p[:, 1]])
        mesh.polygon(quad if tilt == 1 else quad[::-1], WHITE)
    mesh.box((0, y, 5.0), (1.5, 0.16, 1.5), WHITE).box((0, y - 0.05, 5.0), (1.1, 0.16, 1.1), LAMP_LIGHT if lit else (0.22, 0.16, 0.16), glow=float(lit))
    return Part(mesh, [Box(0, 0, w / 2 + 0.2, d / 2 + 0.2, z1=h + 1), Box(0, 0, w / 4, d / 2, z0=h, z1=h + 3)], 5.4)


def windmill(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    """A white tower with a coloured cap and four sails in the same colour."""
    mesh = Mesh().cylinder((0, 0, 0), 2.5, 1.0, STONE, 10, 2.4, cap=False).cylinder((0, 0, 1.0), 2.3, 6.6, WHITE, 10, 1.5)
    mesh.cylinder((0, 0, 7.6), 1.8, 2.2, colour, 10, 0.0)
    mesh.box((0, -2.3, 1.2), (1.2, 0.5, 2.4), shade(colour, 0.7)).box((0, -1.98, 4.4), (0.9, 0.4, 0.9), LAMP_LIGHT if lit else GLASS, glow=float(lit))
    hub, turn = np.array([0, -2.05, 7.4]), 0.5
    mesh.box(hub, (0.5, 1.0, 0.5), DARK_WOOD)
    for i in range(4):
        a = turn + i * np.pi / 2
        out, side = np.array([np.cos(a), 0, np.sin(a)]), np.array([-np.sin(a), 0, np.cos(a)])
        p = [hub + out * 0.3 - side * 0.12 + (0, -0.45, 0), hub + out * 4.8 - side * 0.12 + (0, -0.45, 0), hub + out * 4.8 + side * 1.1 + (0, -0.45, 0), hub + out * 1.2 + side * 1.1 + (0, -0.45, 0)]
        mesh.polygon(p, shade(colour, 1.1 if i % 2 else 0.92)).polygon(p[::-1], shade(colour, 0.8))
    return Part(mesh, [Cylinder(0, 0, 2.5, z1=8.0), Box(0, -2.4, 4.5, 0.5, z0=2.6, z1=12.5)], 3.2)


def church(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    """White walls, a tower with a clock and a pointed roof in the main colour."""
    mesh = Mesh().box((0, 2.5, 1.9), (5.0, 8.0, 3.8), WHITE)
    nave = Mesh().gable((0, 0, 3.7), (8.5, 5.8, 3.0), colour, wall_colour=WHITE)
    mesh.place(nave, 0, 2.5, 0, np.pi / 2)
    mesh.box((0, -2.2, 3.9), (3.0, 3.0, 7.8), shade(WHITE, 0.97)).box((0, -2.2, 7.9), (3.4, 3.4, 0.3), STONE)
    mesh.cylinder((0, -2.2, 8.05), 2.3, 5.2, colour, 4, 0.0, turn=np.pi / 4)
    mesh.box((0, -2.2, 13.5), (0.16, 0.16, 1.0), (0.95, 0.80, 0.30)).box((0, -2.2, 13.6), (0.6, 0.16, 0.16), (0.95, 0.80, 0.30))
    mesh.box((0, -3.72, 1.3), (1.5, 0.2, 2.6), shade(colour, 0.6))
    pane, glow = (LAMP_LIGHT, 1.0) if lit else ((0.45, 0.66, 0.92), 0.15)
    mesh.box((0, -3.72, 6.4), (1.2, 0.2, 1.2), LAMP_LIGHT if lit else (0.95, 0.85, 0.45), glow=glow).box((0, -3.72, 4.2), (0.7, 0.2, 1.3), pane, glow=glow)
    for x in (-2.5, 2.5):
        for y in (1.2, 4.2):
            mesh.box((x, y, 2.2), (0.2, 0.8, 1.8), pane, glow=glow)
    return Part(mesh, [Box(0, 2.5, 2.7, 4.2, z1=6.0), Box(0, -2.2, 1.7, 1.7, z1=13.0)], 5.6)


def well(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    mesh = Mesh().cylinder((0, 0, 0), 1.25, 0.95, STONE, 10, cap=False).cylinder((0, 0, 0.6), 0.95, 0.05, (0.16, 0.35, 0.62), 10).cylinder((0, 0, 0.9), 1.35, 0.18, shade(STONE, 1.18), 10)
    mesh.cylinder((0, 0, 1.0), 0.95, 0.1, (0.20, 0.45, 0.72), 10)
    for x in (-1.05, 1.05):
        mesh.box((x, 0, 1.6), (0.18, 0.18, 2.2), WOOD)
    mesh.box((0, 0, 1.9), (2.1, 0.12, 0.12), DARK_WOOD).gable((0, 0, 2.6), (2.9, 2.3, 1.1), colour).box((0, 0, 1.45), (0.4, 0.4, 0.4), WOOD)
    return Part(mesh, [Cylinder(0, 0, 1.4, z1=3.6)], 1.8)


def lighthouse(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    mesh = Mesh().blob((0, 0, 0.2), (3.4, 3.4, 1.0), shade(STONE, 0.85), rng, 0.12, 1)
    for i in range(5):
        r0, r1 = 1.9 - 0.17 * i, 1.9 - 0.17 * (i + 1)
        mesh.cylinder((0, 0, 0.8 + 1.9 * i), r0, 1.9, colour if i % 2 == 0 else WHITE, 10, r1, cap=False)
    mesh.cylinder((0, 0, 10.3), 1.6, 0.3, (0.25, 0.27, 0.32), 10).cylinder((0, 0, 10.6), 0.85, 1.4, (0.99, 0.88, 0.5), 8, glow=1.0).cylinder((0, 0, 12.0), 1.2, 1.1, colour, 10, 0.0)
    mesh.box((0, -1.9, 1.9), (0.9, 0.4, 1.8), shade(colour, 0.6))
    return Part(mesh, [Cylinder(0, 0, 3.2, z1=1.2), Cylinder(0, 0, 2.0, z1=13)], 3.6)


def pagoda(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    """Three storeys, upturned roofs in the main colour."""
    mesh = Mesh().box((0, 0, 0.35), (7.0, 7.0, 0.7), STONE)
    z = 0.7
    for i, w in enumerate((4.6, 3.6, 2.6)):
        mesh.box((0, 0, z + 1.1), (w, w, 2.2), (0.93, 0.86, 0.74) if i % 2 == 0 else (0.88, 0.78, 0.66))
        for side in range(4):
            a = side * np.pi / 2
            out = np.array([np.sin(a), -np.cos(a)]) * (w / 2 + 0.04)
            mesh.box((out[0], out[1], z + 1.0), (1.0, 0.16, 1.4 if i == 0 else 1.0), LAMP_LIGHT if lit else DARK_WOOD, yaw=a, glow=float(lit))
        z += 2.2
        mesh.cylinder((0, 0, z - 0.15), (w / 2 + 1.3) * 1.414, 0.35, shade(colour, 0.82), 4, (w / 2 + 1.1) * 1.414, turn=np.pi / 4)
        mesh.cylinder((0, 0, z + 0.2), (w / 2 + 1.1) * 1.414, 1.3, colour, 4, (w / 2 - 0.7) * 1.414, turn=np.pi / 4)
        z += 1.2
    mesh.cylinder((0, 0, z + 0.2), 0.25, 2.2, (0.95, 0.80, 0.30), 6, 0.05)
    return Part(mesh, [Box(0, 0, 3.5, 3.5, z1=0.7), Box(0, 0, 3.0, 3.0, z0=0.6, z1=z)], 5.0)


def torii(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    mesh = Mesh()
    for x in (-2.0, 2.0):
        mesh.cylinder((x, 0, 0), 0.32, 4.4, colour, 8, 0.26).cylinder((x, 0, 0), 0.42, 0.5, (0.22, 0.22, 0.25), 8)
    mesh.box((0, 0, 3.4), (5.0, 0.3, 0.36), colour).box((0, 0, 4.45), (6.0, 0.5, 0.4), colour).box((0, 0, 4.76), (6.6, 0.7, 0.24), (0.22, 0.22, 0.25), taper=1.04)
    return Part(mesh, [Cylinder(-2.0, 0, 0.4, z1=4.6), Cylinder(2.0, 0, 0.4, z1=4.6), Box(0, 0, 3.3, 0.4, z0=3.2, z1=4.9)], 2.6)


def watch_tower(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    mesh = Mesh()
    for x in (-1, 1):
        for y in (-1, 1):
            mesh.box((x * 1.3, y * 1.3, 3.0), (0.28, 0.28, 6.0), WOOD)
    for z in (1.6, 3.8):
        for s in (-1.3, 1.3):
            mesh.box((0, s, z), (2.8, 0.14, 0.2), DARK_WOOD).box((s, 0, z), (0.14, 2.8, 0.2), DARK_WOOD)
    mesh.box((0, 0, 6.1), (3.6, 3.6, 0.25), shade(WOOD, 1.2))
    for s in (-1.7, 1.7):
        mesh.box((0, s, 6.7), (3.6, 0.14, 1.0), shade(WOOD, 1.1)).box((s, 0, 6.7), (0.14, 3.6, 1.0), shade(WOOD, 1.1))
    mesh.box((0, 0, 7.6), (1.4, 1.4, 1.4), LAMP_LIGHT if lit else DARK_WOOD, glow=float(lit)).cylinder((0, 0, 8.2), 3.0, 2.2, colour, 4, 0.0, turn=np.pi / 4)
    return Part(mesh, [Box(0, 0, 1.5, 1.5, z1=6), Box(0, 0, 2.1, 2.1, z0=5.8, z1=10)], 2.3)


def tent(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    mesh, (w, d, h) = Mesh(), (3.0, 3.6, 2.2)
    for s in (-1, 1):
        quad = [(s * w / 2, -d / 2, 0), (s * w / 2, d / 2, 0), (0, d / 2, h), (0, -d / 2, h)]
        mesh.polygon(quad[::s], colour)
    back = [(w / 2, d / 2, 0), (-w / 2, d / 2, 0), (0, d / 2, h)]
    mesh.polygon(back, shade(colour, 0.85)).polygon([(-w / 2, -d / 2, 0), (w / 2, -d / 2, 0), (0, -d / 2, h)], shade(colour, 1.12))
    mesh.polygon([(-0.6, -d / 2 - 0.04, 0), (0.6, -d / 2 - 0.04, 0), (0, -d / 2 - 0.04, 1.6)], LAMP_LIGHT if lit else (0.20, 0.18, 0.22), glow=float(lit))
    return Part(mesh, [Box(0, 0, w / 2, d / 2, z1=h * 0.8)], 2.2)


def snowman(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    snow = (0.96, 0.97, 0.985)
    mesh = Mesh().blob((0, 0, 0.75), 0.95, snow, rng, 0.03, 1).blob((0, 0, 1.95), 0.68, snow, rng, 0.03, 1).blob((0, 0, 2.85), 0.46, snow, rng, 0.03, 1)
    mesh.cylinder((0, 0, 2.38), 0.52, 0.24, colour, 8).cylinder((0, 0, 3.15), 0.62, 0.1, (0.15, 0.15, 0.18), 8).cylinder((0, 0, 3.2), 0.4, 0.6, (0.15, 0.15, 0.18), 8)
    mesh.add([[(-0.1, -0.4, 2.8), (0.1, -0.4, 2.8), (0, -0.95, 2.85)], [(0.1, -0.4, 2.8), (0, -0.4, 2.98), (0, -0.95, 2.85)], [(0, -0.4, 2.98), (-0.1, -0.4, 2.8), (0, -0.95, 2.85)]], (0.98, 0.52, 0.15))
    for x in (-0.17, 0.17):
        mesh.box((x, -0.42, 3.0), (0.12, 0.1, 0.12), (0.1, 0.1, 0.12))
    return Part(mesh, [Cylinder(0, 0, 1.0, z1=3.6)], 1.3)


def giant_fir(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    """A tall fir with lights in many colours and a star."""
    part, height = pine_tree(rng, colour, 10.5, snow=False), 10.5
    lights = [(0.98, 0.30, 0.25), (0.98, 0.85, 0.30), (0.35, 0.65, 0.98), (0.98, 0.55, 0.85)]
    for i in range(26):
        t = i / 26
        a, z = i * 2.4, height * (0.20 + 0.66 * t)
        r = height * 0.24 * (1.03 - 0.98 * t)
        part.mesh.cylinder((r * np.cos(a), r * np.sin(a), z), 0.19, 0.36, lights[i % 4], 4, 0.12, glow=1.0 if lit else 0.5)
    part.mesh.cylinder((0, 0, height * 1.0), 0.1, 0.6, (0.99, 0.88, 0.35), 5, 0.55, glow=1.0).cylinder((0, 0, height + 0.6), 0.55, 0.8, (0.99, 0.88, 0.35), 5, 0.0, glow=1.0)
    return part


def great_tree(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    """An old tree with a crown of several blobs, twice as high as a house."""
    mesh = Mesh().cylinder((0, 0, -0.2), 1.2, 1.4, WOOD, 8, 0.75, cap=False).cylinder((0, 0, 1.2), 0.75, 4.6, WOOD, 8, 0.5, cap=False)
    mesh.blob((0, 0, 7.4), (3.2, 3.2, 2.6), colour, rng, 0.10, 1)
    for i in range(5):
        a = i * 2 * np.pi / 5 + rng.uniform(-0.2, 0.2)
        mesh.blob((2.5 * np.cos(a), 2.5 * np.sin(a), 6.0 + 0.6 * (i % 2)), (1.9, 1.9, 1.5), shade(colour, 0.88 + 0.06 * i), rng, 0.12, 1)
    return Part(mesh, [Cylinder(0, 0, 1.1, z1=5), Cylinder(0, 0, 4.2, z0=4.6, z1=10)], 2.6)


def stall(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    """A market stall with a striped awning and fruit."""
    mesh = Mesh().box((0, 0, 0.5), (3.0, 1.2, 1.0), WOOD)
    for x in (-1.5, 1.5):
        for y in (-0.9, 0.9):
            mesh.box((x, y, 1.25), (0.12, 0.12, 2.5), DARK_WOOD)
    for i in range(6):
        x0, x1 = -1.8 + 0.6 * i, -1.2 + 0.6 * i
        quad = [(x0, -1.3, 2.2), (x1, -1.3, 2.2), (x1, 1.1, 2.9), (x0, 1.1, 2.9)]
        tone = colour if i % 2 == 0 else WHITE
        mesh.polygon(quad, tone).polygon(quad[::-1], shade(tone, 0.8)).polygon([(x0, -1.3, 1.9), (x1, -1.3, 1.9), (x1, -1.3, 2.2), (x0, -1.3, 2.2)], tone)
    for i, tone in enumerate([(0.95, 0.25, 0.20), (0.98, 0.70, 0.15), (0.45, 0.78, 0.25), (0.62, 0.30, 0.70)]):
        mesh.box((-1.05 + 0.7 * i, -0.1, 1.1), (0.58, 0.9, 0.26), tone, taper=0.7)
    return Part(mesh, [Box(0, 0, 1.8, 1.2, z1=3.0)], 2.2)


def camp_fire(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    mesh = Mesh()
    for i in range(8):
        a = i * np.pi / 4
        mesh.blob((0.9 * np.cos(a), 0.9 * np.sin(a), 0.12), 0.27, STONE, rng, 0.2, 0)
    mesh.cylinder((0, 0, 0.05), 0.55, 0.9, (0.98, 0.50, 0.12), 5, 0.0, glow=1.0).cylinder((0.1, 0, 0.05), 0.3, 1.25, (0.99, 0.82, 0.25), 5, 0.0, glow=1.0, turn=0.6)
    return Part(mesh, [Cylinder(0, 0, 1.1, z1=1.0)], 1.3)


def hay_bale(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    mesh, angle, r = Mesh(), np.arange(11) * 2 * np.pi / 10, 0.85
    for i in range(10):
        p = [(x, r * np.cos(a), r + r * np.sin(a)) for x, a in ((-0.7, angle[i]), (0.7, angle[i]), (0.7, angle[i + 1]), (-0.7, angle[i + 1]))]
        mesh.polygon(p, shade(colour, 0.92 + 0.12 * (i % 2)))
    for x in (-0.7, 0.7):
        ring = [(x, r * np.cos(a), r + r * np.sin(a)) for a in angle[:10]]
        mesh.polygon(ring if x > 0 else ring[::-1], shade(colour, 0.82))
    return Part(mesh, [Cylinder(0, 0, 0.95, z1=1.7)], 1.2)


def balloon(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    """A hot-air balloon with coloured stripes; it hangs in the air, so it has no collider."""
    mesh, sides = Mesh(), 12
    profile = [(0.6, 2.2), (2.0, 4.2), (3.0, 6.4), (2.7, 8.4), (1.5, 9.8), (0.0, 10.2)]
    angle = np.arange(sides) * 2 * np.pi / sides
    for (r0, z0), (r1, z1) in itertools.pairwise(profile):
        for i in range(sides):
            a, b = angle[i], angle[(i + 1) % sides]
            p = [(r0 * np.cos(a), r0 * np.sin(a), z0), (r0 * np.cos(b), r0 * np.sin(b), z0), (r1 * np.cos(b), r1 * np.sin(b), z1), (r1 * np.cos(a), r1 * np.sin(a), z1)]
            mesh.polygon(p if r1 > 0 else p[:3], colour if i // 2 % 2 == 0 else (0.98, 0.90, 0.62), 0.35 if lit else 0.0)
    mesh.box((0, 0, 0.6), (1.1, 1.1, 1.0), WOOD)
    return Part(mesh, [], 0.0)


def boat(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    """A sailing boat with a white sail."""
    mesh = Mesh()
    deck = np.array([(-1.0, -0.6), (-0.75, 1.0), (0, 2.0), (0.75, 1.0), (1.0, -0.6), (0.7, -1.8), (-0.7, -1.8)])[::-1]
    low, high = np.column_stack([deck * 0.75, np.full(7, -0.1)]), np.column_stack([deck, np.full(7, 0.75)])
    for i in range(7):
        j = (i + 1) % 7
        mesh.polygon([low[i], low[j], high[j], high[i]], colour)
    mesh.polygon(high, shade(WOOD, 1.3)).box((0, 0.2, 2.6), (0.14, 0.14, 3.8), DARK_WOOD)
    sail = [(0, 0.0, 1.1), (0, -1.9, 1.2), (0, 0.0, 4.4)]
    mesh.polygon(sail, WHITE).polygon(sail[::-1], shade(WHITE, 0.93))
    return Part(mesh, [Cylinder(0, 0, 1.6, z1=4)], 2.0)


def flower_field(rng: np.random.Generator, colour: Colour, lit: bool) -> Part:
    """Rows of flowers in one colour."""
    mesh = Mesh()
    for row in range(5):
        for column in range(4):
            x, y = -3.9 + 2.6 * column, -3.0 + 1.5 * row
            mesh.box((x, y, 0.28), (2.5, 0.85, 0.56), shade(colour, rng.uniform(0.88, 1.14)), taper=0.72)
    return Part(mesh, [Box(0, 0, 5.2, 3.6, z1=0.6)], 5.4)


LANDMARKS: dict[str, tuple[Callable[..., Part], str]] = {
    "barn": (barn, "barn"), "windmill": (windmill, "windmill"), "church": (church, "church"), "well": (well, "well"), "lighthouse": (lighthouse, "lighthouse"),
    "pagoda": (pagoda, "pagoda"), "torii": (torii, "gate"), "watch_tower": (watch_tower, "watch tower"), "tent": (tent, "tent"), "snowman": (snowman, "snowman in a {} scarf"),
    "giant_fir": (giant_fir, "{} fir with lights"), "great_tree": (great_tree, "giant {} tree"), "stall": (stall, "market stall"), "camp_fire": (camp_fire, "camp fire"),
    "hay_bale": (hay_bale, "{} hay bale"), "balloon": (balloon, "hot-air balloon"), "boat": (boat, "boat"),
    "flower_field": (flower_field, "flower field"),
}  # fmt: skip

SHINING = frozenset({"camp_fire", "giant_fir", "stall", "crystals"})
"""Landmarks that light their surroundings at night."""


def phrase(word: str, colour: str) -> str:
    """A landmark's word with its colour and article; several things need none."""
    text = word.format(colour) if "{}" in word else f"{colour} {word}"
    return text if text.endswith("crystals") else f"a{'n' if text[0] in 'aeiou' else ''} {text}"


def sentence(start: str, things: list[str], last: str, limit: int = 20) -> str:
    """A caption of at most `limit` words: as many of `things` as fit (one at least, three at most), then `last`."""
    things = list(dict.fromkeys(things))
    for count in (3, 2, 1):
        text = f"{start} with {', '.join(things[:count])} and {last}."
        if len(text.split()) <= limit:
            break
    return text
