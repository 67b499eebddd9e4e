"""How right a caption, boxes or a mask are, given a scene's truth. Imports nothing heavy: any program may use it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from starter_models.labels import BACKGROUND_COLOURS, LABELS, PAINTS

Box = tuple[float, float, float, float]
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
#: What is told of the background is no object, although "orange" could be one.
_GROUND = re.compile(rf"\b(?:\w+ )?(?:{'|'.join(BACKGROUND_COLOURS)}) background\b")


@dataclass(frozen=True)
class Located:
    """An object that is in a picture: its label and box, (left, top, right, bottom) in pixels."""

    label: str
    box: Box


@dataclass(frozen=True)
class Detection:
    """An object that a model says is in a picture; ``score`` is 0–1."""

    label: str
    score: float
    box: Box


@dataclass(frozen=True)
class Agreement:
    """Shares in 0–1: how much of what was said is true, how much of the truth was said, and their harmonic mean."""

    precision: float
    recall: float
    f1: float


def caption_labels(text: str) -> Counter[str]:
    """Read from a sentence which labels it names and how many of each.

    Every word that captions use for a label counts, the longest first, so that "hot dog" names no dog. "Two dogs" are
    two; a word with no number before it is one when singular and two when plural. The background is left out.
    """
    found: Counter[str] = Counter()
    pattern, labels, plurals = _words()
    for match in pattern.finditer(_GROUND.sub("background", text.lower())):
        number, word = match["number"], match["word"]
        if number is None:
            count = 2 if word in plurals or match["pairs"] == "pairs of " else 1
        else:
            count = int(number) if number.isdigit() else _NUMBERS[number]
        found[labels[word]] += count
    return +found


def label_agreement(found: Sequence[Counter[str]], truths: Sequence[Counter[str]]) -> Agreement:
    """Compare counted labels over all pictures together: two dogs said of one are one right and one invented.

    Raises:
        ValueError: not one of the one for each of the other.
    """
    right = sum((said & true).total() for said, true in zip(found, truths, strict=True))
    said, true = sum(item.total() for item in found), sum(item.total() for item in truths)
    precision, recall = right / said if said else 0.0, right / true if true else 0.0
    return Agreement(precision, recall, 2 * right / (said + true) if said + true else 0.0)


def mean_average_precision_50(predictions: Sequence[Sequence[Detection]], truths: Sequence[Sequence[Located]]) -> float:
    """Return the mean over labels of the average precision at an overlap of 0.5, as COCO counts it.

    Within a label, detections are taken from the best score down over all pictures; each takes the object of its
    picture that it overlaps most, among those not yet taken. Precision is made to fall with recall and read at the
    101 recalls 0, 0.01 … 1. Labels that no picture has are left out.

    Args:
        predictions: detections of each picture, in any order, with enough low scores among them.
        truths: what is in each picture.

    Raises:
        ValueError: not one of the one for each of the other.
    """
    ranked: dict[str, list[tuple[float, int, Box]]] = {}
    wanted: dict[str, dict[int, list[Box]]] = {}
    for picture, (detected, located) in enumerate(zip(predictions, truths, strict=True)):
        for detection in detected:
            ranked.setdefault(detection.label, []).append((detection.score, picture, detection.box))
        for item in located:
            wanted.setdefault(item.label, {}).setdefault(picture, []).append(item.box)
    scores = [_average_precision(ranked.get(label, []), boxes) for label, boxes in wanted.items()]
    return float(np.mean(scores)) if scores else 0.0


def box_iou(first: Box, second: Box) -> float:
    """Return the area two boxes share as a part of the area they cover together."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    if across <= 0 or down <= 0:
        return 0.0
    shared = across * down
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def mask_iou(found: NDArray[np.uint8], truth: NDArray[np.uint8], threshold: int = 128) -> float:
    """Return the overlap of two alpha masks (height, width), 0–255, where they reach ``threshold``; 1 if neither does.

    Raises:
        ValueError: the masks differ in size.
    """
    if found.shape != truth.shape:
        raise ValueError(f"masks of {found.shape} and {truth.shape} cannot be compared")
    one, other = found >= threshold, truth >= threshold
    together = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / together if together else 1.0


def _average_precision(ranked: list[tuple[float, int, Box]], wanted: dict[int, list[Box]]) -> float:
    total = sum(len(boxes) for boxes in wanted.values())
    free = {picture: list(boxes) for picture, boxes in wanted.items()}
    hits = np.zeros(len(ranked), dtype=bool)
    for place, (_, picture, box) in enumerate(sorted(ranked, key=lambda item: -item[0])):
        left = free.get(picture, [])
        overlaps = [box_iou(box, other) for other in left]
        if overlaps and max(overlaps) >= 0.5:
            left.pop(int(np.argmax(overlaps)))
            hits[place] = True
    if not hits.any():
        return 0.0
    right = np.cumsum(hits)
    recall, precision = right / total, right / np.arange(1, len(hits) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101) - 1e-9)
    return float(np.append(falling, 0.0)[places].mean())


@cache
def _words() -> tuple[re.Pattern[str], dict[str, str], frozenset[str]]:
    """Return what finds a word in a caption, the label of each word, and the words that are plural only."""
    labels: dict[str, str] = {}
    singulars: set[str] = set()
    for label in LABELS:
        for singular, plural in label.words:
            labels[singular] = label.name
            labels.setdefault(plural.removeprefix("pairs of "), label.name)
            singulars.add(singular)
    words = "|".join(re.escape(word) for word in sorted(labels, key=len, reverse=True))
    pattern = re.compile(
        rf"\b(?:(?P<number>{'|'.join(_NUMBERS)}|\d+) )?(?P<pairs>pairs? of )?"
        rf"(?:(?:{'|'.join(PAINTS)}) )?(?P<word>{words})\b"
    )
    return pattern, labels, frozenset(set(labels) - singulars)
