"""One set of tests for every object store: a directory always, an S3 server where one is named."""

from __future__ import annotations

import asyncio
import errno
import os
import uuid
import warnings
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

import pytest
from pixelgate_common.errors import OutOfSpace
from storage_service.objects import directory
from storage_service.objects.directory import DirectoryObjects
from storage_service.objects.protocol import (
    CHUNK_BYTES,
    InvalidKey,
    NewObject,
    ObjectMissing,
    ObjectStore,
    ObjectStoreUnavailable,
    object_key,
)
from storage_service.objects.s3 import S3Objects

ENDPOINT = os.environ.get("PIXELGATE_TEST_S3_ENDPOINT")
KEY = object_key(bytes(range(32)), "original")


@cache
def say_once(reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn(reason, stacklevel=2)


def s3(bucket: str, **other: str) -> S3Objects:
    assert ENDPOINT is not None
    keys = {name: os.environ[f"PIXELGATE_TEST_S3_{name.upper()}"] for name in ("access_key", "secret_key")} | other
    return S3Objects(ENDPOINT, keys["access_key"], keys["secret_key"], bucket=bucket, region="us-east-1", secure=False)


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.server)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    objects: ObjectStore
    if request.param == "directory":
        objects = DirectoryObjects(tmp_path / "objects")
    elif ENDPOINT is None:
        reason = "PIXELGATE_TEST_S3_ENDPOINT is not set: the S3 object store is NOT TESTED in this run"
        say_once(reason)
        pytest.skip(reason)
    else:
        objects = s3(f"test-{uuid.uuid4().hex}")
    await objects.open()
    try:
        yield objects
    finally:
        await objects.delete([key async for key in objects.list_keys()])
        await objects.close()


async def put(store: ObjectStore, tmp_path: Path, key: str, data: bytes, media_type: str = "image/png") -> Path:
    path = tmp_path / uuid.uuid4().hex
    path.write_bytes(data)
    await store.put([NewObject(key, path, media_type)])
    return path


async def test_what_was_put_is_read_back_and_the_source_is_gone(store: ObjectStore, tmp_path: Path) -> None:
    source = await put(store, tmp_path, KEY, b"hello")
    assert await store.read(KEY) == b"hello"
    assert await store.size(KEY) == 5
    assert not source.exists()


async def test_putting_again_replaces(store: ObjectStore, tmp_path: Path) -> None:
    await put(store, tmp_path, KEY, b"first, longer")
    await put(store, tmp_path, KEY, b"second")
    assert await store.read(KEY) == b"second"


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, None, b"0123456789"), (3, None, b"3456789"), (3, 4, b"3456"), (8, 100, b"89"), (0, 0, b""), (10, None, b""),
        (50, 5, b""),
    ],
)  # fmt: skip
async def test_a_part_can_be_read(
    store: ObjectStore, tmp_path: Path, start: int, length: int | None, expected: bytes
) -> None:
    await put(store, tmp_path, KEY, b"0123456789")
    assert await store.read(KEY, start, length) == expected
    assert b"".join([chunk async for chunk in store.stream(KEY, start, length)]) == expected


async def test_a_large_object_streams_in_bounded_chunks(store: ObjectStore, tmp_path: Path) -> None:
    data = os.urandom(6_000_000)
    await put(store, tmp_path, KEY, data)
    chunks = [chunk async for chunk in store.stream(KEY, 5, 5_900_000)]
    assert max(map(len, chunks)) <= CHUNK_BYTES
    assert b"".join(chunks) == data[5:5_900_005]


async def test_a_stream_can_be_left_in_the_middle(store: ObjectStore, tmp_path: Path) -> None:
    await put(store, tmp_path, KEY, os.urandom(3_000_000))
    for _ in range(40):
        stream = store.stream(KEY)
        assert await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
    assert await store.size(KEY) == 3_000_000


async def test_what_is_missing_is_named(store: ObjectStore) -> None:
    assert await store.size(KEY) is None
    with pytest.raises(ObjectMissing):
        await store.read(KEY)
    with pytest.raises(ObjectMissing):
        await anext(store.stream(KEY))


