"""`/v1/search`: pictures are found by words, by other pictures, and by weighted mixtures of both."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.errors import InvalidRequest
from pydantic import BaseModel, ConfigDict, Field

from gateway import query
from gateway.answers import json_answer
from gateway.multipart import read_form
from gateway.parts import Parts
from gateway.query import Cursor, Found, Page, Term
from gateway.searcher import Upload

router = APIRouter(prefix="/v1/search", tags=["search"])


class ShortQuery(BaseModel):
    """A search by words, as query parameters."""

    model_config = ConfigDict(extra="forbid")

    q: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")]
    limit: int = Field(24, ge=1, le=200)
    cursor: Cursor | None = None
    filter: str | None = Field(None, max_length=50_000, description="A filter, as JSON.")


_PICTURE_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {"type": "string", "format": "binary"},
                    "crop": {"type": "string", "description": "x,y,width,height in the upright picture's pixels."},
                    "weight": {"type": "number", "default": 1},
                    "terms": {"type": "string", "description": "JSON list of further terms."},
                    "space": {"type": "string", "enum": ["clip", "resnet"], "default": "clip"},
                    "filter": {"type": "string", "description": "A filter, as JSON."},
                    "limit": {"type": "integer", "default": 24, "minimum": 1, "maximum": 200},
                    "cursor": {"type": "string"},
                    "include_self": {"type": "boolean", "default": False},
                },
            }
        }
    },
}


@router.get("", response_model=Found)
async def search_by_words(asked: Annotated[ShortQuery, Query()], parts: Parts) -> Response:
    """Find pictures by words: the short form of `POST /v1/search` with one text."""
    tree = None if asked.filter is None else query.parse_filter(asked.filter)
    page = Page(limit=asked.limit, cursor=asked.cursor, filter=tree)
    return json_answer(await parts.searcher.search([Term(text=asked.q)], page))


@router.post("", response_model=Found, responses={404: {"model": Problem}, 409: {"model": Problem}})
async def search(asked: query.Query, parts: Parts) -> Response:
    """Find pictures by weighted terms: texts, stored pictures, pictures behind URLs or in base64."""
    return json_answer(await parts.searcher.search(asked.terms, asked))


@router.post(
    "/by-image",
    response_model=Found,
    responses={409: {"model": Problem}, 413: {"model": Problem}},
    openapi_extra={"requestBody": _PICTURE_BODY},
)
async def search_by_image(request: Request, parts: Parts) -> Response:
    """Find pictures like an uploaded one, or like a part of it."""
    async with read_form(request, file_field="image", max_files=1, spool_bytes=parts.settings.spool_kb * 1024) as form:
        form.check_names(files=["image"], fields=list(query.PictureQuery.model_fields))
        if not form.files:
            raise InvalidRequest("A picture file is needed.", field="image")
        asked = query.parse_picture_query(form.fields)
        ((_, file),) = form.files
        data = await file.read()
    if asked.crop is not None:
        data = await parts.cropper.crop(data, asked.crop)
    return json_answer(await parts.searcher.search(asked.terms, asked, Upload(data, asked.weight)))
