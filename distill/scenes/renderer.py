"""Pictures of a scene from exact poses, by Panda3D's software rasteriser: no GPU, no screen, no window.

All renderers of a process share one graphics engine and one off-screen buffer per resolution; a renderer itself is only
geometry, so dozens of scenes can be kept. Panda3D is imported when the first renderer is made.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np

from distill.scenes.light import bake
from distill.scenes.scene import Scene
from distill.scenes.sky import sky_layers

CELL_TRIANGLES = 220  # geometry is culled in groups of at most about this many triangles
FAR = 900.0
DEPTH_LEVELS = 4096  # the widest texture that the rasteriser takes
_SEEN = 128  # blue of every pixel that a depth pass covers
_RASTER_SHIFT = 0.24  # samples by which the rasteriser draws too far left and up (measured)


class Renderer:
    """Draws `scene` at `size` (H, W) with horizontal field of view `fov` in degrees, averaged over supersample**2 samples."""

    def __init__(self, scene: Scene, size: tuple[int, int] = (128, 128), supersample: int = 2, fov: float = 70.0) -> None:
        from panda3d.core import NodePath

        self.scene = scene
        self._root, self._sky = NodePath("scene"), NodePath("sky")
        self._sky.reparentTo(self._root)
        for triangles, colours in _cells(*bake(scene)):
            self._root.attachNewNode(_geometry(triangles, colours)).setBin("unsorted", 0)
        for order, triangles, colours in sky_layers(scene):
            node = self._sky.attachNewNode(_geometry(triangles, colours))
            node.setBin("background", order)
            node.setDepthWrite(False)
            node.setDepthTest(False)
        self._views: dict[tuple, Renderer] = {}
        self._look(size, supersample, fov)

    def _look(self, size: tuple[int, int], supersample: int, fov: float) -> None:
        from panda3d.core import Camera, PerspectiveLens

        if min(size) < 1 or supersample < 1:
            raise ValueError(f"size is (height, width) and supersample at least 1, got {size} and {supersample}.")
        self.size, self.supersample, self.fov = tuple(size), int(supersample), float(fov)
        lens = PerspectiveLens()
        tangent = np.tan(np.deg2rad(fov) / 2)
        lens.setFov(fov, float(np.rad2deg(2 * np.arctan(tangent * size[0] / size[1]))))
        film = lens.getFilmSize()
        lens.setFilmOffset(-_RASTER_SHIFT * film[0] / (size[1] * supersample), _RASTER_SHIFT * film[1] / (size[0] * supersample))
        lens.setNearFar(self._near, FAR)
        self._camera = self._root.attachNewNode(Camera("camera", lens))

    def at(self, size: tuple[int, int], supersample: int | None = None, fov: float | None = None) -> Renderer:
        """A renderer of the same scene at another size, sharing its geometry; the same one for the same arguments."""
        key = (tuple(size), self.supersample if supersample is None else supersample, self.fov if fov is None else fov)
        if key not in self._views:
            other = object.__new__(Renderer)
            other.scene, other._root, other._sky, other._views = self.scene, self._root, self._sky, self._views
            other._look(*key)
            self._views[key] = other
        return self._views[key]

    def frame(self, c2w: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] seen from the camera-to-world matrix [4, 4] (OpenCV axes, in scene axes and metres)."""
        self._move(c2w)
        n = self.supersample
        return _average(_target((self.size[0] * n, self.size[1] * n)).draw(self._camera), n)

    def depth(self, c2w: np.ndarray) -> np.ndarray:
        """float32 [H, W]: metres along the camera's axis, in steps of `depth_range` / 4096; infinity beyond it and for the sky.

        One sample a pixel: depths at edges are of one side or the other, never between.
        """
        self._move(c2w)
        one = self if self.supersample == 1 else self.at(self.size, supersample=1)
        one._camera.setMat(self._camera.getMat())
        self._sky.hide()
        try:
            fine, far = (one._levels(reach) for reach in (self.depth_range, FAR))
        finally:
            self._sky.show()
            one._camera.node().setInitialState(_empty_state())
        # what is farther than a pass reaches, and a few pixels at edges of triangles, come out as nearest of all where the rasteriser
        # overflows: the far pass knows
        fine = np.where(fine < self._near, far, fine)
        return np.where(far <= self.depth_range + FAR / DEPTH_LEVELS, fine, np.inf).astype(np.float32)

    def _levels(self, reach: float) -> np.ndarray:
        """Metres [H, W] from one pass that measures up to `reach`, infinity beyond."""
        self._camera.node().setInitialState(_depth_state(reach))
        pixels = _target(self.size).draw(self._camera)
        level = ((pixels >> 16 & 0xFF) << 8) | (pixels >> 8 & 0xFF)
        return np.where(((pixels & 0xFF) == _SEEN) & (level < DEPTH_LEVELS - 1), (level + 0.5) * (reach / DEPTH_LEVELS), np.inf)

    @property
    def _near(self) -> float:
        """Metres, nearer than which nothing is drawn."""
        return 0.12 if self.scene.indoor else 0.2

    @property
    def depth_range(self) -> float:
        """Metres up to which `depth` measures."""
        return 20.0 if self.scene.indoor else 120.0

    def _move(self, c2w: np.ndarray) -> None:
        from panda3d.core import LMatrix4f

        c2w = np.asarray(c2w, dtype=np.float64)
        right, down, forward, position = (c2w[:3, i] for i in range(4))
        rows = [(*right, 0), (*forward, 0), (*-down, 0), (*position, 1)]
        self._camera.setMat(LMatrix4f(*(float(x) for row in rows for x in row)))
        self._sky.setPos(*(float(x) for x in position))

    def close(self) -> None:
        """Free the geometry; the renderer and those made with `at` cannot draw afterwards."""
        self._root.removeNode()


