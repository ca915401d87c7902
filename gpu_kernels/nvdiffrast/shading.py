"""spec/rendering.md "Meshes", rules 3 to 9, over many points of an opaque surface at once, in PyTorch.

Belongs here: the formulas as tensors; they run on any device, and tests compare them with `reference.shade`.
Does not: visibility (nvdiffrast), blending.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_kernels.camera import View
from gpu_kernels.formulas.mesh import BASE, COLOURS, EMISSIVE, NORMAL, OCCLUSION, SURFACE, TEXTURES, Scene

Tensor = torch.Tensor


class Surface:
    """A scene on a device."""

    def __init__(self, scene: Scene, device: str) -> None:
        def upload(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.array(array)).to(device)  # a copy: the scene's arrays are read-only

        self.parts, self.factors = scene.parts, scene.factors
        self.positions = upload(scene.positions)  # [V, 3]
        self.indices = upload(scene.triangles.astype(np.int64))  # [T, 3]
        self.normals = upload(scene.normals)  # [V, 3]
        self.uv, self.colours = upload(scene.uv), upload(scene.colours)
        self.base, self.surface, self.bumps, self.occlusion, self.glow = (
            upload(texture.view(np.uint8).reshape(*texture.shape, 4))
            for texture in (scene.base, scene.surface, scene.normal, scene.occlusion, scene.emissive)
        )

    def vector(self, values: Any) -> Tensor:
        """float32 on the surface's device."""
        return torch.from_numpy(np.array(values, np.float32)).to(self.positions.device)

    def clip_positions(self, view: View, near: float) -> Tensor:
        """[1, V, 4] for a perspective with an infinite far plane."""
        ray = self.positions - self.vector(view.eye)
        right, up, forward = (ray @ self.vector(axis) for axis in (view.right, view.up, view.forward))
        scale = 2 * view.focal / view.size
        return torch.stack([scale * right, scale * up, forward - 2 * near, forward], dim=-1)[None].contiguous()

    def facing(self, view: View) -> Tensor:
        """Numbers of the triangles whose front is turned to the eye."""
        a, b, c = (self.positions[self.indices[:, corner]] for corner in range(3))
        outwards = torch.linalg.cross(b - a, c - a)
        return ((outwards * (self.vector(view.eye) - a)).sum(-1) > 0).nonzero()[:, 0]

    def shade(self, triangles: Tensor, weights: Tensor, view: View) -> Tensor:
        """[N, 3] displayed colours in 0..1 at barycentric weights [N, 3] of triangles [N]."""
        corners = self.indices[triangles]

        def blend(values: Tensor) -> Tensor:
            return (values[corners] * weights[..., None]).sum(1)

        n, point = unit(blend(self.normals)), blend(self.positions)
        base, glow = (
            self.vector(factors).expand(len(triangles), 3) for factors in (self.factors[:3], self.factors[6:])
        )
        metallic, rough = (weights.new_full((len(triangles), 1), float(factor)) for factor in self.factors[4:6])
        occlusion = torch.ones_like(rough)
        if self.parts & TEXTURES:
            uv = blend(self.uv)
            if self.parts & BASE:
                base = base * linear(sample(self.base, uv)[:, :3])
            if self.parts & SURFACE:
                texel = sample(self.surface, uv)
                rough, metallic = rough * texel[:, 1:2], metallic * texel[:, 2:3]
            if self.parts & OCCLUSION:
                occlusion = sample(self.occlusion, uv)[:, :1]
            if self.parts & EMISSIVE:
                glow = glow * linear(sample(self.glow, uv)[:, :3])
            if self.parts & NORMAL:
                n = self._bent(n, corners, sample(self.bumps, uv)[:, :3])
        light = self.vector(view.light)
        v = unit(self.vector(view.eye) - point)
        h = unit(light + v)
        rho = rough.clamp(0.04, 1)
        nl, nv = dot(n, light).clamp(0.001, 1), dot(n, v).abs().clamp(0.001, 1)
        nh, vh = dot(n, h).clamp(0, 1), dot(v, h).clamp(0, 1)
        f0 = 0.04 * (1 - metallic) + base * metallic
        fresnel = f0 + (1 - f0) * (1 - vh) ** 5
        k, a2 = (rho + 1) ** 2 / 8, rho**4
        shadowing = nv / (nv * (1 - k) + k) * nl / (nl * (1 - k) + k)
        spread = a2 / (torch.pi * (nh**2 * (a2 - 1) + 1) ** 2)
        diffuse = (1 - fresnel) * 0.96 * base * (1 - metallic) / torch.pi
        c = 6 * nl * (diffuse + fresnel * shadowing * spread / (4 * nl * nv + 0.001)) + 0.3 * base
        c = c * occlusion + glow
        if self.parts & COLOURS:
            c = c * blend(self.colours)[:, :3]
        return c.clamp(0, 1) ** (1 / 2.2)

    def _bent(self, n: Tensor, corners: Tensor, texels: Tensor) -> Tensor:
        """Normals [N, 3] after the normal map; as they were where texture coordinates give no direction (rule 5)."""
        (du1, dv1), (du2, dv2) = (
            (self.uv[corners[:, other]] - self.uv[corners[:, 0]]).T[:, :, None] for other in (1, 2)
        )
        edge1, edge2 = (self.positions[corners[:, other]] - self.positions[corners[:, 0]] for other in (1, 2))
        tangent = (dv2 * edge1 - dv1 * edge2) * torch.sign(du1 * dv2 - du2 * dv1)
        tangent = unit(tangent - n * dot(n, tangent))
        x, y, z = (2 * texels - 1).split(1, dim=1)
        bent = unit(x * tangent + y * torch.linalg.cross(n, tangent) + z * n)
        usable = (tangent != 0).any(-1, keepdim=True) & (bent != 0).any(-1, keepdim=True)
        return torch.where(usable, bent, n)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """[N, 1]"""
    return (a * b).sum(-1, keepdim=True)


def unit(vectors: Tensor) -> Tensor:
    """Of length 1; zero where there is none."""
    squared = dot(vectors, vectors)
    return vectors * torch.where(squared > 1e-30, squared.clamp(min=1e-30).rsqrt(), 0)


def linear(encoded: Tensor) -> Tensor:
    """sRGB to linear light, exact piecewise curve."""
    return torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def sample(texture: Tensor, uv: Tensor) -> Tensor:
    """[N, 4] RGBA in 0..1 at uv [N, 2]: bilinear, repeating. texture: [H, W, 4] bytes."""
    height, width, _ = texture.shape
    x, y = (uv - uv.floor()).T * torch.tensor([[width], [height]], device=uv.device) - 0.5
    left, top = x.floor(), y.floor()
    total = torch.zeros(len(uv), 4, device=uv.device)
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = (left + right).long() % width, (top + below).long() % height
        share = (1 - (x - left - right).abs()) * (1 - (y - top - below).abs())
        total += share[:, None] * texture[row, column]
    return total / 255
