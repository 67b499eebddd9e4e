"""Pictures are read, edited, and their files served as caches and media players ask for them."""

from __future__ import annotations

import pictures_made as made
import pytest
from conftest import Service
from pixelgate_common.contracts.storage import Arrival
from pixelgate_common.frames import decode_frames
from storage_service.routes.files import parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (0, 100, False)), ("bytes=0-0", (0, 1, True)), ("bytes=10-19", (10, 20, True)),
        ("bytes=90-", (90, 100, True)), ("bytes=90-500", (90, 100, True)), ("bytes=-30", (70, 100, True)),
        ("bytes=-500", (0, 100, True)), ("bytes=100-", None), ("bytes=500-600", None), ("bytes=-0", None),
        ("bytes=5-3", (0, 100, False)), ("bytes=-", (0, 100, False)), ("bytes=0-1,5-6", (0, 100, False)),
        ("lines=1-2", (0, 100, False)), ("bytes=a-b", (0, 100, False)), ("bytes=" + "9" * 40 + "-", (0, 100, False)),
    ],
)  # fmt: skip
def test_ranges(header: str | None, expected: tuple[int, int, bool] | None) -> None:
    assert parse_range(header, 100) == expected


@pytest.mark.parametrize("variant", ["original", "small", "medium", "preview"])
async def test_a_file_is_served_so_that_it_can_be_kept_for_good(service: Service, variant: str) -> None:
    record = await service.create(made.jpeg(), Arrival(filename='ev"il\nname é.jpg'))
    response = await service.client.get(record.links[variant])
    assert response.status_code == 200
    headers = response.headers
    assert headers["cache-control"] == "private, max-age=31536000, immutable"
    assert headers["etag"] == f'"{record.sha256[:32]}-{variant}"'
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == "image/jpeg"
    assert headers["accept-ranges"] == "bytes"
    name = "ev_ilname _.jpg" if variant == "original" else f"ev_ilname _-{variant}.jpg"
    assert headers["content-disposition"].startswith(f"inline; filename=\"{name}\"; filename*=UTF-8''ev%22ilname")
    head = await service.client.head(record.links[variant])
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == str(len(response.content))
    assert head.headers["etag"] == headers["etag"]


async def test_what_the_client_has_is_not_sent_again(service: Service) -> None:
    record = await service.create(made.jpeg())
    etag = (await service.client.get(record.links["small"])).headers["etag"]
    for header in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        response = await service.client.get(record.links["small"], headers={"If-None-Match": header})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == etag
    other = await service.client.get(record.links["small"], headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


async def test_parts_of_a_file(service: Service) -> None:
    data = made.jpeg()
    record = await service.create(data)
    link, size = record.links["original"], len(data)
    etag = f'"{record.sha256[:32]}-original"'

    async def get(**headers: str) -> tuple[int, bytes, str | None]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await service.client.get(link, headers=names)
        return response.status_code, response.content, response.headers.get("content-range")

    assert await get(Range="bytes=10-19") == (206, data[10:20], f"bytes 10-19/{size}")
    assert await get(Range="bytes=-7") == (206, data[-7:], f"bytes {size - 7}-{size - 1}/{size}")
    assert await get(Range=f"bytes={size - 3}-") == (206, data[-3:], f"bytes {size - 3}-{size - 1}/{size}")
    assert await get(Range="bytes=0-3", If_Range=etag) == (206, data[:4], f"bytes 0-3/{size}")
    assert await get(Range="bytes=0-3", If_Range='"older"') == (200, data, None)
    status, body, outside = await get(Range=f"bytes={size}-")
    assert (status, outside) == (416, f"bytes */{size}")
    assert b"range_not_satisfiable" in body


async def test_large_files_stream(service: Service) -> None:
    data = made.encoded(made.scene(900, 700), "BMP")
    service.parts.arrivals._limits = service.parts.arrivals._limits.__class__(max_bytes=5_000_000)
    record = await service.create(data)
    response = await service.client.get(record.links["original"], headers={"Range": "bytes=5-1500000"})
    assert response.content == data[5:1_500_001]
    assert (await service.client.get(record.links["original"])).content == data
    frames = await service.client.post("/v1/files", json={"image_ids": [record.id], "variant": "original"})
    assert dict(decode_frames(frames.content)) == {str(record.id): data}


async def test_many_files_come_in_one_answer(service: Service) -> None:
    records = [await service.create(made.jpeg(seed=n)) for n in range(3)]
    ids = [records[2].id, 999_999, records[0].id]
    response = await service.client.post("/v1/files", json={"image_ids": ids})
    frames = list(decode_frames(response.content))
    assert [name for name, _ in frames] == [str(id_) for id_ in ids]
    assert frames[1][1] is None
    assert frames[0][1] == (await service.client.get(records[2].links["preview"])).content
    assert int(response.headers["content-length"]) == len(response.content)
    too_many = await service.client.post("/v1/files", json={"image_ids": list(range(1, 300))})
    assert too_many.status_code == 422


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/images/1", 404), ("/v1/images/1/small", 404), ("/v1/images/0", 422), ("/v1/images/x", 422),
        ("/v1/images/9223372036854775808", 422), ("/v1/images/1/huge", 422), ("/v1/images/1/..%2f..%2fetc", 404),
    ],
)  # fmt: skip
async def test_what_is_not_there_is_said_so(service: Service, path: str, status: int) -> None:
    response = await service.client.get(path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_person_edits(service: Service) -> None:
    record = await service.create(made.jpeg(), Arrival(tags=["old"], attributes={"a": 1}))
    path = f"/v1/images/{record.id}"
    changed = (await service.client.patch(path, json={"tags": ["x", "y", "x"], "caption": "A red corner"})).json()
    assert (changed["tags"], changed["caption"], changed["caption_by"]) == (["x", "y"], "A red corner", "person")
    assert changed["attributes"] == {"a": 1}
    assert (await service.client.patch(path, json={"attributes": {}})).json()["attributes"] == {}
    cleared = (await service.client.patch(path, json={"caption": None})).json()
    assert (cleared["caption"], cleared["caption_by"]) == (None, None)
    assert (await service.client.patch(path, json={"width": 3})).status_code == 422
    assert (await service.client.patch("/v1/images/4711", json={"tags": []})).status_code == 404


async def test_records_of_many_pictures_take_two_queries(service: Service) -> None:
    from storage_service.records import fetch_records

    ids = [(await service.create(made.jpeg(seed=n))).id for n in range(4)]
    async with service.parts.db.connection() as conn:
        before = await (await conn.execute("SELECT count(*) FROM pg_prepared_statements")).fetchone()
        records = await fetch_records(conn, [*ids, 424242])
        assert before is not None
    assert list(sorted(records)) == sorted(ids)
    async with service.parts.db.connection() as conn:
        assert await fetch_records(conn, []) == {}


async def test_health(service: Service) -> None:
    assert (await service.client.get("/healthz")).json() == {"status": "alive"}
    ready = await service.client.get("/readyz")
    assert ready.status_code == 200, ready.text
    assert set(ready.json()["parts"]) == {"database", "objects", "vectors"}
    assert "pixelgate_requests_total" in (await service.client.get("/metrics")).text


async def test_not_ready_when_the_objects_cannot_be_written(service: Service) -> None:
    new = service.parts.settings.data_dir / "objects" / ".new"
    new.rmdir()
    response = await service.client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["parts"]["objects"]["ready"] is False
    assert response.json()["parts"]["database"]["ready"] is True