# -- Panda3D -----------------------------------------------------------------------------------------------------------
@cache
def _engine() -> SimpleNamespace:
    from panda3d.core import GraphicsEngine, GraphicsPipeSelection, loadPrcFileData

    loadPrcFileData("", "notify-level error\nload-display p3tinydisplay\naux-display\naudio-library-name null\ngarbage-collect-states 0")
    selection = GraphicsPipeSelection.getGlobalPtr()
    pipe = selection.makePipe("TinyOffscreenGraphicsPipe", "p3tinydisplay")
    if pipe is None:
        raise RuntimeError("Panda3D came without its software renderer (p3tinydisplay); reinstall panda3d from its PyPI wheel.")
    return SimpleNamespace(engine=GraphicsEngine(pipe), pipe=pipe)


class _Target:
    """An off-screen colour buffer of `size` (H, W) that can be read back."""

    def __init__(self, size: tuple[int, int]) -> None:
        from panda3d.core import FrameBufferProperties, GraphicsOutput, GraphicsPipe, Texture, WindowProperties

        shared = _engine()
        self.engine, self.size = shared.engine, size
        wanted = FrameBufferProperties()
        wanted.setRgbColor(True)
        wanted.setDepthBits(16)
        window = WindowProperties.size(size[1], size[0])
        self.buffer = self.engine.makeOutput(shared.pipe, f"off-screen {size}", 0, wanted, window, GraphicsPipe.BFRefuseWindow)
        if self.buffer is None:
            raise RuntimeError(f"Panda3D could not make an off-screen buffer of {size[1]}x{size[0]} pixels.")
        self.texture = Texture()
        self.buffer.addRenderTexture(self.texture, GraphicsOutput.RTMCopyRam)
        self.buffer.setClearColor((0, 0, 0, 1))
        self.buffer.setActive(False)
        self.region = self.buffer.makeDisplayRegion()

    def draw(self, camera) -> np.ndarray:
        """uint32 [H, W] of 0xAARRGGBB pixels, top row first: a view that lives until the next call."""
        self.region.setCamera(camera)
        self.buffer.setActive(True)
        self.engine.renderFrame()
        self.buffer.setActive(False)
        return np.frombuffer(self.texture.getRamImage(), dtype="<u4").reshape(self.size)[::-1]


def _average(pixels: np.ndarray, n: int) -> np.ndarray:
    """uint8 [H/n, W/n, 3] RGB means of n x n pixels; red and blue are summed in one 32-bit word."""
    red_blue, green = pixels & 0xFF00FF, (pixels >> 8) & 0xFF
    for axis in (0, 1):
        parts = [slice(i, None, n) for i in range(n)]
        red_blue, green = (sum(x[p] if axis == 0 else x[:, p] for p in parts[1:]) + (x[:: n] if axis == 0 else x[:, ::n]) for x in (red_blue, green))
    half, area = n * n // 2, n * n
    out = np.empty((*green.shape, 3), dtype=np.uint8)
    for channel, total in enumerate((red_blue >> 16, green, red_blue & 0xFFFF)):
        out[..., channel] = (total + half) // area if area & (area - 1) else (total + half) >> (area.bit_length() - 1)
    return out


