"""Pictures arrive: stored whole or not at all, once each, and refused with what is wrong with them."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pictures_made as made
import pytest
from conftest import Service, running
from pixelgate_common.contracts.storage import ARRIVAL_HEADER, STAGES, Arrival
from pixelgate_common.errors import Overloaded
from pixelgate_common.images import DecodeLimits, NotAnImage
from storage_service.arrival import Arrivals
from storage_service.decoders import Decoders
from storage_service.objects.directory import DirectoryObjects
from storage_service.objects.protocol import NewObject, object_key
from storage_service.settings import Settings


async def in_chunks(data: bytes, size: int = 7_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def stored(service: Service) -> tuple[int, int, list[str]]:
    """Return how many pictures and analyses there are, and the keys of all objects."""
    keys = [key async for key in service.parts.objects.list_keys()]
    return (
        await service.value("SELECT count(*) FROM images"), await service.value("SELECT count(*) FROM analyses"), keys,
    )  # fmt: skip


def tmp_files(settings: Settings) -> list[Path]:
    return [path for path in (settings.data_dir / "tmp").rglob("*") if path.is_file() and path.name != ".lock"]


async def test_a_picture_is_stored_with_everything_known_of_it(service: Service, settings: Settings) -> None:
    data = made.jpeg(seed=1)
    arrival = Arrival(
        filename="C:\\pictures\\a/red \x07scene.jpg", source_url="https://example.org/a.jpg", page_title="A page",
        alt_text="é", tags=["one", "two"], attributes={"n": 1, "ok": True, "none": None},
    )  # fmt: skip
    record = await service.create(data, arrival)
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    assert (record.filename, record.media_type, record.format) == ("red scene.jpg", "image/jpeg", "jpeg")
    assert (record.width, record.height, record.bytes) == (640, 480, len(data))
    assert (record.tags, record.attributes, record.alt_text) == (
        ["one", "two"],
        {"n": 1, "ok": True, "none": None},
        "é",
    )
    assert {stage: record.stages[stage].state for stage in STAGES} == {
        "clip": "pending", "resnet": "pending", "palette": "off", "objects": "off", "caption": "off", "cutout": "off",
    }  # fmt: skip
    assert record.phash is not None
    assert len(record.phash) == 16
    keys = (await stored(service))[2]
    assert sorted(keys) == [
        object_key(hashlib.sha256(data).digest(), name) for name in ("medium", "original", "preview", "small")
    ]
    assert await service.parts.objects.read(object_key(hashlib.sha256(data).digest(), "original")) == data
    assert tmp_files(settings) == []
    again = await service.client.get(f"/v1/images/{record.id}")
    assert again.json() == record.model_dump(mode="json")


async def test_the_same_bytes_again_are_a_duplicate(service: Service) -> None:
    first = await service.create(made.jpeg(), Arrival(tags=["first"]))
    response = await service.upload(made.jpeg(), Arrival(tags=["second"]))
    assert response.status_code == 200
    assert response.json()["outcome"] == "duplicate"
    assert response.json()["image"]["id"] == first.id
    assert response.json()["image"]["tags"] == ["first"]


async def test_identical_uploads_at_once_create_one(service: Service) -> None:
    responses = await asyncio.gather(*(service.upload(made.jpeg()) for _ in range(12)))
    assert sorted(response.status_code for response in responses) == [200] * 11 + [201]
    assert len({response.json()["image"]["id"] for response in responses}) == 1
    images, analyses, keys = await stored(service)
    assert (images, analyses, len(keys)) == (1, 2, 4)


async def test_identical_uploads_to_two_processes_create_one(service: Service, settings: Settings) -> None:
    """Another process knows nothing of this one's locks: only those in Postgres keep them apart."""
    parts = service.parts
    decoders = Decoders(2, timeout_s=30, memory_bytes=1 << 30)
    await decoders.start()
    other = Arrivals(
        parts.db, parts.objects, decoders, folder=settings.data_dir / "tmp", limits=DecodeLimits(), max_waiting=9
    )
    await other.start()
    try:
        taken = await asyncio.gather(
            *(arrivals.take(in_chunks(made.jpeg()), Arrival()) for arrivals in (parts.arrivals, other) * 3)
        )
    finally:
        await other.close()
        await decoders.close()
    assert sorted(one.outcome for one in taken) == ["created"] + ["duplicate"] * 5
    assert (await stored(service))[0] == 1


