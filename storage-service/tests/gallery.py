"""Pictures for tests: rows as the arrival of a file writes them, without any file, and clustered vectors."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg.types.json import Jsonb
from storage_service.database import Connection

FINGERPRINT = "test-model:1"
_number = itertools.count(1)


@contextmanager
def quick_folder() -> Iterator[Path]:
    """Yield an empty folder, in memory where the machine has one: making a shard is 100 file syncs."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


async def add_image(conn: Connection, **given: Any) -> int:
    """Insert one picture and return its id; what is not given is plain."""
    number = next(_number)
    columns: dict[str, Any] = {
        "sha256": hashlib.sha256(f"picture {number}".encode()).digest(),
        "media_type": "image/jpeg",
        "format": "jpeg",
        "width": 640,
        "height": 480,
        "bytes": 50_000,
        "has_alpha": False,
        "phash": number,
        "thumbhash": b"\x01",
        "objects_known": "object_counts" in given,
        **given,
    }
    for name in ("attributes", "exif", "objects", "object_counts"):
        if name in columns:
            columns[name] = Jsonb(columns[name])
    row = await (await conn.execute("UPDATE clock SET seq = seq + 1 RETURNING seq")).fetchone()
    assert row is not None
    columns["seq"] = row[0]
    names, marks = ", ".join(columns), ", ".join(f"%({name})s" for name in columns)
    row = await (await conn.execute(f"INSERT INTO images ({names}) VALUES ({marks}) RETURNING id", columns)).fetchone()
    assert row is not None
    return int(row[0])


def clustered(count: int, dim: int = 32, *, seed: int = 0, clusters: int = 10, spread: float = 0.4) -> Any:
    """Return `count` unit vectors around a few centres, as embeddings lie; shape (count, dim), float32."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(12345).standard_normal((clusters, dim))
    vectors = centres[random.integers(0, clusters, count)] + spread * random.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def ranked(vectors: npt.NDArray[np.float32], query: npt.NDArray[np.float32]) -> list[int]:
    """Return the positions of `vectors` by cosine to `query`, the best first (vectors of length 1)."""
    return [int(position) for position in np.argsort(-(vectors @ query), kind="stable")]


def moment(text: str) -> datetime:
    """Return the time `text`, ISO 8601 with a zone."""
    return datetime.fromisoformat(text)