@cache
def _depth_state(reach: float):
    """Draws depth instead of colour: a ramp texture looked up by the distance in front of the camera, high byte in red, low
    byte in green (the rasteriser's own depth buffer cannot be read back)."""
    from panda3d.core import LMatrix4f, NodePath, SamplerState, TexGenAttrib, Texture, TextureStage, TransformState

    level = np.arange(DEPTH_LEVELS)
    ramp = Texture("ramp")
    ramp.setup2dTexture(DEPTH_LEVELS, 1, Texture.TUnsignedByte, Texture.FRgb)
    ramp.setRamImage(np.stack([np.full_like(level, _SEEN), level & 0xFF, level >> 8], -1).astype(np.uint8).tobytes())  # BGR
    ramp.setMinfilter(SamplerState.FTNearest)
    ramp.setMagfilter(SamplerState.FTNearest)
    ramp.setWrapU(SamplerState.WMClamp)
    ramp.setWrapV(SamplerState.WMClamp)
    stage = TextureStage("depth")
    stage.setMode(TextureStage.MReplace)
    holder = NodePath("depth")
    holder.setTexture(stage, ramp, 1)
    holder.setTexGen(stage, TexGenAttrib.MEyePosition)
    along = LMatrix4f(0, 0, 0, 0, 1 / reach, 0, 0, 0, 0, 0, 0, 0, 0, 0.5, 0, 1)  # forward is +y of Panda3D's cameras
    holder.setTexTransform(stage, TransformState.makeMat(along))
    holder.setColorOff(1)
    return holder.getState()


def _empty_state():
    from panda3d.core import RenderState

    return RenderState.makeEmpty()


@cache
def _target(size: tuple[int, int]) -> _Target:
    return _Target(size)


def _cells(triangles: np.ndarray, colours: np.ndarray):
    """The triangles in groups that lie close together, split at medians until they are small, in a fixed order."""
    centres = triangles.mean(1)
    groups = [np.arange(len(triangles))] if len(triangles) else []
    while groups:
        rows = groups.pop()
        extent = np.ptp(centres[rows, :2], axis=0)
        if len(rows) <= CELL_TRIANGLES or extent.max() < 1.0:
            yield triangles[rows], colours[rows]
            continue
        order = rows[np.argsort(centres[rows, int(extent.argmax())], kind="stable")]
        groups += [order[len(order) // 2 :], order[: len(order) // 2]]


def _geometry(triangles: np.ndarray, colours: np.ndarray):
    """A Panda3D node of triangles [N, 3, 3] with vertex colours [N, 3, 3] in 0..1."""
    from panda3d.core import Geom, GeomNode, GeomTriangles, GeomVertexData, GeomVertexFormat

    n = 3 * len(triangles)
    vertices = np.zeros(n, dtype=[("position", "<f4", 3), ("colour", "u1", 4)])
    vertices["position"] = triangles.reshape(n, 3)
    vertices["colour"][:, :3] = np.clip(np.round(colours.reshape(n, 3) * 255), 0, 251)
    vertices["colour"][:, 3] = 255
    vertices, corner = np.unique(vertices.view("V16"), return_inverse=True)  # transforming vertices is what costs
    data = GeomVertexData("", GeomVertexFormat.getV3c4(), Geom.UHStatic)
    data.uncleanSetNumRows(len(vertices))
    data.modifyArrayHandle(0).copyDataFrom(vertices.tobytes())
    primitive = GeomTriangles(Geom.UHStatic)
    index = corner.astype("<u2" if len(vertices) < 65536 else "<u4")
    primitive.setIndexType(Geom.NTUint16 if index.itemsize == 2 else Geom.NTUint32)
    array = primitive.modifyVertices(n)
    array.modifyHandle().copyDataFrom(index.tobytes())
    geom = Geom(data)
    geom.addPrimitive(primitive)
    node = GeomNode("")
    node.addGeom(geom)
    return node
