"""The main job, end to end: a thousand scenes and real photographs go in, and are found again."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starter_models.captions import Facts
from starter_models.queries import label_queries, scene_queries
from starter_models.scenes import draw_scene

from tests.system import ON_REQUEST, System, running, stages, upload, wait_analysed

SCENES = 1000
BATCH = 50


def photographs() -> dict[str, bytes]:
    """Return real photographs, as JPEG or PNG files, that come with scikit-image and scikit-learn."""
    import skimage.data
    import sklearn.datasets

    found = {name: getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket", "camera")}
    for name, picture in zip(("china", "flower"), sklearn.datasets.load_sample_images().images, strict=True):
        found[name] = picture
    files = {}
    for number, (name, pixels) in enumerate(sorted(found.items())):
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(pixels)).save(buffer, "PNG" if number % 3 == 0 else "JPEG", quality=92)
        files[f"{name}.{'png' if number % 3 == 0 else 'jpg'}"] = buffer.getvalue()
    return files


@dataclass
class Library:
    """A running system with the scenes and photographs in it."""

    system: System
    client: httpx.Client
    files: dict[str, bytes]
    facts: list[Facts]
    ids: dict[str, int]
    while_importing: list[dict[str, Any]]
    found_while_importing: bool

    def scene_id(self, place: int) -> int:
        return self.ids[f"scene-{place:04}.jpg"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    facts, files = [], {}
    for place in range(SCENES):
        scene = draw_scene("test", place)
        facts.append(scene.facts)
        files[f"scene-{place:04}.jpg"] = scene.jpeg()
    folder = tmp_path_factory.mktemp("main")
    # As on a machine that never ran it: nothing has been converted before.
    env = {"PIXELGATE_EMBED_CACHE_DIR": str(folder / "converted")}
    with running(folder / "data", env) as system, system.client() as client:
        ids: dict[str, int] = {}
        seen: list[dict[str, Any]] = []
        found_early, done = threading.Event(), threading.Event()

        def watch() -> None:
            with system.client() as watcher:
                while not done.is_set():
                    now = stages(watcher)["clip"]
                    total = watcher.get("/v1/stats").json()["images"]
                    seen.append({**now, "images": total})
                    hits = watcher.get("/v1/search", params={"q": "a dog", "limit": 5}).json().get("hits", [])
                    if hits and len(ids) < SCENES:
                        found_early.set()
                    time.sleep(0.3)

        watcher = threading.Thread(target=watch)
        watcher.start()
        everything = [*files.items(), *photographs().items()]
        for start in range(0, len(everything), BATCH):
            batch = everything[start : start + BATCH]
            outcomes = upload(client, batch, tags="imported")
            assert [outcome["outcome"] for outcome in outcomes] == ["created"] * len(batch)
            assert [outcome["filename"] for outcome in outcomes] == [name for name, _ in batch]
            ids.update((outcome["filename"], outcome["image"]["id"]) for outcome in outcomes)
        wait_analysed(client)
        done.set()
        watcher.join()
        yield Library(system, client, dict(everything), facts, ids, seen, found_early.is_set())


def test_every_picture_is_stored_and_analysed_once(library: Library) -> None:
    stats = library.client.get("/v1/stats").json()
    assert stats["images"] == len(library.ids) == len(set(library.ids.values()))
    for name, stage in stages(library.client).items():
        if name == ON_REQUEST:
            continue
        assert (stage["done"], stage["failed"], stage["pending"], stage["running"]) == (stats["images"], 0, 0, 0)


def test_pictures_are_found_while_the_import_runs_and_the_counts_add_up(library: Library) -> None:
    assert library.found_while_importing
    busy = [now for now in library.while_importing if now["pending"] + now["running"] > 0]
    assert len(busy) >= 3, "the import was over before anything could be watched"
    for now in library.while_importing:
        # The total is asked for right after the counts, so it can only be larger by what has come in between.
        assert now["pending"] + now["running"] + now["done"] + now["failed"] <= now["images"]
    done = [now["done"] for now in library.while_importing]
    assert done == sorted(done)
    assert any(now["rate_per_s"] > 0 and now["seconds_left"] is not None for now in busy)


def test_words_find_the_scene_they_describe(library: Library) -> None:
    queries = scene_queries(library.facts)[::5]
    assert len(queries) == 200
    found = 0
    for query in queries:
        hits = library.client.get("/v1/search", params={"q": query.text, "limit": 10}).raise_for_status().json()["hits"]
        found += library.scene_id(query.answers[0]) in {hit["image"]["id"] for hit in hits}
    assert found / len(queries) >= 0.95


def test_one_word_finds_scenes_with_that_object_first(library: Library) -> None:
    right = total = 0
    for query in label_queries(library.facts):
        answers = {library.scene_id(place) for place in query.answers}
        hits = library.client.get("/v1/search", params={"q": query.text, "limit": 10}).raise_for_status().json()["hits"]
        right += sum(hit["image"]["id"] in answers for hit in hits)
        total += len(hits)
    # The starter weights reach 0.86 (the model card's aim is 0.99); a search that was mixed up would fall far below.
    assert right / total >= 0.8


def altered(data: bytes) -> bytes:
    """Return the picture cropped by a tenth, rotated by 10 degrees and encoded again, as somebody might pass it on."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = picture.size
    picture = picture.crop((round(width * 0.05), round(height * 0.05), round(width * 0.95), round(height * 0.95)))
    picture = picture.rotate(10, resample=Image.Resampling.BICUBIC, fillcolor=(127, 127, 127))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=70)
    return buffer.getvalue()


