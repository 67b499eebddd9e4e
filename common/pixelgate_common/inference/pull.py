"""Models from their hubs into the model folder, and from then on held to what they were: pull, verify, list.

What a model was at its first pull (revision, and for each file size and SHA-256) stands in `models.lock`, section
`files`. A later pull fetches the same revision and must give the same files; `update` asks for the newest instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx

from pixelgate_common.digests import digest_of
from pixelgate_common.inference.download import DamagedFile, Digests, Expected, Patience, PullProblem, check, download
from pixelgate_common.inference.errors import ModelChanged, ModelMissing
from pixelgate_common.inference.hubs import HubSettings, RemoteFile, authorization, host_of, look_up, published
from pixelgate_common.inference.known_models import KNOWN, SLOTS, STANDARD, DiskState, KnownModel
from pixelgate_common.inference.model_lock import LOCK_NAME, PULLED, Entry, ModelLock

DigestState = Literal["published", "recorded", "unknown"]


class PullWatcher(Protocol):
    """Hears how a pull goes on, for progress bars."""

    def file(self, row: KnownModel, name: str, done: int, total: int | None) -> None:
        """Tell how many bytes of a file are there, and of how many (None: not known)."""

    def model(self, row: KnownModel, outcome: Literal["pulled", "already there"]) -> None:
        """Tell that a model is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A model as `models list` shows it. `digest`: who says what its files must be."""

    row: KnownModel
    state: DiskState
    size_bytes: int
    revision: str | None
    digest: DigestState
    host: str

    @property
    def is_standard(self) -> bool:
        """Whether it belongs to the standard set."""
        return STANDARD[self.row.slot] is self.row


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something about a model on disk that is not as it should be."""

    model: str
    file: str
    problem: str


def choose(names: Sequence[str]) -> list[KnownModel]:
    """Return the models that `names` stand for: a slot stands for its standard model, nothing for the standard set.

    Raises `ModelMissing` for what is neither.
    """
    chosen = list(STANDARD.values()) if not names else []
    for name in names:
        found = [STANDARD[slot] for slot in SLOTS if slot == name] or [row for row in KNOWN if row.name == name]
        if not found:
            raise ModelMissing(
                f"{name!r} is neither a slot ({', '.join(SLOTS)}) nor a model that is known; "
                "`pixelgate models list --all` shows them. Other models are put into the model folder by hand."
            )
        chosen += found
    return list(dict.fromkeys(chosen))


