"""Things that stand in the wild, each in one clear shape and colour: cacti, palms, tents, mesas, arches, a lighthouse, beasts.

Every builder returns a mesh whose foot is at the origin; sizes are metres.
"""

from __future__ import annotations

import numpy as np

from distill.scenes.mesh import Colour, Mesh

WOOD: Colour = (0.50, 0.32, 0.18)
WHITE: Colour = (0.95, 0.94, 0.90)
DARK: Colour = (0.16, 0.14, 0.17)


def leaf(mesh: Mesh, points: list, colour: Colour, glow: float = 0.0) -> Mesh:
    """A thin polygon that is seen from both sides."""
    p = np.asarray(points, dtype=np.float64)
    return mesh.polygon(p, colour, glow).polygon(p[::-1], colour, glow)


def cactus(rng: np.random.Generator, height: float = 3.0, colour: Colour = (0.16, 0.52, 0.24)) -> Mesh:
    """Saguaro with one to three arms and a pink flower."""
    m, r = Mesh(), 0.11 * height
    m.cylinder((0, 0, 0), r, height * 0.93, colour, 7).cylinder((0, 0, height * 0.93), r, height * 0.07, colour, 7, top_radius=r * 0.5)
    for i in range(int(rng.integers(1, 4))):
        turn, z, up = rng.uniform(0, 0.8) + i * 2.1, height * rng.uniform(0.35, 0.55), height * rng.uniform(0.22, 0.36)
        dx, dy, q = np.cos(turn), np.sin(turn), r * 0.72
        reach = r * 2.3
        m.box((dx * reach / 2, dy * reach / 2, z), (reach + q, 1.7 * q, 1.7 * q), colour, yaw=turn)
        m.cylinder((dx * reach, dy * reach, z - q), q, up, colour, 6).cylinder((dx * reach, dy * reach, z - q + up), q, 0.5 * q, colour, 6, top_radius=q * 0.5)
    return m.blob((0, 0, height), 0.13 * height * 0.7, (0.95, 0.35, 0.55), rng, 0.1, 0)


def palm(rng: np.random.Generator, height: float = 6.0, colour: Colour = (0.15, 0.58, 0.25), trunk: Colour = (0.62, 0.42, 0.24)) -> Mesh:
    """Leaning, banded trunk with eight drooping fronds and coconuts."""
    m = Mesh()
    lean, turn = height * rng.uniform(0.12, 0.24), rng.uniform(0, 2 * np.pi)
    steps = 6
    at = [np.array([np.cos(turn) * lean * t * t, np.sin(turn) * lean * t * t, height * t]) for t in np.linspace(0, 1, steps + 1)]
    angle = np.arange(6) * (np.pi / 3)
    ring = np.column_stack([np.cos(angle), np.sin(angle), np.zeros(6)])
    for i in range(steps):
        low, high = at[i] + ring * (0.27 - 0.02 * i), at[i + 1] + ring * (0.21 - 0.02 * i)
        shade = trunk if i % 2 else tuple(0.82 * c for c in trunk)
        for j in range(6):
            k = (j + 1) % 6
            m.polygon([low[j], low[k], high[k], high[j]], shade)
    top = at[-1]
    for i in range(8):
        a = i * np.pi / 4 + rng.uniform(-0.2, 0.2)
        out, side = np.array([np.cos(a), np.sin(a), 0.0]), np.array([-np.sin(a), np.cos(a), 0.0])
        long = height * rng.uniform(0.36, 0.46)
        p1, p2 = top + out * long * 0.5 + (0, 0, 0.10 * height), top + out * long + (0, 0, -0.10 * height)
        shade = tuple(np.clip(np.array(colour) * rng.uniform(0.85, 1.2), 0, 1))
        w = 0.075 * height
        leaf(m, [top, p1 - side * w, p1 + side * w], shade)
        leaf(m, [p1 - side * w, p2, p1 + side * w], shade)
    for a in (0.3, 2.4, 4.5):
        m.blob(tuple(top + (0.28 * np.cos(a), 0.28 * np.sin(a), -0.15)), 0.2, (0.45, 0.27, 0.14), rng, 0.05, 0)
    return m


