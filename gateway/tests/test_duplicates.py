"""Groups of duplicates, page by page, and decisions."""

from __future__ import annotations

from typing import Any

import pytest
from pixelgate_common.contracts.storage import DuplicateGroup


@pytest.fixture
def grouped(gateway: Any) -> Any:
    for number in range(8):
        gateway.storage.add(b"\xff\xd8\xff" + str(number).encode())
    records = gateway.storage.records
    for first in (1, 3, 5):
        pair = [records[first], records[first + 1]]
        gateway.storage.groups.append(DuplicateGroup(tier="same", images=pair))
    gateway.storage.groups.append(DuplicateGroup(tier="similar", images=[records[7], records[8]]))
    return gateway


async def test_groups_come_page_by_page_and_by_tier(grouped: Any) -> None:
    seen, cursor = [], None
    while True:
        params = {"tier": "same", "limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = (await grouped.client.get("/v1/duplicates", params=params)).json()
        seen += [[image["id"] for image in group["images"]] for group in page["groups"]]
        assert {group["tier"] for group in page["groups"]} == {"same"}
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == [[1, 2], [3, 4], [5, 6]]
    similar = (await grouped.client.get("/v1/duplicates", params={"tier": "similar"})).json()
    assert [[image["id"] for image in group["images"]] for group in similar["groups"]] == [[7, 8]]
    assert similar["pending"] == 0


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "tier"),
        ({"tier": "alike"}, "tier"),
        ({"tier": "same", "limit": "0"}, "limit"),
        ({"tier": "same", "limit": "101"}, "limit"),
        ({"tier": "same", "cursor": "nonsense"}, "cursor"),
    ],
)
async def test_what_cannot_be_listed_is_422(grouped: Any, params: Any, field: str) -> None:
    answer = await grouped.client.get("/v1/duplicates", params=params)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


@pytest.mark.parametrize("decision", ["same", "different"])
async def test_a_decision_is_passed_on(grouped: Any, decision: str) -> None:
    body = {"image_ids": [1, 2], "decision": decision}
    answer = await grouped.client.post("/v1/duplicates/decisions", json=body)
    assert (answer.status_code, answer.content) == (204, b"")
    assert [one.model_dump() for one in grouped.storage.decisions] == [body]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"image_ids": [1, 99], "decision": "same"}, 404, "image_ids.1"),
        ({"image_ids": [1], "decision": "same"}, 422, "image_ids"),
        ({"image_ids": [1, 2], "decision": "maybe"}, 422, "decision"),
        ({"image_ids": [1, 2]}, 422, "decision"),
        ({"image_ids": [1, 2], "decision": "same", "why": "x"}, 422, "why"),
    ],
)
async def test_a_decision_that_cannot_be_names_its_field(grouped: Any, body: Any, status: int, field: str) -> None:
    answer = await grouped.client.post("/v1/duplicates/decisions", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (status, field)
    assert grouped.storage.decisions == []
