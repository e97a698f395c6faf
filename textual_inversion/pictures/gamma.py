"""Shows PNGs as browsers do whose colours are described by a gamma and the colours of the three lights in place of a profile."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue as x and y
_USUAL_GAMMA = 1 / 2.2
_SAME = 0.01  # difference of gammas that nobody sees; of coordinates, too
_LEAST_GAMMA, _MOST_GAMMA = 0.01, 10.0
_BAND_PIXELS = 2_000_000

Array = np.ndarray[Any, np.dtype[np.float64]]


def by_gamma(image: Image.Image) -> Image.Image:
    """The picture in sRGB, by its chunks gAMA and cHRM (PNG specification, third edition, 11.3.2).

    A chunk sRGB says that it is in sRGB already. Without gAMA, sRGB's own curve counts; without cHRM, its own lights.

    Returns:
        RGB, or RGBA where it has transparency; `image` itself where nothing changes.
    """
    info = image.info
    if "srgb" in info:
        return image
    gamma, lights = _gamma(info.get("gamma")), _lights(info.get("chromaticity"))
    if gamma is None and lights is None:
        return image
    if image.mode[0] in "IF":
        return image if gamma is None else _deep_grey(image, gamma)
    alpha = image.convert("RGBA").getchannel("A") if image.mode in ("RGBA", "LA", "PA") or "transparency" in info else None
    plain = image.convert("RGB")
    linear = _to_light(np.arange(256) / 255, gamma)  # 256
    if lights is None:
        shown = plain.point([round(float(value) * 255) for value in _from_light(linear)] * 3)
    else:
        shown = _with_lights(plain, linear, lights)
    if alpha is not None:
        shown.putalpha(alpha)
    shown.info = {key: value for key, value in info.items() if key not in ("transparency", "gamma", "chromaticity")}
    return shown


def _gamma(value: object) -> float | None:
    """A gamma that has to be applied; None for the usual one and for nonsense."""
    if not isinstance(value, (int, float)) or not _LEAST_GAMMA <= value <= _MOST_GAMMA:
        return None
    return None if abs(value - _USUAL_GAMMA) < _SAME else float(value)


def _lights(values: object) -> Array | None:
    """The matrix from linear RGB of these lights to linear sRGB, [3, 3]; None for those of sRGB and for nonsense."""
    if not isinstance(values, tuple) or len(values) != 8 or not all(isinstance(value, (int, float)) for value in values):
        return None
    if max(abs(given - usual) for given, usual in zip(values, _SRGB)) < _SAME or min(values[1::2]) <= 0:
        return None
    try:
        return np.linalg.inv(_to_xyz(_SRGB)) @ _adapted(values) @ _to_xyz(values)
    except np.linalg.LinAlgError:
        return None


def _xyz(x: float, y: float) -> list[float]:
    return [x / y, 1.0, (1 - x - y) / y]


def _to_xyz(values: tuple[float, ...]) -> Array:
    """From linear RGB to XYZ, [3, 3]."""
    white, lights = _xyz(*values[:2]), np.array([_xyz(*values[place : place + 2]) for place in (2, 4, 6)]).T
    return lights * np.linalg.solve(lights, np.array(white))


def _adapted(values: tuple[float, ...]) -> Array:
    """From XYZ under this white to XYZ under sRGB's, by Bradford's matrix (ICC.1:2022, annex E), [3, 3]."""
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = (cones @ np.array(_xyz(*_SRGB[:2]))) / (cones @ np.array(_xyz(*values[:2])))
    return np.linalg.inv(cones) @ np.diag(scale) @ cones


def _to_light(values: Array, gamma: float | None) -> Array:
    """Stored values from 0 to 1 as amounts of light, by a gamma, or by sRGB's own curve (IEC 61966-2-1)."""
    if gamma is not None:
        return values ** (1 / gamma)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _from_light(light: Array) -> Array:
    """Amounts of light as values of sRGB from 0 to 1."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _with_lights(plain: Image.Image, linear: Array, matrix: Array) -> Image.Image:
    shown = Image.new("RGB", plain.size)
    rows = max(1, _BAND_PIXELS // plain.width)
    for top in range(0, plain.height, rows):
        band = np.asarray(plain.crop((0, top, plain.width, min(top + rows, plain.height))))  # h w 3
        values = _from_light(linear[band] @ matrix.T)
        shown.paste(Image.fromarray((values * 255).round().astype(np.uint8)), (0, top))
    return shown


def _deep_grey(image: Image.Image, gamma: float) -> Image.Image:
    """Greyscale of 16 bits; its curve is applied before it loses its depth, which dark parts of linear light need."""
    shown = Image.new("L", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))).astype(np.float64)  # h w
        values = _from_light(_to_light(np.clip(band / 65535, 0, 1), gamma))
        shown.paste(Image.fromarray((values * 255).round().astype(np.uint8)), (0, top))
    return shown
