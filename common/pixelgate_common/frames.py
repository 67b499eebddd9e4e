"""Several pictures in one answer, as bytes: a line of JSON with their sizes, then the bytes one after the other.

One request for a batch of previews in place of one for each: an HTTP round trip in Python costs about as much
processor time as decoding the picture it brings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

MEDIA_TYPE = "application/vnd.pixelgate.frames"
_MAX_HEADER_BYTES = 1 << 20


def encode_frames(frames: Sequence[tuple[str, bytes | None]]) -> bytes:
    """Return `frames`, pairs of a name and its bytes (None: there is none), as one body."""
    header = encode_header([(name, None if data is None else len(data)) for name, data in frames])
    return b"".join([header, *(data for _, data in frames if data is not None)])


def encode_header(sizes: Sequence[tuple[str, int | None]]) -> bytes:
    """Return the line that begins a body of frames with these names and sizes, for bytes that are streamed after it."""
    return json.dumps([[name, size] for name, size in sizes]).encode() + b"\n"


def decode_frames(body: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Yield the pairs that `encode_frames` was given; ValueError when the body is cut short or not frames."""
    end = body.find(b"\n", 0, _MAX_HEADER_BYTES)
    if end < 0:
        raise ValueError("not a body of frames")
    start = end + 1
    for name, size in json.loads(body[:end]):
        if size is None:
            yield name, None
            continue
        if start + size > len(body):
            raise ValueError("the body of frames is cut short")
        yield name, body[start : start + size]
        start += size
