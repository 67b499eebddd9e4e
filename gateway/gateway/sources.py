"""The pictures that a request brings: as files, behind URLs, or by the ids of stored ones; and its options.

A form and a JSON body say the same things by the same names; only files need a form. What is held in memory is bounded
over all requests: files lie on the disk until their bytes fit, and URLs are not fetched before.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Request
from pixelgate_common.bodies import ByteBudget
from pixelgate_common.contracts.storage import Variant
from pixelgate_common.errors import InvalidRequest, field_problems
from pixelgate_common.fetch import GuardedFetcher
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from gateway.clients.storage import StorageClient
from gateway.multipart import read_form
from gateway.pictures import PictureTooLarge
from gateway.problems import about
from gateway.settings import MB, GatewaySettings

Shape = TypeVar("Shape", bound=BaseModel)
Url = Annotated[str, Field(min_length=1, max_length=8192)]
ImageId = Annotated[int, Field(ge=1, lt=2**63)]
_MOST_PICTURES = 3
_VARIANT_BYTES: dict[Variant, int] = {"small": MB // 8, "medium": MB // 4, "preview": 2 * MB, "cutout": 4 * MB}
"""About what a stored file that is not an original takes at most; an original may have what an upload may have."""


class OnePicture(BaseModel):
    """The picture that an operation is about, where it is no file of a form: exactly one of these."""

    model_config = ConfigDict(extra="forbid")

    url: Url | None = None
    image_id: ImageId | None = Field(None, description="A stored picture.")


@dataclass(frozen=True, slots=True)
class Place:
    """The three names under which a request can bring one picture."""

    file: str
    url: str
    image_id: str
    needed: bool = True

    @property
    def names(self) -> tuple[str, str, str]:
        """All three."""
        return self.file, self.url, self.image_id


ONE = Place("image", "url", "image_id")


@dataclass(frozen=True, slots=True)
class Brought:
    """A picture file, the field that it came by, and the stored picture that it is of, if it is."""

    field: str
    data: bytes
    image_id: int | None = None


@dataclass(frozen=True, slots=True)
class Wanted(Generic[Shape]):
    """What a request asks for: its options, and its pictures by the names of their file fields."""

    options: Shape
    pictures: dict[str, Brought]


class Sources:
    """Reads requests that bring pictures."""

    def __init__(self, settings: GatewaySettings, storage: StorageClient, fetcher: GuardedFetcher) -> None:
        """Stored pictures come from `storage`; URLs are fetched by `fetcher` and nothing else."""
        self._settings, self._storage, self._fetcher = settings, storage, fetcher
        # One request must always fit.
        self._budget = ByteBudget(max(settings.held_mb * MB, _MOST_PICTURES * settings.max_upload_bytes))

    @asynccontextmanager
    async def read(
        self, request: Request, shape: type[Shape], places: Sequence[Place] = (ONE,), *, variant: Variant = "preview"
    ) -> AsyncIterator[Wanted[Shape]]:
        """Yield what the request asks for; `variant` is the file that is taken of a stored picture.

        Raises `InvalidRequest` naming the field, `PictureTooLarge` (413), 404 for an unknown id, what the guarded fetch
        refuses with, and `Overloaded` when too many pictures are in memory.
        """
        async with AsyncExitStack() as stack:
            given, files = await self._parse(request, shape, places, stack)
            options = validated(shape, given)
            chosen = {place: name for place in places if (name := _choose(place, given, files)) is not None}
            stack.enter_context(
                self._budget.hold(sum(self._bytes_of(place, name, files, variant) for place, name in chosen.items()))
            )
            brought = await asyncio.gather(
                *(self._bring(place, name, options, files, variant) for place, name in chosen.items())
            )
            yield Wanted(options, {place.file: one for place, one in zip(chosen, brought, strict=True)})

    @asynccontextmanager
    async def stored(self, image_ids: Sequence[int], variant: Variant) -> AsyncIterator[dict[int, bytes]]:
        """Yield the files of stored pictures by id; a picture that is not there is left out."""
        ids = list(dict.fromkeys(image_ids))
        with self._budget.hold(len(ids) * _VARIANT_BYTES[variant]):
            yield await self._storage.files(ids, variant) if ids else {}

    @asynccontextmanager
    async def one_stored(self, image_id: int, variant: Variant) -> AsyncIterator[bytes]:
        """Yield a file of one stored picture; 404 when there is none."""
        with self._budget.hold(_VARIANT_BYTES[variant]):
            yield await self._storage.file(image_id, variant)

    async def _parse(
        self, request: Request, shape: type[BaseModel], places: Sequence[Place], stack: AsyncExitStack
    ) -> tuple[dict[str, Any], dict[str, UploadFile]]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        names = [place.file for place in places]
        if kind == "application/json":
            return await json_object(request), {}
        if kind != "multipart/form-data":
            raise InvalidRequest(
                f"Send multipart/form-data with the file {names[0]!r}, or application/json with {places[0].url!r} or"
                f" {places[0].image_id!r}.",
                field="body",
            )
        form = await stack.enter_async_context(
            read_form(request, file_field=names[0], max_files=len(places), spool_bytes=self._settings.spool_kb * 1024)
        )
        form.check_names(files=names, fields=list(shape.model_fields))
        files: dict[str, UploadFile] = {}
        given: dict[str, Any] = {}
        for name, file in form.files:
            files[_new(name, files)] = file
            if (file.size or 0) > self._settings.max_upload_bytes:
                raise PictureTooLarge(f"A picture may have at most {self._settings.max_upload_mb} MB.", field=name)
        for name, text in form.fields:
            given[_new(name, given)] = text
        return given, files

    def _bytes_of(self, place: Place, name: str, files: dict[str, UploadFile], variant: Variant) -> int:
        if name == place.file:
            return files[name].size or 0
        if name == place.image_id:
            return _VARIANT_BYTES.get(variant, self._settings.max_upload_bytes)
        return self._settings.max_upload_bytes

    async def _bring(
        self, place: Place, name: str, options: BaseModel, files: dict[str, UploadFile], variant: Variant
    ) -> Brought:
        if name == place.file:
            return Brought(name, await files[name].read())
        value = getattr(options, name)
        with about(name):
            if name == place.url:
                return Brought(name, (await self._fetcher.fetch(value)).body)
            return Brought(name, await self._storage.file(value, variant), value)


def validated(shape: type[Shape], given: dict[str, Any]) -> Shape:
    """Return `given` as `shape`; raises `InvalidRequest` naming each field that is wrong."""
    try:
        return shape.model_validate(given)
    except ValidationError as error:
        fields = field_problems(error.errors())
        raise InvalidRequest("; ".join(f"{f.field}: {f.message}" for f in fields[:5]), errors=fields) from error


async def json_object(request: Request) -> dict[str, Any]:
    """Return the request's body, a JSON object; raises `InvalidRequest` when it is none."""
    try:
        found = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}", field="body") from error
    if not isinstance(found, dict):
        raise InvalidRequest("The body must be a JSON object.", field="body")
    return found