async def test_sizes_come_in_the_order_asked(store: ObjectStore, tmp_path: Path) -> None:
    await put(store, tmp_path, "a/1", b"1")
    await put(store, tmp_path, "a/3", b"333")
    assert await store.sizes(["a/3", "a/2", "a/1"]) == [3, None, 1]


async def test_delete_removes_and_passes_over_what_is_not_there(store: ObjectStore, tmp_path: Path) -> None:
    await put(store, tmp_path, "a/b/one", b"1")
    await put(store, tmp_path, "a/b/two", b"2")
    await store.delete(["a/b/one", "a/b/never"])
    assert [key async for key in store.list_keys()] == ["a/b/two"]


async def test_keys_can_be_listed_by_prefix(store: ObjectStore, tmp_path: Path) -> None:
    for key in ("aa/1", "aa/2", "ab/1"):
        await put(store, tmp_path, key, b"x")
    assert sorted([key async for key in store.list_keys("aa/")]) == ["aa/1", "aa/2"]
    assert len([key async for key in store.list_keys()]) == 3


async def test_the_check_leaves_nothing(store: ObjectStore) -> None:
    await store.check()
    assert [key async for key in store.list_keys()] == []


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "a/",
        ".x",
        "a/.b",
        "A",
        "a\\b",
        "a b",
        "a\x00",
        "é",
        "a/b/c/d/e/f",
    ],
)
async def test_other_keys_are_refused(store: ObjectStore, tmp_path: Path, key: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(InvalidKey):
        await store.read(key)
    with pytest.raises(InvalidKey):
        await store.delete([key])
    with pytest.raises(InvalidKey):
        await store.put([NewObject(key, source, "image/png")])
    assert source.exists()


async def test_many_at_once(store: ObjectStore, tmp_path: Path) -> None:
    await asyncio.gather(*(put(store, tmp_path, f"k{n % 7}/{n}", str(n).encode()) for n in range(60)))
    assert await asyncio.gather(*(store.read(f"k{n % 7}/{n}") for n in range(60))) == [
        str(n).encode() for n in range(60)
    ]


async def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = DirectoryObjects(tmp_path / "objects")
    await store.open()
    monkeypatch.setattr(directory, "_flush", full)
    with pytest.raises(OutOfSpace):
        await put(store, tmp_path, KEY, b"x")
    assert await store.size(KEY) is None
    await store.close()


async def test_another_file_system_is_copied_from(tmp_path: Path) -> None:
    store = DirectoryObjects(tmp_path / "objects")
    await store.open()
    source = Path("/dev/shm") / f"pixelgate-test-{uuid.uuid4().hex}"
    if source.parent.stat().st_dev == tmp_path.stat().st_dev:
        source = tmp_path / "same"  # nothing else to test with here
    source.write_bytes(b"from afar")
    await store.put([NewObject(KEY, source, "image/png")])
    assert await store.read(KEY) == b"from afar"
    assert not source.exists()
    assert list((tmp_path / "objects" / ".new").iterdir()) == []
    await store.close()


async def test_what_an_earlier_process_began_is_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "objects" / ".new").mkdir(parents=True)
    (tmp_path / "objects" / ".new" / "half").write_bytes(b"x")
    store = DirectoryObjects(tmp_path / "objects")
    await store.open()
    assert list((tmp_path / "objects" / ".new").iterdir()) == []
    await store.close()


async def test_a_server_that_is_away_is_named() -> None:
    store = S3Objects("127.0.0.1:9", "key", "not-a-secret", bucket="bucket", region="us-east-1", secure=False)
    with pytest.raises(ObjectStoreUnavailable):
        await store.open()
    await store.close()


@pytest.mark.server
async def test_a_wrong_key_is_named() -> None:
    if ENDPOINT is None:
        pytest.skip("PIXELGATE_TEST_S3_ENDPOINT is not set: refused keys are NOT TESTED in this run")
    store = s3(f"test-{uuid.uuid4().hex}", secret_key="wrong-one-entirely")
    with pytest.raises(ObjectStoreUnavailable, match="refused"):
        await store.open()
    await store.close()
