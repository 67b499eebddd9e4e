"""Asking a service whether it lives and whether it is ready, by the standard library alone."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a service said: its status (None: no answer), and, when it is not ready, what it waits for."""

    status: int | None
    waits_for: str = ""

    @property
    def ok(self) -> bool:
        """Whether it answered 200."""
        return self.status == 200


def ask(host: str, port: int, path: str, timeout_s: float) -> Answer:
    """Send `GET path`; any failure to answer in time is an answer of status None."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read(64 * 1024)
    except (OSError, http.client.HTTPException):
        return Answer(None)
    finally:
        connection.close()
    return Answer(response.status, "" if response.status == 200 else _unready_part(body))


def _unready_part(body: bytes) -> str:
    """Return the first part that is not ready, with what it says of itself."""
    try:
        parts = json.loads(body)["parts"]
        name, state = next((name, state) for name, state in parts.items() if not state["ready"])
        detail = state.get("detail")
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return ""
    return f"{name}: {detail}" if isinstance(detail, str) and detail else str(name)
