"""Draw GLB files as the public service does, with pyrender; runs in pyrender's own environment.

    PYOPENGL_PLATFORM=osmesa python pyrender_peer.py <requests >answers

Each line of standard input is {"glb": path, "out": path or null}; each line of output tells the seconds spent on it,
or the error. `out` receives the grid as a .npy file. One renderer serves all lines.

Belongs here: what spec/rendering.md "Meshes (GLB)" says of the service, in pyrender's and trimesh's own words.
Does not: anything of gpu_kernels; this is the peer that it is compared with.
"""

import io
import json
import sys
from time import perf_counter

import numpy as np
import pyrender
import trimesh
from OpenGL.GL import GL_RENDERER, glGetString
from PIL import Image

VIEW, GAP, RADIUS = 518, 5, 2.0
TEXTURES = ("baseColorTexture", "metallicRoughnessTexture", "normalTexture", "occlusionTexture", "emissiveTexture")


def pose(eye, back):
    """Camera or light at eye whose +Z is `back`, +Y up."""
    matrix = np.eye(4)
    matrix[:3, 2] = back / np.linalg.norm(back)
    matrix[:3, 0] = np.cross([0, 1, 0], matrix[:3, 2])
    matrix[:3, 0] /= np.linalg.norm(matrix[:3, 0])
    matrix[:3, 1] = np.cross(matrix[:3, 2], matrix[:3, 0])
    matrix[:3, 3] = eye
    return matrix


def eyes():
    phi = np.radians(-15)
    for theta in np.radians(np.linspace(0, 360, 16)[[1, 5, 9, 13]]):
        yield RADIUS * np.array([np.cos(phi) * np.sin(theta), -np.sin(phi), np.cos(phi) * np.cos(theta)])


def scene_of(geometry):
    mesh = pyrender.Mesh.from_trimesh(geometry)
    for primitive in mesh.primitives:
        primitive.material.doubleSided = False
        for name in TEXTURES:
            texture = getattr(primitive.material, name)
            if texture is not None:
                linear = pyrender.constants.GLTF.LINEAR
                texture.sampler = pyrender.Sampler(magFilter=linear, minFilter=linear)
    scene = pyrender.Scene(ambient_light=[0.3, 0.3, 0.3], bg_color=[1.0, 1.0, 1.0, 1.0])
    scene.add(mesh)
    return scene


def draw(renderer, scene):
    grid = np.zeros((2 * VIEW + GAP, 2 * VIEW + GAP, 3), np.uint8)
    camera = scene.add(pyrender.PerspectiveCamera(yfov=np.radians(49.1), znear=0.05, aspectRatio=1.0))
    light = scene.add(pyrender.DirectionalLight(color=np.ones(3), intensity=6.0))
    for number, eye in enumerate(eyes()):
        scene.set_pose(camera, pose(eye, eye))
        scene.set_pose(light, pose(np.zeros(3), eye + np.array([1, 1, 0])))
        picture, _ = renderer.render(scene)
        top, left = (place * (VIEW + GAP) for place in divmod(number, 2))
        small = Image.fromarray(picture).resize((VIEW, VIEW), Image.LANCZOS)
        grid[top : top + VIEW, left : left + VIEW] = np.asarray(small)
    return grid


def preview(renderer, path, out):
    """Seconds by stage. Texture decoding is forced to be a stage of its own: Pillow would else do it while drawing."""
    with open(path, "rb") as file:
        data = file.read()
    started = perf_counter()
    (geometry,) = trimesh.load(io.BytesIO(data), file_type="glb", process=False).geometry.values()
    parsed = perf_counter()
    material = getattr(geometry.visual, "material", None)
    for name in TEXTURES:
        picture = getattr(material, name, None)
        if picture is not None:
            picture.load()
    decoded = perf_counter()
    grid = draw(renderer, scene_of(geometry))
    drawn = perf_counter()
    Image.fromarray(grid).save(io.BytesIO(), "PNG")
    ended = perf_counter()
    if out:
        np.save(out, grid)
    return {
        "parse": parsed - started,
        "decode": decoded - parsed,
        "draw": drawn - decoded,
        "encode": ended - drawn,
        "total": ended - started,
    }


def main():
    renderer = pyrender.OffscreenRenderer(2 * VIEW, 2 * VIEW)
    renderer._platform.make_current()
    print(json.dumps({"renderer": glGetString(GL_RENDERER).decode()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = preview(renderer, request["glb"], request.get("out"))
        except Exception as error:  # the next file is compared all the same
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


main()
