"""Numbered migrations: `NNNN_pre_*.sql` before the code that needs them runs, `NNNN_post_*.sql` when no old one does.

A `pre` migration may be applied while processes of the last version run, a `post` migration breaks them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import structlog
from pixelgate_common.errors import Unavailable
from psycopg import AsyncConnection, OperationalError

log = structlog.get_logger(__name__)
_LOCK = 0x7069786C67  # one number for all processes of Pixelgate on this database
_NAME = re.compile(r"(\d{4})_(pre|post)_([a-z0-9_]+)\.sql")
Phase = Literal["pre", "post"]


class MigrationError(RuntimeError):
    """The database and the code do not fit together; the message says how."""


@dataclass(frozen=True)
class Migration:
    """One file of SQL; `checksum` is the SHA-256 of its text."""

    number: int
    phase: Phase
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the SQL, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def known_migrations() -> list[Migration]:
    """Return the migrations that this version of the code carries, by number."""
    found = []
    for entry in resources.files("storage_service").joinpath("migrations").iterdir():
        if not entry.name.endswith(".sql"):
            continue
        match = _NAME.fullmatch(entry.name)
        if match is None:
            raise MigrationError(f"{entry.name}: a migration is named NNNN_pre_what.sql or NNNN_post_what.sql")
        phase: Phase = "pre" if match[2] == "pre" else "post"
        found.append(Migration(int(match[1]), phase, entry.name, entry.read_text("utf-8")))
    found.sort(key=lambda migration: migration.number)
    if len({migration.number for migration in found}) != len(found):
        raise MigrationError("two migrations have the same number")
    return found


async def migrate(
    dsn: str, phases: Sequence[Phase] = ("pre", "post"), migrations: Sequence[Migration] | None = None
) -> list[str]:
    """Apply what is missing of `phases`, each file in its own transaction; return the names of what was applied.

    Unavailable when Postgres does not answer; MigrationError when an applied file was changed since, or when the
    database was migrated by newer code.
    """
    known = known_migrations() if migrations is None else list(migrations)
    # Its own connection, without the pool's statement timeout: a migration may take as long as it takes.
    try:
        connection = await AsyncConnection.connect(dsn, autocommit=True)
    except OperationalError as error:
        raise Unavailable(f"Postgres does not answer (DATABASE_URL): {str(error).strip()}") from error
    async with connection as conn:
        await conn.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        await conn.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (number integer PRIMARY KEY, name text NOT NULL,"
            " checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        cursor = await conn.execute("SELECT number, name, checksum FROM schema_migrations ORDER BY number")
        applied = {number: (name, checksum) for number, name, checksum in await cursor.fetchall()}
        _check(known, applied)
        done = []
        for migration in known:
            if migration.number in applied or migration.phase not in phases:
                continue
            async with conn.transaction():
                await conn.execute(migration.sql.encode())
                await conn.execute(
                    "INSERT INTO schema_migrations (number, name, checksum) VALUES (%s, %s, %s)",
                    (migration.number, migration.name, migration.checksum),
                )
            log.info("migrated", migration=migration.name)
            done.append(migration.name)
        return done


def _check(known: Sequence[Migration], applied: dict[int, tuple[str, str]]) -> None:
    by_number = {migration.number: migration for migration in known}
    for number, (name, checksum) in applied.items():
        migration = by_number.get(number)
        if migration is None:
            raise MigrationError(
                f"the database is newer than this code: it has had {name}, which this version does not know"
            )
        if migration.checksum != checksum:
            raise MigrationError(f"{migration.name} was changed after it had been applied to this database")
