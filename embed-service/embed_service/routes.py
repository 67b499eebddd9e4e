"""The HTTP side: `/v1/embed/images`, `/v1/embed/texts`, `/v1/models`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from time import perf_counter
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pixelgate_common.bodies import ByteBudget
from pixelgate_common.contracts.embed import MAX_IMAGES, Embedded, EmbedModel, EmbedModels, EmbedTexts
from pixelgate_common.contracts.models import Fingerprint as FingerprintName
from pixelgate_common.contracts.models import Priority, Slot
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.errors import InvalidRequest
from pixelgate_common.multipart_body import read_files
from pixelgate_common.vectors import encode_vector
from starlette.responses import Response

from embed_service import measures
from embed_service.embedder import Embedder, Outcome

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
    404: {"model": Problem, "description": "No model is loaded for this slot"},
    409: {"model": Problem, "description": "Another model than the wanted one is loaded"},
    413: {"model": Problem, "description": "The body is too large"},
    503: {"model": Problem, "description": "Too much work at the moment; see Retry-After"},
}


def embed_router(model_set: str, budget: ByteBudget, body_limit: int) -> APIRouter:
    """Return the routes; `budget` bounds all bodies in memory, `body_limit` one body of unknown length."""
    router = APIRouter(prefix="/v1", tags=["embed"])

    @router.post("/embed/images", response_model=Embedded, responses=_PROBLEMS, openapi_extra=_MULTIPART)
    async def embed_images(
        request: Request,
        slot: Annotated[Slot, Query()] = "clip",
        fingerprint: Annotated[FingerprintName | None, Query()] = None,
        priority: Annotated[Priority, Query()] = "interactive",
    ) -> Response:
        """Turn pictures into vectors: multipart files named `images`, or one picture as the body (`image/*`)."""
        embedder = _embedder(request)
        embedder.about(slot, fingerprint)  # refuse before the body is read
        declared = request.headers.get("content-length", "")
        with budget.hold(int(declared) if declared.isdecimal() else body_limit):
            pictures = _pictures(request.headers.get("content-type", ""), await request.body())
            about, outcomes = await embedder.embed_images(
                pictures, slot=slot, fingerprint=fingerprint, priority=priority
            )
        return _answer("image", about, outcomes)

    @router.post("/embed/texts", response_model=Embedded, responses=_PROBLEMS)
    async def embed_texts(request: Request, body: EmbedTexts) -> Response:
        """Turn texts into vectors of the same space as the slot's pictures."""
        about, vectors = await _embedder(request).embed_texts(
            body.texts, slot=body.slot, fingerprint=body.fingerprint, priority=body.priority
        )
        return _answer("text", about, vectors)

    @router.get("/models")
    async def models(request: Request) -> EmbedModels:
        """Return what is loaded; for each slot the model in use comes first."""
        return EmbedModels(set=model_set, models=_embedder(request).models())

    return router


def _embedder(request: Request) -> Embedder:
    embedder: Embedder = request.app.state.embedder
    return embedder


def _pictures(content_type: str, body: bytes) -> list[bytes]:
    if content_type.startswith("image/"):
        return [body]
    pictures = read_files(content_type, body, _FIELD, MAX_IMAGES)
    if not pictures:
        raise InvalidRequest(f"At least one file named {_FIELD} is needed.", field=_FIELD)
    return pictures


def _answer(kind: str, about: EmbedModel, outcomes: Sequence[Outcome]) -> Response:
    """Return an `Embedded` as JSON, written directly: validating our own vectors again would cost more than them."""
    started = perf_counter()
    items = [
        {"problem": outcome.to_problem().model_dump(mode="json", exclude_none=True)}
        if isinstance(outcome, Exception)
        else {"vector": encode_vector(outcome)}
        for outcome in outcomes
    ]
    body = json.dumps(
        {
            "slot": about.slot,
            "model": about.model,
            "fingerprint": about.fingerprint,
            "dim": about.dim,
            "items": items,
        },
        separators=(",", ":"),
    )
    measures.FINISH_SECONDS.labels(kind).observe(perf_counter() - started)
    return Response(body, media_type="application/json")
