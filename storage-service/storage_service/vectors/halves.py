"""Vectors as they are kept: of length 1, as little-endian float16, the same values in Postgres and in the index."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pixelgate_common.errors import InvalidRequest
from pixelgate_common.vectors import FloatVector


def to_unit(vector: npt.ArrayLike, dim: int) -> FloatVector:
    """Return `vector` with length 1, shape (dim,), float32, in values that float16 has.

    Queries are rounded like stored vectors, because the index's engine does so with them; cosines then come out the
    same wherever they are computed, within 0.0001 of the unrounded ones. InvalidRequest for another shape, or for a
    vector without a direction (all zero, or not finite).
    """
    given = np.asarray(vector, dtype=np.float64)
    if given.shape != (dim,):
        raise InvalidRequest(f"The vector has {given.size} values, this model's have {dim}.", field="vector")
    length = float(np.linalg.norm(given))
    if not np.isfinite(length) or length == 0.0:
        raise InvalidRequest("The vector has no direction: its length is zero or not finite.", field="vector")
    unit: FloatVector = (given / length).astype(np.float16).astype(np.float32)
    return unit


def to_half(vector: FloatVector) -> bytes:
    """Return `vector` as Postgres keeps it: little-endian float16."""
    return vector.astype("<f2").tobytes()


def from_half(raw: bytes) -> FloatVector:
    """Return what `to_half` kept, as float32."""
    return np.frombuffer(raw, dtype="<f2").astype(np.float32)