def acacia(rng: np.random.Generator, height: float = 5.0, colour: Colour = (0.42, 0.60, 0.18)) -> Mesh:
    """Flat-topped umbrella tree on a forked trunk."""
    m = Mesh()
    m.cylinder((0, 0, 0), 0.06 * height, 0.55 * height, WOOD, 6, top_radius=0.045 * height)
    for a in (0.4, 2.5, 4.6):
        d = np.array([np.cos(a), np.sin(a), 0.0]) * 0.30 * height
        foot, tip = np.array([0, 0, 0.5 * height]), d + (0, 0, 0.86 * height)
        side = np.array([-np.sin(a), np.cos(a), 0.0]) * 0.05 * height
        leaf(m, [foot - side, foot + side, tip], WOOD)
        m.blob(tuple(d * rng.uniform(0.8, 1.3) + (0, 0, height * rng.uniform(0.82, 0.93))), (0.40 * height, 0.40 * height, 0.10 * height), colour, rng, 0.12, int(height < 6))
    return m.blob((0, 0, 0.98 * height), (0.34 * height, 0.34 * height, 0.09 * height), tuple(np.clip(np.array(colour) * 1.15, 0, 1)), rng, 0.12, 1)


def baobab(rng: np.random.Generator, height: float = 9.0, colour: Colour = (0.36, 0.56, 0.20)) -> Mesh:
    """Fat bottle trunk with small round crowns."""
    m, bark = Mesh(), (0.64, 0.48, 0.36)
    m.cylinder((0, 0, 0), 0.20 * height, 0.2 * height, bark, 9, top_radius=0.17 * height)
    m.cylinder((0, 0, 0.2 * height), 0.17 * height, 0.5 * height, bark, 9, top_radius=0.09 * height)
    for i in range(6):
        a = i * np.pi / 3 + rng.uniform(-0.2, 0.2)
        d = np.array([np.cos(a), np.sin(a)]) * 0.34 * height
        z = height * rng.uniform(0.84, 0.95)
        side = np.array([-np.sin(a), np.cos(a), 0.0]) * 0.05 * height
        leaf(m, [np.array([0, 0, 0.62 * height]) - side, np.array([0, 0, 0.62 * height]) + side, (d[0], d[1], z)], bark)
        m.blob((d[0], d[1], z), (0.17 * height, 0.17 * height, 0.11 * height), colour, rng, 0.12, 1)
    return m.blob((0, 0, height), (0.2 * height, 0.2 * height, 0.12 * height), colour, rng, 0.15, 1)


def pine(height: float = 5.0, colour: Colour = (0.10, 0.40, 0.33), cap: Colour = WHITE) -> Mesh:
    """Three-tiered fir whose top is snowed in."""
    m = Mesh().cylinder((0, 0, 0), 0.05 * height, 0.2 * height, WOOD, 6)
    for i, (z, r, h) in enumerate(((0.15, 0.30, 0.38), (0.40, 0.23, 0.34), (0.64, 0.16, 0.36))):
        m.cylinder((0, 0, z * height), r * height, h * height, cap if i == 2 else colour, 8, top_radius=0.0, turn=i * 0.4)
    return m


def tent(colour: Colour, stripe: Colour = WHITE, size: float = 3.0, lit: float = 0.0) -> Mesh:
    """Ridge tent along x in two colours; its dark (or lit) doorway faces +x and -x."""
    m, hx, hy, h = Mesh(), size * 0.65, size * 0.5, size * 0.72
    bands = np.linspace(-hx, hx, 4)
    for i in range(3):
        a, b = bands[i], bands[i + 1]
        c = stripe if i == 1 else colour
        leaf(m, [(a, -hy, 0), (b, -hy, 0), (b, 0, h), (a, 0, h)], c)
        leaf(m, [(b, hy, 0), (a, hy, 0), (a, 0, h), (b, 0, h)], c)
    door = (1.0, 0.80, 0.35) if lit else DARK
    for s in (1, -1):
        leaf(m, [(s * hx, -hy, 0), (s * hx, hy, 0), (s * hx, 0, h)], tuple(0.85 * c for c in colour))
        leaf(m, [(s * (hx + 0.03), -0.42 * hy, 0), (s * (hx + 0.03), 0.42 * hy, 0), (s * (hx + 0.03), 0, 0.72 * h)], door, lit)
    return m


