"""The services' log files: one each, bounded, and the line in them that says why one ended."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

_TAIL_BYTES = 64 * 1024
_MAX_LINE = 200
_COMPLAINT = re.compile(r"^\s*[\w.]+(Error|Exception|Exit|Interrupt)\b|\b(fatal|panic|error|cannot)\b", re.IGNORECASE)


def rotate(path: Path) -> None:
    """Make `path` the former log, `NAME.log.1`, in place of the one before it."""
    if path.exists() and path.stat().st_size:
        path.replace(_former(path))


def cap(path: Path, max_bytes: int) -> None:
    """Empty `path` when it has outgrown `max_bytes`, keeping its end as the former log.

    Its writer keeps it open for appending, so it cannot be renamed away; what is written between the copy and the cut
    is lost.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return
    if size <= max_bytes:
        return
    with path.open("rb+") as file:
        file.seek(max(0, size - max_bytes))
        with _former(path).open("wb") as former:
            shutil.copyfileobj(file, former)
        file.truncate(0)


def size_of(path: Path) -> int:
    """Return how many bytes `path` has, 0 when it is missing."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def last_complaint(path: Path, start: int = 0) -> str:
    """Return the last line of `path` after byte `start` that says what went wrong, else its last line, else nothing."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            end = file.tell()
            file.seek(max(start if start <= end else 0, end - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    said = [text for line in lines if (text := line.strip())]
    for line in reversed(said):
        if (complaint := _complaint_in(line)) is not None:
            return _short(complaint)
    return _short(_event_of(said[-1]) or said[-1]) if said else ""


def _complaint_in(line: str) -> str | None:
    entry = _parsed(line)
    if entry is None:
        return line if _COMPLAINT.search(line) else None
    if entry.get("level") not in ("error", "critical"):
        return None
    trace = [text for text in str(entry.get("exception") or "").splitlines() if text.strip()]
    said = [entry.get(key) for key in ("event", "reason", "error", "detail")]
    return ": ".join(str(part).strip() for part in (*said, trace[-1] if trace else "") if part)


def _event_of(line: str) -> str | None:
    entry = _parsed(line)
    return None if entry is None else str(entry.get("event", line))


def _parsed(line: str) -> dict[str, object] | None:
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _former(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_LINE else f"{text[: _MAX_LINE - 1]}…"
