"""What a point in the vector index carries of its picture, so that a filter can be answered inside the index.

Fields with a fixed name and short values stand as they are. All else stands in `tokens`, one keyword field: a token is
`name=value` for equality, `name` for "has a value", and `objects.<label>>=n` for each count up to n. `objects`
by itself says that somebody has looked for objects: only then is a label that is not named there zero times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from psycopg.rows import dict_row

from storage_service.database import Connection
from storage_service.vectors.protocol import Payload

LONG_TEXTS = ("source_url", "page_url", "page_title", "alt_text", "caption")
"""Text fields that are only ever looked up whole: a token of their hash costs less than an index of the text."""
MAX_COUNT = 16
"""The largest count of one label that tokens tell apart; filters that ask for more are answered by Postgres."""
OBJECTS_KNOWN = "'objects"
"""The token of a picture in which objects were looked for: only there is a label without a token zero times."""
_COLUMNS = (
    "i.id, encode(i.sha256, 'hex') AS sha256, i.filename, i.media_type, i.format, i.width, i.height, i.bytes,"
    " i.created_at, i.captured_at, i.source_url, i.page_url, i.page_title, i.alt_text, i.caption, i.caption_by, i.tags,"
    " i.attributes, i.exif, i.objects_known, i.object_counts"
)
_PLAIN = ("id", "sha256", "filename", "media_type", "format", "width", "height", "bytes", "caption_by")
_TIMES = ("created_at", "captured_at")


async def fetch_payload_rows(
    conn: Connection, image_ids: Sequence[int], *, locked: bool = False
) -> dict[int, dict[str, Any]]:
    """Return what payloads are made of, for those `image_ids` that exist.

    `locked` keeps anybody from editing the pictures until the transaction's end: an edit then comes either before and
    is seen, or after and refreshes the payload itself.
    """
    query = f"SELECT {_COLUMNS} FROM images i WHERE i.id = ANY(%s) ORDER BY i.id" + (" FOR SHARE" if locked else "")
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query.encode(), (list(image_ids),))
        return {row["id"]: row for row in await cursor.fetchall()}


def payload_of(row: Mapping[str, Any], seq: int) -> Payload:
    """Return the payload of the picture in `row` (of `fetch_payload_rows`) whose vector has the number `seq`."""
    payload: Payload = {name: row[name] for name in _PLAIN if row[name] is not None}
    payload |= {name: time_text(row[name]) for name in _TIMES if row[name] is not None}
    payload["seq"] = seq
    if row["tags"]:
        payload["tags"] = row["tags"]
    if tokens := sorted(_tokens(row)):
        payload["tokens"] = tokens
    payload["stamp"] = _stamp(payload)
    return payload


def _stamp(payload: Payload) -> int:
    text = json.dumps(payload, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def _tokens(row: Mapping[str, Any]) -> Iterator[str]:
    for name in LONG_TEXTS:
        if row[name] is not None:
            yield presence_token(name)
            yield value_token(name, row[name])
    for group in ("attributes", "exif"):
        for name, value in row[group].items():
            if value is None:
                continue
            yield presence_token(f"{group}.{name}")
            if isinstance(value, bool | int | float | str):
                yield value_token(f"{group}.{name}", value)
    if row["objects_known"]:
        yield OBJECTS_KNOWN
    for label, count in row["object_counts"].items():
        for n in range(1, min(count, MAX_COUNT) + 1):
            yield count_token(f"objects.{label}", n)


def presence_token(field: str) -> str:
    """Return the token of a picture whose `field` has a value."""
    return _short(field)


def count_token(field: str, n: int) -> str:
    """Return the token of a picture that has at least `n` of the label, 1 ≤ n ≤ MAX_COUNT."""
    return f"{_short(field)}>={n}"


def value_token(field: str, value: bool | int | float | str) -> str:
    """Return the token of a picture whose `field` is `value`: the same for equal JSON values (1 and 1.0) only."""
    match value:
        case bool():
            text = "b:true" if value else "b:false"
        case str():
            text = f"s:{value}"
        case _:
            text = f"n:{_number(value)}"
    return f"{_short(field)}={_short(text)}"


def _number(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    exact = Decimal(repr(value))  # what the JSON text says; Postgres keeps exactly that
    if not exact.is_finite():
        return repr(value)
    return str(int(exact)) if exact == exact.to_integral_value() else format(exact, "f")


def _short(text: str) -> str:
    # The first character tells a hash from a text, and "=" and ">" cannot be taken for the separator that follows.
    if len(text) <= 64 and "=" not in text and ">" not in text:
        return f"'{text}"
    return "#" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def time_text(moment: datetime) -> str:
    """Return `moment` as ISO 8601 with microseconds, in UTC where UTC can say it."""
    with suppress(OverflowError):  # the first or last hours of the calendar, seen from another zone
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")
