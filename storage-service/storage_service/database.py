"""Postgres: one pool of connections, one transaction for each `connection()`.

Rows are plain tuples; a cursor that wants something else names its own row factory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from pixelgate_common.errors import OutOfSpace, Unavailable
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

Connection = AsyncConnection[TupleRow]


class Database:
    """The pool. Every `async with db.connection() as conn` is one READ COMMITTED transaction."""

    def __init__(
        self, dsn: str, *, max_connections: int = 16, wait_s: float = 10.0, statement_timeout_s: float = 60.0
    ) -> None:
        """Name the database; nothing is connected before `open`. `wait_s` bounds the wait for a free connection."""
        self.dsn = dsn
        self._wait_s = wait_s
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            dsn,
            min_size=2,
            max_size=max_connections,
            timeout=wait_s,
            open=False,
            # A round trip per transaction, so that a restart of Postgres costs its clients no failed request.
            check=AsyncConnectionPool.check_connection,
            kwargs={
                "application_name": "pixelgate-storage",
                # jit costs tens of milliseconds per query shape and has never paid for itself on these queries.
                "options": f"-c statement_timeout={int(statement_timeout_s * 1000)} -c jit=off -c timezone=UTC",
            },
        )

    async def open(self) -> None:
        """Connect, or raise Unavailable when Postgres does not answer in time."""
        await self._pool.open()
        try:
            await self._pool.wait(timeout=self._wait_s)
        except PoolTimeout as error:
            await self._pool.close()
            raise Unavailable("Postgres does not answer (DATABASE_URL).") from error

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection in a transaction: committed at the end, rolled back when anything is raised.

        Unavailable (503) when there is no connection to be had or it is lost, OutOfSpace (507) on a full disk.
        """
        try:
            async with self._pool.connection() as conn:
                yield conn
        except (PoolTimeout, PoolClosed) as error:
            raise Unavailable("Postgres does not answer, or all of its connections are taken.") from error
        except psycopg.errors.DiskFull as error:
            raise OutOfSpace("The disk of the database is full.") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise Unavailable(f"The database broke off: {str(error).strip() or type(error).__name__}") from error

    async def check(self) -> None:
        """Ask Postgres something; raises when it does not answer."""
        async with self.connection() as conn:
            await conn.execute("SELECT 1")
