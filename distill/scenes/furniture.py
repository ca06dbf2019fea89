"""Furniture: clear shapes in clear colours.

Every piece is a function ``(rng, colour) -> Mesh`` with its back on the plane y = 0, centred on x = 0, standing on z = 0 and
facing -y; `PIECES` tells its footprint. Things for the middle of a room are centred on the origin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from distill.scenes.mesh import Colour, Mesh

OAK: Colour = (0.72, 0.48, 0.26)
WALNUT: Colour = (0.46, 0.28, 0.17)
WHITE: Colour = (0.95, 0.94, 0.91)
BLACK: Colour = (0.15, 0.15, 0.18)
BRIGHT: tuple[Colour, ...] = ((0.90, 0.22, 0.20), (0.16, 0.45, 0.85), (0.20, 0.65, 0.36), (0.98, 0.78, 0.18), (0.55, 0.32, 0.75), (0.96, 0.52, 0.16), (0.95, 0.92, 0.84), (0.10, 0.62, 0.66))


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(float(c) for c in np.clip(np.array(colour) * factor, 0, 1))


def _front(mesh: Mesh, x0: float, x1: float, y: float, z0: float, z1: float, colour: Colour, glow: float = 0.0) -> Mesh:
    """A rectangle that faces -y."""
    return mesh.polygon([(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)], colour, glow)


def bookshelf(rng: np.random.Generator, colour: Colour, width: float = 1.7, tall: float = 2.15) -> Mesh:
    m, deep, rows = Mesh(), 0.38, 4
    frame = OAK if rng.uniform() < 0.6 else WHITE
    m.box((0, -0.02, tall / 2), (width, 0.04, tall), _shade(frame, 0.72))
    for s in (-1, 1):
        m.box((s * (width / 2 - 0.04), -deep / 2, tall / 2), (0.08, deep, tall), frame)
    step = (tall - 0.1) / rows
    for i in range(rows + 1):
        m.box((0, -deep / 2, 0.05 + i * step), (width, deep, 0.07), frame)
    for i in range(rows):
        x, z = -width / 2 + 0.1, 0.085 + i * step
        while x < width / 2 - 0.22:
            w, h = rng.uniform(0.09, 0.15), step * rng.uniform(0.55, 0.8)
            if rng.uniform() < 0.1:
                x += 0.16
                continue
            c = _shade(BRIGHT[int(rng.integers(len(BRIGHT)))] if rng.uniform() < 0.8 else colour, rng.uniform(0.9, 1.05))
            y = -deep + 0.08
            _front(m, x, x + w, y, z, z + h, c)
            m.polygon([(x, y, z + h), (x + w, y, z + h), (x + w, -0.05, z + h), (x, -0.05, z + h)], _shade(c, 1.1))
            x += w + 0.012
    return m


def sofa(rng: np.random.Generator, colour: Colour) -> Mesh:
    m, light = Mesh(), _shade(colour, 1.15)
    m.box((0, -0.45, 0.22), (2.1, 0.85, 0.34), _shade(colour, 0.85)).box((0, -0.14, 0.55), (2.1, 0.26, 0.75), colour)
    for s in (-1, 1):
        m.box((s * 0.95, -0.45, 0.40), (0.24, 0.88, 0.58), colour).box((s * 0.41, -0.52, 0.46), (0.78, 0.62, 0.16), light)
    return m.box((0.55, -0.34, 0.68), (0.42, 0.16, 0.36), BRIGHT[3]).box((-0.55, -0.34, 0.68), (0.42, 0.16, 0.36), WHITE)


def armchair(rng: np.random.Generator, colour: Colour) -> Mesh:
    m = Mesh().box((0, -0.45, 0.24), (0.95, 0.8, 0.36), _shade(colour, 0.85)).box((0, -0.15, 0.62), (0.95, 0.24, 0.85), colour)
    for s in (-1, 1):
        m.box((s * 0.41, -0.45, 0.46), (0.18, 0.8, 0.36), colour)
    return m.box((0, -0.5, 0.47), (0.62, 0.55, 0.14), _shade(colour, 1.2))


def bed(rng: np.random.Generator, colour: Colour) -> Mesh:
    m = Mesh().box((0, -1.05, 0.2), (1.6, 2.1, 0.3), OAK).box((0, -0.05, 0.6), (1.7, 0.1, 1.1), _shade(OAK, 0.9)).box((0, -1.05, 0.42), (1.5, 2.0, 0.2), WHITE)
    m.box((0, -1.35, 0.47), (1.62, 1.45, 0.24), colour).box((0, -0.75, 0.56), (1.62, 0.28, 0.1), _shade(colour, 1.25))
    for s in (-1, 1):
        m.box((s * 0.38, -0.36, 0.58), (0.6, 0.38, 0.16), WHITE)
    return m


def dresser(rng: np.random.Generator, colour: Colour) -> Mesh:
    m = Mesh().box((0, -0.25, 0.5), (1.2, 0.5, 1.0), WHITE)
    for i in range(3):
        for s in (-1, 1):
            _front(m, s * 0.29 - 0.26, s * 0.29 + 0.26, -0.51, 0.08 + i * 0.31, 0.34 + i * 0.31, colour)
            m.box((s * 0.29, -0.53, 0.21 + i * 0.31), (0.12, 0.04, 0.04), BLACK)
    return m.cylinder((0.3, -0.25, 1.0), 0.13, 0.32, BRIGHT[1], 7, top_radius=0.09).blob((0.3, -0.25, 1.45), 0.2, BRIGHT[0], rng, 0.2, 0)


def plant(rng: np.random.Generator, colour: Colour) -> Mesh:
    m, green = Mesh(), (0.14, 0.56, 0.26)
    m.cylinder((0, -0.4, 0), 0.26, 0.42, (0.80, 0.40, 0.24), 8, top_radius=0.34).cylinder((0, -0.4, 0.4), 0.05, 0.6, WALNUT, 5)
    for i in range(9):
        a, up = i * 2.4, 0.6 + 0.11 * i
        out, side = np.array([np.cos(a), np.sin(a), 0]), np.array([-np.sin(a), np.cos(a), 0])
        foot, mid, tip = np.array([0, -0.4, up]), np.array([0, -0.4, up + 0.35]) + out * 0.3, np.array([0, -0.4, up + 0.25]) + out * 0.62 * (1.15 - 0.05 * i)
        c = _shade(green, rng.uniform(0.85, 1.3))
        for t in ([foot, mid - side * 0.17, mid + side * 0.17], [mid - side * 0.17, tip, mid + side * 0.17]):
            m.polygon(t, c).polygon(t[::-1], c)
    return m


def lamp(rng: np.random.Generator, colour: Colour) -> Mesh:
    m = Mesh().cylinder((0, -0.35, 0), 0.2, 0.06, BLACK, 8).cylinder((0, -0.35, 0.05), 0.03, 1.5, BLACK, 5)
    return m.cylinder((0, -0.35, 1.4), 0.3, 0.4, (1.0, 0.90, 0.62), 9, top_radius=0.19, glow=0.75)


def piano(rng: np.random.Generator, colour: Colour) -> Mesh:
    m = Mesh().box((0, -0.2, 0.62), (1.6, 0.4, 1.24), colour).box((0, -0.5, 0.66), (1.6, 0.3, 0.14), _shade(colour, 0.8))
    for s in (-1, 1):
        m.box((s * 0.74, -0.58, 0.33), (0.1, 0.1, 0.66), colour)
    m.box((0, -0.53, 0.75), (1.44, 0.2, 0.05), WHITE)
    for i in range(9):
        if i not in (2, 6):
            m.box((-0.62 + i * 0.155, -0.48, 0.79), (0.07, 0.11, 0.04), BLACK)
    _front(m, -0.3, 0.3, -0.41, 0.86, 1.16, WHITE)
    return m.box((0, -0.98, 0.44), (0.7, 0.34, 0.1), BRIGHT[0]).box((0, -0.98, 0.2), (0.5, 0.24, 0.4), BLACK)


def fireplace(rng: np.random.Generator, colour: Colour) -> Mesh:
    m = Mesh()
    for s in (-1, 1):
        m.box((s * 0.68, -0.25, 0.6), (0.4, 0.5, 1.2), colour)
    m.box((0, -0.25, 1.08), (1.0, 0.5, 0.26), colour).box((0, -0.28, 1.27), (1.95, 0.62, 0.12), WHITE).box((0, -0.15, 2.1), (1.2, 0.3, 1.6), _shade(colour, 0.92))
    _front(m, -0.5, 0.5, -0.06, 0, 0.96, (0.20, 0.10, 0.08))
    for a in (-0.12, 0.12):
        m.box((a, -0.26, 0.1), (0.7, 0.12, 0.12), WALNUT, yaw=a * 2)
    for x, r, h, c in ((0, 0.26, 0.72, (1.0, 0.45, 0.10)), (0.2, 0.16, 0.48, (1.0, 0.70, 0.15)), (-0.2, 0.16, 0.52, (1.0, 0.72, 0.2)), (0, 0.15, 0.45, (1.0, 0.92, 0.5))):
        m.cylinder((x, -0.3 - 0.05 * (h < 0.46), 0.12), r, h, c, 5, top_radius=0.0, glow=1.0)
    for x, c in ((-0.6, BRIGHT[1]), (0.0, BRIGHT[3]), (0.62, BRIGHT[2])):
        m.cylinder((x, -0.4, 1.33), 0.09, 0.3, c, 6, top_radius=0.05)
    return m


def aquarium(rng: np.random.Generator, colour: Colour) -> Mesh:
    m = Mesh().box((0, -0.28, 0.38), (1.5, 0.56, 0.76), WALNUT).box((0, -0.28, 1.15), (1.44, 0.5, 0.78), (0.22, 0.66, 0.95), glow=0.75).box((0, -0.28, 1.58), (1.5, 0.56, 0.1), BLACK)
    _front(m, -0.71, 0.71, -0.535, 0.77, 0.88, (0.95, 0.85, 0.55), 0.6)
    for x, z, s, c in ((-0.45, 1.2, 1, (1.0, 0.55, 0.1)), (0.1, 1.35, -1, (1.0, 0.9, 0.2)), (0.45, 1.05, 1, (1.0, 0.35, 0.3))):
        m.polygon([(x - 0.15, -0.54, z), (x, -0.54, z - 0.08), (x + 0.15, -0.54, z), (x, -0.54, z + 0.08)], c, 0.8)
        t = [(x - s * 0.12, -0.545, z), (x - s * 0.25, -0.545, z - 0.09), (x - s * 0.25, -0.545, z + 0.09)]
        m.polygon(t if s < 0 else t[::-1], c, 0.8).polygon(t[::-1] if s < 0 else t, c, 0.8)
    for x in (-0.6, -0.15, 0.3):
        m.polygon([(x - 0.05, -0.54, 0.86), (x + 0.05, -0.54, 0.86), (x, -0.54, 1.3)], (0.15, 0.70, 0.30), 0.6)
    return m


def kitchen(rng: np.random.Generator, colour: Colour) -> Mesh:
    m = Mesh().box((-0.25, -0.3, 0.43), (1.9, 0.58, 0.86), colour).box((-0.25, -0.31, 0.9), (1.95, 0.64, 0.08), WHITE)
    for i in range(3):
        x = -0.87 + i * 0.62
        _front(m, x - 0.27, x + 0.27, -0.605, 0.1, 0.8, _shade(colour, 1.15))
        m.box((x + 0.18, -0.62, 0.68), (0.05, 0.04, 0.18), BLACK)
    m.box((-0.87, -0.3, 0.95), (0.5, 0.4, 0.04), BLACK).cylinder((-0.87, -0.3, 0.96), 0.16, 0.2, BRIGHT[0], 8)
    m.box((-0.25, -0.17, 1.9), (1.9, 0.34, 0.6), _shade(colour, 1.1))
    m.box((1.1, -0.34, 0.98), (0.75, 0.68, 1.96), WHITE).box((1.1, -0.69, 1.2), (0.72, 0.03, 0.02), BLACK).box((0.82, -0.71, 1.45), (0.05, 0.05, 0.35), BLACK)
    return m


def desk(rng: np.random.Generator, colour: Colour) -> Mesh:
    m = Mesh().box((0, -0.35, 0.74), (1.5, 0.7, 0.07), OAK)
    for s in (-1, 1):
        m.box((s * 0.68, -0.35, 0.36), (0.1, 0.62, 0.72), OAK)
    m.box((0, -0.2, 1.12), (0.8, 0.06, 0.5), BLACK).box((0, -0.2, 0.82), (0.1, 0.1, 0.16), BLACK)
    _front(m, -0.36, 0.36, -0.235, 0.92, 1.32, (0.30, 0.75, 0.95), 0.7)
    _front(m, -0.36, 0.36, -0.24, 0.92, 1.04, (0.35, 0.80, 0.35), 0.7)
    m.box((0, -0.95, 0.46), (0.5, 0.5, 0.1), colour).box((0, -1.18, 0.75), (0.5, 0.08, 0.55), colour).cylinder((0, -0.95, 0), 0.05, 0.42, BLACK, 5)
    return m


def clock(rng: np.random.Generator, colour: Colour) -> Mesh:
    m = Mesh().box((0, -0.2, 1.05), (0.55, 0.4, 2.1), WALNUT).gable((0, -0.2, 2.1), (0.62, 0.46, 0.25), _shade(WALNUT, 0.8), yaw=np.pi / 2)
    a = np.arange(10) * (np.pi / 5)
    m.polygon(np.column_stack([0.2 * np.cos(a), np.full(10, -0.41), 1.72 + 0.2 * np.sin(a)]), WHITE)
    _front(m, -0.015, 0.015, -0.42, 1.72, 1.88, BLACK)
    _front(m, 0, 0.12, -0.42, 1.71, 1.74, BLACK)
    _front(m, -0.16, 0.16, -0.41, 0.4, 1.35, (0.98, 0.82, 0.35))
    return m.box((0, -0.42, 0.85), (0.03, 0.02, 0.6), WALNUT)


def bath(rng: np.random.Generator, colour: Colour) -> Mesh:
    m = Mesh().box((0, -0.42, 0.3), (1.8, 0.84, 0.6), WHITE).box((0, -0.42, 0.585), (1.6, 0.66, 0.05), (0.35, 0.80, 0.95))
    m.box((-0.7, -0.08, 0.85), (0.08, 0.08, 0.5), (0.6, 0.62, 0.66)).box((-0.7, -0.2, 1.06), (0.08, 0.26, 0.08), (0.6, 0.62, 0.66))
    return m.blob((0.4, -0.42, 0.7), (0.16, 0.13, 0.12), BRIGHT[3], rng, 0.05, 0).blob((0.52, -0.42, 0.85), 0.09, BRIGHT[3], rng, 0.05, 0)


def toys(rng: np.random.Generator, colour: Colour) -> Mesh:
    m = Mesh().box((0, -0.3, 0.25), (1.3, 0.5, 0.5), WHITE)
    for i in range(3):
        m.box((-0.42 + i * 0.42, -0.56, 0.25), (0.36, 0.04, 0.38), BRIGHT[i])
    m.box((-0.4, -0.3, 0.66), (0.3, 0.3, 0.3), BRIGHT[0]).box((-0.08, -0.3, 0.64), (0.27, 0.27, 0.27), BRIGHT[3], yaw=0.3).box((-0.27, -0.3, 0.93), (0.26, 0.26, 0.26), BRIGHT[1], yaw=0.15)
    return m.blob((0.4, -0.3, 0.72), 0.24, BRIGHT[5], rng, 0.0, 1)


def table(rng: np.random.Generator, colour: Colour) -> Mesh:
    """Round table with four chairs."""
    m = Mesh().cylinder((0, 0, 0.70), 0.72, 0.07, OAK, 12).cylinder((0, 0, 0), 0.12, 0.7, WALNUT, 6).cylinder((0, 0, 0), 0.35, 0.05, WALNUT, 8)
    m.cylinder((0.1, 0.05, 0.77), 0.2, 0.09, BRIGHT[1], 8, top_radius=0.28)
    for i in range(3):
        m.blob((0.1 + 0.12 * np.cos(i * 2.1), 0.05 + 0.12 * np.sin(i * 2.1), 0.92), 0.11, BRIGHT[(0, 5, 2)[i]], rng, 0.05, 0)
    for i in range(4):
        chair = Mesh().box((0, 0, 0.45), (0.44, 0.44, 0.07), colour).box((0.2, 0, 0.78), (0.06, 0.44, 0.6), colour)
        for sx in (-1, 1):
            for sy in (-1, 1):
                chair.box((sx * 0.18, sy * 0.18, 0.21), (0.06, 0.06, 0.42), WALNUT)
        a = i * np.pi / 2 + 0.3
        m.place(chair, 0.86 * np.cos(a), 0.86 * np.sin(a), 0, a)
    return m


def long_table(rng: np.random.Generator, colour: Colour) -> Mesh:
    """Low coffee table with books and a vase."""
    m = Mesh().box((0, 0, 0.40), (1.2, 0.7, 0.07), OAK)
    for sx in (-1, 1):
        for sy in (-1, 1):
            m.box((sx * 0.52, sy * 0.28, 0.19), (0.08, 0.08, 0.38), WALNUT)
    m.box((-0.3, 0.05, 0.47), (0.34, 0.26, 0.07), BRIGHT[0], yaw=0.3).box((-0.3, 0.05, 0.53), (0.3, 0.22, 0.06), BRIGHT[1], yaw=0.1)
    return m.cylinder((0.3, 0, 0.43), 0.1, 0.24, colour, 7, top_radius=0.07).blob((0.3, 0, 0.8), 0.17, BRIGHT[3], rng, 0.25, 0)


def globe(rng: np.random.Generator, colour: Colour) -> Mesh:
    """Large globe on a stand."""
    m = Mesh().cylinder((0, 0, 0), 0.3, 0.08, WALNUT, 8).cylinder((0, 0, 0.08), 0.06, 0.55, WALNUT, 6)
    ball = Mesh().blob((0, 0, 1.05), 0.45, (0.15, 0.50, 0.88), rng, 0.0, 2)
    land = np.sin(ball.triangles.mean(1) @ np.array([5.0, 3.0, 6.0])) + np.sin(ball.triangles.mean(1) @ np.array([-4.0, 6.0, 3.0])) > 0.5
    return m.add(ball.triangles, np.where(land[:, None], (0.35, 0.72, 0.30), (0.15, 0.50, 0.88)))


@dataclass(frozen=True)
class Piece:
    """How a piece is made and what room it takes (metres); `middle`: stands free; `tall`: hides a window."""

    make: Callable[[np.random.Generator, Colour], Mesh]
    width: float
    deep: float
    height: float
    words: str
    middle: bool = False
    tall: bool = False


PIECES: dict[str, Piece] = {
    "bookshelf": Piece(bookshelf, 1.7, 0.40, 2.2, "a bookshelf", tall=True),
    "sofa": Piece(sofa, 2.15, 0.92, 0.95, "a sofa"),
    "armchair": Piece(armchair, 1.0, 0.9, 1.05, "an armchair"),
    "bed": Piece(bed, 1.72, 2.12, 0.75, "a bed"),
    "dresser": Piece(dresser, 1.2, 0.55, 1.5, "a dresser"),
    "plant": Piece(plant, 0.9, 0.85, 1.9, "a plant"),
    "lamp": Piece(lamp, 0.6, 0.65, 1.85, "a lamp"),
    "piano": Piece(piano, 1.6, 1.15, 1.3, "a piano"),
    "fireplace": Piece(fireplace, 1.95, 0.6, 2.9, "a fireplace", tall=True),
    "aquarium": Piece(aquarium, 1.5, 0.6, 1.65, "an aquarium", tall=True),
    "kitchen": Piece(kitchen, 2.95, 0.72, 2.2, "a kitchen", tall=True),
    "desk": Piece(desk, 1.5, 1.25, 1.4, "a desk"),
    "clock": Piece(clock, 0.65, 0.46, 2.3, "a tall clock", tall=True),
    "bath": Piece(bath, 1.8, 0.88, 0.9, "a bath"),
    "toys": Piece(toys, 1.3, 0.6, 1.1, "toy blocks"),
    "table": Piece(table, 2.0, 2.0, 1.1, "a round table", middle=True),
    "coffee": Piece(long_table, 1.2, 0.7, 0.95, "a coffee table", middle=True),
    "globe": Piece(globe, 0.9, 0.9, 1.5, "a globe", middle=True),
}