async def test_different_pictures_at_once_are_all_stored(service: Service) -> None:
    responses = await asyncio.gather(*(service.upload(made.jpeg(seed=n)) for n in range(20)))
    assert {response.status_code for response in responses} == {201}
    seqs = await service.value("SELECT array_agg(seq ORDER BY id) FROM images")
    assert len(set(seqs)) == 20


BAD: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "text named .jpg": (lambda: b"not a picture, whatever it is called\n", 422, "not_an_image"),
    "0 bytes": (lambda: b"", 422, "not_an_image"),
    "truncated JPEG": (lambda: made.jpeg()[:-2000], 422, "broken_image"),
    "50,000 × 50,000 PNG of a few KB": (made.png_bomb, 413, "image_too_large"),
    "over the size": (lambda: b"\xff\xd8\xff" + bytes(1 << 20), 413, "body_too_large"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", 415, "unsupported_format"),
    "HTML": (lambda: b"<html><body>hello</body></html>", 422, "not_an_image"),
}


@pytest.mark.parametrize(("data", "status", "code"), BAD.values(), ids=BAD.keys())
async def test_bad_files_are_refused_and_leave_nothing(
    service: Service, settings: Settings, data: Callable[[], bytes], status: int, code: str
) -> None:
    response = await service.upload(data())
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == f"urn:pixelgate:problem:{code}"
    assert await stored(service) == (0, 0, [])
    assert tmp_files(settings) == []
    assert list((settings.data_dir / "objects").rglob("*.*")) == [settings.data_dir / "objects" / ".new"]


ODD: dict[str, tuple[Callable[[], bytes], str, tuple[int, int]]] = {
    "animated GIF": (made.animated_gif, "gif", (40, 30)),
    "CMYK JPEG": (lambda: made.encoded(made.scene().convert("CMYK")), "jpeg", (640, 480)),
    "16-bit PNG": (made.sixteen_bit_png, "png", (200, 100)),
    "EXIF-rotated JPEG": (made.rotated_jpeg, "jpeg", (200, 400)),
}


@pytest.mark.parametrize(("data", "form", "size"), ODD.values(), ids=ODD.keys())
async def test_odd_pictures_are_taken(
    service: Service, data: Callable[[], bytes], form: str, size: tuple[int, int]
) -> None:
    record = await service.create(data())
    assert (record.format, (record.width, record.height)) == (form, size)
    preview = made.opened((await service.client.get(f"/v1/images/{record.id}/preview")).content)
    assert preview.size == size


async def test_a_body_over_the_limit_is_refused_while_it_streams(service: Service, settings: Settings) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 65536
            yield bytes(65536)

    response = await service.client.post("/v1/images", content=endless())
    assert response.status_code == 413
    assert "PIXELGATE_MAX_UPLOAD_MB" in response.json()["detail"]
    assert sent <= (1 << 20) + 2 * 65536
    assert tmp_files(settings) == []


@pytest.mark.parametrize(
    "header",
    ["%%%", "bm90IGpzb24=", "eyJ0YWdzIjogWyIiXX0=", "eyJ1bmtub3duIjogMX0=", "eyJhdHRyaWJ1dGVzIjogeyJhIjogTmFOfX0="],
    ids=["not base64", "not JSON", "an empty tag", "an unknown field", "not a number"],
)
async def test_an_unreadable_description_is_422(service: Service, header: str) -> None:
    response = await service.client.post("/v1/images", content=made.jpeg(), headers={ARRIVAL_HEADER: header})
    assert response.status_code == 422, response.text
    assert (await stored(service))[0] == 0


async def test_beyond_the_queue_callers_are_told_to_come_back(settings: Settings) -> None:
    few = settings.model_copy(update={"decoders": 1, "max_waiting": 2})
    async with running(few) as service:
        responses = await asyncio.gather(*(service.upload(made.jpeg(seed=n)) for n in range(12)))
        refused = [response for response in responses if response.status_code == 503]
        assert len(refused) >= 1
        assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
        assert sum(response.status_code == 201 for response in responses) == 12 - len(refused) >= 3
        # All room is given back.
        assert (await service.upload(made.jpeg(seed=99))).status_code == 201


async def test_room_is_given_back_after_refusals(service: Service) -> None:
    room = service.parts.arrivals._room
    for _ in range(room + 2):
        with pytest.raises(NotAnImage):
            await service.parts.arrivals.take(in_chunks(b"text"), Arrival())
    assert service.parts.arrivals._under_way == 0
    assert not isinstance(await service.upload(made.jpeg()), Overloaded)


