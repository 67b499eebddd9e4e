"""The HTTP side: `/v1/objects`, `/v1/annotate`, `/v1/cutouts`, `/v1/models`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pixelgate_common.bodies import ByteBudget
from pixelgate_common.contracts.detect import (
    FINGERPRINT_HEADER,
    MAX_CUTOUT_IMAGES,
    MAX_IMAGES,
    MODEL_HEADER,
    Annotations,
    CutoutOptions,
    Detected,
)
from pixelgate_common.contracts.models import Fingerprint as FingerprintName
from pixelgate_common.contracts.models import Priority, ServedModel, ServedModels
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.errors import InvalidRequest, field_problems
from pixelgate_common.frames import MEDIA_TYPE, encode_frames
from pixelgate_common.images import ImageRefused
from pixelgate_common.multipart_body import read_files, read_parts
from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from detect_service import measures
from detect_service.annotation import annotate
from detect_service.cutouts import CutoutMaker
from detect_service.detectors.protocol import DEFAULT_MIN_SCORE
from detect_service.objects import ObjectFinder, Outcome
from detect_service.workbench import Workbench

_FIELD = "images"
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no such model here"},
    409: {"model": Problem, "description": "Another model than the wanted one is served"},
    413: {"model": Problem, "description": "The body is too large"},
    503: {"model": Problem, "description": "Too much work or too little memory at the moment; see Retry-After"},
}


def _pictures_schema(most: int) -> dict[str, Any]:
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": most}
    form = {"type": "object", "required": [_FIELD], "properties": {_FIELD: files}}
    content = {
        "multipart/form-data": {"schema": form},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    }
    return {"requestBody": {"required": True, "content": content}}


_ANNOTATE_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "annotations"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "annotations": {"type": "string", "description": "JSON of Annotations."},
                    },
                }
            }
        },
    }
}


class Parts(BaseModel):
    """What the routes work with, put on the application's state when it starts."""

    model_config = {"arbitrary_types_allowed": True, "frozen": True}

    objects: ObjectFinder
    cutouts: CutoutMaker
    workbench: Workbench
    set: str


def detect_router(budget: ByteBudget, body_limit: int) -> APIRouter:
    """Return the routes; `budget` bounds all bodies in memory, `body_limit` one body of unknown length."""
    router = APIRouter(prefix="/v1", tags=["detect"])

    def declared_bytes(request: Request) -> int:
        declared = request.headers.get("content-length", "")
        return int(declared) if declared.isdecimal() else body_limit

    @router.post("/objects", response_model=Detected, responses=_PROBLEMS, openapi_extra=_pictures_schema(MAX_IMAGES))
    async def find_objects(
        request: Request,
        min_score: Annotated[float, Query(ge=0, le=1)] = DEFAULT_MIN_SCORE,
        fingerprint: Annotated[FingerprintName | None, Query()] = None,
        priority: Annotated[Priority, Query()] = "interactive",
    ) -> Response:
        """Find objects in pictures: multipart files named `images`, or one picture as the body (`image/*`)."""
        finder = _parts(request).objects
        finder.find_model(fingerprint)  # refuse before the body is read
        with budget.hold(declared_bytes(request)):
            pictures = _pictures(request.headers.get("content-type", ""), await request.body(), MAX_IMAGES)
            about, outcomes = await finder.find(
                pictures, min_score=min_score, fingerprint=fingerprint, priority=priority
            )
        return _objects_answer(about, outcomes)

    @router.post(
        "/cutouts",
        responses={200: {"content": {MEDIA_TYPE: {}}, "description": "Frames, one a picture"}, **_PROBLEMS},
        response_class=Response,
        openapi_extra=_pictures_schema(MAX_CUTOUT_IMAGES),
    )
    async def make_cutouts(
        request: Request,
        options: Annotated[_CutoutQuery, Query()],
    ) -> Response:
        """Cut what a picture is of out of it: multipart files named `images`, or one picture as the body."""
        maker = _parts(request).cutouts
        await maker.find_model(options.model, options.fingerprint)  # refuse before the body is read
        with budget.hold(declared_bytes(request)):
            pictures = _pictures(request.headers.get("content-type", ""), await request.body(), MAX_CUTOUT_IMAGES)
            about, outcomes = await maker.cut(
                pictures, options, fingerprint=options.fingerprint, priority=options.priority
            )
        frames = [_frame(outcome) for outcome in outcomes]
        return _HeldResponse(budget, encode_frames(frames), about)

    @router.post(
        "/annotate",
        responses={200: {"content": {"image/jpeg": {}}, "description": "The picture with boxes"}, **_PROBLEMS},
        response_class=Response,
        openapi_extra=_ANNOTATE_SCHEMA,
    )
    async def draw_annotations(request: Request) -> Response:
        """Draw boxes and labels on a picture: multipart with the file `image` and the field `annotations`."""
        workbench = _parts(request).workbench
        with budget.hold(declared_bytes(request)):
            picture, annotations = _annotated(request.headers.get("content-type", ""), await request.body())
            async with workbench.decoded(picture) as decoded:
                draw = partial(annotate, decoded, annotations.objects, (annotations.width, annotations.height))
                with measures.timed(measures.FINISH_SECONDS, "objects"):
                    jpeg = await workbench.run(draw)
        return Response(jpeg, media_type="image/jpeg")

    @router.get("/models")
    async def models(request: Request) -> ServedModels:
        """Return what is served; for each slot the model in use comes first."""
        parts = _parts(request)
        return ServedModels(set=parts.set, models=parts.objects.models() + parts.cutouts.models())

    return router


