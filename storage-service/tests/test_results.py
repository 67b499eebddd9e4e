"""What the stages find is part of the record, can be filtered and searched at once, and cutouts have their file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pictures_made as made
import psycopg
import pytest
from conftest import Service, running
from pixelgate_common.frames import decode_frames
from pixelgate_common.vectors import encode_vector
from pixelgate_local.testing import PostgresServer
from storage_service.migrations import known_migrations, migrate
from storage_service.settings import Settings

RED = {"lab": [50, 60, 40], "hex": "#c02020", "share": 0.7}
BLUE = {"lab": [30, 20, -60], "hex": "#2020c0", "share": 1.0}


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    stages = ("palette", "objects", "caption")
    async with running(settings.model_copy(update={"stages": stages, "max_cutout_mb": 1})) as one:
        yield one


async def analysed(service: Service, stage: str, result: Any) -> None:
    await service.hand_in(stage, await service.lease(stage), result)


def boxes(*labels: str, box: tuple[float, float, float, float] = (1, 2, 3, 4)) -> dict[str, Any]:
    found = [{"label": label, "score": 0.9, "box": box} for label in labels]
    return {"width": 320, "height": 240, "objects": found}


async def found(service: Service, **asked: Any) -> list[int]:
    response = await service.client.post("/v1/search", json=asked)
    assert response.status_code == 200, response.text
    listed = (await service.client.post("/v1/images/query", json={"filter": asked.get("filter")})).json()
    ids = [hit["image"]["id"] for hit in response.json()["hits"]]
    if "words" not in asked:
        assert sorted(ids) == sorted(image["id"] for image in listed["images"])
    return ids


async def test_every_result_stands_in_the_record_and_a_persons_caption_stays(service: Service) -> None:
    one, two = [await service.create(made.jpeg(seed=n)) for n in range(2)]
    await service.client.patch(f"/v1/images/{two.id}", json={"caption": "A person's word"})
    await analysed(service, "caption", {"caption": "a red square"})
    await analysed(service, "objects", boxes("cat", "cat"))
    await analysed(service, "palette", {"palette": [RED], "foreground": [BLUE]})
    first, second = await service.record(one.id), await service.record(two.id)
    assert (first.caption, first.caption_by) == ("a red square", "model")
    assert [thing.label for thing in first.objects] == ["cat", "cat"]
    assert [color.hex for color in first.palette] == ["#c02020"]
    assert [color.hex for color in first.foreground_palette] == ["#2020c0"]
    assert (second.caption, second.caption_by) == ("A person's word", "person")
    assert {stage: of.state for stage, of in first.stages.items()} == {
        "clip": "off", "resnet": "off", "palette": "done", "objects": "done", "caption": "done", "cutout": "off",
    }  # fmt: skip
    assert (await service.client.get("/v1/stats")).json()["processing_ms"]["mean"] == 15


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((10, 20, 30, 40), (20, 40, 60, 80)),
        ((-10, -20, 30, 40), (0, 0, 40, 40)),
        ((300, 200, 100, 100), (600, 400, 40, 80)),
        ((0, 0, 320, 240), (0, 0, 640, 480)),
        ((400, 0, 10, 10), None),
        ((10, 10, 0, 5), None),
        ((10, 10, -5, 5), None),
    ],
    ids=["inside", "upper left", "lower right", "whole", "outside", "flat", "inside out"],
)
async def test_boxes_are_scaled_to_the_original_and_clipped(
    service: Service, box: Any, kept: tuple[float, ...] | None
) -> None:
    image = await service.create(made.jpeg())
    await analysed(service, "objects", boxes("cat", box=box))
    record = await service.record(image.id)
    assert [thing.box for thing in record.objects] == ([] if kept is None else [pytest.approx(kept)])
    counts = await service.value("SELECT object_counts FROM images WHERE id = %s", image.id)
    assert counts == ({} if kept is None else {"cat": 1})


@pytest.mark.parametrize(
    ("stage", "result"),
    [
        ("objects", {"objects": []}),
        ("objects", boxes("a\x00b")),
        ("objects", boxes("cat") | {"width": 0}),
        ("objects", {"width": 1, "height": 1, "objects": [{"label": "cat", "score": 2, "box": [0, 0, 1, 1]}]}),
        ("palette", {"palette": [RED] * 9}),
        ("palette", {"palette": [RED | {"share": 0}]}),
        ("palette", {"palette": [RED | {"hex": "red"}]}),
        ("caption", {}),
        ("caption", {"caption": ""}),
    ],
)
async def test_a_result_that_is_none_fails_its_own_picture(service: Service, stage: str, result: Any) -> None:
    image = await service.create(made.jpeg())
    await analysed(service, stage, result)
    record = await service.record(image.id)
    assert record.stages[stage].state == "failed"
    assert (record.stages[stage].error or "").startswith("The result cannot be kept")


async def test_a_label_counts_zero_only_where_somebody_has_looked(service: Service) -> None:
    dogs, cats = [(await service.create(made.jpeg(seed=n))).id for n in range(2)]
    first, second = await service.lease("objects")
    await service.hand_in("objects", [first], boxes("dog", "dog"))
    await service.hand_in("objects", [second], boxes("cat"))
    unknown = (await service.create(made.jpeg(seed=2))).id
    for comparison, expected in [
        ({"eq": 0}, [cats]), ({"lt": 2}, [cats]), ({"lte": 2}, [dogs, cats]), ({"gte": 0}, [dogs, cats]),
        ({"in": [0, 2]}, [dogs, cats]), ({"gte": 2}, [dogs]), ({"eq": 2}, [dogs]), ({"exists": True}, [dogs]),
        ({"exists": False}, [cats, unknown]), ({"lt": 0}, []),
    ]:  # fmt: skip
        tree = {"field": "objects.dog", **comparison}
        assert sorted(await found(service, filter=tree)) == sorted(expected), comparison
    none = {"not": {"field": "objects.dog", "gte": 1}}
    assert sorted(await found(service, filter=none)) == [cats, unknown]


@pytest.mark.parametrize("text", ["dog", "dogs", "benches", "bus", "buses", "traffic lights", "knife", "knives"])
async def test_words_of_captions_and_objects_are_found_the_moment_they_are_kept(service: Service, text: str) -> None:
    by_caption, by_objects = [(await service.create(made.jpeg(seed=n))).id for n in range(2)]
    assert await found(service, words={"text": text}) == []
    first, _ = await service.lease("caption")
    caption = "two dogs on a bench beside a bus, a traffic light and knives"
    await service.hand_in("caption", [first], {"caption": caption})
    assert await found(service, words={"text": text}) == [by_caption]
    _, second = await service.lease("objects")
    await service.hand_in("objects", [second], boxes("dog", "bench", "bus", "traffic light", "knife"))
    assert sorted(await found(service, words={"text": text})) == [by_caption, by_objects]


def png(seed: int = 0) -> bytes:
    return made.encoded(made.scene(60, 40, seed).convert("RGBA"), "PNG")


async def put(service: Service, item: dict[str, Any], data: bytes, status: int = 204) -> Any:
    response = await service.client.put(
        f"/v1/stages/cutout/files/{item['image_id']}", params={"token": item["token"]}, content=data
    )
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def ask(service: Service, *ids: int, status: int = 200) -> Any:
    response = await service.client.post("/v1/stages/cutout/request", json={"image_ids": ids})
    assert response.status_code == status, response.text
    return response.json()


async def test_a_cutout_is_made_on_request_and_goes_with_its_picture(service: Service) -> None:
    image, other = [await service.create(made.jpeg(seed=n)) for n in range(2)]
    assert "cutout" not in image.links
    assert await service.lease("cutout") == []
    assert (await ask(service, image.id))["pending"] == 1
    (item,) = await service.lease("cutout")
    assert item["image_id"] == image.id
    await put(service, item, png())
    link = f"/v1/images/{image.id}/cutout"
    assert (await service.client.get(link)).status_code == 404, "it is shown with its result"
    await service.hand_in("cutout", [item], {"foreground": [BLUE]})
    record = await service.record(image.id)
    assert (record.links["cutout"], record.stages["cutout"].state) == (link, "done")
    assert [color.hex for color in record.foreground_palette] == ["#2020c0"]
    response = await service.client.get(link)
    assert response.content == png()
    assert response.headers["content-type"] == "image/png"
    assert "immutable" not in response.headers["cache-control"]
    assert (await service.record(other.id)).stages["cutout"].state == "off"
    both = await service.client.post("/v1/files", json={"image_ids": [image.id, other.id], "variant": "cutout"})
    assert dict(decode_frames(both.content)) == {str(image.id): png(), str(other.id): None}
    assert len([key async for key in service.parts.objects.list_keys()]) == 9
    await service.client.delete(f"/v1/images/{image.id}")
    assert len([key async for key in service.parts.objects.list_keys()]) == 4


async def test_a_new_cutout_has_another_tag(service: Service) -> None:
    image = await service.create(made.jpeg())
    await ask(service, image.id)
    tags = []
    for seed in range(2):
        (item,) = await service.lease("cutout")
        await put(service, item, png(seed))
        await service.hand_in("cutout", [item], {"foreground": None})
        response = await service.client.get(f"/v1/images/{image.id}/cutout")
        assert response.content == png(seed)
        tags.append(response.headers["etag"])
        await service.client.post("/v1/stages/cutout/rerun")
    assert tags[0] != tags[1]
    fresh = await service.client.get(f"/v1/images/{image.id}/cutout", headers={"If-None-Match": tags[1]})
    assert fresh.status_code == 304


async def test_a_cutout_needs_a_lease_that_holds(service: Service) -> None:
    image = await service.create(made.jpeg())
    await ask(service, image.id)
    (item,) = await service.lease("cutout")
    problem = await put(service, item | {"token": "nonsense"}, png(), 409)
    assert problem["type"] == "urn:pixelgate:problem:lease_gone"
    await put(service, item | {"image_id": 10**6}, png(), 404)
    async with service.parts.db.connection() as conn:
        await conn.execute("UPDATE analyses SET lease_until = now() - interval '1 second' WHERE state = 'running'")
    (again,) = await service.lease("cutout")
    await put(service, item, png(), 409)
    await put(service, again, png())
    assert [key async for key in service.parts.objects.list_keys() if key.endswith("cutout")] != []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 422), (b"no picture", 422), (made.jpeg(), 415), (png()[:-200], 422), (made.png_bomb(), 413),
        (bytes(2 << 20), 413),
    ],
    ids=["empty", "text", "jpeg", "cut off", "bomb", "too large"],
)  # fmt: skip
async def test_only_a_whole_png_is_a_cutout(service: Service, data: bytes, status: int) -> None:
    image = await service.create(made.jpeg())
    await ask(service, image.id)
    (item,) = await service.lease("cutout")
    problem = await put(service, item, data, status)
    if len(data) > 1 << 20:
        assert "PIXELGATE_STORAGE_MAX_CUTOUT_MB" in problem["detail"]
    assert [key async for key in service.parts.objects.list_keys() if key.endswith("cutout")] == []


async def test_a_result_without_its_file_fails_and_can_be_asked_for_again(service: Service) -> None:
    image = await service.create(made.jpeg())
    await ask(service, image.id)
    await service.hand_in("cutout", await service.lease("cutout"), {"foreground": [BLUE]})
    record = await service.record(image.id)
    assert record.stages["cutout"].state == "failed"
    assert "was not put" in (record.stages["cutout"].error or "")
    assert "cutout" not in record.links
    assert record.foreground_palette == []
    await ask(service, image.id)
    (item,) = await service.lease("cutout")
    await put(service, item, png())
    await service.hand_in("cutout", [item], {"foreground": [BLUE]})
    await ask(service, image.id)
    assert await service.lease("cutout") == [], "what is done is not done again"


async def test_a_cutout_of_nobody_is_404(service: Service) -> None:
    image = await service.create(made.jpeg())
    await ask(service, image.id, 10**6, status=404)
    assert await service.lease("cutout") == [], "all or nothing"


@pytest.mark.parametrize("order", [("palette", "cutout"), ("cutout", "palette")])
async def test_the_foreground_is_the_cutouts_whichever_comes_last(service: Service, order: tuple[str, str]) -> None:
    image = await service.create(made.jpeg())
    await ask(service, image.id)
    for stage in order:
        (item,) = await service.lease(stage)
        if stage == "cutout":
            await put(service, item, png())
        await service.hand_in(stage, [item], {"palette": [RED], "foreground": [BLUE if stage == "cutout" else RED]})
    assert [color.hex for color in (await service.record(image.id)).foreground_palette] == ["#2020c0"]


async def test_stages_that_are_new_get_all_pictures_of_an_existing_store(settings: Settings) -> None:
    async with running(settings) as service:
        images = [await service.create(made.jpeg(seed=n)) for n in range(3)]
        await ask(service, images[0].id)
    every = settings.model_copy(update={"stages": ("clip", "resnet", "palette", "objects", "caption", "cutout")})
    async with running(every) as service:
        for stage in ("palette", "objects", "caption", "cutout"):
            assert len(await service.lease(stage)) == 3
        assert (await service.create(made.jpeg(seed=9))).stages["cutout"].state == "pending"


async def test_a_store_of_the_first_schema_keeps_what_it_knew(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as dsn:
        await migrate(dsn, migrations=known_migrations()[:1])
        with psycopg.connect(dsn) as conn:
            for number, counts in enumerate(["{}", '{"dog": 2}', "{}"], start=1):
                conn.execute(
                    "INSERT INTO images (seq, sha256, media_type, format, width, height, bytes, has_alpha, phash,"
                    " thumbhash, object_counts) VALUES (%s, sha256(%s), 'image/jpeg', 'jpeg', 1, 1, 1, false, 0, '',"
                    " %s)",
                    (number, str(number).encode(), counts),
                )
            conn.execute("INSERT INTO stages (stage, enabled) VALUES ('objects', true)")
            conn.execute(
                "INSERT INTO analyses (image_id, stage, state) SELECT id, 'objects', state FROM unnest("
                " '{1,2,3}'::bigint[], '{done,done,pending}'::text[]) AS a (id, state)"
            )
        assert await migrate(dsn) == [migration.name for migration in known_migrations()[1:]]
        with psycopg.connect(dsn) as conn:
            rows = conn.execute("SELECT objects_known FROM images ORDER BY id").fetchall()
    assert rows == [(True,), (True,), (False,)]


async def test_palettes_and_vectors_of_the_same_pictures_do_not_wait_for_each_other_crosswise(
    settings: Settings,
) -> None:
    async with running(settings.model_copy(update={"stages": ("clip", "palette")})) as service:
        ids = [(await service.create(made.jpeg(seed=n))).id for n in range(8)]
        vector = encode_vector(np.ones(8, dtype=np.float32))

        async def hand_in(stage: str, finding: dict[str, Any]) -> None:
            items = [
                {"image_id": i["image_id"], "token": i["token"], "took_ms": 5, **finding}
                for i in await service.lease(stage)
            ]
            body = {"fingerprint": f"test-{stage}-1", "items": items}
            response = await service.client.post(f"/v1/stages/{stage}/results", json=body)
            assert response.json() == {"accepted": len(ids), "stale": 0}, response.text

        for _ in range(12):
            await asyncio.gather(
                hand_in("clip", {"vector": vector}), hand_in("palette", {"result": {"palette": [RED]}})
            )
            for stage in ("clip", "palette"):
                assert (await service.client.post(f"/v1/stages/{stage}/rerun")).is_success
