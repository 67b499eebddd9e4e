"""`MODEL_DIR/models.lock`: what every model was when it was first pulled or loaded, and must stay under its name.

JSON: an object of sections (`files` for what was pulled, one for each service that records facts of its own), each an
object of entries by key. What others wrote into it stays. A damaged lock is an error and never overwritten.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixelgate_common.digests import write_atomically
from pixelgate_common.inference.errors import ModelChanged, ModelProblem

Entry = dict[str, Any]
LOCK_NAME = "models.lock"
PULLED = "files"
"""The section of what was pulled, by `SLOT:NAME`; its entries say in `files` what each file is."""
IDENTITY = ("fingerprint", "weights_sha256", "sha256", "md5", "revision", "size_bytes")
"""What an entry is known by: of these, what stands in both must agree."""


class ModelLock:
    """The lock at `path`. Safe between threads and processes of one machine."""

    def __init__(self, path: Path) -> None:
        """Use the lock at `path`, which need not exist."""
        self.path = path

    def read(self, section: str) -> dict[str, Entry]:
        """Return a section's entries by key. Raises `ModelProblem` when the lock is damaged."""
        return dict(self._section(self._content(), section))

    def check_or_record(self, section: str, key: str, entry: Mapping[str, Any], *, name: str | None = None) -> Entry:
        """Return what is recorded under `key`: `entry` itself when it is the first one.

        Raises `ModelChanged` when a digest, fingerprint, size or revision (`IDENTITY`) in both differs, or when the
        `weights_sha256` is that of none of the files that were pulled under this `name`; and `ModelProblem` when the
        lock cannot be read or written. `name` is what the model is called (by default `key`).
        """
        with self._alone():
            content = self._content()
            self._compare_with_pulled(content, name or key, entry)
            entries = self._section(content, section)
            if key not in entries:
                entries[key] = dict(entry)
                content[section] = entries
                self._write(content)
            recorded = entries[key]
        differing = [
            field for field in IDENTITY if field in recorded and recorded[field] != entry.get(field, recorded[field])
        ]
        if differing:
            raise ModelChanged(self._difference(section, key, recorded, entry, differing, name or key))
        return recorded

    def record(self, section: str, key: str, entry: Mapping[str, Any]) -> None:
        """Put `entry` in place of what is recorded under `key`."""
        self.update(section, lambda entries: entries.__setitem__(key, dict(entry)))

    def update(self, section: str, change: Callable[[dict[str, Entry]], None]) -> None:
        """Let `change` alter a section's entries while nobody else can."""
        with self._alone():
            content = self._content()
            entries = self._section(content, section)
            change(entries)
            content[section] = entries
            self._write(content)

    def _compare_with_pulled(self, content: dict[str, Any], name: str, entry: Mapping[str, Any]) -> None:
        sha256 = entry.get("weights_sha256")
        for key, pulled in self._section(content, PULLED).items():
            files = pulled.get("files")
            if sha256 is None or key.partition(":")[2] != name or not isinstance(files, dict):
                continue
            if sha256 not in [one.get("sha256") for one in files.values() if isinstance(one, dict)]:
                raise ModelChanged(
                    f"{name} has other weights than those that were pulled; `pixelgate models verify {name}` says more."
                )

    def _difference(
        self, section: str, key: str, recorded: Entry, entry: Mapping[str, Any], differing: list[str], name: str
    ) -> str:
        if "weights_sha256" in differing or "sha256" in differing or "md5" in differing or "size_bytes" in differing:
            what = "other weights"
        elif "fingerprint" in differing:
            what = "other configuration or preprocessing"
        else:
            what = f"another {differing[0]} ({entry.get(differing[0])}, recorded {recorded[differing[0]]})"
        return (
            f"{name} has {what} than when it was first recorded. "
            f"If that is meant, remove the entry {key!r} of {section!r} from {self.path}."
        )

    def _content(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ModelProblem(f"{self.path} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise ModelProblem(f"{self.path} cannot be read: it is not a JSON object.")
        return content

    def _section(self, content: dict[str, Any], section: str) -> dict[str, Entry]:
        entries = content.get(section, {})
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise ModelProblem(f"{self.path} cannot be read: {section!r} is not an object of objects.")
        return entries

    def _write(self, content: dict[str, Any]) -> None:
        try:
            write_atomically(self.path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
        except OSError as error:
            raise ModelProblem(f"{self.path} cannot be written: {error}") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and processes from writing meanwhile.

        The folder is what is locked: the file itself is replaced with every write, and a file beside it would be
        litter in a folder that people look into.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path.parent, os.O_RDONLY)
        except OSError as error:
            raise ModelProblem(f"The folder of {self.path} cannot be used: {error}") from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
