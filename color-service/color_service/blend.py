"""Two pictures as one: multi-band blending with Laplacian pyramids, so that neither a seam nor a ghost is seen.

Source: P. J. Burt, E. H. Adelson, "A Multiresolution Spline With Application to Image Mosaics", ACM Transactions on
Graphics 2 (1983) 217-236. Everything is linear, so one pyramid of the difference of the pictures is enough: the result
is the first plus that difference, each band of it weighted by the mask at the band's own scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, sqrt

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from pixelgate_common.contracts.color import BlendOptions
from pixelgate_common.images import DecodeLimits, decode, inspect

from color_service.fields import about_field

Plane = npt.NDArray[np.float32]
_MOST_LEVELS = 6


def blend_files(
    first: bytes, second: bytes, mask: bytes | None, options: BlendOptions, limits: DecodeLimits, max_pixels: int
) -> Image.Image:
    """Return the blend of two picture files, RGB, or RGBA where one of them is transparent somewhere.

    It has the upright size of the first, which is scaled down to `max_pixels` if it has more. The second is scaled to
    cover that size, its overhang cut off evenly; a mask is stretched to it, and white takes the second picture.
    Raises as `pixelgate_common.images.decode` does, naming the field of the bad picture.
    """
    with about_field("image_1"):
        size = _bounded(inspect(first, limits).upright_size, max_pixels)
        one = _decoded(first, limits, size).resize(size, Image.Resampling.BICUBIC)
    with about_field("image_2"):
        two = ImageOps.fit(_decoded(second, limits, size), size, Image.Resampling.BICUBIC)
    if mask is None:
        weights = seam(size, options.position, options.direction)
    else:
        with about_field("mask"):
            grey = decode(mask, limits).convert("L").resize(size, Image.Resampling.BILINEAR)
            weights = np.asarray(grey, dtype=np.float32) / np.float32(255)
    return Image.fromarray(blend(np.asarray(one), np.asarray(two), weights, options.levels))


def blend(
    first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8], mask: Plane, levels: int | None = None
) -> npt.NDArray[np.uint8]:
    """Return the blend of two sRGB or sRGBA pictures (h, w, 3 or 4) of one size; neither is changed.

    `mask` (h, w) in [0, 1] says where the second is wanted. `levels` is the number of bands: with 1 the mask is applied
    as it is, and each further one mixes the coarsest band twice as wide. None, or more than fit, means as many as fit,
    at most 6 unless more were asked for. With alpha, colours are weighted by it, so what is invisible leaves no trace.
    """
    most = int(log2(min(mask.shape))) + 1
    levels = min(most, _MOST_LEVELS if levels is None else levels)
    masks = [mask]
    while len(masks) < levels:
        masks.append(cv2.pyrDown(masks[-1]))
    # One plane at a time: memory is a few planes of float32, whatever the number of channels.
    if first.shape[2] == second.shape[2] == 3:
        return np.stack([_to_levels(_blended(*_planes(first, second, i), masks)) for i in range(3)], axis=-1)
    alphas = _alpha(first), _alpha(second)
    alpha: Plane = np.clip(_blended(*alphas, masks), 0, 1)
    # Colours are divided by the alpha that they were blended with; where nothing is visible they become black.
    visible: Plane = np.where(alpha > 0.5 / 255, alpha, np.float32(np.inf))
    channels = []
    for i in range(3):
        one, two = _planes(first, second, i)
        one *= alphas[0]
        two *= alphas[1]
        channels.append(_to_levels(_blended(one, two, masks) / visible))
    return np.stack([*channels, _to_levels(alpha * np.float32(255))], axis=-1)


def seam(size: tuple[int, int], position: float, direction: str) -> Plane:
    """Return a mask (height, width) that is 0 before the seam and 1 behind it; a pixel that it cuts is in between."""
    width, height = size
    length = width if direction == "horizontal" else height
    ramp = np.clip(np.arange(1, length + 1, dtype=np.float32) - position * length, 0, 1).astype(np.float32)
    along = ramp[None, :] if direction == "horizontal" else ramp[:, None]
    return np.ascontiguousarray(np.broadcast_to(along, (height, width)))


def _blended(first: Plane, second: Plane, masks: Sequence[Plane]) -> Plane:
    return first + _weighted_bands(second - first, masks)


def _weighted_bands(difference: Plane, masks: Sequence[Plane]) -> Plane:
    """Return the sum of the difference's bands, each multiplied by the mask smoothed to the band's scale."""
    if len(masks) == 1:
        return difference * masks[0]
    height, width = difference.shape
    low = cv2.pyrDown(difference)
    band: Plane = difference - cv2.pyrUp(low, dstsize=(width, height))
    band *= masks[0]
    band += cv2.pyrUp(_weighted_bands(low, masks[1:]), dstsize=(width, height))
    return band


def _planes(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8], channel: int) -> tuple[Plane, Plane]:
    return first[..., channel].astype(np.float32), second[..., channel].astype(np.float32)


def _alpha(picture: npt.NDArray[np.uint8]) -> Plane:
    if picture.shape[2] == 3:
        return np.ones(picture.shape[:2], dtype=np.float32)
    return picture[..., 3].astype(np.float32) / np.float32(255)


def _to_levels(plane: Plane) -> npt.NDArray[np.uint8]:
    """Return a plane in [0, 255] as bytes; bands weighted differently can pass the ends, and must not wrap round."""
    levels: npt.NDArray[np.uint8] = np.clip(np.rint(plane), 0, 255).astype(np.uint8)
    return levels


def _bounded(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    width, height = size
    scale = sqrt(max_pixels / (width * height))
    return size if scale >= 1 else (max(1, int(width * scale)), max(1, int(height * scale)))


def _decoded(data: bytes, limits: DecodeLimits, size: tuple[int, int]) -> Image.Image:
    """Return the picture, already scaled down if it is larger than needed to cover `size`."""
    about = inspect(data, limits)
    width, height = about.upright_size
    scale = max(size[0] / width, size[1] / height)
    max_side_px = int(max(width, height) * scale) + 1 if scale < 1 else None
    return decode(data, limits, mode="RGBA" if about.has_alpha else "RGB", max_side_px=max_side_px)
