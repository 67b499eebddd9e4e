"""What one picture tells: its caption, objects, colours or cutout, asked of a compute service, with nothing stored.

A stored picture is looked at as the stages look at it, in its preview, so that the answers are theirs; boxes are given
in the original's pixels. A cutout is made of the original: there the pixels are the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from pixelgate_common.contracts.caption import CaptionOptions
from pixelgate_common.contracts.color import MAX_COLORS, Color
from pixelgate_common.contracts.detect import Annotations, Box, CutoutOptions, DetectedItem
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.contracts.storage import ImageRecord
from pixelgate_common.errors import PixelgateError, UpstreamProblem
from pydantic import BaseModel, Field

from gateway.clients.caption import CaptionClient
from gateway.clients.color import ColorClient
from gateway.clients.detect import DetectClient
from gateway.clients.inner import BadAnswer
from gateway.clients.storage import StorageClient
from gateway.problems import put_field, renamed, status_of
from gateway.sources import Brought, OnePicture

_RETRY_S = 2.0


class CaptionWanted(OnePicture, CaptionOptions):
    """`POST /v1/caption`."""


class ObjectsWanted(OnePicture):
    """`POST /v1/objects`."""

    min_score: float | None = Field(None, ge=0, le=1, description="Leave out what is less sure than this.")
    annotated: bool = Field(False, description="Answer with the picture (JPEG) with the objects drawn on it.")


class PaletteWanted(OnePicture):
    """`POST /v1/palette`."""

    colors: int = Field(MAX_COLORS, ge=1, le=MAX_COLORS, description="At most so many colours.")


class CutoutWanted(OnePicture, CutoutOptions):
    """`POST /v1/cutout`."""


class CaptionAnswer(BaseModel):
    """A sentence about a picture, and the model that wrote it."""

    caption: str
    model: str
    fingerprint: str


class ObjectsAnswer(BaseModel):
    """The objects in a picture, the surest first; boxes are x, y, width, height in pixels of this width and height."""

    objects: list[Box]
    width: int
    height: int
    model: str
    fingerprint: str


class PaletteAnswer(BaseModel):
    """The colours of a picture; `foreground`: of what its transparency leaves visible, when it has any."""

    palette: list[Color]
    foreground: list[Color] | None
    model: str
    fingerprint: str


class _Item(Protocol):
    @property
    def problem(self) -> Problem | None: ...


Item = TypeVar("Item", bound=_Item)


class Analyst:
    """Asks the compute services about one picture at a time, before all bulk work."""

    def __init__(
        self, storage: StorageClient, caption: CaptionClient, detect: DetectClient, color: ColorClient
    ) -> None:
        """`storage` knows the sizes of stored pictures."""
        self._storage, self._caption, self._detect, self._color = storage, caption, detect, color

    async def caption(self, picture: Brought, wanted: CaptionWanted) -> CaptionAnswer:
        """Return a sentence about the picture."""
        with _of(picture):
            answer = await self._caption.captions([picture.data], _part(CaptionOptions, wanted))
        item = only(answer.items, picture.field)
        if item.caption is None:
            raise BadAnswer("caption-service answered with neither a caption nor a problem.")
        return CaptionAnswer(caption=item.caption, model=answer.model, fingerprint=answer.fingerprint)

    async def objects(self, picture: Brought, wanted: ObjectsWanted) -> ObjectsAnswer:
        """Return the objects in the picture; in the original's pixels where it is a stored one."""
        if picture.image_id is None:
            return await self._look(picture, wanted.min_score)
        # The same preview was read just now: the record says what its boxes must be scaled to.
        record, seen = await asyncio.gather(
            self._storage.record(picture.image_id), self._look(picture, wanted.min_score)
        )
        right, down = record.width / seen.width, record.height / seen.height
        scaled = [found.model_copy(update={"box": _scaled(found.box, right, down)}) for found in seen.objects]
        return seen.model_copy(update={"objects": scaled, "width": record.width, "height": record.height})

    async def annotated(self, picture: Brought, wanted: ObjectsWanted) -> tuple[bytes, str]:
        """Return the picture with its objects drawn on it (JPEG), and the detector's name."""
        seen = await self._look(picture, wanted.min_score)
        drawn = Annotations(width=seen.width, height=seen.height, objects=seen.objects)
        with _of(picture):
            return await self._detect.annotate(picture.data, drawn), seen.model

    async def palette(self, picture: Brought, wanted: PaletteWanted) -> PaletteAnswer:
        """Return the colours of the picture."""
        with _of(picture):
            answer = await self._color.palettes([picture.data], colors=wanted.colors)
        item = only(answer.items, picture.field)
        return PaletteAnswer(
            palette=item.palette, foreground=item.foreground, model=answer.model, fingerprint=answer.fingerprint
        )

    async def cutout(self, picture: Brought, wanted: CutoutOptions) -> tuple[bytes, str]:
        """Return the picture's cutout (PNG), and the name of the model that made it."""
        try:
            with _of(picture):
                made = await self._detect.cutouts([picture.data], _part(CutoutOptions, wanted))
        except PixelgateError as error:
            if status_of(error) == 404:
                put_field(error, "model")
            raise
        if len(made.items) != 1:
            raise BadAnswer("detect-service answered with another number of cutouts than was asked for.")
        (item,) = made.items
        if isinstance(item, Problem):
            raise _problem(item, picture.field)
        return item, made.model

    async def draw_record(self, record: ImageRecord, preview: bytes) -> bytes:
        """Return the preview with the record's objects drawn on it (JPEG)."""
        drawn = Annotations(
            width=record.width,
            height=record.height,
            objects=[Box(label=found.label, score=found.score, box=found.box) for found in record.objects],
        )
        return await self._detect.annotate(preview, drawn)

    async def _look(self, picture: Brought, min_score: float | None) -> ObjectsAnswer:
        with _of(picture):
            answer = await self._detect.objects([picture.data], min_score=min_score)
        item: DetectedItem = only(answer.items, picture.field)
        if item.width is None or item.height is None:
            raise BadAnswer("detect-service answered with neither objects nor a problem.")
        return ObjectsAnswer(
            objects=item.objects,
            width=item.width,
            height=item.height,
            model=answer.model,
            fingerprint=answer.fingerprint,
        )