def teepee(colour: Colour, band: Colour = WHITE, height: float = 4.0, lit: float = 0.0) -> Mesh:
    """Cone tent with a painted band, poles and a doorway towards -y."""
    m, r = Mesh(), height * 0.48
    cuts = ((0.0, 0.28, colour), (0.28, 0.46, band), (0.46, 0.92, colour))
    for z0, z1, c in cuts:
        m.cylinder((0, 0, z0 * height), r * (1 - z0), (z1 - z0) * height, c, 8, top_radius=r * (1 - z1), cap=False, turn=np.pi / 8)
    for a in (0.5, 2.6, 4.7):
        leaf(m, [(0, 0, 0.86 * height), (0.08, 0.05, 0.86 * height), (0.2 * np.cos(a), 0.2 * np.sin(a), 1.08 * height)], WOOD)
    y = -r * 0.95
    return leaf(m, [(-0.3 * r, y, 0), (0.3 * r, y, 0), (0, y * 0.62, 0.44 * height)], (1.0, 0.80, 0.35) if lit else DARK, lit)


def pyramid(size: float, colours: tuple[Colour, Colour], steps: int = 7, cap: Colour | None = None) -> Mesh:
    """Stepped pyramid in two alternating bands with a coloured tip."""
    m, h = Mesh(), 0.62 * size
    for i in range(steps):
        w0, w1 = size * (1 - i / steps), size * (1 - (i + 0.75) / steps)
        tip = cap is not None and i == steps - 1
        m.cylinder((0, 0, h * i / steps), w0 * 0.7071, h / steps, cap if tip else colours[i % 2], 4, top_radius=0.0 if tip else w1 * 0.7071, turn=np.pi / 4)
    return m


def mesa(rng: np.random.Generator, radius: float, height: float, bands: tuple, sides: int = 10, taper: float = 0.7) -> Mesh:
    """Table mountain: strata in `bands` of colour, irregular outline, talus at the foot."""
    m = Mesh()
    angle = np.arange(sides) * (2 * np.pi / sides)
    outline = 1 + rng.uniform(-0.18, 0.18, sides)
    cuts = [0.0, 0.22, 0.40, 0.55, 0.72, 0.86, 1.0]
    scale = [1.25, 1.0, 0.95, 0.97, 0.88, 0.90, taper + 0.12]
    rings = []
    for z, s in zip(cuts, scale, strict=True):
        r = radius * s * outline * (1 + rng.uniform(-0.03, 0.03, sides))
        rings.append(np.column_stack([np.cos(angle) * r, np.sin(angle) * r, np.full(sides, z * height)]))
    for i in range(len(rings) - 1):
        for j in range(sides):
            k = (j + 1) % sides
            m.polygon([rings[i][j], rings[i][k], rings[i + 1][k], rings[i + 1][j]], bands[i % len(bands)])
    return m.polygon(rings[-1], bands[-1])


def arch(rng: np.random.Generator, span: float, height: float, thick: float, bands: tuple) -> Mesh:
    """Natural rock arch in the x-z plane: a half ellipse of square-ish section, thicker at its feet."""
    m, n, sides = Mesh(), 10, 6
    around = np.arange(sides) * (2 * np.pi / sides)
    rings = []
    for i in range(n + 1):
        a = np.pi * i / n
        out = np.array([-np.cos(a), 0.0, np.sin(a)])
        centre = np.array([-np.cos(a) * span / 2, 0.0, np.sin(a) * height - 0.3])
        w = thick * (0.75 + 0.55 * abs(np.cos(a)) ** 2) * rng.uniform(0.88, 1.12)
        rings.append(np.array([centre + out * np.cos(t) * w * 0.5 + np.array([0, 1.0, 0]) * np.sin(t) * w * 0.5 for t in around]))
    for i in range(n):
        for j in range(sides):
            k = (j + 1) % sides
            leaf(m, [rings[i][j], rings[i][k], rings[i + 1][k], rings[i + 1][j]], bands[min(i, n - 1 - i) % len(bands)])
    return m


