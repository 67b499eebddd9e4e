"""Palettes as search by colour reads them: 64 bytes each, written in the transaction that keeps the result.

Eight uint16 codes (`pixelgate_common.colors`: the cell of a colour, by which candidates are found), then eight times
L*, a*, b* as int16 hundredths, by which they are ranked; little-endian. A colour with a share below MIN_SHARE has the
code EMPTY_CODE and does not count. Results are rounded to hundredths when they are kept, so nothing is lost here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pixelgate_common.colors import EMPTY_CODE, encode_lab
from pixelgate_common.contracts.color import MAX_COLORS, MIN_SHARE

from storage_service.database import Connection

LAB_DIGITS = 2
PACKED_BYTES = MAX_COLORS * (2 + 3 * 2)
_SCALE = 10**LAB_DIGITS
_PACKED = np.dtype([("codes", "<u2", (MAX_COLORS,)), ("labs", "<i2", (MAX_COLORS, 3))])
BATCH = 20_000

Codes = npt.NDArray[np.uint16]
Hundredths = npt.NDArray[np.int16]


@dataclass(frozen=True)
class PaletteRows:
    """Rows of `palettes`: ids, seq and changed (n,) int64; codes (n, 8), labs (n, 8, 3) in hundredths, of both kinds.

    Where `has_foreground` is false, the codes and labs of the foreground mean nothing.
    """

    ids: npt.NDArray[np.int64]
    seqs: npt.NDArray[np.int64]
    changed: npt.NDArray[np.int64]
    whole: npt.NDArray[Any]
    foreground: npt.NDArray[Any]
    has_foreground: npt.NDArray[np.bool_]


def pack(palette: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a palette of at most 8 colours ({lab, share}) in 64 bytes."""
    packed = np.zeros((), _PACKED)
    packed["codes"] = EMPTY_CODE
    if palette:
        labs = np.array([color["lab"] for color in palette], np.float64)
        shares = np.array([color["share"] for color in palette], np.float32)
        hundredths = np.clip(np.rint(labs * _SCALE), -32768, 32767).astype("<i2")
        codes = encode_lab(hundredths.astype(np.float32) / _SCALE)
        packed["codes"][: len(palette)] = np.where(shares >= np.float32(MIN_SHARE), codes, EMPTY_CODE)
        packed["labs"][: len(palette)] = hundredths
    return packed.tobytes()


def to_lab(hundredths: Hundredths) -> npt.NDArray[np.float32]:
    """Return packed colours (…, 3) as CIELAB."""
    return hundredths.astype(np.float32) / np.float32(_SCALE)


async def write_palettes(conn: Connection, image_ids: Sequence[int]) -> None:
    """Bring these pictures' rows to what their records say; it takes the clock, so it is the last before a commit."""
    rows = await conn.execute(
        "SELECT id, palette, foreground_palette FROM images WHERE id = ANY(%s) ORDER BY id", (list(image_ids),)
    )
    packed = [
        (image_id, pack(palette), pack(foreground) if foreground else None)
        for image_id, palette, foreground in await rows.fetchall()
    ]
    # From here to the commit every other writer waits for the clock.
    tick = await (await conn.execute("UPDATE clock SET seq = seq + 1 RETURNING seq")).fetchone()
    assert tick is not None
    await conn.execute(
        "INSERT INTO palettes (image_id, seq, changed, whole, foreground)"
        " SELECT id, %(seq)s, %(seq)s, whole, foreground"
        " FROM unnest(%(ids)s::bigint[], %(wholes)s::bytea[], %(foregrounds)s::bytea[]) AS p (id, whole, foreground)"
        " ON CONFLICT (image_id) DO UPDATE"
        " SET changed = excluded.changed, whole = excluded.whole, foreground = excluded.foreground",
        {
            "seq": tick[0],
            "ids": [image_id for image_id, _, _ in packed],
            "wholes": [whole for _, whole, _ in packed],
            "foregrounds": [foreground for _, _, foreground in packed],
        },
    )


async def changed_since(conn: Connection, changed: int, image_id: int) -> PaletteRows:
    """Return at most BATCH rows behind (changed, image id), in that order."""
    rows = await conn.execute(
        "SELECT image_id, seq, changed, whole, foreground FROM palettes WHERE (changed, image_id) > (%s, %s)"
        " ORDER BY changed, image_id LIMIT %s",
        (changed, image_id, BATCH),
        binary=True,
    )
    found = await rows.fetchall()
    nothing = bytes(PACKED_BYTES)
    numbers = np.array([row[:3] for row in found], np.int64).reshape(len(found), 3)
    return PaletteRows(
        ids=numbers[:, 0],
        seqs=numbers[:, 1],
        changed=numbers[:, 2],
        whole=np.frombuffer(b"".join(row[3] for row in found), _PACKED),
        foreground=np.frombuffer(b"".join(row[4] or nothing for row in found), _PACKED),
        has_foreground=np.array([row[4] is not None for row in found], np.bool_),
    )
