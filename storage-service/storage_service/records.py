"""The rows of pictures, as records: one query for any number of them, one more for their stages."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixelgate_common.contracts.storage import STAGES, VARIANTS, ImagePatch, ImageRecord, StageOfImage, Variant
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from storage_service.database import Connection

_COLUMNS = (
    "id, encode(sha256, 'hex') AS sha256, filename, media_type, format, width, height, bytes, created_at, captured_at,"
    " source_url, page_url, page_title, alt_text, tags, attributes, caption, caption_by, objects, palette,"
    " foreground_palette, exif, phash, thumbhash, has_cutout"
)
VARIANT_MEDIA_TYPES = {False: "image/jpeg", True: "image/webp"}
"""What the variants of a picture are, by whether it has transparent pixels."""
CUTOUT_MEDIA_TYPE = "image/png"


@dataclass(frozen=True)
class StoredFiles:
    """What it takes to serve a picture's files: which object, of what type, under which name."""

    id: int
    sha256: bytes
    media_type: str
    has_alpha: bool
    filename: str | None
    bytes: int
    has_cutout: bool
    cutout_tag: str | None

    def media_type_of(self, variant: Variant) -> str:
        """Return the media type of `variant`."""
        if variant == "cutout":
            return CUTOUT_MEDIA_TYPE
        return self.media_type if variant == "original" else VARIANT_MEDIA_TYPES[self.has_alpha]

    def has(self, variant: Variant) -> bool:
        """Whether there is such a file: all but a cutout are there from the arrival on."""
        return variant != "cutout" or self.has_cutout

    def etag(self, variant: Variant) -> str:
        """Return the file's entity tag; a cutout can be made anew, so its own content is part of it."""
        content = f"-{self.cutout_tag}" if variant == "cutout" else ""
        return f'"{self.sha256.hex()[:32]}-{variant}{content}"'


async def fetch_records(conn: Connection, ids: Sequence[int]) -> dict[int, ImageRecord]:
    """Return the records of those `ids` that exist, in two queries; every stage is named, `off` where it is not on."""
    if not ids:
        return {}
    wanted = list(ids)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(f"SELECT {_COLUMNS} FROM images WHERE id = ANY(%s)", (wanted,))
        rows = await cursor.fetchall()
    # From the stages outward, so that a stage without rows still says that it is on.
    found = await conn.execute(
        "SELECT a.image_id, s.stage, a.state, a.took_ms, a.attempts, a.finished_at, a.error FROM stages s"
        " LEFT JOIN analyses a ON a.stage = s.stage AND a.image_id = ANY(%s) WHERE s.enabled",
        (wanted,),
    )
    stages: dict[int, dict[str, StageOfImage]] = {row["id"]: {} for row in rows}
    for image_id, stage, state, took_ms, attempts, finished_at, error in await found.fetchall():
        if image_id in stages:
            stages[image_id][stage] = StageOfImage(
                state=state, took_ms=took_ms, attempts=attempts, finished_at=finished_at, error=error
            )
    return {row["id"]: _record(row, stages[row["id"]]) for row in rows}


async def fetch_record(conn: Connection, image_id: int) -> ImageRecord | None:
    """Return one record, or None."""
    return (await fetch_records(conn, [image_id])).get(image_id)


def _record(row: dict[str, Any], stages: Mapping[str, StageOfImage]) -> ImageRecord:
    row["phash"] = f"{row['phash'] & 0xFFFFFFFFFFFFFFFF:016x}"
    row["thumbhash"] = base64.b64encode(row["thumbhash"]).decode("ascii")
    row["stages"] = {stage: stages.get(stage) or StageOfImage(state="off") for stage in STAGES}
    files: tuple[Variant, ...] = (*VARIANTS, "cutout") if row.pop("has_cutout") else VARIANTS
    row["links"] = {variant: f"/v1/images/{row['id']}/{variant}" for variant in files}
    return ImageRecord.model_validate(row)


async def find_by_sha256(conn: Connection, sha256: bytes) -> int | None:
    """Return the id of the picture with this SHA-256, or None."""
    row = await (await conn.execute("SELECT id FROM images WHERE sha256 = %s", (sha256,))).fetchone()
    return None if row is None else int(row[0])


async def fetch_files(conn: Connection, ids: Sequence[int]) -> dict[int, StoredFiles]:
    """Return what serves the files of those `ids` that exist."""
    async with conn.cursor(row_factory=class_row(StoredFiles)) as cursor:
        await cursor.execute(
            "SELECT id, sha256, media_type, has_alpha, filename, bytes, has_cutout,"
            " left(encode(cutout_digest, 'hex'), 16) AS cutout_tag FROM images WHERE id = ANY(%s)",
            (list(ids),),
        )
        return {row.id: row for row in await cursor.fetchall()}


async def patch_record(conn: Connection, image_id: int, patch: ImagePatch) -> bool:
    """Change what `patch` sets; a caption is from then on a person's. False when there is no such picture.

    A caption of null takes the person's word back: the next caption of the model is shown again.
    """
    given = patch.model_fields_set
    changes: dict[str, object] = {}
    if "tags" in given:
        changes["tags"] = list(dict.fromkeys(patch.tags or []))
    if "attributes" in given:
        changes["attributes"] = Jsonb(patch.attributes or {})
    if "caption" in given:
        changes["caption"] = patch.caption
        changes["caption_by"] = None if patch.caption is None else "person"
    if not changes:
        row = await (await conn.execute("SELECT 1 FROM images WHERE id = %s", (image_id,))).fetchone()
        return row is not None
    # The names are the four above, never the request's.
    sets = ", ".join(f"{name} = %({name})s" for name in changes)
    cursor = await conn.execute(f"UPDATE images SET {sets} WHERE id = %(id)s", {**changes, "id": image_id})
    return cursor.rowcount == 1
