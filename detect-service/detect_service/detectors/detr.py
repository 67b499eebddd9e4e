"""The DETR family (DETR, RT-DETR, D-FINE, YOLOS, …) by transformers, converted for OpenVINO.

The graph takes pixels (1, height, width, 3), 0–255, and gives logits (1, queries, labels) and boxes (1, queries, 4):
centre and size as parts of the picture's sides. Formulas: transformers' image processors (`resize`,
`post_process_object_detection`); that they are the model's own is checked when it is converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pixelgate_common.contracts.detect import Box

from detect_service.detectors.protocol import MAX_OBJECTS, Prepared, Question, to_boxes
from detect_service.graphs import RunnableGraph

Floats = npt.NDArray[np.float32]
Scoring = Literal["sigmoid", "softmax"]
_PREVIEW_SIDE_PX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DetrFacts:
    """How a picture is resized, and logits are read.

    `size` is width and height; without it the shorter side becomes `shortest_px`, the longer at most `longest_px`.
    `resample` is Pillow's number of the filter. `softmax`: the last label means nothing; the best other one counts.
    """

    labels: tuple[str, ...]
    size: tuple[int, int] | None
    shortest_px: int
    longest_px: int
    resample: int
    scoring: Scoring

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> DetrFacts:
        """Return the facts that a conversion has written."""
        size = fields["size"]
        return cls(**{**fields, "labels": tuple(fields["labels"]), "size": tuple(size) if size else None})


class DetrDetector:
    """A DETR graph with its resizing and reading; see `protocol.Detector`."""

    def __init__(self, graph: RunnableGraph, facts: DetrFacts) -> None:
        """Serve `graph` as `facts` say."""
        self._graph, self._facts = graph, facts
        self.workers = graph.workers
        self.decode_side_px = max(_PREVIEW_SIDE_PX, facts.longest_px, *(facts.size or (0,)))

    def prepare(self, picture: Image.Image, size: tuple[int, int]) -> Prepared:
        """Return the resized pixels, and the size that boxes are to be in."""
        return Prepared(resized(picture, self._facts), size)

    def find(self, batch: Sequence[Question]) -> list[list[Box]]:
        """Return the objects of each picture."""
        return [self._find(question) for question in batch]

    def _find(self, question: Question) -> list[Box]:
        logits, boxes = self._graph(question.prepared.pixels[np.newaxis])
        return read_output(logits[0], boxes[0], self._facts, question.prepared.place, question.min_score)


def resized(picture: Image.Image, facts: DetrFacts) -> npt.NDArray[np.uint8]:
    """Return the pixels (height, width, 3) that the model takes of `picture` (mode RGB)."""
    wanted = facts.size or shortest_to(picture.size, facts.shortest_px, facts.longest_px)
    return np.asarray(picture.resize(wanted, Image.Resampling(facts.resample)))


def shortest_to(size: tuple[int, int], shortest_px: int, longest_px: int) -> tuple[int, int]:
    """Return width and height with the shorter side at `shortest_px`, or less so that the longer fits `longest_px`.

    As transformers' `get_size_with_aspect_ratio`, which cuts to whole numbers in one place and rounds in the other.
    """
    width, height = size
    exact: float = shortest_px
    if max(size) / min(size) * shortest_px > longest_px:
        exact = longest_px * min(size) / max(size)
    short = round(exact)
    if min(size) == short:
        return size
    if width < height:
        return max(1, short), max(1, int(exact * height / width))
    return max(1, int(exact * width / height)), max(1, short)


def read_output(logits: Floats, boxes: Floats, facts: DetrFacts, size: tuple[int, int], min_score: float) -> list[Box]:
    """Return the objects of a picture of `size` from logits (queries, labels) and relative boxes (queries, 4)."""
    if facts.scoring == "softmax":
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        every = (powers / powers.sum(axis=-1, keepdims=True))[:, :-1]
        numbers = every.argmax(axis=-1)
        scores, queries = every.max(axis=-1), np.arange(len(every))
    else:
        every = 1 / (1 + np.exp(-logits))
        best = np.argsort(-every, axis=None, kind="stable")[: min(len(every), MAX_OBJECTS)]
        scores, queries, numbers = every.ravel()[best], best // every.shape[1], best % every.shape[1]
    kept = scores > min_score
    centre, half = boxes[queries[kept], :2], boxes[queries[kept], 2:] / 2
    corners = np.concatenate([centre - half, centre + half], axis=1).clip(0, 1) * np.array([*size, *size])
    return to_boxes(facts.labels, corners, scores[kept], numbers[kept])
