"""The interface to the object store, and the keys that pictures' files have."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pixelgate_common.errors import NotFound, PixelgateError, Unavailable

CHUNK_BYTES = 256 * 1024
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}(/[a-z0-9][a-z0-9._-]{0,99}){0,4}")


class ObjectMissing(NotFound):
    """No object has this key."""

    code, title = "object_missing", "The file is not in the object store"


class ObjectStoreUnavailable(Unavailable):
    """The object store cannot be reached or does not answer."""

    code, title = "object_store_unavailable", "The object store is not available"


class InvalidKey(PixelgateError):
    """A key that no picture's file has."""

    code, title = "invalid_key", "This is not the key of an object"


@dataclass(frozen=True)
class NewObject:
    """A file to be stored under `key`; the store takes the file over."""

    key: str
    path: Path
    media_type: str


class ObjectStore(Protocol):
    """Immutable files by key. An object is there whole or not at all.

    Every method raises `InvalidKey` for a key that `check_key` refuses and `ObjectStoreUnavailable` when the store does
    not answer.
    """

    async def open(self) -> None:
        """Make the store ready; called once."""
        ...

    async def put(self, objects: Sequence[NewObject]) -> None:
        """Store all `objects` durably, replacing what has the same keys; OutOfSpace when there is no room.

        The files at their paths are moved or removed. After an error some may be stored and some not.
        """
        ...

    async def size(self, key: str) -> int | None:
        """Return the object's bytes, None when there is none."""
        ...

    async def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Return the bytes of each, in their order."""
        ...

    async def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `start`, or all to the end; `ObjectMissing` when there is none."""
        ...

    def stream(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Yield the same in chunks of at most CHUNK_BYTES; `ObjectMissing` before the first one."""
        ...

    async def delete(self, keys: Collection[str]) -> None:
        """Remove objects; those that are not there are passed over."""
        ...

    def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield every key that starts with `prefix`, in no order."""
        ...

    async def check(self) -> None:
        """Write and remove a small object; raises when that fails."""
        ...

    async def close(self) -> None:
        """Let go of threads and connections."""
        ...


def check_key(key: str) -> str:
    """Return `key`; InvalidKey unless it is 1 to 5 plain names of a-z, 0-9, `.`, `_` and `-`, divided by slashes."""
    if _KEY.fullmatch(key) is None:
        raise InvalidKey(f"{key!r} is not the key of an object.")
    return key


def object_key(sha256: bytes, name: str) -> str:
    """Return the key of one of a picture's files: where it stands follows from what it is."""
    digest = sha256.hex()
    return check_key(f"{digest[:2]}/{digest[2:]}/{name}")
