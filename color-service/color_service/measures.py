"""Prometheus metrics of the jobs: how many, how long they wait, how long each kind takes."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

JOB_SECONDS = Histogram("pixelgate_color_job_seconds", "Doing one job, by its kind", ["kind"], buckets=_SECONDS)
_PLACES = Gauge("pixelgate_color_queue_places", "Jobs admitted and not yet answered")
_WAIT_SECONDS = Histogram("pixelgate_color_wait_seconds", "From admitted to started", buckets=_SECONDS)


class QueueMetrics:
    """Writes down what the queue does."""

    def occupied(self, places: int) -> None:
        """Note the places that are taken."""
        _PLACES.set(places)

    def inferred(self, waited_s: Sequence[float], took_s: float) -> None:
        """Note a job that was done; how long it took is counted by its kind."""
        for waited in waited_s:
            _WAIT_SECONDS.observe(waited)
