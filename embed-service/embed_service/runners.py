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

import openvino  # noqa: E402

openvino_without_telemetry = openvino

Precision = Literal["bf16", "fp32", "int8"]
FloatMatrix = npt.NDArray[np.float32]

_HINT = {"bf16": "bf16", "fp32": "f32", "int8": "bf16"}  # what an int8 graph leaves in floating point
_core_lock = threading.Lock()
_core: openvino.Core | None = None


class Runner(Protocol):
    """Computes vectors. `workers` batches at a time may be given to it, each from its own thread.

    Above `good_batch` inputs a batch becomes slower and hardly more efficient.
    """

    workers: int
    good_batch: int

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
    """Runs one graph on the CPU: a lone batch on all threads, several side by side on one thread each.

    Threads that share a batch wait for each other at every layer, which costs a quarter of the processor time as soon
    as anything else wants it, decoding above all. Threads that have a batch each never wait.
    """

    def __init__(
        self, graph: Path, precision: Precision, threads: int, *, side_by_side: bool, good_batch: int = 8
    ) -> None:
        """Compile `graph` (0.3 s for a ViT-B/32), twice where batches may come `side_by_side`."""
        core = _get_core()
        model = core.read_model(graph)

        def requests(streams: int) -> list[openvino.InferRequest]:
            options = {
                "INFERENCE_PRECISION_HINT": _HINT[precision],
                "NUM_STREAMS": str(streams),
                "INFERENCE_NUM_THREADS": str(threads),
                "ENABLE_CPU_PINNING": "NO",  # other threads and services run here too
            }
            compiled = core.compile_model(model, "CPU", options)
            return [compiled.create_infer_request() for _ in range(streams)]

        self.workers = threads if side_by_side else 1
        self.good_batch = good_batch
        (self._on_all_threads,) = requests(1)
        self._on_one_thread = requests(threads) if self.workers > 1 else []
        self._lone_is_free = True
        self._lock = threading.Lock()

    def __call__(self, batch: Sequence[npt.NDArray[Any]]) -> FloatMatrix:
        """Return unit vectors (n, dim) for n arrays of one shape."""
        request = self._begin()
        try:
            request.infer([np.stack(batch)], share_inputs=True)
            return np.array(request.get_output_tensor(0).data, dtype=np.float32)
        finally:
            self._end(request)

    def _begin(self) -> openvino.InferRequest:
        with self._lock:
            if self._lone_is_free and len(self._on_one_thread) in (0, self.workers):
                self._lone_is_free = False
                return self._on_all_threads
            return self._on_one_thread.pop()

    def _end(self, request: openvino.InferRequest) -> None:
        with self._lock:
            if request is self._on_all_threads:
                self._lone_is_free = True
            else:
                self._on_one_thread.append(request)
