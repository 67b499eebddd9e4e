"""`/v1/events`: what changes, as it changes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pixelgate_common.contracts.problems import Problem

from gateway.answers import StageEvents
from gateway.parts import Parts

router = APIRouter(prefix="/v1", tags=["events"])
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`event: stage` with one entry of `GET /v1/stages` as data: all of them first, then each change",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    503: {"model": Problem, "description": "There are as many readers as there may be"},
}


@router.get("/events", response_class=Response, responses=_STREAM)
async def events(parts: Parts) -> Response:
    """Stream the stages' states as server-sent events.

    The present state of every stage comes first, so a reader that was cut off has missed nothing that still holds;
    `Last-Event-ID` is therefore not needed and is ignored.
    """
    settings = parts.settings
    return StageEvents(
        parts.feed, heartbeat_s=settings.events_heartbeat_s, write_timeout_s=settings.events_write_timeout_s
    )
