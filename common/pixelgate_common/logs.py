"""Structured logs on standard error, each line with the id of the request that caused it.

The id comes in as `X-Request-ID`, is made when missing, travels to every inner call, and goes back to the client.
"""

from __future__ import annotations

import logging
import re
import sys
import uuid
from contextvars import ContextVar
from typing import Literal

import structlog
from structlog.typing import EventDict, WrappedLogger

REQUEST_ID_HEADER = "X-Request-ID"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_request_id() -> str | None:
    """Return the id of the request being served, or None outside of one."""
    return _request_id.get()


def begin_request(given: str | None) -> str:
    """Bind the request's id to this context: the `given` one when it is well-formed, else a new one."""
    request_id = given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    _request_id.set(request_id)
    return request_id


def configure_logs(service: str, level: str = "INFO", style: Literal["json", "text"] = "json") -> None:
    """Send this process's logs, the libraries' ones included, to standard error as one JSON object (or text) a line."""

    def add_request_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        if (request_id := current_request_id()) is not None:
            event["request_id"] = request_id
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_request_id,
        structlog.processors.StackInfoRenderer(),
    ]
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if style == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                last,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "httpcore", "PIL", "multipart"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = name != "uvicorn.access"  # each service writes its own access line, with the request id
