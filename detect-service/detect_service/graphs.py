"""What networks are computed by, as the modules around them see it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt


class RunnableGraph(Protocol):
    """A loaded graph: `pixelgate_common.inference.openvino_runtime.Graph`, or a test's own."""

    workers: int

    def __call__(self, *inputs: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Return the outputs for `inputs`; blocks; `workers` calls at a time."""