def _choose(place: Place, given: dict[str, Any], files: dict[str, UploadFile]) -> str | None:
    """Return the name by which the picture comes; None when it does not have to come and does not."""
    found = [name for name in place.names if name in files or given.get(name) is not None]
    if len(found) > 1:
        raise InvalidRequest(f"Only one of {', '.join(place.names)} can be given.", field=found[1])
    if not found and place.needed:
        raise InvalidRequest(
            f"A picture is needed: {place.file} (a file of a form), {place.url}, or {place.image_id}.", field=place.file
        )
    return found[0] if found else None


def _new(name: str, known: dict[str, Any]) -> str:
    if name in known:
        raise InvalidRequest(f"{name} was sent more than once.", field=name)
    return name


def described_body(shape: type[BaseModel], places: Sequence[Place] = (ONE,)) -> dict[str, Any]:
    """Return what OpenAPI is told of a body that `Sources.read` reads: a form with files, or JSON."""
    described = shape.model_json_schema()
    files = {place.file: {"type": "string", "format": "binary"} for place in places}
    as_form = {"type": "object", "properties": {**files, **described["properties"]}}
    as_json = {"type": "object", "additionalProperties": False, "properties": described["properties"]}
    content = {"multipart/form-data": {"schema": as_form}, "application/json": {"schema": as_json}}
    return {"requestBody": {"required": True, "content": content}}