def lighthouse(height: float = 12.0, colours: tuple[Colour, Colour] = ((0.90, 0.12, 0.12), WHITE), lit: float = 0.6) -> Mesh:
    """Banded round tower with a gallery, a shining lamp room and a cap."""
    m, r, bands = Mesh(), 0.14 * height, 6
    tall = 0.74 * height
    for i in range(bands):
        r0, r1 = r * (1 - 0.40 * i / bands), r * (1 - 0.40 * (i + 1) / bands)
        m.cylinder((0, 0, tall * i / bands), r0, tall / bands, colours[i % 2], 12, top_radius=r1, cap=False)
    m.cylinder((0, 0, tall), 0.95 * r, 0.03 * height, DARK, 12)
    m.cylinder((0, 0, tall + 0.03 * height), 0.45 * r, 0.12 * height, (1.0, 0.90, 0.45), 8, glow=lit)
    m.cylinder((0, 0, tall + 0.15 * height), 0.68 * r, 0.11 * height, colours[0], 12, top_radius=0.0)
    return m.box((0, -r * 0.93, 0.09 * height), (0.09 * height, 0.1 * r, 0.18 * height), WOOD)


def hut(wall: Colour, roof: Colour, size: float = 3.6, lit: float = 0.0) -> Mesh:
    """Beach hut: door and window towards -y, wide gable roof."""
    m, h = Mesh(), size * 0.6
    m.box((0, 0, h / 2), (size, size * 0.8, h), wall).gable((0, 0, h), (size * 1.2, size * 1.08, size * 0.42), roof, wall_colour=wall)
    front = -size * 0.4 - 0.03
    m.box((-size * 0.2, front, h * 0.4), (size * 0.22, 0.06, h * 0.8), WOOD)
    m.box((size * 0.22, front, h * 0.58), (size * 0.26, 0.06, h * 0.36), (1.0, 0.83, 0.42) if lit else (0.55, 0.80, 0.95), glow=lit)
    for s in (-1, 1):
        m.box((s * (size / 2 + 0.03), 0, h * 0.58), (0.06, size * 0.26, h * 0.36), (1.0, 0.83, 0.42) if lit else (0.55, 0.80, 0.95), glow=lit)
    return m


def round_hut(wall: Colour, roof: Colour, radius: float = 1.7) -> Mesh:
    """Round straw-roofed hut with a doorway towards -y."""
    m = Mesh().cylinder((0, 0, 0), radius, 1.7, wall, 10, cap=False).cylinder((0, 0, 1.55), radius * 1.4, 1.9, roof, 10, top_radius=0.0)
    m.cylinder((0, 0, 1.1), radius * 1.01, 0.3, WHITE, 10, cap=False)
    return m.box((0, -radius * 0.94, 0.7), (0.9, 0.2, 1.4), DARK)


def boat(hull: Colour, sail: Colour | None = None, size: float = 3.5) -> Mesh:
    """Rowing boat along x, with a sail if it has a colour."""
    m, w, h = Mesh(), 0.2 * size, 0.2 * size
    deck = [(-0.45 * size, -w, h), (0.25 * size, -w, h), (0.55 * size, 0, h * 1.25), (0.25 * size, w, h), (-0.45 * size, w, h)]
    keel = [(-0.4 * size, -0.6 * w, 0), (0.2 * size, -0.6 * w, 0), (0.4 * size, 0, 0), (0.2 * size, 0.6 * w, 0), (-0.4 * size, 0.6 * w, 0)]
    for i in range(5):
        j = (i + 1) % 5
        m.polygon([keel[i], keel[j], deck[j], deck[i]], hull)
    inner = [tuple(0.85 * np.array(p) + (0, 0, 0.04)) for p in deck]
    m.polygon(deck, WHITE).polygon([(x, y, h + 0.03) for x, y, _ in inner], WOOD)
    if sail is not None:
        m.box((0, 0, 0.75 * size), (0.05 * size, 0.05 * size, 1.2 * size), WOOD)
        leaf(m, [(0.04 * size, 0, 0.35 * size), (0.5 * size, 0, 0.38 * size), (0.04 * size, 0, 1.3 * size)], sail)
        leaf(m, [(-0.04 * size, 0, 0.35 * size), (-0.45 * size, 0, 0.38 * size), (-0.04 * size, 0, 1.15 * size)], WHITE)
    return m


