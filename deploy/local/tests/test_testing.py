"""The fixtures that the services' tests use."""

from __future__ import annotations

import psycopg
import pytest
from pixelgate_local.testing import PostgresServer, postgres_dsn, postgres_server, postgres_template

__all__ = ["postgres_dsn", "postgres_server", "postgres_template"]


@pytest.mark.parametrize("turn", ["first", "second"])
def test_each_test_gets_an_empty_database(postgres_dsn: str, turn: str) -> None:
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute("CREATE TABLE only_mine (turn text)")


def test_a_template_is_prepared_once_and_copied(postgres_server: PostgresServer) -> None:
    def prepare(dsn: str) -> None:
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS number")

    template = postgres_server.make_template(prepare)
    for _ in range(2):
        with postgres_server.database(template) as dsn, psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT number FROM kept").fetchone() == (7,)
            connection.execute("DELETE FROM kept")


def test_a_database_is_dropped_even_while_somebody_is_connected(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as dsn:
        left = psycopg.connect(dsn)
    with pytest.raises(psycopg.OperationalError):
        left.execute("SELECT 1")
    left.close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(dsn)
