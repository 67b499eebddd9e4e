"""ultralytics' YOLO models, converted for OpenVINO: the answers of `predict()` without torch.

The graph takes pixels (1, height, width, 3) of a letterboxed picture, 0–255, and gives either columns (1, 4 + labels,
n) of centre, size and a score for each label, to be suppressed here, or rows (1, n, 4 + labels) of corners and scores
from a head that needs no suppression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from pixelgate_common.contracts.detect import Box

from detect_service.detectors.protocol import MAX_OBJECTS, Prepared, Question, to_boxes
from detect_service.graphs import RunnableGraph
from detect_service.letterbox import Placement, letterbox
from detect_service.suppression import suppress

# The longer side that previews have. A larger picture is first decoded to it, at a fraction of the cost, so that an
# upload of the original and its stored preview have the same objects.
_PREVIEW_SIDE_PX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloFacts:
    """What a checkpoint says of itself. `rows`: its head needs no suppression. `max_iou`: see `suppression`.

    `agnostic`: boxes suppress each other whatever their labels, for models that seldom see one thing before another.
    """

    labels: tuple[str, ...]
    side_px: int
    stride: int
    rows: bool
    max_iou: float
    agnostic: bool = False

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> YoloFacts:
        """Return the facts that a conversion has written."""
        return cls(**{**fields, "labels": tuple(fields["labels"])})


class YoloDetector:
    """A YOLO graph with its letterbox and suppression; see `protocol.Detector`."""

    def __init__(self, graph: RunnableGraph, facts: YoloFacts) -> None:
        """Serve `graph` as `facts` say."""
        self._graph, self._facts = graph, facts
        self.workers = graph.workers
        self.decode_side_px = max(_PREVIEW_SIDE_PX, 2 * facts.side_px)

    def prepare(self, picture: Image.Image, size: tuple[int, int]) -> Prepared:
        """Return the letterboxed pixels and their place."""
        return Prepared(*letterbox(np.asarray(picture), size, self._facts.side_px, self._facts.stride))

    def find(self, batch: Sequence[Question]) -> list[list[Box]]:
        """Return the objects of each picture. Shapes differ and batches gain nothing on a CPU: one after the other."""
        return [self._find(question) for question in batch]

    def _find(self, question: Question) -> list[Box]:
        (output,) = self._graph(question.prepared.pixels[np.newaxis])
        corners, scores, numbers = read_output(output[0], self._facts, question.min_score)
        place = cast(Placement, question.prepared.place)
        return to_boxes(self._facts.labels, place.boxes_back(corners), scores, numbers)


def read_output(
    output: npt.NDArray[np.float32], facts: YoloFacts, min_score: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return corners (n, 4) in the letterbox, scores (n,) above `min_score`, label numbers (n,); surest first."""
    if facts.rows:
        return _best_rows(output, min_score)
    best = output[4:].max(axis=0)
    kept = output[:, best > min_score]
    numbers = kept[4:].argmax(axis=0)
    scores = kept[4:].max(axis=0, initial=0.0)
    centre, half = kept[:2].T, kept[2:4].T / 2
    corners = np.concatenate([centre - half, centre + half], axis=1)
    rivals = np.zeros_like(numbers) if facts.agnostic else numbers
    stay = suppress(corners, scores, rivals, max_iou=facts.max_iou, most=MAX_OBJECTS)
    return corners[stay], scores[stay], numbers[stay]


def _best_rows(
    output: npt.NDArray[np.float32], min_score: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the best labels of the best places, as ultralytics' `Detect.get_topk_index` takes them."""
    places = np.argsort(-output[:, 4:].max(axis=1), kind="stable")[:MAX_OBJECTS]
    every = output[places, 4:]
    best = np.argsort(-every, axis=None, kind="stable")[:MAX_OBJECTS]
    best = best[every.ravel()[best] > min_score]
    rows, numbers = np.divmod(best, every.shape[1])
    return output[places[rows], :4], every.ravel()[best], numbers
