"""Two hundred requests at once: each gets its answer or an honest "later", and afterwards all is as before."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
from starter_models.scenes import draw_scene

from tests.system import System, running, upload, wait_analysed

REQUESTS = 200


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("load") / "data") as system:
        with system.client() as client:
            upload(client, [(f"{place}.jpg", draw_scene("test", place).jpeg()) for place in range(40)])
            wait_analysed(client)
        yield system


async def all_at_once(system: System, kind: str) -> Counter[int]:
    statuses: Counter[int] = Counter()
    limits = httpx.Limits(max_connections=REQUESTS)
    async with httpx.AsyncClient(base_url=system.url, timeout=120, limits=limits) as client:

        async def one(number: int) -> None:
            picture = draw_scene("validation", number, 256).jpeg()
            if kind == "search":
                answer = await client.get("/v1/search", params={"q": f"a dog and {number} cats"})
            elif kind == "by-image":
                answer = await client.post("/v1/search/by-image", files={"image": ("q.jpg", picture)})
            else:
                answer = await client.post("/v1/images", files={"files": (f"load-{number}.jpg", picture)})
                if answer.status_code == 422:  # the one picture was put off: its own problem says until when
                    problem = answer.json()["outcomes"][0]["problem"]
                    assert problem["status"] == 503, problem
                    statuses[503] += 1
                    return
            if answer.status_code in (429, 503):
                assert int(answer.headers["retry-after"]) >= 1
            statuses[answer.status_code] += 1

        await asyncio.gather(*(one(number) for number in range(REQUESTS)))
    return statuses


@pytest.mark.parametrize("kind", ["search", "by-image", "upload"])
async def test_each_of_many_requests_is_answered_or_put_off(system: System, kind: str) -> None:
    before = system.memory_mb()
    statuses = await all_at_once(system, kind)
    assert set(statuses) <= {200, 201, 429, 503}, statuses
    assert statuses[200] + statuses[201] > 0, statuses
    with system.client() as client:
        answer = client.get("/v1/search", params={"q": "a dog"})
        assert answer.status_code == 200
        assert len(answer.json()["hits"]) > 0
        for stage in wait_analysed(client).values():
            assert stage["failed"] == 0
    after = system.memory_mb()
    for service, now in after.items():
        assert now - before[service] < 250, (service, before, after)