class ModelFolder:
    """The model folder, its lock, and the hubs that fill it."""

    def __init__(
        self,
        model_dir: Path,
        hubs: HubSettings,
        *,
        client: httpx.Client | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Use the folder `model_dir`; `client` and `patience` are made from `hubs` unless given."""
        self.model_dir, self._hubs = model_dir, hubs
        self._client, self._patience = client, patience or hubs.patience()
        self._lock = ModelLock(model_dir / LOCK_NAME)

    def overview(self, rows: Sequence[KnownModel] = KNOWN) -> list[Listed]:
        """Return what is on disk of each model. Asks no hub."""
        entries = self._lock.read(PULLED)
        return [self._listed(row, entries.get(_key(row))) for row in rows]

    def pull(self, row: KnownModel, watcher: PullWatcher, *, update: bool = False) -> None:
        """Make `row` whole on disk, as the lock says or, with `update` or without an entry, as its hub says now.

        A model that is whole and recorded is checked, and no hub is asked. Raises `PullProblem` and its kin, and
        `ModelChanged` when what comes, or lies there, is not what was recorded. Whatever is raised, each file that was
        whole before is whole, and what came in is gone on from at the next pull.
        """
        entry = None if update else self._lock.read(PULLED).get(_key(row))
        if entry is not None and self._is_as_recorded(row, entry):
            watcher.model(row, "already there")
            return
        with self._open_client() as client:
            release = look_up(
                client, row, self._hubs, self._patience, revision=entry.get("revision") if entry else None
            )
            files = {
                file.name: self._fetch(client, row, file, release.revision, entry, watcher, update=update)
                for file in release.files
            }
        self._record(row, release.revision, files, update=update)
        watcher.model(row, "pulled")

    def verify(self, rows: Sequence[KnownModel] = KNOWN) -> tuple[list[KnownModel], list[Difference]]:
        """Read every file of `rows` that is on disk and return the models checked, and all differences. Asks no hub."""
        entries = self._lock.read(PULLED)
        checked: list[KnownModel] = []
        differences: list[Difference] = []
        for row in rows:
            entry = entries.get(_key(row))
            if entry is None and row.state(self.model_dir) == "missing":
                continue
            checked.append(row)
            differences += self._differences(row, entry)
        return checked, differences

    def _differences(self, row: KnownModel, entry: Entry | None) -> Iterator[Difference]:
        def difference(file: str, problem: str) -> Difference:
            return Difference(model=row.name, file=file, problem=problem)

        folder = self.model_dir / row.folder
        recorded = _files_of(entry)
        for missing in row.missing_files(self.model_dir):
            yield difference(missing, "is missing")
        for name in recorded:
            if not (folder / name).is_file() and not any(name in file.names and file.required for file in row.files):
                yield difference(name, "is missing")
        for file in row.files:
            path = file.in_folder(folder)
            if path is None:
                continue
            if path.name not in recorded and not published(file).has_digest:
                yield difference(path.name, f"was never recorded; `pixelgate models pull {row.name}` does it")
                continue
            try:
                check(path, _with_recorded(published(file), recorded.get(path.name)), name=path.name)
            except DamagedFile as error:
                yield difference(path.name, error.detail)

    def _listed(self, row: KnownModel, entry: Entry | None) -> Listed:
        folder = self.model_dir / row.folder
        files = [path for file in row.files if (path := file.in_folder(folder)) is not None]
        is_published = any(published(file).has_digest for file in row.files)
        return Listed(
            row=row,
            state=row.state(self.model_dir),
            size_bytes=sum(path.stat().st_size for path in files),
            revision=str(entry["revision"]) if entry and "revision" in entry else None,
            digest="recorded" if entry else "published" if is_published else "unknown",
            host=host_of(row, self._hubs),
        )

    def _is_as_recorded(self, row: KnownModel, entry: Entry) -> bool:
        """Whether all recorded files are there; raises `ModelChanged` when one is there and is another one."""
        folder = self.model_dir / row.folder
        recorded = _files_of(entry)
        there = [name for name in recorded if (folder / name).is_file()]
        for name in there:
            try:
                check(folder / name, _with_recorded(Expected(), recorded[name]), name=name)
            except DamagedFile as error:
                raise ModelChanged(
                    f"{row.name}: {error.detail} Remove {folder / name} and pull again to get back what was recorded, "
                    f"or pull with --update to take what is published now."
                ) from error
        return len(there) == len(recorded) and row.state(self.model_dir) == "whole"

    def _fetch(
        self,
        client: httpx.Client,
        row: KnownModel,
        file: RemoteFile,
        revision: str,
        entry: Entry | None,
        watcher: PullWatcher,
        *,
        update: bool,
    ) -> Digests:
        target = self.model_dir / row.folder / file.name
        expected = _with_recorded(file.expected, _files_of(entry).get(file.name))
        if target.is_file():
            try:
                return check(target, expected, name=file.name)
            except DamagedFile as error:
                if not update:
                    raise PullProblem(
                        f"{error.detail} Remove {target} and pull again to fetch what the hub has."
                    ) from error
        try:
            return download(
                _authorized(client, row, self._hubs),
                file.url,
                target,
                expected,
                patience=self._patience,
                progress=lambda done, total: watcher.file(row, file.name, done, total),
                identity=f"{row.hub}/{row.source}@{revision}/{file.name}",
            )
        except DamagedFile as error:
            if entry is not None:
                raise ModelChanged(
                    f"{row.name} is another one at its hub than when it was first pulled: {error.detail} "
                    "If that is meant, pull with --update."
                ) from error
            raise

    def _record(self, row: KnownModel, revision: str, files: dict[str, Digests], *, update: bool) -> None:
        described = {name: {"size_bytes": one.size_bytes, "sha256": one.sha256} for name, one in files.items()}
        entry = {
            "hub": row.hub,
            "source": row.source,
            "revision": revision,
            "files": described,
            "sha256": digest_of(described),
            "pulled_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if update:
            self._lock.record(PULLED, _key(row), entry)
        else:
            self._lock.check_or_record(PULLED, _key(row), entry, name=row.name)

    @contextmanager
    def _open_client(self) -> Iterator[httpx.Client]:
        if self._client is not None:
            yield self._client
            return
        with httpx.Client(
            follow_redirects=True, timeout=self._patience.timeout(), headers={"User-Agent": "pixelgate"}
        ) as client:
            yield client


def _authorized(client: httpx.Client, row: KnownModel, hubs: HubSettings) -> httpx.Client:
    """Return `client`, saying who asks where the hub is Hugging Face; httpx takes it off on the way to another host."""
    client.headers.pop("Authorization", None)
    if row.hub == "huggingface":
        client.headers.update(authorization(hubs))
    return client


def _key(row: KnownModel) -> str:
    return f"{row.slot}:{row.name}"


def _files_of(entry: Entry | None) -> dict[str, Any]:
    files = {} if entry is None else entry.get("files", {})
    return files if isinstance(files, dict) else {}


def _with_recorded(expected: Expected, recorded: dict[str, Any] | None) -> Expected:
    if not recorded:
        return expected
    return replace(expected, size_bytes=recorded["size_bytes"], sha256=recorded["sha256"])
