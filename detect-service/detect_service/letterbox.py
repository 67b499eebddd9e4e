"""A picture fitted into a square as ultralytics does it: scaled, filled with grey to a multiple of the stride.

Formulas: ultralytics 8.4 `LetterBox` (`auto=True`, as `predict()` uses it for one picture) and `ops.scale_boxes`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]
_GREY = (114, 114, 114)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a picture of `width` × `height` lies in its letterbox: scaled by `gain_*`, from `left`, `top` on."""

    width: int
    height: int
    gain_x: float
    gain_y: float
    left: int
    top: int

    def boxes_back(self, boxes: Boxes) -> Boxes:
        """Return boxes (n, 4) of left, top, right, bottom in the picture's pixels, clipped into it."""
        offset = np.array([self.left, self.top] * 2, dtype=np.float32)
        gain = np.array([self.gain_x, self.gain_y] * 2, dtype=np.float32)
        back: Boxes = ((boxes - offset) / gain).clip(0, np.array([self.width, self.height] * 2, dtype=np.float32))
        return back


def letterbox(pixels: Pixels, size: tuple[int, int], side_px: int, stride: int) -> tuple[Pixels, Placement]:
    """Return `pixels` (height, width, 3) with the longer side at `side_px`, and where it lies.

    Both sides of the result are multiples of `stride`. `size` is the width and height that boxes are to be in; it
    differs from that of `pixels` where a large picture was decoded at a fraction.
    """
    height, width = pixels.shape[:2]
    ratio = min(side_px / height, side_px / width)
    new_w, new_h = max(round(width * ratio), 1), max(round(height * ratio), 1)
    rest_w, rest_h = (side_px - new_w) % stride / 2, (side_px - new_h) % stride / 2
    if (width, height) != (new_w, new_h):
        pixels = np.asarray(cv2.resize(pixels, (new_w, new_h), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    left, right = round(rest_w - 0.1), round(rest_w + 0.1)
    top, bottom = round(rest_h - 0.1), round(rest_h + 0.1)
    if left or right or top or bottom:
        pixels = np.asarray(
            cv2.copyMakeBorder(pixels, top, bottom, left, right, cv2.BORDER_CONSTANT, value=_GREY), dtype=np.uint8
        )
    placement = Placement(
        width=size[0], height=size[1], gain_x=new_w / size[0], gain_y=new_h / size[1], left=left, top=top
    )
    return pixels, placement
