"""How long to wait before starting again what has ended."""

from __future__ import annotations


class Backoff:
    """Doubles from `first_s` to `limit_s`, and forgets after a run of at least `quiet_s`."""

    def __init__(self, first_s: float = 0.2, limit_s: float = 30.0, quiet_s: float = 60.0) -> None:
        self._first_s, self._limit_s, self._quiet_s = first_s, limit_s, quiet_s
        self._next_s = first_s

    def after(self, ran_s: float) -> float:
        """Return the seconds to wait after a run that lasted `ran_s`."""
        if ran_s >= self._quiet_s:
            self._next_s = self._first_s
        wait_s = self._next_s
        self._next_s = min(self._limit_s, self._next_s * 2)
        return wait_s
