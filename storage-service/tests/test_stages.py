"""Leases, results, failures, models and progress of the stages."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from conftest import Service
from pixelgate_common.vectors import encode_vector
from storage_service.analyses import RetryPolicy
from storage_service.database import Database
from storage_service.stages import fetch_totals, fold_tallies

CLIP = "test-clip-0001"
OTHER = "test-clip-0002"
DIM = 8


async def post(service: Service, path: str, body: Any = None, status: int = 200) -> Any:
    response = await service.client.post(f"/v1/stages/clip/{path}", json=body)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def want(service: Service, fingerprint: str = CLIP, stage: str = "clip") -> dict[str, Any]:
    body = {"fingerprint": fingerprint, "model": "test", "dim": DIM}
    response = await service.client.put(f"/v1/stages/{stage}/model", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def lease(
    service: Service, limit: int = 100, lease_s: float = 60, fingerprint: str = CLIP
) -> list[dict[str, Any]]:
    body = {"fingerprint": fingerprint, "limit": limit, "lease_s": lease_s}
    return list((await post(service, "lease", body))["items"])


def result(item: dict[str, Any], **other: Any) -> dict[str, Any]:
    vector = encode_vector(np.random.default_rng(item["image_id"]).random(DIM))
    return {"image_id": item["image_id"], "token": item["token"], "took_ms": 12.5, "vector": vector} | other


def failure(item: dict[str, Any], detail: str = "broken", retry: bool = True) -> dict[str, Any]:
    problem = {"type": "urn:x", "title": "No", "status": 500, "detail": detail}
    return {
        "image_id": item["image_id"], "token": item["token"], "took_ms": 1.0, "problem": problem, "retry": retry,
    }  # fmt: skip


async def results(service: Service, items: list[dict[str, Any]], fingerprint: str = CLIP) -> dict[str, int]:
    return dict(await post(service, "results", {"fingerprint": fingerprint, "items": items}))


async def progress(service: Service, stage: str = "clip") -> dict[str, Any]:
    stages = (await service.client.get("/v1/stages")).json()["stages"]
    return dict(next(one for one in stages if one["stage"] == stage))


async def counts(service: Service) -> tuple[int, int, int, int]:
    now = await progress(service)
    return now["pending"], now["running"], now["done"], now["failed"]


async def insert_images(db: Database, count: int) -> None:
    """Pictures without files, which is all that stages know of them."""
    async with db.connection() as conn:
        await conn.execute(
            "INSERT INTO images (seq, sha256, media_type, format, width, height, bytes, has_alpha, phash, thumbhash)"
            " SELECT n, sha256(n::text::bytea), 'image/jpeg', 'jpeg', 1, 1, 10, false, 0, '' "
            " FROM generate_series((SELECT seq + 1 FROM clock), (SELECT seq + %s FROM clock)) AS n",
            (count,),
        )
        await conn.execute("UPDATE clock SET seq = seq + %s", (count,))
        await conn.execute(
            "INSERT INTO analyses (image_id, stage) SELECT id, stage FROM images, stages WHERE enabled"
            " ON CONFLICT DO NOTHING"
        )


@pytest.fixture
async def ten(service: Service) -> Service:
    """A service with ten pictures and a wanted model."""
    await insert_images(service.parts.db, 10)
    await want(service)
    return service


async def expire_leases(service: Service) -> None:
    async with service.parts.db.connection() as conn:
        await conn.execute("UPDATE analyses SET lease_until = now() - interval '1 second' WHERE state = 'running'")


async def skip_waits(service: Service) -> None:
    async with service.parts.db.connection() as conn:
        await conn.execute("UPDATE analyses SET not_before = now()")


async def test_work_is_leased_in_order_and_once(ten: Service) -> None:
    first = await lease(ten, limit=4)
    second = await lease(ten, limit=100)
    ids = [item["image_id"] for item in first + second]
    assert ids == sorted(ids)
    assert (len(first), len(second)) == (4, 6)
    assert await lease(ten) == []
    assert await counts(ten) == (0, 10, 0, 0)


async def test_workers_side_by_side_never_get_the_same_picture(service: Service) -> None:
    await insert_images(service.parts.db, 200)
    await want(service)

    async def work() -> list[int]:
        mine: list[int] = []
        while batch := await lease(service, limit=7):
            mine += [item["image_id"] for item in batch]
            assert await results(service, [result(item) for item in batch]) == {"accepted": len(batch), "stale": 0}
        return mine

    taken = [image_id for mine in await asyncio.gather(*(work() for _ in range(4))) for image_id in mine]
    assert len(taken) == len(set(taken)) == 200
    assert await counts(service) == (0, 0, 200, 0)
    assert await service.value("SELECT count(*) FROM vectors") == 200


async def test_results_are_kept_with_their_time(ten: Service) -> None:
    batch = await lease(ten, limit=2)
    assert await results(ten, [result(item) for item in batch]) == {"accepted": 2, "stale": 0}
    record = (await ten.client.get(f"/v1/images/{batch[0]['image_id']}")).json()
    clip = record["stages"]["clip"]
    assert (clip["state"], clip["took_ms"], clip["attempts"], clip["error"]) == ("done", 12.5, 1, None)
    assert clip["finished_at"] is not None
    generation = await ten.value("SELECT id FROM generations")
    assert await ten.parts.generations.index.count(generation) == 2


async def test_an_expired_lease_goes_to_somebody_else_and_the_first_result_is_stale(ten: Service) -> None:
    first = await lease(ten, limit=3)
    await expire_leases(ten)
    assert await counts(ten) == (10, 0, 0, 0), "a lease that has run out is work that is left"
    second = await lease(ten, limit=3)
    assert [item["image_id"] for item in second] == [item["image_id"] for item in first]
    assert {item["attempt"] for item in second} == {2}
    assert await results(ten, [result(item) for item in first]) == {"accepted": 0, "stale": 3}
    assert await results(ten, [result(item) for item in second]) == {"accepted": 3, "stale": 0}
    assert await results(ten, [result(item) for item in second]) == {"accepted": 0, "stale": 3}


async def test_a_picture_that_takes_every_worker_down_is_parked(ten: Service) -> None:
    for attempt in range(1, 6):
        batch = await lease(ten, limit=1)
        assert batch[0]["attempt"] == attempt
        await expire_leases(ten)
    assert [item["image_id"] for item in await lease(ten, limit=1)] != [batch[0]["image_id"]]
    assert (await counts(ten))[3] == 1
    assert (await progress(ten))["last_errors"] == ["No worker that took this picture ever answered."]


async def test_the_same_picture_twice_in_one_post_counts_once(ten: Service) -> None:
    (item,) = await lease(ten, limit=1)
    assert await results(ten, [result(item), result(item)]) == {"accepted": 1, "stale": 1}


async def test_a_result_of_a_deleted_picture_is_stale(ten: Service) -> None:
    batch = await lease(ten, limit=2)
    assert (await ten.client.delete(f"/v1/images/{batch[0]['image_id']}")).status_code == 204
    assert await results(ten, [result(item) for item in batch]) == {"accepted": 1, "stale": 1}
    assert await counts(ten) == (8, 0, 1, 0)


async def test_one_bad_picture_fails_alone_waits_and_is_parked(ten: Service) -> None:
    waits = []
    for attempt in range(1, 6):
        batch = await lease(ten, limit=1)
        assert batch[0]["attempt"] == attempt
        assert await results(ten, [failure(batch[0], f"no {attempt}")]) == {"accepted": 1, "stale": 0}
        assert batch[0]["image_id"] not in [item["image_id"] for item in await lease(ten)], "it has to wait"
        waits.append(
            await ten.value(
                "SELECT extract(epoch FROM not_before - now())::float8 FROM analyses WHERE image_id = %s"
                " AND stage = 'clip'",
                batch[0]["image_id"],
            )
        )
        async with ten.parts.db.connection() as conn:
            await conn.execute(
                "UPDATE analyses SET state = 'pending', token = NULL, lease_until = NULL, attempts = 0"
                " WHERE state = 'running'"
            )
        await skip_waits(ten)
    assert all(2 ** (n - 1) * 2 * 0.4 < wait < 2 ** (n - 1) * 2 * 1.6 for n, wait in enumerate(waits, 1))
    assert await counts(ten) == (9, 0, 0, 1)
    now = await progress(ten)
    assert now["last_errors"] == ["no 5"]
    record = (await ten.client.get(f"/v1/images/{batch[0]['image_id']}")).json()["stages"]["clip"]
    assert (record["state"], record["attempts"], record["error"]) == ("failed", 5, "no 5")
    # Parked until somebody asks for it.
    assert batch[0]["image_id"] not in [item["image_id"] for item in await lease(ten)]
    assert (await post(ten, "retry-failed"))["failed"] == 0
    assert [item["image_id"] for item in await lease(ten)] == [batch[0]["image_id"]]


async def test_a_failure_that_no_retry_can_help_is_parked_at_once(ten: Service) -> None:
    batch = await lease(ten, limit=2)
    await results(ten, [failure(batch[0], "x" * 5000, retry=False), result(batch[1])])
    assert await counts(ten) == (8, 0, 1, 1)
    assert len((await progress(ten))["last_errors"][0]) == 1000


async def test_a_vector_of_zeros_fails_its_own_picture(ten: Service) -> None:
    batch = await lease(ten, limit=2)
    items = [result(batch[0], vector=encode_vector(np.zeros(DIM))), result(batch[1])]
    assert await results(ten, items) == {"accepted": 2, "stale": 0}
    assert await counts(ten) == (8, 0, 1, 1)


async def test_results_that_are_none_are_refused_whole(ten: Service) -> None:
    batch = await lease(ten, limit=2)
    without = result(batch[0]) | {"vector": None}
    response = await ten.client.post(
        "/v1/stages/clip/results", json={"fingerprint": CLIP, "items": [result(batch[1]), without]}
    )
    assert response.status_code == 422
    short = result(batch[0], vector=encode_vector([1.0, 2.0]))
    response = await ten.client.post("/v1/stages/clip/results", json={"fingerprint": CLIP, "items": [short]})
    assert response.status_code == 422, response.text
    assert await counts(ten) == (8, 2, 0, 0)
    assert await ten.value("SELECT count(*) FROM vectors") == 0


async def test_a_lease_given_back_is_not_counted(ten: Service) -> None:
    batch = await lease(ten, limit=3)
    await post(ten, "release", {"tokens": [item["token"] for item in batch[:2]] + ["nonsense"]}, 204)
    assert await counts(ten) == (9, 1, 0, 0)
    again = await lease(ten, limit=2)
    assert [(item["image_id"], item["attempt"]) for item in again] == [(item["image_id"], 1) for item in batch[:2]]
    assert await results(ten, [result(batch[0])]) == {"accepted": 0, "stale": 1}


async def test_a_lease_for_another_model_is_409(ten: Service) -> None:
    body = {"fingerprint": OTHER, "limit": 1}
    response = await ten.client.post("/v1/stages/clip/lease", json=body)
    assert response.status_code == 409
    assert response.json()["type"] == "urn:pixelgate:problem:fingerprint_mismatch"
    unnamed = await ten.client.post("/v1/stages/resnet/lease", json=body)
    assert unnamed.status_code == 409


async def test_a_new_model_makes_everything_of_the_old_one_pending(ten: Service) -> None:
    batch = await lease(ten, limit=5)
    await results(ten, [result(batch[0]), result(batch[1]), failure(batch[2], retry=False)])
    now = await want(ten, OTHER)
    assert (now["pending"], now["running"], now["done"], now["failed"]) == (10, 0, 0, 0)
    assert await results(ten, [result(item) for item in batch[3:]]) == {"accepted": 0, "stale": 2}
    fresh = await lease(ten, fingerprint=OTHER)
    assert len(fresh) == 10
    assert await results(ten, [result(item) for item in fresh], OTHER) == {"accepted": 10, "stale": 0}


async def test_the_same_model_named_again_changes_nothing(ten: Service) -> None:
    batch = await lease(ten, limit=5)
    await results(ten, [result(batch[0]), failure(batch[1], retry=False)])
    now = await want(ten)
    assert (now["pending"], now["running"], now["done"], now["failed"]) == (5, 3, 1, 1)
    assert await results(ten, [result(item) for item in batch[2:]]) == {"accepted": 3, "stale": 0}


async def test_going_back_to_a_model_computes_nothing_again(ten: Service) -> None:
    batch = await lease(ten)
    await results(ten, [result(item) for item in batch[:8]])
    await want(ten, OTHER)
    fresh = await lease(ten, limit=3, fingerprint=OTHER)
    await results(ten, [result(item) for item in fresh], OTHER)
    now = await want(ten, CLIP)
    assert (now["pending"], now["running"], now["done"]) == (2, 0, 8)


async def test_rerun_does_every_picture_again_under_the_same_model(ten: Service) -> None:
    await results(ten, [result(item) for item in await lease(ten)])
    assert (await post(ten, "rerun"))["pending"] == 10
    assert (await want(ten))["pending"] == 10, "the vectors that are there do not count as done"
    again = await lease(ten)
    assert {item["attempt"] for item in again} == {1}
    assert await results(ten, [result(item) for item in again]) == {"accepted": 10, "stale": 0}
    assert await ten.value("SELECT count(*) FROM vectors") == 10


async def test_a_paused_stage_hands_out_nothing_but_takes_what_was_handed_out(ten: Service) -> None:
    batch = await lease(ten, limit=2)
    assert (await post(ten, "pause"))["paused"] is True
    assert await lease(ten) == []
    assert await results(ten, [result(item) for item in batch]) == {"accepted": 2, "stale": 0}
    assert (await post(ten, "resume"))["paused"] is False
    assert len(await lease(ten)) == 8


async def test_a_stage_that_is_off_is_404(service: Service) -> None:
    asked = {"lease": {"fingerprint": "test-capt-0001", "limit": 1}, "request": {"image_ids": [1]}}
    for path in ("lease", "request", "pause", "rerun"):
        assert (await service.client.post(f"/v1/stages/caption/{path}", json=asked.get(path))).status_code == 404
    assert (await service.client.post("/v1/stages/dreams/pause")).status_code == 422
    stages = [one["stage"] for one in (await service.client.get("/v1/stages")).json()["stages"]]
    assert stages == ["clip", "resnet", "cutout"], "a cutout can always be asked for"


async def test_a_space_needs_its_dimension(service: Service) -> None:
    response = await service.client.put("/v1/stages/clip/model", json={"fingerprint": CLIP, "model": "m"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "dim"


async def test_progress_says_rate_and_time_left(ten: Service) -> None:
    assert (await progress(ten))["seconds_left"] is None
    await results(ten, [result(item) for item in await lease(ten, limit=4)])
    now = await progress(ten)
    assert now["rate_per_s"] > 0
    assert now["seconds_left"] == pytest.approx(6 / now["rate_per_s"], abs=0.2)
    await results(ten, [result(item) for item in await lease(ten)])
    assert (await progress(ten))["seconds_left"] == 0


async def test_totals_stay_exact_whatever_happens(ten: Service) -> None:
    """Against a count of the rows themselves, with the changes folded together while others are written."""

    async def churn() -> None:
        for _ in range(10):
            batch = await lease(ten, limit=3)
            done = [result(one) if n % 2 else failure(one, retry=False) for n, one in enumerate(batch)]
            if done:
                await results(ten, done)
            await post(ten, "retry-failed")
            await fold_tallies(ten.parts.db)

    await asyncio.gather(churn(), churn(), insert_images(ten.parts.db, 5))
    await ten.client.delete(f"/v1/images/{await ten.value('SELECT max(id) FROM images')}")
    async with ten.parts.db.connection() as conn:
        totals = {what: n for what, n in (await fetch_totals(conn)).items() if n}
        rows = await conn.execute(
            "SELECT stage || '.' || state, count(*) FROM analyses GROUP BY 1"
            " UNION ALL SELECT 'images', count(*) FROM images UNION ALL SELECT 'bytes', sum(bytes)::bigint FROM images"
        )
        assert totals == dict(await rows.fetchall())
    await fold_tallies(ten.parts.db)
    assert await ten.value("SELECT count(*) FROM tallies") <= 8


async def test_stats(ten: Service) -> None:
    batch = await lease(ten, limit=4)
    took = [10.0, 20.0, 30.0]
    await results(ten, [result(item, took_ms=ms) for item, ms in zip(batch, took, strict=False)])
    await results(ten, [failure(batch[3], retry=False)])
    stats = (await ten.client.get("/v1/stats")).json()
    assert (stats["images"], stats["bytes"]) == (10, 100)
    clip = stats["stages"]["clip"]
    assert (clip["done"], clip["failed"], clip["success_rate"], clip["failure_rate"]) == (3, 1, 0.75, 0.25)
    assert clip["processing_ms"] == {"mean": 20.0, "p50": 20.0, "p95": 29.0}
    assert stats["stages"]["resnet"]["success_rate"] is None
    assert stats["processing_ms"]["mean"] is None, "of no picture everything is done yet"


def test_waits_double_up_to_a_limit() -> None:
    policy = RetryPolicy(5, 2.0, 60.0)
    for attempts, expected in ((1, 2), (2, 4), (5, 32), (6, 60), (1000, 60)):
        waits = [policy.wait_s(attempts) for _ in range(50)]
        assert expected * 0.5 <= min(waits) < max(waits) <= expected * 1.5
