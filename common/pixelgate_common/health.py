"""`/healthz` says that the process answers; `/readyz` says, part by part, whether it can do its work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

Check = Callable[[], Awaitable[Any]]
"""A check returns something to show (or None) when the part is ready, and raises when it is not."""


class PartState(BaseModel):
    """Whether one part is ready, and what it says of itself."""

    ready: bool
    detail: Any = None


class Readiness(BaseModel):
    """Whether the service is ready, and each part of it."""

    ready: bool
    parts: dict[str, PartState]


async def run_checks(
    checks: Mapping[str, Check], timeout_s: float = 2.0, *, optional: Collection[str] = ()
) -> Readiness:
    """Run all checks side by side, each within `timeout_s`; a check that fails or hangs makes only its part unready.

    The whole is ready when every part is, except for the parts named in `optional`.
    """

    async def run(check: Check) -> PartState:
        try:
            async with asyncio.timeout(timeout_s):
                return PartState(ready=True, detail=await check())
        except TimeoutError:
            return PartState(ready=False, detail=f"no answer within {timeout_s:g} s")
        except Exception as error:  # whatever a part throws is the answer to the question asked
            return PartState(ready=False, detail=str(error) or type(error).__name__)

    states = await asyncio.gather(*(run(check) for check in checks.values()))
    parts = dict(zip(checks, states, strict=True))
    return Readiness(ready=all(state.ready for name, state in parts.items() if name not in optional), parts=parts)


def health_router(checks: Mapping[str, Check], timeout_s: float = 2.0, *, optional: Collection[str] = ()) -> APIRouter:
    """Return the routes `GET /healthz` (always 200) and `GET /readyz` (200 or 503, with every part's state)."""
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz() -> JSONResponse:
        readiness = await run_checks(checks, timeout_s, optional=optional)
        return JSONResponse(readiness.model_dump(mode="json"), status_code=200 if readiness.ready else 503)

    return router
