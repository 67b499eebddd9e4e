"""Objects as files of a directory, for one machine."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from pixelgate_common.errors import OutOfSpace

from storage_service.objects.protocol import (
    CHUNK_BYTES,
    NewObject,
    ObjectMissing,
    ObjectStoreUnavailable,
    check_key,
)

T = TypeVar("T")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DirectoryObjects:
    """Objects below `root`, each a file whose path is its key.

    A new object is written to `root/.new`, flushed to the disk, and renamed; then its folder is flushed too. So after
    a power cut it is there whole or not at all.
    """

    def __init__(self, root: Path, *, threads: int = 8) -> None:
        """Keep objects below `root`; nothing is made before `open`."""
        self._root, self._new = root, root / ".new"
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="objects")

    async def open(self) -> None:
        """See `ObjectStore.open`; also removes what an earlier process began to write."""
        await self._run(self._open)

    async def put(self, objects: Sequence[NewObject]) -> None:
        """See `ObjectStore.put`. Files on the same file system are moved, not copied."""
        for new in objects:
            check_key(new.key)
        await self._run(self._put, objects)

    async def size(self, key: str) -> int | None:
        """See `ObjectStore.size`."""
        return (await self.sizes([key]))[0]

    async def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """See `ObjectStore.sizes`."""
        paths = [self._path(key) for key in keys]
        return await self._run(lambda: [_size(path) for path in paths])

    async def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `ObjectStore.read`."""
        return await self._run(_read, self._path(key), key, start, length)

    async def stream(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """See `ObjectStore.stream`."""
        file = await self._run(_open_file, self._path(key), key, start)
        left = length
        try:
            while left is None or left > 0:
                chunk = await self._run(file.read, CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
                if not chunk:
                    return
                if left is not None:
                    left -= len(chunk)
                yield chunk
        finally:
            file.close()

    async def delete(self, keys: Collection[str]) -> None:
        """See `ObjectStore.delete`; a folder that becomes empty goes too."""
        await self._run(self._delete, [self._path(key) for key in keys])

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        """See `ObjectStore.list_keys`."""
        walk = self._walk()
        while batch := await self._run(lambda: [key for _, key in zip(range(1000), walk, strict=False)]):
            for key in batch:
                if key.startswith(prefix):
                    yield key

    async def check(self) -> None:
        """See `ObjectStore.check`."""
        await self._run(self._check)

    async def close(self) -> None:
        """See `ObjectStore.close`."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self, call: Callable[..., T], *args: object) -> T:
        with _errors_named():
            return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)

    def _path(self, key: str) -> Path:
        # A key cannot begin with a dot or hold an empty part or backslash, so this never leaves the root.
        return self._root / check_key(key)

    def _open(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir(exist_ok=True)

    def _put(self, objects: Sequence[NewObject]) -> None:
        folders: dict[Path, None] = {}
        for new in objects:
            target = self._path(new.key)
            for parent in _make_folders(target.parent):
                folders[parent] = None
            _flush(new.path)
            try:
                os.replace(new.path, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy_in(new.path, target)
            folders[target.parent] = None
        for folder in folders:
            _flush(folder)

    def _copy_in(self, source: Path, target: Path) -> None:
        part = self._new / secrets.token_hex(16)
        try:
            shutil.copyfile(source, part)
            _flush(part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        source.unlink()

    def _delete(self, paths: Sequence[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)
        # Not the folders above, which are shared: somebody may be about to put another object into one of them.
        for folder in {path.parent for path in paths} - {self._root}:
            with suppress(OSError):  # another object, or nothing at all, is there
                folder.rmdir()

    def _walk(self) -> Iterator[str]:
        for folder, names, files in os.walk(self._root):
            if Path(folder) == self._root and ".new" in names:
                names.remove(".new")
            for file in files:
                yield (Path(folder) / file).relative_to(self._root).as_posix()

    def _check(self) -> None:
        probe = self._new / f"probe-{secrets.token_hex(8)}"
        try:
            probe.write_bytes(b"probe")
        finally:
            probe.unlink(missing_ok=True)


@contextmanager
def _errors_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise OutOfSpace("The disk of the object store is full.") from error
        raise ObjectStoreUnavailable(f"The folder of the object store: {error.strerror or error}.") from error


def _make_folders(folder: Path) -> list[Path]:
    """Make `folder` with its parents; return the folders that have got a new entry."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for part in reversed(missing):
        part.mkdir(exist_ok=True)
    return [part.parent for part in missing]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _open_file(path: Path, key: str, start: int) -> BinaryIO:
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise ObjectMissing(f"There is no object {key}.") from error
    file.seek(start)
    return file


def _read(path: Path, key: str, start: int, length: int | None) -> bytes:
    with _open_file(path, key, start) as file:
        return file.read() if length is None else file.read(length)
