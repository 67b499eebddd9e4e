"""Pictures that a request brings as text (base64, data URI) or wants a part of."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
from concurrent.futures import ThreadPoolExecutor

from pixelgate_common.errors import InvalidRequest, PixelgateError
from pixelgate_common.images import DecodeLimits, decode

_DATA_URI = re.compile(r"data:[^,;]*(;[^,;]*)*;base64,", re.ASCII)
_DATA_URI_HEAD_CHARS = 500
_MIN_SIDE_PX = 1


class PictureTooLarge(PixelgateError):
    """A picture that came as text has more bytes than a picture may have."""

    status, code, title = 413, "file_too_large", "The file is too large"


def is_data_uri(text: str) -> bool:
    """Return whether `text` is a data URI, well-formed or not."""
    return text[:5].lower() == "data:"


def from_base64(text: str, *, field: str, max_bytes: int) -> bytes:
    """Return the bytes that `text` (base64, or a data URI with base64) stands for. Raises `InvalidRequest`."""
    start = 0
    if is_data_uri(text):
        head = _DATA_URI.match(text[:_DATA_URI_HEAD_CHARS])
        if head is None:
            raise InvalidRequest("A data URI must have the form data:image/…;base64,…", field=field)
        start = head.end()
    if (len(text) - start) * 3 // 4 > max_bytes + 3:
        raise PictureTooLarge(f"A picture may have at most {max_bytes:,} bytes.", field=field)
    try:
        return base64.b64decode(text[start:] if start else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("This is not base64.", field=field) from error


class Cropper:
    """Cuts a part out of a picture file: safe decode, crop, lossless PNG; at most `threads` at one time."""

    def __init__(self, limits: DecodeLimits, threads: int = 2) -> None:
        """Decode within `limits`."""
        self._limits = limits
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="crop")

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def crop(self, data: bytes, box: tuple[float, float, float, float], *, field: str = "crop") -> bytes:
        """Return the part `box` (x, y, width, height in the upright picture's pixels) of a picture file.

        What of the box lies outside is left out. Raises `InvalidRequest` about `field` when nothing of it lies inside,
        and what `decode` raises.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._crop, data, box, field)

    def _crop(self, data: bytes, box: tuple[float, float, float, float], field: str) -> bytes:
        picture = decode(data, self._limits)
        x, y, width, height = box
        if not (abs(x) < 1e9 and abs(y) < 1e9 and 0 < width < 1e9 and 0 < height < 1e9):
            raise InvalidRequest("A crop box has a width and a height above 0.", field=field)
        left, top = max(0, round(x)), max(0, round(y))
        right, bottom = min(picture.width, round(x + width)), min(picture.height, round(y + height))
        if right - left < _MIN_SIDE_PX or bottom - top < _MIN_SIDE_PX:
            raise InvalidRequest(
                f"The crop box lies outside of the picture, which has {picture.width} × {picture.height} pixels.",
                field=field,
            )
        out = io.BytesIO()
        # Level 1: embed-service decodes it at once, so speed counts and size does not.
        picture.crop((left, top, right, bottom)).save(out, "PNG", compress_level=1)
        return out.getvalue()