def iceberg(rng: np.random.Generator, radius: float, height: float, colour: Colour = (0.62, 0.88, 0.97)) -> Mesh:
    """A cluster of leaning crystals, white above and blue below."""
    m = Mesh()
    for i in range(3):
        r, h = radius * (0.75 if i == 0 else rng.uniform(0.4, 0.55)), height * (1.0 if i == 0 else rng.uniform(0.45, 0.7))
        a, d = rng.uniform(0, 6.28), 0.0 if i == 0 else radius * 0.6
        at, turn = (d * np.cos(a), d * np.sin(a), 0.0), rng.uniform(0, 1)
        m.cylinder(at, r, 0.45 * h, colour, 6, top_radius=0.85 * r, turn=turn)
        m.cylinder((at[0], at[1], 0.45 * h), 0.85 * r, 0.55 * h, (0.96, 0.98, 1.0), 6, top_radius=0.18 * r, turn=turn)
    return m


def igloo(radius: float = 2.0) -> Mesh:
    """Snow dome in two tones of block rings with an entrance towards -y."""
    m = Mesh()
    for i in range(4):
        a0, a1 = i * np.pi / 8, (i + 1) * np.pi / 8
        c = (0.93, 0.96, 1.0) if i % 2 else (0.74, 0.86, 0.97)
        m.cylinder((0, 0, radius * np.sin(a0)), radius * np.cos(a0), radius * (np.sin(a1) - np.sin(a0)), c, 10, top_radius=max(radius * np.cos(a1), 0.0) if i < 3 else 0.0)
    m.box((0, -radius * 1.1, 0.28 * radius), (0.8 * radius, 0.9 * radius, 0.56 * radius), (0.84, 0.92, 1.0))
    return m.box((0, -radius * 1.56, 0.22 * radius), (0.5 * radius, 0.04, 0.44 * radius), DARK)


