"""Prometheus metrics of the way from a request to its vectors: prepare, wait, infer, finish."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

PREPARE_SECONDS = Histogram(
    "pixelgate_embed_prepare_seconds", "Decoding and resizing one picture, or tokenizing", ["input"], buckets=_SECONDS
)
FINISH_SECONDS = Histogram(
    "pixelgate_embed_finish_seconds", "Writing the answer's body", ["input"], buckets=(0.0001, 0.0005, *_SECONDS)
)
_PLACES = Gauge("pixelgate_embed_queue_places", "Inputs admitted and not yet answered", ["slot", "input"])
_WAIT_SECONDS = Histogram(
    "pixelgate_embed_wait_seconds", "From prepared to the start of inference", ["slot", "input"], buckets=_SECONDS
)
_INFER_SECONDS = Histogram("pixelgate_embed_infer_seconds", "Inferring one batch", ["slot", "input"], buckets=_SECONDS)
_BATCHES = Counter("pixelgate_embed_batches_total", "Batches inferred", ["slot", "input"])
_INPUTS = Counter("pixelgate_embed_inputs_total", "Inputs inferred", ["slot", "input"])


class QueueMetrics:
    """Writes down what one batching queue does."""

    def __init__(self, slot: str, kind: str) -> None:
        """Count for inputs of `kind` (`image` or `text`) of `slot`."""
        self._places = _PLACES.labels(slot, kind)
        self._wait, self._infer = _WAIT_SECONDS.labels(slot, kind), _INFER_SECONDS.labels(slot, kind)
        self._batches, self._inputs = _BATCHES.labels(slot, kind), _INPUTS.labels(slot, kind)

    def occupied(self, places: int) -> None:
        """Note the places that are taken."""
        self._places.set(places)

    def inferred(self, waited_s: Sequence[float], took_s: float) -> None:
        """Note a batch that succeeded."""
        self._infer.observe(took_s)
        self._batches.inc()
        self._inputs.inc(len(waited_s))
        for waited in waited_s:
            self._wait.observe(waited)
