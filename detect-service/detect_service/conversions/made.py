"""What a conversion hands back, and how graphs are written."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelgate_common.inference.openvino_runtime import openvino


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A model's facts, what computes it, and its golden answer. All are plain values."""

    facts: dict[str, Any]
    architecture: dict[str, Any]
    golden: dict[str, Any]


def save_traced(network: Any, example: Any, shape: Sequence[int], path: Path, *, half: bool) -> None:
    """Trace a torch module with a tensor like its input, and write the graph with the input `shape` (-1: any)."""
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        # torch would rather export; OpenVINO's converter traces in any case, and four times slower on its own.
        warnings.simplefilter("ignore")
        network(example)
        traced = torch.jit.trace(network, example, strict=False, check_trace=False)  # type: ignore[no-untyped-call]
        graph = openvino.convert_model(traced, example_input=example)
    graph.reshape({0: openvino.PartialShape(list(shape))})
    openvino.save_model(graph, path, compress_to_fp16=half)
