"""Routes: the files of pictures, one with ranges and validators, or many in one answer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Response
from pixelgate_common.contracts.storage import PreviewsWanted, Variant
from pixelgate_common.errors import NotFound, PixelgateError, problem_response
from pixelgate_common.frames import MEDIA_TYPE, encode_header
from starlette.responses import StreamingResponse

from storage_service.objects.protocol import ObjectMissing, ObjectStore, object_key
from storage_service.parts import Parts, PartsNow
from storage_service.records import StoredFiles, fetch_files
from storage_service.routes.images import ImageId

router = APIRouter(prefix="/v1", tags=["files"])
_WHOLE_BYTES = 1 << 20  # up to this a file is read and sent at once
_ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_PLAIN = re.compile(r"[^A-Za-z0-9._ -]")
_CACHE = "private, max-age=31536000, immutable"
_CACHE_CUTOUT = "private, no-cache"  # another model makes another cutout, under the same address
_SUFFIXES = {
    "image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/gif": ".gif", "image/tiff": ".tiff",
    "image/bmp": ".bmp", "image/avif": ".avif",
}  # fmt: skip


class RangeNotSatisfiable(PixelgateError):
    """The range that was asked for lies outside the file."""

    status, code, title = 416, "range_not_satisfiable", "The range lies outside the file"


@dataclass(frozen=True)
class _Asked:
    """The conditions of a request for a file."""

    range: str | None
    if_range: str | None
    if_none_match: str | None


@router.get(
    "/images/{image_id}/{variant}",
    responses={200: {"content": {"image/*": {}}}, 206: {}, 304: {}, 404: {}, 416: {}},
    response_class=Response,
)
async def send(
    image_id: ImageId,
    variant: Variant,
    parts: PartsNow,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Send one file of a picture, whole or in part."""
    return await _send(parts, image_id, variant, _Asked(range_, if_range, if_none_match), head=False)


@router.head("/images/{image_id}/{variant}", include_in_schema=False)
async def send_head(
    image_id: ImageId,
    variant: Variant,
    parts: PartsNow,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Send the headers that GET would."""
    return await _send(parts, image_id, variant, _Asked(None, None, if_none_match), head=True)


@router.post("/files", response_class=Response, responses={200: {"content": {MEDIA_TYPE: {}}}})
async def send_many(wanted: PreviewsWanted, parts: PartsNow) -> Response:
    """Send one file of each of these pictures, as frames named by id; unknown pictures have none.

    The files stream from the store one after the other, so the memory that this takes does not grow with their number.
    """
    ids = list(dict.fromkeys(wanted.image_ids))
    async with parts.db.connection() as conn:
        found = await fetch_files(conn, ids)
    keys = {id_: object_key(files.sha256, wanted.variant) for id_, files in found.items() if files.has(wanted.variant)}
    if wanted.variant == "original":
        known: dict[int, int | None] = {id_: files.bytes for id_, files in found.items()}
    else:
        sizes = await parts.objects.sizes(list(keys.values()))
        known = dict(zip(keys, sizes, strict=True))
    frames = [(id_, known.get(id_)) for id_ in ids]
    header = encode_header([(str(id_), size) for id_, size in frames])
    body = _frames(parts.objects, header, [(keys[id_], size) for id_, size in frames if size is not None])
    length = len(header) + sum(size for _, size in frames if size is not None)
    return StreamingResponse(body, media_type=MEDIA_TYPE, headers={"Content-Length": str(length)})


async def _frames(objects: ObjectStore, header: bytes, wanted: Sequence[tuple[str, int]]) -> AsyncIterator[bytes]:
    yield header
    for key, size in wanted:
        if size <= _WHOLE_BYTES:
            yield await objects.read(key, 0, size)
        else:
            async for chunk in objects.stream(key, 0, size):
                yield chunk


async def _send(parts: Parts, image_id: int, variant: Variant, asked: _Asked, *, head: bool) -> Response:
    async with parts.db.connection() as conn:
        files = (await fetch_files(conn, [image_id])).get(image_id)
    if files is None:
        raise NotFound(f"There is no picture {image_id}.")
    key = object_key(files.sha256, variant)
    if not files.has(variant):
        raise NotFound(f"Picture {image_id} has no {variant} (yet).")
    etag = files.etag(variant)
    headers = {"ETag": etag, "Cache-Control": _CACHE_CUTOUT if variant == "cutout" else _CACHE}
    if _matches(asked.if_none_match, etag):
        return Response(status_code=304, headers=headers)
    size = files.bytes if variant == "original" else await parts.objects.size(key)
    if size is None:
        raise ObjectMissing(f"The {variant} of picture {image_id} is not in the object store.")
    headers |= {
        "Content-Type": files.media_type_of(variant),
        "Content-Disposition": _disposition(files, variant),
        "X-Content-Type-Options": "nosniff",
        "Accept-Ranges": "bytes",
    }
    wanted = None if asked.if_range not in (None, etag) else asked.range
    span = parse_range(wanted, size)
    if span is None:
        # Written by hand: an error's own response would not carry the size that the standard asks for.
        problem = RangeNotSatisfiable(f"The file has {size} bytes.")
        response = problem_response(problem, f"/v1/images/{image_id}/{variant}")
        response.headers["Content-Range"] = f"bytes */{size}"
        return response
    start, end, partial = span
    status = 206 if partial else 200
    if partial:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if head:
        return Response(status_code=status, headers=headers)
    if end - start <= _WHOLE_BYTES:
        return Response(await parts.objects.read(key, start, end - start), status_code=status, headers=headers)
    return StreamingResponse(parts.objects.stream(key, start, end - start), status_code=status, headers=headers)


def parse_range(value: str | None, size: int) -> tuple[int, int, bool] | None:
    """Return (start, end, partial) of what a `Range` header asks for, end exclusive; None when it lies outside.

    The whole file where there is no header, or one to be passed over: another unit, several ranges, or nonsense
    (RFC 9110, 14.2).
    """
    match = _ONE_RANGE.fullmatch(value.strip()) if value else None
    if match is None or (not match[1] and not match[2]):
        return 0, size, False
    if not match[1]:
        last = int(match[2])
        return (max(0, size - last), size, True) if last and size else None
    start = int(match[1])
    end = int(match[2]) + 1 if match[2] else size
    if match[2] and end <= start:
        return 0, size, False
    return (start, min(end, size), True) if start < size else None


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    return header.strip() == "*" or etag in (part.strip().removeprefix("W/") for part in header.split(","))


def _disposition(files: StoredFiles, variant: Variant) -> str:
    """Return `inline` with a name that no client can misread: plain in `filename`, whole in `filename*` (RFC 6266)."""
    name = files.filename or f"{files.id}"
    if variant != "original":
        name = f"{name.rsplit('.', 1)[0]}-{variant}{_SUFFIXES[files.media_type_of(variant)]}"
    elif files.filename is None:
        name += _SUFFIXES.get(files.media_type, "")
    return f"inline; filename=\"{_PLAIN.sub('_', name)}\"; filename*=UTF-8''{quote(name, safe='')}"
