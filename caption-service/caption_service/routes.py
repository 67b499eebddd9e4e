"""The HTTP side: `/v1/captions`, `/v1/models`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pixelgate_common.bodies import ByteBudget
from pixelgate_common.contracts.caption import MAX_IMAGES, Captioned, CaptionedItem, CaptionOptions
from pixelgate_common.contracts.models import Fingerprint, Priority, ServedModels
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.errors import InvalidRequest
from pixelgate_common.multipart_body import read_files
from pydantic import Field

from caption_service.captioner import Captioner, Outcome

_FIELD = "images"
_MULTIPART = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [_FIELD],
                    "properties": {
                        _FIELD: {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                            "maxItems": MAX_IMAGES,
                        }
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "No captioning model is served"},
    409: {"model": Problem, "description": "Another model than the wanted one is served"},
    413: {"model": Problem, "description": "The body is too large"},
    503: {"model": Problem, "description": "Too much work or too little memory at the moment; see Retry-After"},
}


class CaptionQuery(CaptionOptions):
    """The query parameters of a request for captions."""

    fingerprint: Fingerprint | None = Field(None, description="Which model must answer; another one is 409.")
    priority: Priority = "interactive"


def caption_router(model_set: str, budget: ByteBudget, body_limit: int) -> APIRouter:
    """Return the routes; `budget` bounds all bodies in memory, `body_limit` one body of unknown length."""
    router = APIRouter(prefix="/v1", tags=["caption"])

    @router.post("/captions", responses=_PROBLEMS, openapi_extra=_MULTIPART)
    async def captions(request: Request, query: Annotated[CaptionQuery, Query()]) -> Captioned:
        """Say what is in pictures: multipart files named `images`, or one picture as the body (`image/*`)."""
        captioner = _captioner(request)
        captioner.about(query.fingerprint)  # refuse before the body is read
        declared = request.headers.get("content-length", "")
        with budget.hold(int(declared) if declared.isdecimal() else body_limit):
            pictures = _pictures(request.headers.get("content-type", ""), await request.body())
            about, outcomes = await captioner.caption(
                pictures, query, fingerprint=query.fingerprint, priority=query.priority
            )
        return Captioned(
            model=about.model, fingerprint=about.fingerprint, items=[_item(outcome) for outcome in outcomes]
        )

    @router.get("/models")
    async def models(request: Request) -> ServedModels:
        """Return what is served; the model in use comes first."""
        return ServedModels(set=model_set, models=_captioner(request).models())

    return router


def _captioner(request: Request) -> Captioner:
    captioner: Captioner = request.app.state.captioner
    return captioner


def _pictures(content_type: str, body: bytes) -> list[bytes]:
    if content_type.startswith("image/"):
        return [body]
    pictures = read_files(content_type, body, _FIELD, MAX_IMAGES)
    if not pictures:
        raise InvalidRequest(f"At least one file named {_FIELD} is needed.", field=_FIELD)
    return pictures


def _item(outcome: Outcome) -> CaptionedItem:
    if isinstance(outcome, Exception):
        return CaptionedItem(problem=outcome.to_problem())
    return CaptionedItem(caption=outcome)
