"""What every detector does, whatever its library and licence: a picture in, labelled boxes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from pixelgate_common.contracts.detect import Box

Pixels = npt.NDArray[np.uint8]
MAX_OBJECTS = 300
DEFAULT_MIN_SCORE = 0.25


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture as one detector takes it: pixels (height, width, 3), and what it needs to place its boxes."""

    pixels: Pixels
    place: Any


@dataclass(frozen=True, slots=True)
class Question:
    """A prepared picture, and from which score (0–1) on objects are wanted."""

    prepared: Prepared
    min_score: float


class Detector(Protocol):
    """A loaded detector; blocking, to be called from threads, `workers` of them in `find` at a time.

    `decode_side_px`: a picture may be made smaller until its longer side has this many pixels before it is prepared.
    """

    decode_side_px: int
    workers: int

    def prepare(self, picture: Image.Image, size: tuple[int, int]) -> Prepared:
        """Return what `find` takes. `picture` has mode RGB; `size` is the width and height that boxes are to be in."""

    def find(self, batch: Sequence[Question]) -> list[list[Box]]:
        """Return the objects of each picture, the surest first, at most 300, their boxes inside the picture."""


def to_boxes(
    labels: Sequence[str],
    corners: npt.NDArray[np.floating[Any]],
    scores: npt.NDArray[np.floating[Any]],
    numbers: npt.NDArray[np.integer[Any]],
) -> list[Box]:
    """Return boxes from corners (n, 4: left, top, right, bottom), the surest first; those without an area are left out.

    Numbers beyond `labels` are named by their number.
    """
    found: list[Box] = []
    for place in np.argsort(-scores, kind="stable")[:MAX_OBJECTS]:
        left, top, right, bottom = (float(edge) for edge in corners[place])
        if right > left and bottom > top:
            number = int(numbers[place])
            found.append(
                Box(
                    label=labels[number] if number < len(labels) else str(number),
                    score=min(1.0, max(0.0, float(scores[place]))),
                    box=(left, top, right - left, bottom - top),
                )
            )
    return found
