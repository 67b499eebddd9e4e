"""What each stage's result must look like, and how it becomes part of a picture's record."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

from pixelgate_common.contracts.color import MAX_COLORS, Color
from pixelgate_common.contracts.storage import StageName, StageResult
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage_service.database import Connection
from storage_service.palettes import LAB_DIGITS

MAX_OBJECTS = 1000
HAVE_COLORS: tuple[StageName, ...] = ("palette", "cutout")
"""The stages whose result is what search by colour ranks, or a part of it."""
_BOX_DIGITS = 2
Result = TypeVar("Result", bound=BaseModel)
Channel = Annotated[float, Field(ge=-300, le=300)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class NotKept(ValueError):
    """The result is not what the stage makes; the message says why."""


class _CaptionFound(BaseModel):
    caption: str = Field(min_length=1, max_length=4000)


class _Object(BaseModel):
    label: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00]+$")
    score: Finite = Field(ge=0, le=1)
    box: tuple[Finite, Finite, Finite, Finite]


class _ObjectsFound(BaseModel):
    width: int = Field(ge=1, le=1_000_000)
    height: int = Field(ge=1, le=1_000_000)
    objects: list[_Object] = Field(max_length=MAX_OBJECTS)


class _Color(Color):
    model_config = ConfigDict(extra="ignore")

    lab: tuple[Channel, Channel, Channel]


class _PaletteFound(BaseModel):
    palette: list[_Color] = Field(max_length=MAX_COLORS)
    foreground: list[_Color] | None = Field(None, max_length=MAX_COLORS)


class _CutoutFound(BaseModel):
    foreground: list[_Color] | None = Field(None, max_length=MAX_COLORS)


async def keep_result(conn: Connection, stage: StageName, item: StageResult) -> None:
    """Write a result that is part of the record; NotKept when it is not what the stage makes.

    The picture's row is locked by the caller.
    """
    try:
        await _KEEPERS[stage](conn, item)
    except ValidationError as error:
        where = ", ".join(sorted({".".join(map(str, one["loc"])) or "result" for one in error.errors()})[:5])
        raise NotKept(f"The result cannot be kept: {error.error_count()} errors ({where}).") from error


async def _caption(conn: Connection, item: StageResult) -> None:
    found = _read(_CaptionFound, item)
    # A person's word stands.
    await conn.execute(
        "UPDATE images SET caption = %s, caption_by = 'model' WHERE id = %s AND caption_by IS DISTINCT FROM 'person'",
        (found.caption.replace("\x00", ""), item.image_id),
    )


async def _objects(conn: Connection, item: StageResult) -> None:
    """Keep boxes in the original's pixels, clipped to it; what lies outside of it altogether is none."""
    found = _read(_ObjectsFound, item)
    row = await (await conn.execute("SELECT width, height FROM images WHERE id = %s", (item.image_id,))).fetchone()
    assert row is not None, "the caller holds the picture's row"
    width, height = row
    kept, counts = [], dict[str, int]()
    for one in found.objects:
        box = _scaled(one.box, width / found.width, height / found.height, width, height)
        if box is not None:
            kept.append({"label": one.label, "score": one.score, "box": box})
            counts[one.label] = counts.get(one.label, 0) + 1
    await conn.execute(
        "UPDATE images SET objects = %s, object_counts = %s, objects_known = true WHERE id = %s",
        (Jsonb(kept), Jsonb(counts), item.image_id),
    )


def _scaled(
    box: tuple[float, float, float, float], sx: float, sy: float, width: int, height: int
) -> list[float] | None:
    """Return (x, y, width, height) scaled and clipped to the picture, or None when nothing of it is left."""
    x, y, w, h = box
    left, right = (min(max(edge * sx, 0.0), float(width)) for edge in (x, x + w))
    top, bottom = (min(max(edge * sy, 0.0), float(height)) for edge in (y, y + h))
    left, top = round(left, _BOX_DIGITS), round(top, _BOX_DIGITS)
    w, h = round(right - left, _BOX_DIGITS), round(bottom - top, _BOX_DIGITS)
    return [left, top, w, h] if w > 0 and h > 0 else None


async def _palette(conn: Connection, item: StageResult) -> None:
    found = _read(_PaletteFound, item)
    # A cutout says better than alpha what the foreground is, whichever of the two comes last.
    await conn.execute(
        "UPDATE images SET palette = %s,"
        " foreground_palette = CASE WHEN has_cutout AND foreground_palette <> '[]' THEN foreground_palette ELSE %s END"
        " WHERE id = %s",
        (_colors(found.palette), _colors(found.foreground or []), item.image_id),
    )


async def _cutout(conn: Connection, item: StageResult) -> None:
    found = _read(_CutoutFound, item)
    cursor = await conn.execute(
        "UPDATE images SET has_cutout = true,"
        " foreground_palette = CASE WHEN %(empty)s THEN foreground_palette ELSE %(colors)s END"
        " WHERE id = %(id)s AND cutout_token = %(token)s",
        {
            "empty": not found.foreground,
            "colors": _colors(found.foreground or []),
            "id": item.image_id,
            "token": item.token,
        },
    )
    if cursor.rowcount == 0:
        raise NotKept("The cutout's file was not put under this lease (PUT /v1/stages/cutout/files/{image_id}).")


def _read(kind: type[Result], item: StageResult) -> Result:
    return kind.model_validate(item.result or {})


def _colors(colors: list[_Color]) -> Jsonb:
    # Rounded once, here: what search ranks by is then exactly what the record says.
    return Jsonb(
        [
            {"lab": [round(value, LAB_DIGITS) for value in color.lab], "hex": color.hex, "share": color.share}
            for color in colors
        ]
    )


_KEEPERS: dict[str, Callable[[Connection, StageResult], Coroutine[Any, Any, None]]] = {
    "caption": _caption,
    "objects": _objects,
    "palette": _palette,
    "cutout": _cutout,
}
