"""Prometheus metrics of the way from a request to its captions: prepare, wait, infer."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)

PREPARE_SECONDS = Histogram("pixelgate_caption_prepare_seconds", "Decoding and resizing one picture", buckets=_SECONDS)
WORDS = Histogram("pixelgate_caption_words", "Words of a caption", buckets=(0, 2, 4, 6, 8, 10, 12, 15, 20, 30, 60))
_PLACES = Gauge("pixelgate_caption_queue_places", "Pictures admitted and not yet answered", ["model"])
_WAIT_SECONDS = Histogram(
    "pixelgate_caption_wait_seconds", "From prepared to the start of inference", ["model"], buckets=_SECONDS
)
_INFER_SECONDS = Histogram("pixelgate_caption_infer_seconds", "Captioning one batch", ["model"], buckets=_SECONDS)
_BATCHES = Counter("pixelgate_caption_batches_total", "Batches captioned", ["model"])
_INPUTS = Counter("pixelgate_caption_inputs_total", "Pictures captioned", ["model"])


class QueueMetrics:
    """Writes down what one batching queue does."""

    def __init__(self, model: str) -> None:
        """Count for pictures of `model`."""
        self._places, self._wait = _PLACES.labels(model), _WAIT_SECONDS.labels(model)
        self._infer, self._batches, self._inputs = (
            _INFER_SECONDS.labels(model),
            _BATCHES.labels(model),
            _INPUTS.labels(model),
        )

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
