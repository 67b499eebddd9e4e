"""A deleted picture is gone from all three stores, whatever is away or comes back meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import numpy as np
import pictures_made as made
from conftest import Service, running
from pixelgate_common.vectors import encode_vector
from storage_service.objects.directory import DirectoryObjects
from storage_service.objects.protocol import ObjectStoreUnavailable
from storage_service.removal import Removals
from storage_service.settings import Settings


async def embed_all(service: Service, fingerprint: str = "test-clip-0001", dim: int = 8) -> None:
    model = {"fingerprint": fingerprint, "model": "test", "dim": dim}
    assert (await service.client.put("/v1/stages/clip/model", json=model)).status_code == 200
    batch = (
        await service.client.post("/v1/stages/clip/lease", json={"fingerprint": fingerprint, "limit": 256})
    ).json()["items"]
    rng = np.random.default_rng(1)
    items = [
        {"image_id": one["image_id"], "token": one["token"], "took_ms": 1.0, "vector": encode_vector(rng.random(dim))}
        for one in batch
    ]
    taken = await service.client.post("/v1/stages/clip/results", json={"fingerprint": fingerprint, "items": items})
    assert taken.json() == {"accepted": len(items), "stale": 0}


async def keys(service: Service) -> list[str]:
    return [key async for key in service.parts.objects.list_keys()]


async def points(service: Service) -> int:
    generation = await service.value("SELECT id FROM generations WHERE state = 'active'")
    return await service.parts.generations.index.count(generation)


async def test_a_deletion_empties_all_three_stores(service: Service) -> None:
    kept, gone = [await service.create(made.jpeg(seed=n)) for n in range(2)]
    await embed_all(service)
    assert await points(service) == 2
    assert (await service.client.delete(f"/v1/images/{gone.id}")).status_code == 204
    assert (await service.client.get(f"/v1/images/{gone.id}")).status_code == 404
    assert (await service.client.get(gone.links["small"])).status_code == 404
    assert (await service.client.delete(f"/v1/images/{gone.id}")).status_code == 404
    assert await points(service) == 1
    assert len(await keys(service)) == 4
    assert await service.value("SELECT count(*) FROM vectors") == 1
    assert await service.value("SELECT count(*) FROM analyses WHERE image_id = %s", gone.id) == 0
    assert await service.value("SELECT count(*) FROM removals") == 0
    assert (await service.client.get(kept.links["original"])).content == made.jpeg(seed=0)


class Away(DirectoryObjects):
    """A directory that refuses to remove, like a server that is away."""

    async def delete(self, keys: Collection[str]) -> None:
        raise ObjectStoreUnavailable("away")


async def test_what_a_store_that_is_away_keeps_is_removed_later(service: Service, settings: Settings) -> None:
    record = await service.create(made.jpeg())
    parts = service.parts
    away = Away(settings.data_dir / "objects")
    parts.removals._objects = away
    assert (await service.client.delete(f"/v1/images/{record.id}")).status_code == 204
    assert (await service.client.get(f"/v1/images/{record.id}")).status_code == 404
    assert len(await keys(service)) == 4
    assert await parts.removals.work_off() == 1
    parts.removals._objects = parts.objects
    assert await parts.removals.work_off() == 0
    assert await keys(service) == []
    await away.close()


async def test_the_next_start_works_off_what_is_left(settings: Settings) -> None:
    async with running(settings) as service:
        record = await service.create(made.jpeg())
        away = Away(settings.data_dir / "objects")
        service.parts.removals._objects = away
        await service.client.delete(f"/v1/images/{record.id}")
        await away.close()
    async with running(settings) as service:
        for _ in range(200):
            if await service.value("SELECT count(*) FROM removals") == 0:
                break
            await asyncio.sleep(0.05)
        assert await keys(service) == []


async def test_a_picture_uploaded_again_before_its_removal_keeps_its_files(
    service: Service, settings: Settings
) -> None:
    data = made.jpeg()
    record = await service.create(data)
    away = Away(settings.data_dir / "objects")
    service.parts.removals._objects = away
    await service.client.delete(f"/v1/images/{record.id}")
    again = await service.create(data)
    assert again.id != record.id
    service.parts.removals._objects = service.parts.objects
    assert await service.parts.removals.work_off() == 0
    for variant in ("original", "small", "medium", "preview"):
        assert (await service.client.get(again.links[variant])).status_code == 200
    await away.close()


async def test_uploads_and_deletions_of_the_same_bytes_side_by_side(service: Service) -> None:
    """Whatever the order turns out to be: a picture that is there has all of its files, and there are no others."""
    data = made.jpeg()
    second = Removals(service.parts.db, service.parts.generations, service.parts.objects)

    async def churn(n: int) -> None:
        for _ in range(6):
            response = await service.upload(data)
            assert response.status_code in (200, 201, 404), response.text
            if response.status_code != 404:
                await service.client.delete(f"/v1/images/{response.json()['image']['id']}")
            if n % 2:
                await second.work_off()

    await asyncio.gather(*(churn(n) for n in range(4)))
    await second.work_off()
    assert await service.value("SELECT count(*) FROM images") == 0
    assert await keys(service) == []
    record = await service.create(data)
    assert len(await keys(service)) == 4
    assert (await service.client.get(record.links["preview"])).status_code == 200


async def test_deleting_while_results_come_in_leaves_no_vector(service: Service) -> None:
    records = [await service.create(made.jpeg(seed=n)) for n in range(8)]
    fingerprint = "test-clip-0001"
    await service.client.put("/v1/stages/clip/model", json={"fingerprint": fingerprint, "model": "m", "dim": 3})
    batch = (await service.client.post("/v1/stages/clip/lease", json={"fingerprint": fingerprint, "limit": 8})).json()[
        "items"
    ]

    async def post(item: dict[str, Any]) -> int:
        one = {
            "image_id": item["image_id"],
            "token": item["token"],
            "took_ms": 1,
            "vector": encode_vector([1, 2, 3]),
        }
        response = await service.client.post(
            "/v1/stages/clip/results", json={"fingerprint": fingerprint, "items": [one]}
        )
        assert response.status_code == 200, response.text
        return int(response.json()["accepted"])

    async def delete(image_id: int) -> int:
        assert (await service.client.delete(f"/v1/images/{image_id}")).status_code == 204
        return 0

    await asyncio.gather(
        *(call for item, one in zip(batch, records, strict=True) for call in (post(item), delete(one.id)))
    )
    assert await service.value("SELECT count(*) FROM vectors") == 0
    assert await points(service) == 0
