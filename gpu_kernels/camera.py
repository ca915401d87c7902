"""Where a preview is seen from, and lit from.

Belongs here: the numbers of spec/rendering.md "Common" and the geometry of one view.
Does not: pixels.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AZIMUTHS = tuple(float(angle) for angle in np.linspace(0.0, 360.0, 16)[[1, 5, 9, 13]])  # degrees: 24, 120, 216, 312
ELEVATION = 15.0  # degrees above the horizon (the spec's phi = -15)
FIELD_OF_VIEW = 49.1  # degrees, vertical and horizontal
VIEW_SIZE = 518  # pixels
GAP = 5  # pixels, black
GRID_SIZE = 2 * VIEW_SIZE + GAP
MESH_DISTANCE = 2.0  # world units from the eye to the origin
MESH_NEAR = 0.05
SPLAT_DISTANCE = 2.5  # world units


@dataclass(frozen=True)
class View:
    """A pinhole camera that looks at the origin, and the direction of its one light (splats have their own)."""

    eye: NDArray[np.float64]  # [3] world units
    right: NDArray[np.float64]  # [3] unit
    up: NDArray[np.float64]  # [3] unit
    forward: NDArray[np.float64]  # [3] unit
    light: NDArray[np.float64]  # [3] unit, from the surface towards the light
    focal: float  # pixels
    size: int  # pixels

    def packed(self) -> NDArray[np.float64]:
        """[17] eye, right, up, forward, light, focal, size: the form that kernels take."""
        return np.concatenate(
            [self.eye, self.right, self.up, self.forward, self.light, np.array([self.focal, float(self.size)])]
        )


def mesh_view(azimuth: float, elevation: float, size: int) -> View:
    """OpenGL look-at view of a mesh from azimuth (0 = +Z, 90 = +X) and elevation above the horizon, in degrees.

    size: side of the square picture in pixels.
    """
    theta, phi = math.radians(azimuth), math.radians(elevation)
    eye = MESH_DISTANCE * np.array(
        [math.cos(phi) * math.sin(theta), math.sin(phi), math.cos(phi) * math.cos(theta)], dtype=np.float64
    )
    forward = -eye / np.linalg.norm(eye)
    # Straight from above or below, Y gives no direction: the azimuth does.
    sky = np.array([0.0, 1.0, 0.0]) if abs(math.cos(phi)) > 1e-6 else -np.array([math.sin(theta), 0.0, math.cos(theta)])
    right = np.cross(forward, sky)
    right /= np.linalg.norm(right)
    light = eye + np.array([1.0, 1.0, 0.0])
    return View(
        eye=eye,
        right=right,
        up=np.cross(right, forward),
        forward=forward,
        light=light / np.linalg.norm(light),
        focal=0.5 * size / math.tan(math.radians(FIELD_OF_VIEW) / 2),
        size=size,
    )


def splat_view(azimuth: float, elevation: float, size: int) -> View:
    """View of splats, whose up is -Y, from elevation degrees above the horizon.

    azimuth: degrees from -Z towards -X; size: side of the square picture in pixels.
    """
    theta, phi = math.radians(azimuth), math.radians(elevation)
    forward = np.array([math.cos(phi) * math.sin(theta), math.sin(phi), math.cos(phi) * math.cos(theta)])
    right = np.array([math.cos(theta), 0.0, -math.sin(theta)])  # Y x forward, also straight from above or below
    return View(
        eye=-SPLAT_DISTANCE * forward,
        right=right,
        up=np.cross(right, forward),
        forward=forward,
        light=-forward,
        focal=0.5 * size / math.tan(math.radians(FIELD_OF_VIEW) / 2),
        size=size,
    )
