"""Prometheus metrics of the way from a request to its answer: prepare, wait, infer, finish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

PREPARE_SECONDS = Histogram(
    "pixelgate_detect_prepare_seconds", "Decoding and resizing one picture", ["slot"], buckets=_SECONDS
)
FINISH_SECONDS = Histogram(
    "pixelgate_detect_finish_seconds", "Writing one cutout or annotated picture", ["slot"], buckets=_SECONDS
)
_PLACES = Gauge("pixelgate_detect_queue_places", "Pictures admitted and not yet answered", ["slot"])
_WAIT_SECONDS = Histogram(
    "pixelgate_detect_wait_seconds", "From prepared to the start of inference", ["slot"], buckets=_SECONDS
)
_INFER_SECONDS = Histogram("pixelgate_detect_infer_seconds", "Inferring one picture", ["slot"], buckets=_SECONDS)
_PICTURES = Counter("pixelgate_detect_pictures_total", "Pictures inferred", ["slot"])


class QueueMetrics:
    """Writes down what one queue does."""

    def __init__(self, slot: str) -> None:
        """Count for `slot`."""
        self._places, self._pictures = _PLACES.labels(slot), _PICTURES.labels(slot)
        self._wait, self._infer = _WAIT_SECONDS.labels(slot), _INFER_SECONDS.labels(slot)

    def occupied(self, places: int) -> None:
        """Note the places that are taken."""
        self._places.set(places)

    def inferred(self, waited_s: Sequence[float], took_s: float) -> None:
        """Note a batch that succeeded."""
        self._infer.observe(took_s)
        self._pictures.inc(len(waited_s))
        for waited in waited_s:
            self._wait.observe(waited)


@contextmanager
def timed(histogram: Histogram, slot: str) -> Iterator[None]:
    """Observe how long the block takes, however it ends."""
    started = perf_counter()
    try:
        yield
    finally:
        histogram.labels(slot).observe(perf_counter() - started)
