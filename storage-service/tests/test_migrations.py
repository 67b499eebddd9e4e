from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from pixelgate_local.testing import PostgresServer
from storage_service.database import Database
from storage_service.migrations import Migration, MigrationError, known_migrations, migrate

PRE = Migration(1, "pre", "0001_pre_a.sql", "CREATE TABLE a (x integer)")
POST = Migration(2, "post", "0002_post_b.sql", "CREATE TABLE b (x integer); INSERT INTO b VALUES (1)")


@pytest.fixture
def empty_dsn(postgres_server: PostgresServer) -> Iterator[str]:
    with postgres_server.database() as dsn:
        yield dsn


def tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {row[0] for row in rows}


async def test_the_migrations_in_the_package_load_in_order_and_only_once(empty_dsn: str) -> None:
    names = [migration.name for migration in known_migrations()]
    assert await migrate(empty_dsn) == names
    assert await migrate(empty_dsn) == []
    assert {"images", "analyses", "vectors", "schema_migrations"} <= tables(empty_dsn)


async def test_pre_alone_leaves_post_for_later(empty_dsn: str) -> None:
    assert await migrate(empty_dsn, ["pre"], [PRE, POST]) == ["0001_pre_a.sql"]
    assert "b" not in tables(empty_dsn)
    assert await migrate(empty_dsn, ["pre", "post"], [PRE, POST]) == ["0002_post_b.sql"]


async def test_a_newer_database_is_refused(empty_dsn: str) -> None:
    await migrate(empty_dsn, migrations=[PRE, POST])
    with pytest.raises(MigrationError, match=r"newer than this code: it has had 0002_post_b\.sql"):
        await migrate(empty_dsn, migrations=[PRE])


async def test_a_migration_changed_after_it_was_applied_is_refused(empty_dsn: str) -> None:
    await migrate(empty_dsn, migrations=[PRE])
    with pytest.raises(MigrationError, match="changed after"):
        await migrate(empty_dsn, migrations=[Migration(1, "pre", PRE.name, PRE.sql + " ")])


async def test_a_migration_that_fails_leaves_nothing_of_itself(empty_dsn: str) -> None:
    broken = Migration(2, "pre", "0002_pre_c.sql", "CREATE TABLE c (x integer); SELECT 1/0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(empty_dsn, migrations=[PRE, broken])
    assert "a" in tables(empty_dsn)
    assert "c" not in tables(empty_dsn)


async def test_processes_that_start_together_migrate_once(empty_dsn: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_dsn) for _ in range(4)))
    assert sorted(map(len, applied)) == [0, 0, 0, len(known_migrations())]


async def change_and_fail(db: Database) -> None:
    async with db.connection() as conn:
        await conn.execute("UPDATE clock SET seq = 7")
        raise ValueError("stop")


async def test_a_transaction_is_rolled_back_by_an_error(db: Database) -> None:
    with pytest.raises(ValueError, match="stop"):
        await change_and_fail(db)
    async with db.connection() as conn:
        assert await (await conn.execute("SELECT seq FROM clock")).fetchone() == (0,)
