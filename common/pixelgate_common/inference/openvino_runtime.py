"""Graphs on a CPU by OpenVINO: the one module that imports it (measurements: docs/adr/0002).

OpenVINO is an extra (`pixelgate-common[openvino]`) of the services that import this module.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

# `import openvino` reports itself to a statistics server if this package can be imported. Without it, openvino uses a
# stub of its own.
sys.modules["openvino_telemetry"] = cast(Any, None)

import openvino  # noqa: E402

__all__ = ["Graph", "Precision", "best_precision", "cpu_has_bf16", "get_core", "openvino"]

Precision = Literal["bf16", "fp32", "int8"]
Array = npt.NDArray[Any]

_HINT = {"bf16": "bf16", "fp32": "f32", "int8": "bf16"}  # what an int8 graph leaves in floating point
_core_lock = threading.Lock()
_core: openvino.Core | None = None


def get_core() -> openvino.Core:
    """Return the one Core of this process; each further one would start thread pools of its own."""
    global _core
    with _core_lock:
        if _core is None:
            _core = openvino.Core()
        return _core


def cpu_has_bf16() -> bool:
    """Whether this CPU computes in bfloat16 by itself; without that, bf16 is slower than fp32."""
    return "BF16" in get_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def best_precision() -> Precision:
    """Return what is fastest here without being wrong: bf16 where the CPU has it, else fp32."""
    return "bf16" if cpu_has_bf16() else "fp32"


def compile_options(precision: Precision, threads: int, streams: int) -> dict[str, str]:
    """Return the options for a graph that runs `streams` times side by side on `threads` threads in all."""
    return {
        "INFERENCE_PRECISION_HINT": _HINT[precision],
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": "NO",  # other threads and services run here too
    }


class Graph:
    """One graph on the CPU: a lone batch on all threads, several side by side on one thread each.

    Threads that share a batch wait for each other at every layer, which costs a quarter of the processor time as soon
    as anything else wants it, decoding above all. Threads that have a batch each never wait.

    `workers` batches may be computed at a time, each called from its own thread; a call beyond them waits its turn.
    """

    def __init__(
        self,
        graph: Path,
        precision: Precision,
        threads: int,
        *,
        side_by_side: bool,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Compile `graph` (0.3 s for a ViT-B/32), twice where batches may come `side_by_side`.

        `options` are further properties of the CPU plugin, e.g. `KV_CACHE_PRECISION`.
        """
        core = get_core()
        model = core.read_model(graph)

        def requests(streams: int) -> list[openvino.InferRequest]:
            compiled = core.compile_model(
                model, "CPU", {**compile_options(precision, threads, streams), **(options or {})}
            )
            return [compiled.create_infer_request() for _ in range(streams)]

        self.workers = threads if side_by_side else 1
        (self._on_all_threads,) = requests(1)
        self._on_one_thread = requests(threads) if self.workers > 1 else []
        self._lone_is_free = True
        self._free = threading.Semaphore(self.workers)
        self._lock = threading.Lock()

    def __call__(self, *inputs: Array) -> list[Array]:
        """Return copies of the graph's outputs, in its order, for `inputs` in its order. Blocks."""
        with self.request() as request:
            return infer(request, inputs)

    @contextmanager
    def request(self) -> Iterator[openvino.InferRequest]:
        """Hold one request for several steps, e.g. those of a decoder whose state lies in it."""
        with self._free:
            request = self._begin()
            try:
                yield request
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


def infer(request: openvino.InferRequest, inputs: Sequence[Array] | Mapping[str, Array]) -> list[Array]:
    """Run `request` once, without copying `inputs`, and return copies of all outputs, in the graph's order."""
    given: Any = dict(inputs) if isinstance(inputs, Mapping) else list(inputs)
    request.infer(given, share_inputs=True)
    return [np.array(tensor.data) for tensor in request.output_tensors]
