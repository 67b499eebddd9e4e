"""`/v1/images`: pictures come in, are listed, read, changed, sent out and deleted."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pixelgate_common.contracts.filters import All, Leaf
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.contracts.storage import Facet, ImagePage, ImagePatch, ImageRecord, ListImages, Sort, Variant
from pixelgate_common.errors import InvalidRequest, field_problems
from pydantic import ValidationError

from gateway.answers import Relay, json_answer
from gateway.multipart import read_form
from gateway.parts import Parts
from gateway.query import FilterTree, parse_filter
from gateway.uploads import Outcomes, UrlsToStore, answer_status, check_described, read_described

router = APIRouter(prefix="/v1/images", tags=["images"])
ImageId = Annotated[int, Path(ge=1, lt=2**63)]
_ASKED_OF_FILES = ("range", "if-range", "if-none-match", "if-modified-since")
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such picture"}}

_UPLOAD_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "properties": {
                    "files": {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": 100},
                    "tags": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "For all files: repeated, separated by commas, or one JSON list.",
                    },
                    "attributes": {"type": "string", "description": "For all files: one JSON object."},
                },
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["urls"],
                "additionalProperties": False,
                "properties": {
                    "urls": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 100},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "attributes": {
                        "type": "object",
                        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
                    },
                },
            }
        },
    },
}


@router.post(
    "",
    response_model=Outcomes,
    responses={
        201: {"model": Outcomes, "description": "At least one picture was created"},
        200: {"description": "All pictures were known already"},
        422: {"model": Outcomes, "description": "Nothing was created; or the request is not valid (problem details)"},
        413: {"model": Problem, "description": "The whole body is too large"},
    },
    openapi_extra={"requestBody": _UPLOAD_BODY},
)
async def add_images(request: Request, parts: Parts) -> Response:
    """Store pictures, uploaded or fetched from URLs: one outcome for each, in the order sent."""
    settings = parts.settings
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        wanted = await _urls(request)
        if len(wanted.urls) > settings.max_files:
            raise InvalidRequest(f"At most {settings.max_files} URLs can be sent in one request.", field="urls")
        outcomes = await parts.uploads.urls(wanted.urls, check_described(wanted.tags, wanted.attributes))
    elif kind == "multipart/form-data":
        spool_bytes = settings.spool_kb * 1024
        async with read_form(
            request, file_field="files", max_files=settings.max_files, spool_bytes=spool_bytes
        ) as form:
            form.check_names(files=["files"], fields=["tags", "attributes"])
            if not form.files:
                raise InvalidRequest("At least one file is needed.", field="files")
            described = read_described(form.values("tags"), form.values("attributes"))
            outcomes = await parts.uploads.files([file for _, file in form.files], described)
    else:
        raise InvalidRequest("Send multipart/form-data with `files`, or application/json with `urls`.", field="body")
    return json_answer(Outcomes(outcomes=outcomes), answer_status(outcomes))


async def _urls(request: Request) -> UrlsToStore:
    try:
        return UrlsToStore.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        fields = field_problems(error.errors())
        raise InvalidRequest("; ".join(f"{f.field}: {f.message}" for f in fields[:5]), errors=fields) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}", field="body") from error


@router.get("", response_model=ImagePage)
async def list_images(
    parts: Parts,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(max_length=4000)] = None,
    sort: Sort = "-created_at",
    filter: Annotated[str | None, Query(max_length=50_000, description="A filter, as JSON.")] = None,
    tag: Annotated[list[str] | None, Query(description="A tag that the pictures have; repeated: all of them.")] = None,
    facets: Annotated[list[Facet] | None, Query(description="Fields to count the values of.")] = None,
) -> Response:
    """List pictures, newest first unless `sort` says otherwise; a page is continued by its `next_cursor`."""
    trees: list[FilterTree] = [] if filter is None else [parse_filter(filter)]
    trees += [Leaf(field="tags", eq=name) for name in tag or ()]
    tree = None if not trees else trees[0] if len(trees) == 1 else All(all=trees)
    asked = ListImages(filter=tree, sort=sort, limit=limit, cursor=cursor, facets=facets or [])
    return json_answer(await parts.storage.images(asked))


@router.get("/{image_id}", response_model=ImageRecord, responses=_NOT_FOUND)
async def read_image(image_id: ImageId, parts: Parts) -> Response:
    """Return everything that is known of a picture."""
    return json_answer(await parts.storage.record(image_id))


@router.patch("/{image_id}", response_model=ImageRecord, responses=_NOT_FOUND)
async def change_image(image_id: ImageId, patch: ImagePatch, parts: Parts) -> Response:
    """Change tags, attributes or caption; what is left out stays. A person's caption wins over the machine's."""
    return json_answer(await parts.storage.change(image_id, patch))


@router.delete("/{image_id}", status_code=204, response_class=Response, responses=_NOT_FOUND)
async def delete_image(image_id: ImageId, parts: Parts) -> Response:
    """Delete a picture: its record, its vectors and its files."""
    await parts.storage.delete(image_id)
    return Response(status_code=204)


def asked_of_file(request: Request) -> dict[str, str]:
    """Return the headers that say which part of a file is wanted, and under which condition."""
    headers = {name: request.headers[name] for name in _ASKED_OF_FILES if name in request.headers}
    # The bytes must be the stored ones: lengths and ranges would not fit a compressed answer.
    return {**headers, "accept-encoding": "identity"}


FILE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {}}, "description": "The file"},
    206: {"description": "The part of the file that `Range` asks for"},
    304: {"description": "The file is the one that `If-None-Match` names"},
    416: {"description": "The file has no such part"},
    **_NOT_FOUND,
}


@router.get("/{image_id}/{variant}", response_class=Response, responses=FILE_ANSWERS)
@router.head("/{image_id}/{variant}", response_class=Response, responses=FILE_ANSWERS, include_in_schema=False)
async def read_file(image_id: ImageId, variant: Variant, request: Request, parts: Parts) -> Response:
    """Return one of a picture's files as it is stored; understands `Range` and `If-None-Match`."""
    return Relay(await parts.storage.open_file(request.method, image_id, variant, asked_of_file(request)))
