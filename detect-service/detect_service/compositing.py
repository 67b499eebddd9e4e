"""From a picture and its alpha to the PNG that is handed out.

Colours stay as they are (rembg darkens them along soft edges, where it multiplies by the alpha twice); where nothing is
left they become black, which makes the file a third as large.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from pixelgate_common.contracts.detect import CutoutOptions

from detect_service.matte import Alpha

# Measured on photographs of 1024 × 768 pixels: 81 ms in place of the 592 of Pillow's default, and no larger.
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
# Below this an alpha cannot be seen, and networks leave such values all over a background.
_NOTHING_BELOW = 8


def compose(picture: Image.Image, alpha: Alpha, options: CutoutOptions) -> bytes:
    """Return a PNG of `picture` (mode RGB or RGBA) by `alpha` (height, width), as `options` want it.

    RGBA; grey for `mask_only`; RGB with a `background`. A picture's own transparency stays transparent. `trim` leaves a
    picture in which nothing was found as it is.
    """
    pixels = np.asarray(picture)
    if pixels.shape[2] == 4:
        own = pixels[..., 3]
        if own.min() < 255:
            alpha = ((alpha.astype(np.uint16) * own + 127) // 255).astype(np.uint8)
        pixels = pixels[..., :3]
    if options.trim:
        rows, columns = _filled(alpha)
        pixels, alpha = pixels[rows, columns], alpha[rows, columns]
    if options.mask_only:
        return _png(np.ascontiguousarray(alpha))
    if options.background is not None:
        return _png(_laid_on(pixels, alpha, options.background))
    cut = np.empty((*alpha.shape, 4), dtype=np.uint8)
    cut[..., :3] = pixels[..., ::-1]  # OpenCV's order of colours
    cut[..., 3] = alpha
    cut[alpha == 0] = 0
    return _png(cut)


def _filled(alpha: Alpha) -> tuple[slice, slice]:
    seen = alpha >= _NOTHING_BELOW
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if not len(rows):
        return slice(None), slice(None)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _laid_on(pixels: npt.NDArray[np.uint8], alpha: Alpha, color: str) -> npt.NDArray[np.uint8]:
    """Return blue, green, red (height, width, 3) of `pixels` in front of `color`, row by row to bound the memory."""
    behind = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)], dtype=np.uint32)
    laid = np.empty(pixels.shape, dtype=np.uint8)
    for row in range(len(pixels)):
        part = alpha[row, :, np.newaxis].astype(np.uint32)
        laid[row] = ((pixels[row] * part + behind * (255 - part) + 127) // 255)[:, ::-1]
    return laid


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    written, data = cv2.imencode(".png", pixels, _PNG_OPTIONS)
    if not written:
        raise RuntimeError(f"a PNG of shape {pixels.shape} could not be written")
    return bytes(data.tobytes())
