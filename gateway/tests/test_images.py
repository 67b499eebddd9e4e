"""Records and files: what is passed on, and with which headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pixelgate_common.contracts.filters import All, Leaf

Jpeg = Callable[..., bytes]


async def test_a_record_is_read_changed_and_deleted(gateway: Any, jpeg: Jpeg) -> None:
    gateway.storage.add(jpeg(1))
    assert (await gateway.client.get("/v1/images/1")).json()["bytes"] == len(jpeg(1))
    changed = await gateway.client.patch("/v1/images/1", json={"tags": ["new"], "caption": "A dog."})
    assert (changed.json()["tags"], changed.json()["caption"]) == (["new"], "A dog.")
    assert (await gateway.client.delete("/v1/images/1")).status_code == 204
    assert (await gateway.client.get("/v1/images/1")).status_code == 404
    assert (await gateway.client.delete("/v1/images/1")).status_code == 404


async def test_what_a_patch_leaves_out_stays_and_null_is_passed_on(gateway: Any, jpeg: Jpeg) -> None:
    gateway.storage.add(jpeg(1))
    await gateway.client.patch("/v1/images/1", json={"tags": ["kept"], "caption": "A dog."})
    changed = (await gateway.client.patch("/v1/images/1", json={"caption": None})).json()
    assert (changed["tags"], changed["caption"]) == (["kept"], None)


async def test_a_patch_with_an_unknown_field_is_422(gateway: Any) -> None:
    answer = await gateway.client.patch("/v1/images/1", json={"width": 3})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "width")


@pytest.mark.parametrize("path", ["/v1/images/9", "/v1/images/9/preview"])
async def test_an_unknown_picture_is_a_404_problem_under_the_public_path(gateway: Any, path: str) -> None:
    answer = await gateway.client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["instance"] == path
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/v1/images/0", "/v1/images/x", f"/v1/images/{2**63}", "/v1/images/1/cutout9"])
async def test_what_is_no_id_or_variant_is_422(gateway: Any, path: str) -> None:
    assert (await gateway.client.get(path)).status_code == 422


async def test_a_file_comes_with_its_headers_and_its_bytes(gateway: Any, jpeg: Jpeg) -> None:
    gateway.storage.add(jpeg(1))
    answer = await gateway.client.get("/v1/images/1/original")
    assert (answer.status_code, answer.content) == (200, jpeg(1))
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["content-length"] == str(len(jpeg(1)))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in answer.headers["cache-control"]
    etag = answer.headers["etag"]
    unchanged = await gateway.client.get("/v1/images/1/original", headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)


async def test_a_part_of_a_file_comes_as_206(gateway: Any, jpeg: Jpeg) -> None:
    gateway.storage.add(jpeg(1))
    part = await gateway.client.get("/v1/images/1/original", headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, jpeg(1)[2:6])
    assert part.headers["content-range"] == f"bytes 2-5/{len(jpeg(1))}"
    beyond = await gateway.client.get("/v1/images/1/original", headers={"Range": "bytes=999999-"})
    assert beyond.status_code == 416


async def test_head_says_what_get_would(gateway: Any, jpeg: Jpeg) -> None:
    gateway.storage.add(jpeg(1))
    answer = await gateway.client.head("/v1/images/1/preview")
    assert (answer.status_code, answer.headers["etag"]) == (200, '"1-preview"')


async def test_a_listing_passes_everything_on(gateway: Any, jpeg: Jpeg) -> None:
    gateway.storage.add(jpeg(1))
    tree = {"field": "width", "gte": 10}
    params = [
        ("limit", "3"),
        ("sort", "filename"),
        ("filter", json.dumps(tree)),
        ("tag", "dog"),
        ("tag", "red"),
        ("facets", "format"),
        ("facets", "tags"),
    ]
    answer = await gateway.client.get("/v1/images", params=params)
    assert (answer.status_code, answer.json()["total"]) == (200, 1)
    (asked,) = gateway.storage.listings
    assert (asked.limit, asked.sort, asked.facets) == (3, "filename", ["format", "tags"])
    assert asked.filter == All(
        all=[Leaf(field="width", gte=10), Leaf(field="tags", eq="dog"), Leaf(field="tags", eq="red")]
    )


@pytest.mark.parametrize(
    ("params", "field"),
    [
        pytest.param({"filter": "{"}, "filter", id="no-json"),
        pytest.param({"filter": '{"field": "wdith", "eq": 1}'}, "filter", id="unknown-field"),
        pytest.param({"filter": '{"field": "width", "eq": "x"}'}, "filter", id="wrong-kind"),
        pytest.param({"filter": '{"all": []}'}, "filter.all", id="empty"),
        pytest.param({"filter": '{"not":' * 20 + '{"field": "id", "eq": 1}' + "}" * 20}, "filter", id="deep"),
        pytest.param({"filter": "[" * 20_000}, "filter", id="very-deep"),
        pytest.param({"limit": "501"}, "limit", id="limit"),
        pytest.param({"sort": "random"}, "sort", id="sort"),
        pytest.param({"facets": "sha256"}, "facets.0", id="facets"),
        pytest.param({"cursor": "nonsense"}, "cursor", id="cursor"),
    ],
)
async def test_a_bad_listing_names_the_field(gateway: Any, params: dict[str, str], field: str) -> None:
    answer = await gateway.client.get("/v1/images", params=params)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field