class _CutoutQuery(CutoutOptions):
    fingerprint: FingerprintName | None = None
    priority: Priority = "interactive"


class _HeldResponse(Response):
    """An answer whose bytes count as held until it has been sent."""

    media_type = MEDIA_TYPE

    def __init__(self, budget: ByteBudget, body: bytes, about: ServedModel) -> None:
        self._stack = ExitStack()
        self._stack.enter_context(budget.hold(len(body)))
        super().__init__(body, headers={MODEL_HEADER: about.model, FINGERPRINT_HEADER: about.fingerprint})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._stack:
            await super().__call__(scope, receive, send)


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


def _pictures(content_type: str, body: bytes, most: int) -> list[bytes]:
    if content_type.startswith("image/"):
        return [body]
    pictures = read_files(content_type, body, _FIELD, most)
    if not pictures:
        raise InvalidRequest(f"At least one file named {_FIELD} is needed.", field=_FIELD)
    return pictures


def _annotated(content_type: str, body: bytes) -> tuple[bytes, Annotations]:
    parts = {part.name: part for part in read_parts(content_type, body, field="image")}
    for field in ("image", "annotations"):
        if field not in parts:
            raise InvalidRequest(f"The form has no {field}.", field=field)
    try:
        annotations = Annotations.model_validate_json(parts["annotations"].text())
    except ValidationError as error:
        problems = [
            problem.model_copy(update={"field": f"annotations.{problem.field}"})
            for problem in field_problems(error.errors())
        ]
        raise InvalidRequest("annotations is not JSON of Annotations.", errors=problems) from error
    return parts["image"].data, annotations


def _objects_answer(about: ServedModel, outcomes: Sequence[Outcome]) -> Response:
    """Return a `Detected` as JSON, written directly: validating our own boxes again would cost more than them."""
    items: list[dict[str, Any]] = [
        {"problem": _problem(outcome)}
        if isinstance(outcome, ImageRefused)
        else {
            "width": outcome.width,
            "height": outcome.height,
            "objects": [
                {"label": one.label, "score": round(one.score, 4), "box": [round(edge, 2) for edge in one.box]}
                for one in outcome.objects
            ],
        }
        for outcome in outcomes
    ]
    body = json.dumps({"model": about.model, "fingerprint": about.fingerprint, "items": items}, separators=(",", ":"))
    return Response(body, media_type="application/json")


def _frame(outcome: bytes | ImageRefused) -> tuple[str, bytes]:
    if isinstance(outcome, ImageRefused):
        return "problem", json.dumps(_problem(outcome)).encode()
    return "png", outcome


def _problem(error: ImageRefused) -> dict[str, Any]:
    return error.to_problem().model_dump(mode="json", exclude_none=True)
