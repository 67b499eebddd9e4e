"""Pictures on their way in: many at once, each with its own outcome, one bad one never spoiling the others."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import unquote

import httpx
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.contracts.storage import (
    MAX_ARRIVAL_HEADER_BYTES,
    Arrival,
    Arrived,
    AttributeValue,
    Described,
    ImageRecord,
    Tag,
)
from pixelgate_common.errors import (
    InvalidRequest,
    PixelgateError,
    UpstreamProblem,
    field_problems,
)
from pixelgate_common.fetch import GuardedFetcher
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from gateway.clients.inner import Patience
from gateway.clients.storage import StorageClient
from gateway.query import parse_json
from gateway.settings import GatewaySettings

_CHUNK_BYTES = 256 * 1024
_NAME_AND_URL_BYTES = 8_000
"""What file name and URL, which travel in the same header, take of it at most (base64)."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class UrlsToStore(BaseModel):
    """Pictures to fetch and store (`POST /v1/images` as JSON)."""

    model_config = ConfigDict(extra="forbid")

    urls: list[Annotated[str, Field(min_length=1, max_length=8192)]] = Field(min_length=1, max_length=1000)
    tags: list[Tag] = []
    attributes: dict[str, AttributeValue] = {}


class Outcome(BaseModel):
    """What became of one picture: `problem` says why it was rejected."""

    filename: str | None = Field(description="The file name as it was stored, or the name in the URL.")
    url: str | None = Field(None, description="The URL as it was sent, where the picture came by one.")
    outcome: Literal["created", "duplicate", "rejected"]
    image: ImageRecord | None = None
    problem: Problem | None = None


class Outcomes(BaseModel):
    """One outcome for each picture, in the order sent."""

    outcomes: list[Outcome]


class FileTooLarge(PixelgateError):
    """One file of a request is larger than a picture may be."""

    status, code, title = 413, "file_too_large", "The file is too large"


class Piece(Protocol):
    """A picture file that can be read from its beginning as often as needed, until it is let go of."""

    @property
    def size(self) -> int:
        """The number of bytes."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the file's bytes from the beginning."""
        ...


@dataclass(frozen=True, slots=True)
class Spooled:
    """An uploaded file in its temporary file."""

    file: UploadFile
    size: int

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the file's bytes from the beginning."""
        await self.file.seek(0)
        while chunk := await self.file.read(_CHUNK_BYTES):
            yield chunk


@dataclass(frozen=True, slots=True)
class Held:
    """A fetched file in memory."""

    data: bytes

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self.data)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the file's bytes from the beginning."""
        for start in range(0, len(self.data), _CHUNK_BYTES):
            yield self.data[start : start + _CHUNK_BYTES]


class Uploads:
    """Sends pictures to storage-service, a bounded number at a time over all requests."""

    def __init__(self, settings: GatewaySettings, storage: StorageClient, fetcher: GuardedFetcher) -> None:
        """Store with `storage`; URLs are fetched by `fetcher` and nothing else."""
        self._settings, self._storage, self._fetcher = settings, storage, fetcher
        self._on_their_way = asyncio.Semaphore(settings.forward_concurrency)

    async def files(self, files: Sequence[UploadFile], described: Described) -> list[Outcome]:
        """Store uploaded files and return their outcomes in order."""

        async def store(file: UploadFile, patience: Patience) -> Outcome:
            filename = plain_name(file.filename)
            arrival = _arrival(described, filename=filename)
            size = file.size or 0

            async def send() -> Arrived:
                if size > self._settings.max_upload_bytes:
                    raise FileTooLarge(
                        f"A picture may have at most {self._settings.max_upload_mb} MB; this one has {size:,} bytes."
                    )
                return await self._store(arrival, Spooled(file, size), patience)

            return await _outcome(send, filename=filename)

        return await self._all([(store, file) for file in files])

    async def urls(self, urls: Sequence[str], described: Described) -> list[Outcome]:
        """Fetch and store pictures and return their outcomes in order."""

        async def store(url: str, patience: Patience) -> Outcome:
            filename = name_in_url(url)
            arrival = _arrival(described, filename=filename, source_url=public_form(url))

            async def send() -> Arrived:
                fetched = await self._fetcher.fetch(url)
                return await self._store(arrival, Held(fetched.body), patience)

            return await _outcome(send, filename=filename, url=url)

        return await self._all([(store, url) for url in urls])

    async def _all(self, jobs: Sequence[tuple[Any, Any]]) -> list[Outcome]:
        # Shared: when storage stays away, all files of the request give up together and not one after the other.
        patience = Patience(self._settings.upload_retry_s)
        mine = asyncio.Semaphore(self._settings.forward_per_request)

        async def run(store: Any, what: Any) -> Outcome:
            # Fetched bytes are in memory until they are stored, so the place is held from before the fetch.
            async with mine, self._on_their_way:
                outcome: Outcome = await store(what, patience)
                return outcome

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(store, what)) for store, what in jobs]
        return [task.result() for task in tasks]

    async def _store(self, arrival: Arrival, piece: Piece, patience: Patience) -> Arrived:
        return await self._storage.store(
            arrival, piece.chunks, piece.size, patience=patience, timeout_s=self._settings.upload_timeout_s
        )


