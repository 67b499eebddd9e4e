"""For the tests of every service: a real Postgres, and an empty database of its own for each test.

Import the fixtures in a `conftest.py`:

    from pixelgate_local.testing import postgres_dsn, postgres_server, postgres_template

Each test that takes `postgres_dsn` gets a fresh database, dropped afterwards. To have the schema in it without running
the migrations for each test, override one fixture:

    @pytest.fixture(scope="session")
    def postgres_template(postgres_server: PostgresServer) -> str:
        return postgres_server.make_template(migrate)       # migrate(dsn) is called once

`PIXELGATE_TEST_POSTGRES_DSN` names a server to use in place of our own; its user must be allowed to create databases.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pixelgate_local.postgres import LocalPostgres

TEST_POSTGRES_VARIABLE = "PIXELGATE_TEST_POSTGRES_DSN"


class PostgresServer:
    """A server that hands out databases."""

    def __init__(self, dsn: str) -> None:
        """Use the server behind `dsn`, whose database serves for administration only."""
        self._dsn = dsn
        self._templates: list[str] = []

    def dsn_of(self, database: str) -> str:
        """Return the connection string of `database`."""
        return make_conninfo(self._dsn, dbname=database)

    @contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """Make a copy of `template`, yield its connection string, and drop it with whatever is still connected."""
        name = f"pixelgate_test_{uuid.uuid4().hex}"
        self._create(name, template)
        try:
            yield self.dsn_of(name)
        finally:
            self._drop(name)

    def make_template(self, prepare: Callable[[str], object]) -> str:
        """Make a database, have `prepare` (called with its connection string) fill it, and return its name."""
        name = f"pixelgate_test_template_{uuid.uuid4().hex}"
        self._create(name, "template0")
        self._templates.append(name)
        prepare(self.dsn_of(name))
        return name

    def close(self) -> None:
        """Drop the templates made here."""
        while self._templates:
            self._drop(self._templates.pop())

    def _create(self, name: str, template: str) -> None:
        command = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(command)

    def _drop(self, name: str) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Yield the server named by `PIXELGATE_TEST_POSTGRES_DSN`, else one started for this in a temporary folder."""
    outside = os.environ.get(TEST_POSTGRES_VARIABLE)
    if outside:
        server = PostgresServer(outside)
        try:
            yield server
        finally:
            server.close()
        return
    # Without fsync: what these tests need is speed, and no power cut is part of them.
    with (
        tempfile.TemporaryDirectory(prefix="pixelgate-test-") as folder,
        LocalPostgres(Path(folder), fsync=False) as postgres,
    ):
        yield PostgresServer(postgres.dsn)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the whole run."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """The database that each test's own is a copy of: an empty one, unless overridden."""
    return "template0"


@pytest.fixture
def postgres_dsn(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """The connection string of a database that only this test uses."""
    with postgres_server.database(postgres_template) as dsn:
        yield dsn
