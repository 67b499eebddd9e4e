"""Non-maximum suppression: of boxes of one label that overlap, the surest stays (ultralytics' and torchvision's)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
_MOST_CANDIDATES = 30_000


def suppress(boxes: Floats, scores: Floats, labels: Integers, *, max_iou: float, most: int) -> Integers:
    """Return the places of the boxes that stay, the surest first, at most `most`.

    Args:
        boxes: (n, 4) of left, top, right, bottom.
        scores: (n,), higher is surer.
        labels: (n,); boxes of different labels never suppress each other.
        max_iou: a box goes when it overlaps a surer one of its label by more than this.
        most: how many may stay; the work is bounded by it times n.
    """
    order = np.argsort(-scores, kind="stable")[:_MOST_CANDIDATES]
    left, top, right, bottom = boxes[order].astype(np.float64).T
    areas = (right - left) * (bottom - top)
    label = labels[order]
    kept: list[int] = []
    waiting = np.arange(len(order))
    while len(waiting) and len(kept) < most:
        best, waiting = int(waiting[0]), waiting[1:]
        kept.append(best)
        across = np.minimum(right[best], right[waiting]) - np.maximum(left[best], left[waiting])
        down = np.minimum(bottom[best], bottom[waiting]) - np.maximum(top[best], top[waiting])
        shared = across.clip(0) * down.clip(0)
        together = areas[best] + areas[waiting] - shared
        waiting = waiting[(shared <= max_iou * together) | (label[waiting] != label[best])]
    return np.asarray(order[kept], dtype=np.int64)
