"""Objects in a bucket of any S3 server, through plain S3 requests only."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from typing import Any, TypeVar

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error
from pixelgate_common.errors import OutOfSpace

from storage_service.objects.protocol import (
    CHUNK_BYTES,
    NewObject,
    ObjectMissing,
    ObjectStoreUnavailable,
    check_key,
)

T = TypeVar("T")
_MISSING = frozenset({"NoSuchKey", "NoSuchObject"})
_FULL = frozenset({"XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "XAmzQuotaExceeded"})
_OURS = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})


class S3Objects:
    """Objects of one bucket, by a blocking client in threads."""

    def __init__(
        self,
        endpoint: str,
        access_key: str,
        secret_key: str,
        *,
        bucket: str,
        region: str,
        secure: bool,
        threads: int = 16,
    ) -> None:
        """Name the server (`host:port`) and the bucket, which `open` makes when it is not there."""
        self._bucket, self._region = bucket, region
        http = urllib3.PoolManager(
            maxsize=threads,
            timeout=urllib3.Timeout(connect=5, read=60),
            # Every request made here may be repeated: keys say what stands under them.
            retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
        )
        self._client = Minio(
            endpoint, access_key=access_key, secret_key=secret_key, secure=secure, region=region, http_client=http
        )
        self._http = http
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="objects")

    async def open(self) -> None:
        """See `ObjectStore.open`."""
        await self._run(self._open)

    async def put(self, objects: Sequence[NewObject]) -> None:
        """See `ObjectStore.put`; the objects go up side by side."""
        for new in objects:
            check_key(new.key)
        await asyncio.gather(*(self._run(self._put, new) for new in objects))

    async def size(self, key: str) -> int | None:
        """See `ObjectStore.size`."""
        return await self._run(self._size, check_key(key))

    async def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """See `ObjectStore.sizes`."""
        return list(await asyncio.gather(*(self.size(key) for key in keys)))

    async def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See `ObjectStore.read`."""
        return b"".join([chunk async for chunk in self.stream(key, start, length)])

    async def stream(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """See `ObjectStore.stream`."""
        response = await self._run(self._get, check_key(key), start, length)
        if response is None:
            return
        try:
            while chunk := await self._run(response.read, CHUNK_BYTES):
                yield chunk
        finally:
            # What is left of an answer that nobody wants any more is not read: the connection goes instead.
            response.close()
            response.release_conn()

    async def delete(self, keys: Collection[str]) -> None:
        """See `ObjectStore.delete`."""
        checked = [check_key(key) for key in keys]
        await asyncio.gather(*(self._run(self._client.remove_object, self._bucket, key) for key in checked))

    async def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        """See `ObjectStore.list_keys`."""
        listing = iter(self._client.list_objects(self._bucket, prefix=prefix, recursive=True))
        while batch := await self._run(lambda: [found.object_name for found, _ in zip(listing, range(1000))]):  # noqa: B905
            for key in batch:
                yield key

    async def check(self) -> None:
        """See `ObjectStore.check`."""
        await self._run(self._check)

    async def close(self) -> None:
        """See `ObjectStore.close`."""
        await asyncio.to_thread(self._threads.shutdown)
        self._http.clear()

    async def _run(self, call: Callable[..., T], *args: object) -> T:
        with _errors_named():
            return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)

    def _open(self) -> None:
        if not self._client.bucket_exists(self._bucket):
            try:
                self._client.make_bucket(self._bucket, location=self._region)
            except S3Error as error:  # another process was faster
                if error.code not in _OURS:
                    raise

    def _put(self, new: NewObject) -> None:
        self._client.fput_object(self._bucket, new.key, str(new.path), content_type=new.media_type)
        new.path.unlink(missing_ok=True)

    def _size(self, key: str) -> int | None:
        try:
            size: int | None = self._client.stat_object(self._bucket, key).size
        except S3Error as error:
            if error.code in _MISSING:
                return None
            raise
        return size

    def _get(self, key: str, start: int, length: int | None) -> Any:
        """Return the open answer, None where the part that is wanted has no bytes."""
        try:
            if length == 0:  # the client takes 0 for "to the end"
                self._client.stat_object(self._bucket, key)
                return None
            return self._client.get_object(self._bucket, key, offset=start, length=length or 0)
        except S3Error as error:
            if error.code in _MISSING:
                raise ObjectMissing(f"There is no object {key}.") from error
            if error.code == "InvalidRange":
                return None
            raise

    def _check(self) -> None:
        probe = f"probe-{secrets.token_hex(8)}"
        self._client.put_object(self._bucket, probe, BytesIO(b"probe"), 5)
        self._client.remove_object(self._bucket, probe)


@contextmanager
def _errors_named() -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        if error.code in _FULL:
            raise OutOfSpace("The object store has no room left.") from error
        raise ObjectStoreUnavailable(f"The object store refused: {error.code}.") from error
    except (MinioException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise ObjectStoreUnavailable(f"The object store does not answer: {type(error).__name__}.") from error
