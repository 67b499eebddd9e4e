"""Graphs to vectors on a CPU, by OpenVINO: the one module that imports it (measurements: docs/adr/0002)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

# `import openvino` reports itself to a statistics server if this package can be imported. Without it, openvino uses a
# stub of its own.
sys.modules["openvino_telemetry"] = cast(Any, None)

import openvino

Precision = Literal["bf16", "fp32", "int8"]
FloatMatrix = npt.NDArray[np.float32]

_HINT = {"bf16": "bf16", "fp32": "f32", "int8": "bf16"}  # what an int8 graph leaves in floating point
_core_lock = threading.Lock()
_core: openvino.Core | None = None


class Runner(Protocol):
    """Computes vectors. Called from one thread at a time."""

    def __call__(self, batch: Sequence[npt.NDArray[Any]]) -> FloatMatrix:
        """Return unit vectors (n, dim), float32, for n arrays of one shape."""


def _get_core() -> openvino.Core:
    global _core
    with _core_lock:
        if _core is None:
            _core = openvino.Core()
        return _core


def cpu_has_bf16() -> bool:
    """Whether this CPU computes in bfloat16 by itself; without that, bf16 is slower than fp32."""
    return "BF16" in _get_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoRunner:
    """Runs one graph on the CPU, all threads on one batch."""

    def __init__(self, graph: Path, precision: Precision, threads: int) -> None:
        """Compile `graph` (0.3 s for a ViT-B/32)."""
        core = _get_core()
        compiled = core.compile_model(
            core.read_model(graph),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINT[precision],
                "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": str(threads),
            },
        )
        self._request = compiled.create_infer_request()

    def __call__(self, batch: Sequence[npt.NDArray[Any]]) -> FloatMatrix:
        """Return unit vectors (n, dim) for n arrays of one shape."""
        self._request.infer([np.stack(batch)], share_inputs=True)
        return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)
