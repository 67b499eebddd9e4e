"""`/v1/search`: pictures are found by words, by other pictures, by colours, and by weighted mixtures of all."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pixelgate_common.contracts.color import CollageOptions, ColorMode
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.errors import InvalidRequest
from pydantic import BaseModel, ConfigDict, Field

from gateway import query
from gateway.answers import json_answer, picture_answer
from gateway.composer import check_room
from gateway.multipart import read_form
from gateway.parts import GatewayParts, Parts
from gateway.query import ColorText, Cursor, Found, Page, Term
from gateway.searcher import Upload

router = APIRouter(prefix="/v1/search", tags=["search"])


class ShortQuery(BaseModel):
    """A search by words, as query parameters."""

    model_config = ConfigDict(extra="forbid")

    q: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")] | None = None
    color: list[ColorText] = Field([], max_length=16, description="A colour; repeated: several.")
    mode: ColorMode = "similar"
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
                    "match": {"type": "string", "enum": ["content", "palette"], "default": "content"},
                    "mode": {"type": "string", "enum": ["similar", "complementary"], "default": "similar"},
                    "color_of": {"type": "string", "enum": ["whole", "foreground"], "default": "whole"},
                    "collapse": {"type": "string", "enum": ["same", "similar"]},
                    "answer": {"type": "string", "enum": ["json", "collage"], "default": "json"},
                    "limit": {"type": "integer", "default": 24, "minimum": 1, "maximum": 200},
                    "cursor": {"type": "string"},
                    "include_self": {"type": "boolean", "default": False},
                },
            }
        }
    },
}


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}}, "description": "The hits; with `answer: collage`, one picture of them"},
    404: {"model": Problem},
    409: {"model": Problem},
}


@router.get("", response_model=Found)
async def search_by_words(asked: Annotated[ShortQuery, Query()], parts: Parts) -> Response:
    """Find pictures by words, by colours, or by both: the short form of `POST /v1/search`."""
    terms = [Term(color=text) for text in asked.color]
    if asked.q is not None:
        terms.insert(0, Term(text=asked.q))
    if not terms:
        raise InvalidRequest("Words (`q`) or a colour (`color`) are needed.", field="q")
    tree = None if asked.filter is None else query.parse_filter(asked.filter)
    page = Page(limit=asked.limit, cursor=asked.cursor, filter=tree, mode=asked.mode)
    return json_answer(await parts.searcher.search(terms, page))


@router.post("", response_model=Found, responses=_ANSWERS)
async def search(asked: query.Query, parts: Parts) -> Response:
    """Find pictures by weighted terms: texts, pictures (stored, behind URLs, in base64), colours and palettes."""
    return await _answer(parts, asked.terms, asked)


@router.post(
    "/by-image",
    response_model=Found,
    responses=_ANSWERS | {413: {"model": Problem}},
    openapi_extra={"requestBody": _PICTURE_BODY},
)
async def search_by_image(request: Request, parts: Parts) -> Response:
    """Find pictures like an uploaded one, or like a part of it; by what it shows, or by its colours."""
    async with read_form(request, file_field="image", max_files=1, spool_bytes=parts.settings.spool_kb * 1024) as form:
        form.check_names(files=["image"], fields=list(query.PictureQuery.model_fields))
        if not form.files:
            raise InvalidRequest("A picture file is needed.", field="image")
        asked = query.parse_picture_query(form.fields)
        ((_, file),) = form.files
        data = await file.read()
    by_palette = asked.match == "palette"
    if by_palette and asked.weight < 0:
        raise InvalidRequest("A colour's weight must be above 0.", field="weight")
    if asked.crop is not None:
        data = await parts.cropper.crop(data, asked.crop)
    return await _answer(parts, asked.terms, asked, Upload(data, asked.weight, by_palette))


async def _answer(parts: GatewayParts, terms: list[Term], page: Page, upload: Upload | None = None) -> Response:
    if page.answer == "json":
        return json_answer(await parts.searcher.search(terms, page, upload))
    check_room(page.limit, field="limit")
    result = await parts.searcher.find(terms, page, upload)
    made, ids = await parts.composer.collage_of(result, CollageOptions())
    return picture_answer(made, "image/jpeg", ids, result.found.next_cursor)