def beast(kind: str, size: float = 1.0) -> Mesh:
    """Block animal looking along +x: `giraffe`, `elephant`, `camel` or `penguin`."""
    m = Mesh()
    if kind == "penguin":
        m.box((0, 0, 0.5), (0.42, 0.5, 0.9), (0.16, 0.18, 0.28), taper=0.75).box((0.16, 0, 0.46), (0.16, 0.36, 0.72), WHITE, taper=0.8)
        m.box((0, 0, 1.08), (0.34, 0.34, 0.3), DARK).box((0.25, 0, 1.05), (0.2, 0.12, 0.1), (1.0, 0.6, 0.1)).box((0.1, 0, 0.04), (0.4, 0.44, 0.08), (1.0, 0.6, 0.1))
        for s in (-1, 1):
            m.box((0, s * 0.27, 0.55), (0.22, 0.08, 0.55), (0.30, 0.34, 0.46)).box((0.06, s * 0.16, 1.12), (0.18, 0.06, 0.14), WHITE)
        return Mesh().place(m, scale=size)
    if kind == "elephant":
        grey, pale, rng = (0.56, 0.58, 0.68), (0.74, 0.66, 0.72), np.random.default_rng(1)
        for sx in (-0.75, 0.75):
            for sy in (-0.45, 0.45):
                m.cylinder((sx, sy, 0), 0.27, 1.2, grey, 6)
        m.blob((0, 0, 1.7), (1.4, 0.95, 0.95), grey, rng, 0.04, 1).blob((1.45, 0, 2.1), (0.72, 0.62, 0.7), grey, rng, 0.04, 1)
        m.box((2.05, 0, 1.45), (0.3, 0.3, 1.2), grey).box((2.2, 0, 0.78), (0.5, 0.26, 0.26), grey)
        for s in (-1, 1):
            leaf(m, [(1.2, s * 0.5, 2.55), (1.0, s * 1.35, 2.65), (0.95, s * 1.45, 1.8), (1.2, s * 0.55, 1.5)], pale)
            m.box((2.25, s * 0.3, 1.55), (0.6, 0.12, 0.12), WHITE).box((2.02, s * 0.32, 2.3), (0.12, 0.12, 0.14), DARK)
        return Mesh().place(m, scale=size)
    coat, long, tall, deep = {"giraffe": ((0.95, 0.70, 0.25), 1.5, 1.7, 0.8), "camel": ((0.78, 0.55, 0.30), 1.7, 1.15, 0.7)}[kind]
    wide = 0.5 * deep + 0.25
    thick = 0.2
    for sx in (-1, 1):
        for sy in (-1, 1):
            m.box((sx * (long / 2 - thick / 2), sy * (wide / 2 - thick / 2), tall / 2), (thick, thick, tall), coat)
    top = tall + deep
    m.box((0, 0, tall + deep / 2), (long, wide, deep), coat, taper=0.85)
    if kind == "giraffe":
        m.box((0.75, 0, top + 0.8), (0.32, 0.3, 2.2), coat, taper=0.8).box((1.0, 0, top + 1.95), (0.75, 0.3, 0.34), coat, taper=0.8)
        for x, z in ((-0.45, 0.5), (0.05, 0.3), (0.45, 0.55)):
            m.box((x, 0, tall + z), (0.34, wide + 0.06, 0.32), (0.55, 0.28, 0.10))
        for z in (0.5, 1.1):
            m.box((0.75, 0, top + z), (0.36, 0.34, 0.28), (0.55, 0.28, 0.10))
        m.box((0.85, 0, top + 2.25), (0.08, 0.22, 0.28), (0.45, 0.25, 0.10))
    else:
        m.box((0.05, 0, top + 0.22), (0.7, 0.4, 0.5), coat, taper=0.4).box((0.05, 0, top - 0.2), (0.7, wide + 0.08, 0.6), (0.85, 0.15, 0.25))
        m.box((1.05, 0, top + 0.2), (0.24, 0.22, 1.2), coat).box((1.3, 0, top + 0.8), (0.65, 0.24, 0.3), coat)
    return Mesh().place(m, scale=size)


def camp_fire(rng: np.random.Generator) -> Mesh:
    """Ring of stones, crossed logs and three shining flames."""
    m = Mesh()
    for i in range(8):
        a = i * np.pi / 4
        m.blob((0.85 * np.cos(a), 0.85 * np.sin(a), 0.1), 0.24, (0.55, 0.45, 0.48), rng, 0.15, 0)
    for a in (0.3, 1.35, 2.4):
        m.box((0, 0, 0.18), (1.3, 0.2, 0.2), (0.35, 0.20, 0.12), yaw=a)
    m.cylinder((0, 0, 0.15), 0.45, 1.25, (1.0, 0.45, 0.10), 6, top_radius=0.0, glow=1.0)
    m.cylinder((0.18, 0.1, 0.15), 0.28, 0.8, (1.0, 0.72, 0.15), 5, top_radius=0.0, glow=1.0)
    return m.cylinder((-0.15, -0.16, 0.15), 0.3, 0.9, (1.0, 0.85, 0.35), 5, top_radius=0.0, glow=1.0)


def flag(colour: Colour, height: float = 4.0) -> Mesh:
    """Pole with a two-coloured banner along +x."""
    m = Mesh().box((0, 0, height / 2), (0.12, 0.12, height), WOOD)
    leaf(m, [(0.06, 0, 0.68 * height), (1.5, 0, 0.70 * height), (1.5, 0, 0.85 * height), (0.06, 0, 0.84 * height)], colour)
    return leaf(m, [(0.06, 0, 0.84 * height), (1.5, 0, 0.85 * height), (1.5, 0, 0.99 * height), (0.06, 0, 0.98 * height)], WHITE)