def test_an_altered_picture_finds_its_original(library: Library) -> None:
    names = [f"scene-{place:04}.jpg" for place in range(0, SCENES, 10)]
    first: dict[str, int] = {"clip": 0, "resnet": 0}
    for name in names:
        picture = altered(library.files[name])
        for space in first:
            answer = library.client.post(
                "/v1/search/by-image", files={"image": (name, picture)}, data={"space": space, "limit": "3"}
            )
            hits = answer.raise_for_status().json()["hits"]
            first[space] += hits[0]["image"]["id"] == library.ids[name]
    assert max(first.values()) >= 95, first


@pytest.mark.parametrize("name", sorted(photographs()))
def test_a_photograph_finds_itself_however_small_it_comes(library: Library, name: str) -> None:
    picture = Image.open(io.BytesIO(library.files[name])).convert("RGB")
    picture.thumbnail((200, 200))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    answer = library.client.post("/v1/search/by-image", files={"image": ("query.webp", buffer.getvalue())})
    assert answer.raise_for_status().json()["hits"][0]["image"]["filename"] == name


def test_a_filter_cuts_the_answer(library: Library) -> None:
    tagged = [library.scene_id(place) for place in range(0, 100, 10)]
    for image_id in tagged:
        changed = library.client.patch(f"/v1/images/{image_id}", json={"tags": ["imported", "chosen"]})
        assert changed.raise_for_status().json()["tags"] == ["imported", "chosen"]
    answer = library.client.post(
        "/v1/search",
        json={"terms": [{"text": "a dog"}], "filter": {"field": "tags", "eq": "chosen"}, "limit": 50},
    )
    assert sorted(hit["image"]["id"] for hit in answer.raise_for_status().json()["hits"]) == tagged
    wide = library.client.post(
        "/v1/search",
        json={
            "terms": [{"text": "a dog"}],
            "filter": {"all": [{"field": "width", "gte": 300}, {"not": {"field": "tags", "eq": "chosen"}}]},
            "limit": 50,
        },
    )
    images = [hit["image"] for hit in wide.raise_for_status().json()["hits"]]
    assert len(images) == 50
    assert all(image["width"] >= 300 and "chosen" not in image["tags"] for image in images)


def test_the_same_upload_again_is_a_duplicate(library: Library) -> None:
    name = "scene-0007.jpg"
    answer = library.client.post("/v1/images", files={"files": ("another-name.jpg", library.files[name])})
    assert answer.status_code == 200
    (outcome,) = answer.json()["outcomes"]
    assert (outcome["outcome"], outcome["image"]["id"]) == ("duplicate", library.ids[name])
    assert library.client.get("/v1/stats").json()["images"] == len(library.ids)


