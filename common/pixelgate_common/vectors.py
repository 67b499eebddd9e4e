"""Vectors on the wire: base64 of little-endian float32."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

FloatVector = npt.NDArray[np.float32]
"""A one-dimensional array of float32."""


def encode_vector(vector: npt.ArrayLike) -> str:
    """Return base64 of `vector` (shape (n,)) as little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")


def decode_vector(text: str) -> FloatVector:
    """Return the float32 array, shape (n,), that `text` encodes; ValueError when it is not one or not finite."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("not base64") from error
    if not raw or len(raw) % 4:
        raise ValueError("not base64 of float32 values")
    vector = np.frombuffer(raw, dtype="<f4").astype(np.float32)
    if not np.isfinite(vector).all():
        raise ValueError("the vector has values that are not finite")
    return vector


def _check(text: str) -> str:
    decode_vector(text)
    return text


Base64Vector = Annotated[str, AfterValidator(_check)]
"""Base64 of little-endian float32 values, checked when it arrives."""
