"""What the tests of this service share: a migrated Postgres database of its own for each test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from pixelgate_local.testing import PostgresServer, postgres_dsn, postgres_server
from storage_service.database import Database
from storage_service.migrations import migrate

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
