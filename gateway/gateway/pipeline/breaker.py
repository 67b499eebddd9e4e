"""Patience with a service that is away: pauses that grow, one line when it goes and one when it is back."""

from __future__ import annotations

import random

import structlog

log = structlog.get_logger(__name__)


class Breaker:
    """Counts failures in a row of one stage, and says how long to wait before the next try."""

    def __init__(self, stage: str, *, min_s: float, max_s: float) -> None:
        """Pauses grow from `min_s` to `max_s`, with jitter, so that two pipelines do not knock in step."""
        self._stage, self._min_s, self._max_s = stage, min_s, max_s
        self._failures = 0
        self._ever = 0
        self.reason: str | None = None
        self.proven = False

    def begin(self) -> int:
        """Return a ticket for something that begins now."""
        return self._ever

    def failed(self, reason: str) -> float:
        """Note a failure, and return the seconds to wait."""
        if self.reason is None:
            log.warning("stage_waits", stage=self._stage, reason=reason)
        self.reason = reason
        pause_s = min(self._max_s, self._min_s * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self._ever += 1
        return pause_s * random.uniform(0.5, 1.0)

    def worked(self, ticket: int) -> None:
        """Note that what began with `ticket` went well; it says nothing when something failed meanwhile."""
        if ticket != self._ever:
            return
        self.proven = True
        if self.reason is not None:
            log.info("stage_goes_on", stage=self._stage, after_failures=self._failures)
        self._failures, self.reason = 0, None
