"""From a picture to its alpha: what rembg does before and after the network, in float32 and without rembg.

Formulas: rembg 2.0.86 `BaseSession.normalize` and the `predict` of its U²-Net-like sessions. Whether they are a
model's own is checked when it is converted: rembg's session must give the same alpha of the golden picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from detect_service.graphs import RunnableGraph

Alpha = npt.NDArray[np.uint8]
NetworkInput = npt.NDArray[np.float32]
Map = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatteFacts:
    """How pixels become the network's input, side `size_px`, and its map an alpha; `sigmoid`: the map is in logits."""

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sigmoid: bool

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> MatteFacts:
        """Return the facts that a conversion has written."""
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


def network_input(picture: Image.Image, facts: MatteFacts) -> NetworkInput:
    """Return the network's input for a picture (mode RGB): shape (1, 3, size, size)."""
    small = picture.resize((facts.size_px, facts.size_px), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, dtype=np.float32)
    # By the picture's own largest value, not by 255: as the models were trained.
    pixels = pixels / max(float(pixels.max()), 1e-6)
    normal = (pixels - np.array(facts.mean, dtype=np.float32)) / np.array(facts.std, dtype=np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[np.newaxis])


def to_alpha(found: Map, size: tuple[int, int], facts: MatteFacts) -> Alpha:
    """Return the alpha (height, width), 0–255, of a picture of `size` (width, height) for the network's map (s, s).

    The map's smallest value becomes 0 and its largest 255; one that is the same everywhere has found nothing.
    """
    values = 1 / (1 + np.exp(-found)) if facts.sigmoid else found
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return np.zeros((size[1], size[0]), dtype=np.uint8)
    scaled = ((values - low) / (high - low)).clip(0, 1) * 255
    mask = Image.fromarray(scaled.astype(np.uint8))
    return np.asarray(mask.resize(size, Image.Resampling.LANCZOS))


class MatteNetwork:
    """A loaded network; blocking, `workers` calls at a time."""

    def __init__(self, graph: RunnableGraph, facts: MatteFacts) -> None:
        """Serve `graph` as `facts` say."""
        self._graph, self.facts = graph, facts
        self.workers = graph.workers

    def find(self, given: NetworkInput) -> Map:
        """Return the map (size, size) of what `network_input` gave."""
        (output,) = self._graph(given)
        return np.asarray(output[0, 0], dtype=np.float32)