async def test_decoders_killed_during_an_import_cost_nothing(service: Service) -> None:
    uploads = [asyncio.create_task(service.upload(made.jpeg(seed=n, width=900, height=700))) for n in range(30)]
    children = service.parts.arrivals._decoders.process_ids
    killed = 0
    while not all(upload.done() for upload in uploads):
        await asyncio.sleep(0.05)
        for child in children()[:1]:
            if killed < 5:
                with suppress(ProcessLookupError):  # one that was killed before and is not replaced yet
                    os.kill(child, signal.SIGKILL)
                    killed += 1
    statuses = [upload.result().status_code for upload in uploads]
    assert killed > 0
    assert statuses == [201] * 30


class FullDisk(DirectoryObjects):
    """A directory on a disk with no room left."""

    def _put(self, objects: Any) -> None:
        super()._put(objects[:2])
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_full_disk_is_507_and_leaves_no_picture(service: Service, settings: Settings) -> None:
    parts = service.parts
    full = FullDisk(settings.data_dir / "objects")
    parts.arrivals._objects = full
    response = await service.upload(made.jpeg())
    assert response.status_code == 507
    assert (await stored(service))[:2] == (0, 0)
    parts.arrivals._objects = parts.objects
    assert (await service.upload(made.jpeg())).status_code == 201
    await full.close()


class BreaksAfter(DirectoryObjects):
    """Puts the objects, then fails as a process that dies there would."""

    async def put(self, objects: Any) -> None:
        await super().put(objects)
        raise RuntimeError("gone")


async def test_failing_between_objects_and_commit_leaves_no_half_picture(service: Service, settings: Settings) -> None:
    breaks = BreaksAfter(settings.data_dir / "objects")
    service.parts.arrivals._objects = breaks
    with pytest.raises(RuntimeError, match="gone"):
        await service.upload(made.jpeg())
    images, analyses, keys = await stored(service)
    assert (images, analyses, len(keys)) == (0, 0, 4)
    service.parts.arrivals._objects = service.parts.objects
    record = await service.create(made.jpeg())
    assert (await service.client.get(f"/v1/images/{record.id}/original")).content == made.jpeg()
    await breaks.close()


async def test_leftovers_of_dead_runs_are_removed_and_those_of_living_ones_kept(
    service: Service, settings: Settings
) -> None:
    dead = settings.data_dir / "tmp" / "arrivals-1-dead" / "x"
    dead.mkdir(parents=True)
    (dead / "original").write_bytes(b"half")
    foreign = settings.data_dir / "tmp" / "something-else"
    foreign.mkdir()
    living = service.parts.arrivals._run
    parts = service.parts
    other = Arrivals(
        parts.db, parts.objects, parts.arrivals._decoders, folder=settings.data_dir / "tmp", limits=DecodeLimits(),
        max_waiting=1,
    )  # fmt: skip
    await other.start()
    assert not dead.exists()
    assert foreign.exists()
    assert living.exists()
    await other.close()


async def test_a_stage_switched_on_later_gets_all_pictures(settings: Settings) -> None:
    async with running(settings.model_copy(update={"stages": ("clip",)})) as service:
        for n in range(3):
            await service.create(made.jpeg(seed=n))
        assert await service.value("SELECT count(*) FROM analyses") == 3
    async with running(settings.model_copy(update={"stages": ("clip", "resnet")})) as service:
        assert await service.value("SELECT count(*) FROM analyses WHERE stage = 'resnet' AND state = 'pending'") == 3
        record = await service.create(made.jpeg(seed=9))
        assert record.stages["resnet"].state == "pending"
    async with running(settings.model_copy(update={"stages": ("resnet",)})) as service:
        record = await service.create(made.jpeg(seed=10))
        assert (record.stages["clip"].state, record.stages["resnet"].state) == ("off", "pending")


async def test_put_takes_what_another_process_has_put_before(service: Service, settings: Settings) -> None:
    """Objects of the same bytes that an earlier crash left are replaced, not tripped over."""
    data = made.jpeg()
    garbage = settings.data_dir / "garbage"
    garbage.write_bytes(b"half a file")
    key = object_key(hashlib.sha256(data).digest(), "original")
    await service.parts.objects.put([NewObject(key, garbage, "image/jpeg")])
    record = await service.create(data)
    assert (await service.client.get(f"/v1/images/{record.id}/original")).content == data
