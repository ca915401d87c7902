"""One OpenGL context, and meshes drawn with it.

Belongs here: the context's thread, uploads, the draw call, reading back. Does not: the formulas (`mesh.vert`,
`mesh.frag`), whether this backend is the one to take (`backend`).
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources
from threading import Lock
from typing import Any, TypeVar

import moderngl
import numpy as np
from numba import float32, float64, njit, types, uint32
from numpy.typing import NDArray

from gpu_kernels import threads
from gpu_kernels.camera import MESH_NEAR, View
from gpu_kernels.cpu.mesh import SUPERSAMPLING, pack
from gpu_kernels.cpu.resolve import resolve
from gpu_kernels.errors import UnreadableModel
from gpu_kernels.formulas.mesh import BASE, COLOURS, EMISSIVE, NORMAL, OCCLUSION, SURFACE, Packed, Scene
from gpu_kernels.mesh import Mesh

Picture = NDArray[np.uint8]
Result = TypeVar("Result")

# A scene's textures, and the bit of its parts that says it has one. The shaders' `#define`s are the same names.
TEXTURES = {"base": BASE, "surface": SURFACE, "normal": NORMAL, "occlusion": OCCLUSION, "emissive": EMISSIVE}
# Square world units of all faces together: tens for honest meshes. Beyond, a view takes minutes in software.
MAX_FACE_AREA = 20_000
MAX_DEVICES = 8  # of EGL, that are tried
SOFTWARE = ("llvmpipe", "softpipe", "swrast", "Software Rasterizer", "SwiftShader")


class Renderer:
    """Meshes to pictures. A context belongs to the thread that made it: all OpenGL happens on one thread of our own.

    Raises RuntimeError when there is no OpenGL 3.3 through EGL.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="opengl")
        self._programs: dict[int, Any] = {}
        self._on_thread(self._open).result()

    def _on_thread(self, work: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        return self._thread.submit(work, *arguments)

    def _open(self) -> None:
        self._context = _create_context()
        self._context.gc_mode = "context_gc"  # released by us, on this thread, not wherever Python collects
        self.name = str(self._context.info["GL_RENDERER"])
        self.is_software = any(mark.lower() in self.name.lower() for mark in SOFTWARE)
        self._max_texture = int(self._context.info["GL_MAX_TEXTURE_SIZE"])

    def draw(self, mesh: Mesh, views: Sequence[View], pictures: Sequence[Picture], samples: int = 1) -> None:
        """Draw view n over pictures[n]; `registry.DrawMesh`.

        samples: coverage samples of a pixel before the resolve. 1, as the other backends have it, so that a preview is
        one picture everywhere; 4 is what the public service has on a graphics card.
        Raises UnreadableModel when faces lie over each other so often that drawing would take minutes, RuntimeError when
        OpenGL fails (memory, a lost context) or is too limited for a texture or a view.
        """
        scene = pack(mesh)
        if not face_area(scene.positions, scene.triangles) <= MAX_FACE_AREA:
            raise UnreadableModel("too much to draw: its triangles cover the picture too many times over")
        drawn = self._on_thread(self._draw, scene, list(views), samples).result()

        def shrink(number: int) -> None:
            last = len(drawn[number][0]) - 1
            resolve(drawn[number], np.array([0, 0, last, last]), pictures[number])

        threads.each(shrink, range(len(views)))

    def _draw(self, scene: Scene, views: Sequence[View], samples: int) -> list[Picture]:
        """[3, 2 size, 2 size] of each view. What was uploaded for them is freed."""
        try:
            pictures = self._draw_views(scene, views, samples)
            if (error := self._context.error) != "GL_NO_ERROR":
                raise RuntimeError(error)
            return pictures
        except (moderngl.Error, RuntimeError) as error:
            raise RuntimeError(f"OpenGL on {self.name}: {error}; the cpu backend draws the same picture") from None
        finally:
            self._context.gc()

    def _draw_views(self, scene: Scene, views: Sequence[View], samples: int) -> list[Picture]:
        program = self._program(scene.parts)
        for unit, name in enumerate(name for name, bit in TEXTURES.items() if scene.parts & bit):
            self._upload(getattr(scene, name)).use(unit)
            program[f"{name}_texture"] = unit
        program["base_factor"] = tuple(scene.factors[:4])
        program["metallic_factor"], program["roughness_factor"] = scene.factors[4:6]
        program["emission"] = tuple(scene.factors[6:9])
        vertices = self._vertices(program, scene)
        return [self._draw_view(program, vertices, view, samples) for view in views]

    def _program(self, parts: int) -> Any:
        """The shaders compiled for these parts of a material, once."""
        if parts not in self._programs:
            named = {**TEXTURES, "textured": sum(TEXTURES.values()), "colours": COLOURS}
            head = "".join(f"#define {name.upper()}\n" for name, bit in named.items() if parts & bit)
            version = "#version 330 core\n"
            vertex, fragment = (
                _source(name).replace(version, version + head, 1) for name in ("mesh.vert", "mesh.frag")
            )
            self._programs[parts] = self._context.program(vertex_shader=vertex, fragment_shader=fragment)
        return self._programs[parts]

    def _upload(self, texture: Packed) -> Any:
        height, width = texture.shape
        if max(height, width) > self._max_texture:
            raise RuntimeError(f"a texture of {width} x {height}, at most {self._max_texture} are possible")
        uploaded = self._context.texture((width, height), 4, texture)
        uploaded.filter = (moderngl.LINEAR, moderngl.LINEAR)
        return uploaded

    def _vertices(self, program: Any, scene: Scene) -> Any:
        attributes = {
            "position": (scene.positions, "3f"),
            "normal": (scene.normals, "3f"),
            "texture_coordinate": (scene.uv, "2f"),
            "vertex_colour": (scene.colours, "4f"),
        }
        content = [
            (self._context.buffer(values), form, name) for name, (values, form) in attributes.items() if name in program
        ]
        return self._context.vertex_array(program, content, self._context.buffer(scene.triangles), index_element_size=4)

    def _draw_view(self, program: Any, vertices: Any, view: View, samples: int) -> Picture:
        """[3, 2 size, 2 size] picture on white, row 0 at the top."""
        context, side = self._context, SUPERSAMPLING * view.size
        target = context.framebuffer(
            context.renderbuffer((side, side), 4, samples=samples if samples > 1 else 0),
            context.depth_renderbuffer((side, side), samples=samples if samples > 1 else 0),
        )
        for name in ("eye", "right", "up", "forward", "light"):
            if name in program:
                program[name] = tuple(getattr(view, name))
        program["scale"], program["near"] = 2 * view.focal / view.size, MESH_NEAR
        target.use()
        target.clear(1.0, 1.0, 1.0, 1.0)
        context.enable_only(moderngl.DEPTH_TEST | moderngl.CULL_FACE | moderngl.BLEND)
        context.depth_func, context.cull_face, context.front_face = "<", "back", "ccw"
        context.blend_func = moderngl.SRC_ALPHA, moderngl.ONE_MINUS_SRC_ALPHA
        vertices.render(moderngl.TRIANGLES)
        if samples > 1:
            single = context.framebuffer(context.renderbuffer((side, side), 4))
            context.copy_framebuffer(single, target)
            target = single
        rows = np.frombuffer(target.read(components=3, alignment=1), np.uint8).reshape(side, side, 3)
        return np.ascontiguousarray(rows[::-1].transpose(2, 0, 1))  # OpenGL's row 0 is the lowest


def _create_context() -> Any:
    """A context on the first EGL device that gives one: graphics cards come before software."""
    reasons = []
    for device in range(MAX_DEVICES):
        # Names with versions: the unversioned ones come only with development packages.
        egl: dict[str, Any] = {"backend": "egl", "libegl": "libEGL.so.1", "libgl": "libGL.so.1", "device_index": device}
        try:
            return moderngl.create_context(standalone=True, require=330, **egl)
        except Exception as error:  # moderngl raises whatever its loader does
            reasons.append(" ".join(str(error).split())[:200])
    raise RuntimeError(f"no OpenGL 3.3 through EGL: {reasons[0]}")


@njit(
    float64(types.Array(float32, 2, "C", readonly=True), types.Array(uint32, 2, "C", readonly=True)),
    cache=True,
    nogil=True,
)
def face_area(positions: NDArray[np.float32], triangles: NDArray[np.uint32]) -> float:
    """Square world units of all faces of positions [V, 3] and triangles [T, 3]."""
    doubled = 0.0
    for triangle in range(triangles.shape[0]):
        a, b, c = triangles[triangle, 0], triangles[triangle, 1], triangles[triangle, 2]
        ax, ay, az = positions[a, 0], positions[a, 1], positions[a, 2]
        ux, uy, uz = positions[b, 0] - ax, positions[b, 1] - ay, positions[b, 2] - az
        vx, vy, vz = positions[c, 0] - ax, positions[c, 1] - ay, positions[c, 2] - az
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        doubled += math.sqrt(nx * nx + ny * ny + nz * nz)
    return doubled / 2


@functools.cache
def _source(name: str) -> str:
    return (resources.files("gpu_kernels.gl") / name).read_text()


_lock = Lock()
_renderers: dict[int, Renderer] = {}


def renderer() -> Renderer:
    """The one renderer of this process; a forked child gets its own, since a context does not survive a fork."""
    with _lock:
        if os.getpid() not in _renderers:
            _renderers[os.getpid()] = Renderer()
        return _renderers[os.getpid()]