def annotated_etag(record: ImageRecord) -> str:
    """Return an ETag that changes when the picture, or what was found in it, does."""
    found = "|".join(one.model_dump_json() for one in record.objects)
    return f'"{hashlib.sha256(f"{record.sha256}|{found}".encode()).hexdigest()[:32]}-annotated"'


def only(items: Sequence[Item], field: str) -> Item:
    """Return the one item of an answer about one picture; raises its problem about `field`."""
    if len(items) != 1:
        raise BadAnswer("A service answered with another number of items than was asked for.")
    (item,) = items
    if item.problem is not None:
        raise _problem(item.problem, field)
    return item


def _problem(problem: Problem, field: str) -> UpstreamProblem:
    error = UpstreamProblem(problem, retry_after_s=_RETRY_S if problem.status >= 500 else None)
    if problem.status < 500:
        put_field(error, field)
    return error


def _of(picture: Brought) -> AbstractContextManager[None]:
    """Say of a refusal of what was sent that it is about the client's field."""
    return renamed({"images": picture.field, "image": picture.field})


Part = TypeVar("Part", bound=BaseModel)


def _part(shape: type[Part], wanted: BaseModel) -> Part:
    """Return the options among `wanted` that are `shape`'s, and no others: what was not given stays so."""
    return shape.model_validate(wanted.model_dump(include=set(shape.model_fields), exclude_unset=True))


def _scaled(box: tuple[float, float, float, float], right: float, down: float) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x * right, y * down, width * right, height * down
