"""What computes vectors: the Protocol, and the one on a CPU by OpenVINO (measurements: docs/adr/0002)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pixelgate_common.inference.openvino_runtime import Graph, Precision

FloatMatrix = npt.NDArray[np.float32]


class Runner(Protocol):
    """Computes vectors. `workers` batches at a time may be given to it, each from its own thread.

    Above `good_batch` inputs a batch becomes slower and hardly more efficient.
    """

    workers: int
    good_batch: int

    def __call__(self, batch: Sequence[npt.NDArray[Any]]) -> FloatMatrix:
        """Return unit vectors (n, dim), float32, for n arrays of one shape."""


class OpenVinoRunner:
    """Runs one graph on the CPU; see `Graph` for what `side_by_side` means."""

    def __init__(
        self, graph: Path, precision: Precision, threads: int, *, side_by_side: bool, good_batch: int = 8
    ) -> None:
        """Compile `graph`."""
        self._graph = Graph(graph, precision, threads, side_by_side=side_by_side)
        self.workers, self.good_batch = self._graph.workers, good_batch

    def __call__(self, batch: Sequence[npt.NDArray[Any]]) -> FloatMatrix:
        """Return unit vectors (n, dim) for n arrays of one shape."""
        (vectors,) = self._graph(np.stack(batch))
        return vectors.astype(np.float32, copy=False)
