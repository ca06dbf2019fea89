"""A triangle soup with flat colours, and the few solids that low-poly worlds are made of.

Every triangle has one colour; `light` bakes shading into it later. Angles are radians, sizes metres, +Z up. Builders add
to the mesh that they are called on and return it, so calls chain; `place` adds a whole mesh somewhere else.
"""

from __future__ import annotations

import numpy as np

Colour = tuple[float, float, float]


class Mesh:
    """Triangles [N, 3, 3] float64, colours [N, 3] in 0..1, and `glow` [N] in 0..1 (1: shines by itself, is not shaded)."""

    def __init__(self) -> None:
        self._triangles: list[np.ndarray] = []
        self._colours: list[np.ndarray] = []
        self._glow: list[np.ndarray] = []

    # -- raw -----------------------------------------------------------------------------------------------------------
    def add(self, triangles: np.ndarray, colour: np.ndarray | Colour, glow: float | np.ndarray = 0.0) -> Mesh:
        """Triangles [N, 3, 3], counter-clockwise from outside; one colour for all or [N, 3]."""
        triangles = np.asarray(triangles, dtype=np.float64).reshape(-1, 3, 3)
        n = len(triangles)
        self._triangles.append(triangles)
        self._colours.append(np.broadcast_to(np.asarray(colour, dtype=np.float64), (n, 3)).copy())
        self._glow.append(np.broadcast_to(np.asarray(glow, dtype=np.float64), (n,)).copy())
        return self

    @property
    def triangles(self) -> np.ndarray:
        return np.concatenate(self._triangles) if self._triangles else np.zeros((0, 3, 3))

    @property
    def colours(self) -> np.ndarray:
        return np.concatenate(self._colours) if self._colours else np.zeros((0, 3))

    @property
    def glow(self) -> np.ndarray:
        return np.concatenate(self._glow) if self._glow else np.zeros(0)

    def __len__(self) -> int:
        return sum(len(t) for t in self._triangles)

    def place(self, other: Mesh, x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0, scale: float | tuple = 1.0) -> Mesh:
        """Add `other`, scaled, then turned about +Z, then moved."""
        c, s = np.cos(yaw), np.sin(yaw)
        turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])  # row vectors
        moved = (other.triangles * np.broadcast_to(np.asarray(scale, dtype=np.float64), (3,))) @ turn + (x, y, z)
        return self.add(moved, other.colours, other.glow)

    # -- solids --------------------------------------------------------------------------------------------------------
    def polygon(self, points: np.ndarray, colour: Colour, glow: float = 0.0) -> Mesh:
        """Convex polygon [N, 3], counter-clockwise seen from its front."""
        p = np.asarray(points, dtype=np.float64)
        fan = np.stack([np.broadcast_to(p[0], (len(p) - 2, 3)), p[1:-1], p[2:]], axis=1)
        return self.add(fan, colour, glow)

    def box(self, centre: tuple, size: tuple, colour: Colour, yaw: float = 0.0, glow: float = 0.0, taper: float = 1.0) -> Mesh:
        """Box of `size` (x, y, z) around `centre`; `taper` scales its top face."""
        hx, hy, hz = (s / 2 for s in size)
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)
        low = np.column_stack([corners * (hx, hy), np.full(4, -hz)])
        high = np.column_stack([corners * (hx * taper, hy * taper), np.full(4, hz)])
        c, s = np.cos(yaw), np.sin(yaw)
        turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])
        low, high = low @ turn + centre, high @ turn + centre
        self.polygon(high, colour, glow).polygon(low[::-1], colour, glow)
        for i in range(4):
            j = (i + 1) % 4
            self.polygon([low[i], low[j], high[j], high[i]], colour, glow)
        return self

    def cylinder(
        self, base: tuple, radius: float, height: float, colour: Colour, sides: int = 8, top_radius: float | None = None,
        cap: bool = True, glow: float = 0.0, turn: float = 0.0,
    ) -> Mesh:  # fmt: skip
        """Vertical prism or frustum standing on `base`; `top_radius=0` makes a cone."""
        top_radius = radius if top_radius is None else top_radius
        angle = np.arange(sides) * (2 * np.pi / sides) + turn
        ring = np.column_stack([np.cos(angle), np.sin(angle)])
        low = np.column_stack([ring * radius, np.zeros(sides)]) + base
        high = np.column_stack([ring * top_radius, np.full(sides, height)]) + base
        for i in range(sides):
            j = (i + 1) % sides
            if top_radius > 0:
                self.polygon([low[i], low[j], high[j], high[i]], colour, glow)
            else:
                self.polygon([low[i], low[j], high[i]], colour, glow)
        if cap and top_radius > 0:
            self.polygon(high, colour, glow)
        if cap and radius > 0:
            self.polygon(low[::-1], colour, glow)
        return self

    def gable(self, centre: tuple, size: tuple, colour: Colour, yaw: float = 0.0, wall_colour: Colour | None = None) -> Mesh:
        """Gable roof: `size` (x, y, z), ridge along x, its base rectangle centred on `centre`."""
        hx, hy, h = size[0] / 2, size[1] / 2, size[2]
        c, s = np.cos(yaw), np.sin(yaw)
        turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])
        p = np.array([(-hx, -hy, 0), (hx, -hy, 0), (hx, hy, 0), (-hx, hy, 0), (-hx, 0, h), (hx, 0, h)]) @ turn + centre
        self.polygon(p[[0, 1, 5, 4]], colour).polygon(p[[2, 3, 4, 5]], colour)
        end = colour if wall_colour is None else wall_colour
        self.polygon(p[[1, 2, 5]], end).polygon(p[[3, 0, 4]], end)
        return self.polygon(p[[3, 2, 1, 0]], colour)

    def blob(self, centre: tuple, radius: float | tuple, colour: Colour, rng: np.random.Generator, rough: float = 0.15, detail: int = 1, glow: float = 0.0) -> Mesh:
        """Roughened icosphere: tree crowns, rocks, bushes, clouds. `radius` may differ per axis."""
        points, faces = _icosphere(detail)
        points = points * (1 + rng.uniform(-rough, rough, (len(points), 1))) * np.broadcast_to(np.asarray(radius, dtype=np.float64), (3,))
        return self.add(points[faces] + np.asarray(centre, dtype=np.float64), colour, glow)

    def terrain(self, xs: np.ndarray, ys: np.ndarray, heights: np.ndarray, colours: np.ndarray) -> Mesh:
        """Height field: heights [len(ys), len(xs)], colours per cell [len(ys)-1, len(xs)-1, 3]; two triangles a cell."""
        gx, gy = np.meshgrid(xs, ys)
        p = np.stack([gx, gy, heights], -1)
        a, b, c, d = p[:-1, :-1], p[:-1, 1:], p[1:, 1:], p[1:, :-1]
        triangles = np.stack([np.stack([a, b, c], -2), np.stack([a, c, d], -2)], 2)
        return self.add(triangles.reshape(-1, 3, 3), np.repeat(np.asarray(colours).reshape(-1, 3), 2, axis=0))

    def jitter(self, rng: np.random.Generator, amount: float = 0.05) -> Mesh:
        """Vary the brightness of every facet by +-amount, which gives flat ground something to track."""
        factor = 1 + rng.uniform(-amount, amount, (len(self), 1))
        self._triangles, self._glow = [self.triangles], [self.glow]
        self._colours = [np.clip(self.colours * factor, 0.0, 1.0)]
        return self


def _icosphere(detail: int) -> tuple[np.ndarray, np.ndarray]:
    g = (1 + 5**0.5) / 2
    points = np.array([(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g), (0, -1, -g), (0, 1, -g), (g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)])
    faces = np.array([
        (0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4), (11, 10, 2), (10, 7, 6), (7, 1, 8),
        (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8), (3, 8, 9), (4, 9, 5), (2, 4, 11), (6, 2, 10), (8, 6, 7), (9, 8, 1),
    ])  # fmt: skip
    for _ in range(detail):
        edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        unique, inverse = np.unique(edges, axis=0, return_inverse=True)
        middle = len(points) + inverse.reshape(-1, 3)
        points = np.concatenate([points, points[unique].mean(1)])
        a, b, c = faces.T
        ab, bc, ca = middle.T
        faces = np.concatenate([np.stack(f, 1) for f in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))])
    return points / np.linalg.norm(points, axis=1, keepdims=True), faces
