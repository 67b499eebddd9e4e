"""The routes of search: from upload and results to hits, over HTTP, with the bodies that other services rely on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pictures_made as made
import pytest
from conftest import Service
from gallery import FINGERPRINT, clustered
from pixelgate_common.contracts.storage import Arrival, GenerationList, ImagePage, SearchPage, StoredVectors
from pixelgate_common.vectors import decode_vector, encode_vector

DIM = 32


async def filled(service: Service, count: int = 5) -> tuple[list[int], Any]:
    """Upload pictures, and bring their vectors as the pipeline does."""
    vectors = clustered(count, DIM)
    model = {"fingerprint": FINGERPRINT, "model": "test", "dim": DIM}
    assert (await service.client.put("/v1/stages/clip/model", json=model)).status_code == 200
    ids = [
        (await service.create(made.jpeg(seed=number), Arrival(filename=f"scene-{number}.jpg", tags=[f"t{number}"]))).id
        for number in range(count)
    ]
    lease = await service.client.post("/v1/stages/clip/lease", json={"fingerprint": FINGERPRINT, "limit": count})
    items = [
        {
            "image_id": item["image_id"],
            "token": item["token"],
            "took_ms": 1.0,
            "vector": encode_vector(vectors[ids.index(item["image_id"])]),
        }
        for item in lease.json()["items"]
    ]
    taken = await service.client.post("/v1/stages/clip/results", json={"fingerprint": FINGERPRINT, "items": items})
    assert taken.json() == {"accepted": count, "stale": 0}
    return ids, vectors


def asked(vector: Any, fingerprint: str = FINGERPRINT) -> dict[str, Any]:
    return {"vectors": [{"space": "clip", "fingerprint": fingerprint, "vector": encode_vector(vector)}]}


async def test_what_was_uploaded_and_analysed_is_found(service: Service) -> None:
    ids, vectors = await filled(service)
    answer = await service.client.post("/v1/search", json={**asked(vectors[2]), "words": {"text": "scene-2"}})
    assert answer.status_code == 200
    page = SearchPage.model_validate_json(answer.content)
    assert page.hits[0].image.id == ids[2]
    assert page.hits[0].image.stages["clip"].state == "done"
    assert page.hits[0].parts.vector == pytest.approx(1.0, abs=1e-3)
    assert page.hits[0].parts.words is not None


async def test_an_edit_and_a_deletion_reach_filtered_search(service: Service) -> None:
    ids, vectors = await filled(service)
    await service.client.patch(f"/v1/images/{ids[1]}", json={"tags": ["mine"], "attributes": {"rating": 5}})
    for tree in ({"field": "tags", "eq": "mine"}, {"field": "attributes.rating", "eq": 5.0}):
        answer = await service.client.post("/v1/search", json={**asked(vectors[0]), "filter": tree})
        assert [hit["image"]["id"] for hit in answer.json()["hits"]] == [ids[1]]
    assert (await service.client.delete(f"/v1/images/{ids[1]}")).status_code == 204
    answer = await service.client.post("/v1/search", json=asked(vectors[1]))
    assert ids[1] not in [hit["image"]["id"] for hit in answer.json()["hits"]]


async def test_lists_are_answered(service: Service) -> None:
    ids, _ = await filled(service)
    answer = await service.client.post("/v1/images/query", json={"limit": 2, "facets": ["format"]})
    page = ImagePage.model_validate_json(answer.content)
    assert [image.id for image in page.images] == ids[:-3:-1]
    assert page.total == 5
    assert page.facets["format"][0].count == 5
    body = {"limit": 2, "cursor": page.next_cursor}
    answer = await service.client.post("/v1/images/query", json=body)
    assert [image["id"] for image in answer.json()["images"]] == ids[2:0:-1]


async def test_vectors_and_generations_are_handed_out(service: Service) -> None:
    ids, vectors = await filled(service)
    body = {"space": "clip", "image_ids": [ids[0], 10**6], "fingerprint": FINGERPRINT}
    answer = await service.client.post("/v1/vectors", json=body)
    stored = StoredVectors.model_validate_json(answer.content).vectors
    assert stored[10**6] is None
    assert stored[ids[0]] is not None
    np.testing.assert_allclose(decode_vector(str(stored[ids[0]])), vectors[0], atol=1e-3)
    answer = await service.client.get("/v1/generations")
    one = GenerationList.model_validate_json(answer.content).generations[0]
    assert (one.space, one.fingerprint, one.dim, one.state, one.images) == ("clip", FINGERPRINT, DIM, "active", 5)


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/search", asked(np.ones(DIM), "unknown:1"), 409, "vectors.0.fingerprint"),
        ("/v1/search", asked(np.ones(DIM + 1)), 422, "vectors.0.vector"),
        ("/v1/search", {"cursor": "nonsense"}, 422, "cursor"),
        ("/v1/search", {"words": {"text": "a " * 65}}, 422, "words.text"),
        ("/v1/search", {"filter": {"field": "width", "eq": "wide"}}, 422, None),
        ("/v1/search", {"limit": 201}, 422, "limit"),
        ("/v1/images/query", {"cursor": "nonsense"}, 422, "cursor"),
        ("/v1/images/query", {"sort": "colour"}, 422, "sort"),
        ("/v1/vectors", {"space": "clip", "image_ids": [1], "fingerprint": "unknown:1"}, 409, "fingerprint"),
    ],
)
async def test_what_cannot_be_answered_is_said_with_its_field(
    service: Service, path: str, body: dict[str, Any], status: int, field: str | None
) -> None:
    await filled(service, 1)
    answer = await service.client.post(path, json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    named = [error["field"] for error in answer.json()["errors"]]
    assert named == [field] if field else named
