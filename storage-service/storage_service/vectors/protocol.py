"""The interface to the vector index. Postgres is the truth; the index can be thrown away and rebuilt at any time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pixelgate_common.errors import Unavailable
from pixelgate_common.vectors import FloatVector

from storage_service.vectors.conditions import Condition

Payload = dict[str, Any]
"""What a point carries to be filtered by: the fields of `PAYLOAD_FIELDS`, absent where the picture lacks them."""
Ids = npt.NDArray[np.int64]

FieldKind = Literal["keyword", "integer", "time"]
PAYLOAD_FIELDS: Mapping[str, FieldKind] = {
    "id": "integer",
    "seq": "integer",
    "sha256": "keyword",
    "filename": "keyword",
    "media_type": "keyword",
    "format": "keyword",
    "width": "integer",
    "height": "integer",
    "bytes": "integer",
    "created_at": "time",
    "captured_at": "time",
    "caption_by": "keyword",
    "tags": "keyword",
    "tokens": "keyword",
}
"""Every payload field that a condition may name, and the kind of its payload index.

Each implementation makes all of these indexes together with the generation: a filter on a field without one is slower
by two orders of magnitude. `tokens` holds everything with free names or long text (`payloads.py`). Beside these, a
payload has a `stamp`, which tells whether it is still what Postgres says.
"""


class VectorIndexUnavailable(Unavailable):
    """The vector index cannot be reached or does not answer."""

    code, title = "vector_index_unavailable", "The vector index is not available"


@dataclass(frozen=True, slots=True)
class VectorPoint:
    """One picture in one generation; `vector` has shape (dim,), float32, values that float16 can hold."""

    image_id: int
    vector: FloatVector
    payload: Payload


class VectorIndex(Protocol):
    """Vectors by generation, searched by cosine similarity under a condition.

    Every method raises `VectorIndexUnavailable` when the store does not answer. What a call has written is seen by
    every later search.
    """

    async def ensure(self, generation_id: int, dim: int) -> None:
        """Open the generation, or make it with an index for every payload field."""
        ...

    async def drop(self, generation_id: int) -> None:
        """Remove the generation with all its points; one that is not there is no error."""
        ...

    async def upsert(self, generation_id: int, points: Sequence[VectorPoint]) -> None:
        """Add points, or replace those of the same pictures."""
        ...

    async def set_payload(self, generation_id: int, payloads: Mapping[int, Payload]) -> None:
        """Replace the whole payload of these pictures' points; pictures without a point are passed over."""
        ...

    async def remove(self, image_ids: Collection[int], generation_id: int | None = None) -> None:
        """Remove these pictures from one generation or from all; those that are not there are passed over."""
        ...

    async def search(
        self,
        generation_id: int,
        vector: FloatVector,
        limit: int,
        condition: Condition | None = None,
        *,
        exact: bool = False,
    ) -> list[tuple[int, float]]:
        """Return at most `limit` (image id, cosine) that fit the condition, the most similar first.

        `vector` has shape (dim,) and unit length. `exact` compares with every vector and uses no approximate graph.
        """
        ...

    async def count(self, generation_id: int) -> int:
        """Return how many points the generation has."""
        ...

    def stamps(self, generation_id: int) -> AsyncIterator[tuple[Ids, Ids]]:
        """Yield the ids of all points in ascending order, and each one's `stamp` (-1: none), in batches."""
        ...

    async def present(self) -> set[int]:
        """Return the ids of the generations that the store holds, open or not."""
        ...

    async def close(self) -> None:
        """Make everything durable and let go of it."""
        ...