def test_the_original_comes_back_byte_for_byte_and_variants_in_their_sizes(library: Library) -> None:
    name = "china.png" if "china.png" in library.files else "china.jpg"
    image_id = library.ids[name]
    assert library.client.get(f"/v1/images/{image_id}/original").content == library.files[name]
    for variant, longest in (("small", 150), ("medium", 300), ("preview", 1024)):
        answer = library.client.get(f"/v1/images/{image_id}/{variant}").raise_for_status()
        picture = Image.open(io.BytesIO(answer.content))
        assert max(picture.size) == min(longest, 640)
        again = library.client.get(
            f"/v1/images/{image_id}/{variant}", headers={"If-None-Match": answer.headers["etag"]}
        )
        assert again.status_code == 304


def test_a_listing_walks_through_everything_once(library: Library) -> None:
    seen: list[int] = []
    cursor: str | None = None
    while True:
        params = {"limit": "200", **({"cursor": cursor} if cursor else {})}
        page = library.client.get("/v1/images", params=params).raise_for_status().json()
        seen += [image["id"] for image in page["images"]]
        assert page["total"] == len(library.ids)
        if (cursor := page["next_cursor"]) is None:
            break
    assert len(seen) == len(set(seen)) == len(library.ids)


def test_a_deleted_picture_is_gone_from_everywhere(library: Library) -> None:
    extra = draw_scene("test", SCENES + 1).jpeg()
    (outcome,) = upload(library.client, [("short-lived.jpg", extra)])
    image_id = outcome["image"]["id"]
    wait_analysed(library.client)
    search = {"files": {"image": ("q.jpg", extra)}, "data": {"limit": "1"}}
    assert library.client.post("/v1/search/by-image", **search).json()["hits"][0]["image"]["id"] == image_id  # type: ignore[arg-type]
    assert library.client.delete(f"/v1/images/{image_id}").status_code == 204
    assert library.client.get(f"/v1/images/{image_id}").status_code == 404
    assert library.client.get(f"/v1/images/{image_id}/original").status_code == 404
    assert library.client.post("/v1/search/by-image", **search).json()["hits"][0]["image"]["id"] != image_id  # type: ignore[arg-type]


def log_lines(library: Library, service: str) -> list[dict[str, Any]]:
    """Return the lines of a service's log, the last full one (`.1`) included, that have the request id in them."""
    found = []
    for path in sorted((library.system.data_dir / "logs").glob(f"{service}.log*")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found += [json.loads(line) for line in lines if "a-search-to-follow" in line]
    return found


def test_a_request_id_travels_through_every_service(library: Library) -> None:
    sent = {"X-Request-ID": "a-search-to-follow"}
    answer = library.client.get("/v1/search", params={"q": "a bus"}, headers=sent)
    assert answer.headers["x-request-id"] == "a-search-to-follow"
    deadline = time.monotonic() + 20
    for service in ("gateway", "embed", "storage"):
        # A service writes its line when it is done, which can be after the client has its answer.
        while not any(line["request_id"] == "a-search-to-follow" for line in log_lines(library, service)):
            assert time.monotonic() < deadline, service
            time.sleep(0.1)


def test_everything_survives_a_restart(library: Library) -> None:
    def answers() -> list[Any]:
        texts = [query.text for query in scene_queries(library.facts)[:20]]
        found = [library.client.get("/v1/search", params={"q": text}).raise_for_status().json() for text in texts]
        return [[(hit["image"]["id"], round(hit["score"], 5)) for hit in answer["hits"]] for answer in found]

    before, stats = answers(), library.client.get("/v1/stats").json()
    library.system.stop()
    library.system.start()
    after = library.client.get("/v1/stats").json()
    assert (after["images"], after["bytes"]) == (stats["images"], stats["bytes"])
    assert answers() == before
    assert Path(library.system.data_dir).is_dir()
