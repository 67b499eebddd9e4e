"""What the tests of this service share: a migrated Postgres database of its own for each test."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pixelgate_common.contracts.storage import ARRIVAL_HEADER, Arrival, Arrived, ImageRecord
from pixelgate_local.testing import PostgresServer, postgres_dsn, postgres_server
from storage_service.app import create_app
from storage_service.database import Database
from storage_service.migrations import migrate
from storage_service.parts import Parts
from storage_service.settings import Settings

# The modules beside the tests that make pictures and data for them; pytest's importlib mode adds no folder by itself.
sys.path.insert(0, str(Path(__file__).parent))

__all__ = ["postgres_dsn", "postgres_server"]


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """A database with the schema, so that a test's own one is a copy and runs no migration."""
    return postgres_server.make_template(lambda dsn: asyncio.run(migrate(dsn)))


@pytest.fixture
async def db(postgres_dsn: str) -> AsyncIterator[Database]:
    """The pool on this test's own migrated database."""
    database = Database(postgres_dsn, max_connections=10)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
def settings(postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a service of this test's own; what the machine's environment says of it does not count."""
    for name in [name for name in os.environ if name.startswith(("PIXELGATE_STORAGE_", "S3_", "QDRANT_"))]:
        monkeypatch.delenv(name)
    return Settings(
        database_url=postgres_dsn,
        data_dir=tmp_path / "data",
        decoders=2,
        max_upload_mb=1,
        stages=("clip", "resnet"),
        duplicates="off",
    )


class Service:
    """The running application: its parts, and a client that asks it over ASGI."""

    def __init__(self, parts: Parts, client: httpx.AsyncClient) -> None:
        self.parts, self.client = parts, client

    async def upload(self, data: bytes, arrival: Arrival | None = None) -> httpx.Response:
        """Post a picture as the gateway does."""
        headers = {ARRIVAL_HEADER: arrival.to_header()} if arrival else {}
        return await self.client.post("/v1/images", content=data, headers=headers)

    async def create(self, data: bytes, arrival: Arrival | None = None) -> ImageRecord:
        """Post a picture that must be new, and return its record."""
        response = await self.upload(data, arrival)
        assert response.status_code == 201, response.text
        return Arrived.model_validate_json(response.content).image

    async def lease(self, stage: str, limit: int = 100) -> list[dict[str, Any]]:
        """Name the stage's model, and take work of it."""
        model = {"fingerprint": f"test-{stage}-1", "model": "m", "dim": 8}
        response = await self.client.put(f"/v1/stages/{stage}/model", json=model)
        assert response.status_code == 200, response.text
        body = {"fingerprint": model["fingerprint"], "limit": limit}
        response = await self.client.post(f"/v1/stages/{stage}/lease", json=body)
        assert response.status_code == 200, response.text
        return list(response.json()["items"])

    async def hand_in(self, stage: str, items: list[dict[str, Any]], result: Any) -> None:
        """Hand `result` in for each of the leased `items`."""
        done = [{"image_id": i["image_id"], "token": i["token"], "took_ms": 5, "result": result} for i in items]
        body = {"fingerprint": f"test-{stage}-1", "items": done}
        response = await self.client.post(f"/v1/stages/{stage}/results", json=body)
        assert response.json() == {"accepted": len(items), "stale": 0}, response.text

    async def record(self, image_id: int) -> ImageRecord:
        """Return the picture's record."""
        return ImageRecord.model_validate_json((await self.client.get(f"/v1/images/{image_id}")).content)

    async def value(self, query: str, *values: object) -> Any:
        """Return the first column of the first row that `query` finds."""
        async with self.parts.db.connection() as conn:
            row = await (await conn.execute(query.encode(), values)).fetchone()
        return row[0] if row else None


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Service]:
    """Run the application with `settings` in this process."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://storage", timeout=60) as client:
            yield Service(app.state.parts, client)


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    """A running application on an empty store."""
    async with running(settings) as one:
        yield one
