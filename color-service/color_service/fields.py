"""Which field of a request a bad picture came in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pixelgate_common.images import ImageRefused


@contextmanager
def about_field(field: str) -> Iterator[None]:
    """Say of a picture that is refused inside the block that it came in `field`."""
    try:
        yield
    except ImageRefused as error:
        raise type(error)(f"{field}: {error.detail}", field=field) from error