async def _outcome(send: Any, *, filename: str | None, url: str | None = None) -> Outcome:
    try:
        arrived: Arrived = await send()
    except PixelgateError as error:
        return Outcome(filename=filename, url=url, outcome="rejected", problem=error.to_problem())
    return Outcome(filename=filename, url=url, outcome=arrived.outcome, image=arrived.image)


def answer_status(outcomes: Sequence[Outcome]) -> int:
    """Return the answer's status: 201 if anything was created, else 200 if all were known, else 422.

    Raises the problem itself when nothing was stored and the reason is not the pictures': the same request can
    succeed later, and a client that looks at the status alone must learn that.
    """
    kinds = {outcome.outcome for outcome in outcomes}
    if "created" in kinds:
        return 201
    if kinds == {"duplicate"}:
        return 200
    if "duplicate" in kinds:
        return 422
    for outcome in outcomes:
        if outcome.problem is not None and outcome.problem.status >= 500:
            raise UpstreamProblem(outcome.problem, retry_after_s=2.0)
    return 422


def read_described(tags: Sequence[str], attributes: Sequence[str]) -> Described:
    """Return what the form fields `tags` (repeated, separated by commas, or JSON) and `attributes` (JSON) say."""
    found: list[Any] = []
    for text in tags:
        if text.lstrip().startswith("["):
            parsed = parse_json("tags", text)
            found += parsed
        else:
            found += [tag for part in text.split(",") if (tag := part.strip())]
    merged: dict[str, Any] = {}
    for text in attributes:
        if not text.strip():
            continue
        parsed = parse_json("attributes", text)
        if not isinstance(parsed, dict):
            raise InvalidRequest('A JSON object is needed, e.g. {"album": "2024"}.', field="attributes")
        merged |= parsed
    return check_described(found, merged)


def check_described(tags: Sequence[Any], attributes: Any) -> Described:
    """Return tags and attributes as they travel; raises `InvalidRequest` when they break a limit."""
    try:
        described = Described.model_validate({"tags": list(tags), "attributes": attributes})
    except ValidationError as error:
        fields = field_problems(error.errors())
        raise InvalidRequest("; ".join(f"{f.field}: {f.message}" for f in fields[:5]), errors=fields) from error
    if len(_arrival(described).to_header()) > MAX_ARRIVAL_HEADER_BYTES - _NAME_AND_URL_BYTES:
        raise InvalidRequest("Tags and attributes together are too long.", field="attributes")
    return described


def _arrival(described: Described, **known: str | None) -> Arrival:
    return Arrival(tags=described.tags, attributes=described.attributes, **known)


def plain_name(name: str | None) -> str | None:
    """Return the last part of a file name that a client sent, without control characters; None when none is left."""
    last = re.split(r"[/\\]", name or "")[-1]
    return _CONTROL.sub("", last).strip()[-255:] or None


def name_in_url(url: str) -> str | None:
    """Return the file name at the end of a URL's path, if there is one."""
    try:
        return plain_name(unquote(httpx.URL(url).path))
    except (httpx.InvalidURL, ValueError):
        return None


def public_form(url: str) -> str | None:
    """Return a URL without user name and password, cut to what a record keeps; None when it is not a URL."""
    try:
        return str(httpx.URL(url.strip()).copy_with(userinfo=b""))[:4000]
    except (httpx.InvalidURL, ValueError):
        return None
