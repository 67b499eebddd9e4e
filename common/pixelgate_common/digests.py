"""Digests of files: of weights, remembered by size and time of change, so that a start does not read gigabytes."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def digest_of(value: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of a JSON object, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path, memory: Path) -> str:
    """Return the SHA-256 of a file, in hex, computed again only when its size or time of change differ.

    `memory` is a JSON file that remembers; one that is damaged or cannot be written costs time, nothing else.
    """
    stat = path.stat()
    key, stamp = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(memory.read_text())
    if isinstance(known, dict) and isinstance(entry := known.get(key), dict) and entry.get("stamp") == stamp:
        return str(entry["sha256"])
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    known = {**(known if isinstance(known, dict) else {}), key: {"stamp": stamp, "sha256": sha256}}
    with suppress(OSError):
        write_atomically(memory, json.dumps(known, indent=1).encode())
    return sha256


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    draft.write_bytes(data)
    draft.replace(path)
