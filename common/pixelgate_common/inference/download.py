"""One large file from a model hub to disk: in pieces, resumable, checked, and in its place only when it is right.

While it comes in, it is `NAME.part`, and `NAME.part.json` says which content the part belongs to; both stay when the
download is interrupted, so that the next try goes on where this one ended.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any

import httpx

from pixelgate_common.digests import write_atomically
from pixelgate_common.inference.errors import ModelProblem

_CHUNK_BYTES = 1024 * 1024
_SPARE_BYTES = 64 * 1024 * 1024  # what a disk should have left when the file is on it
_BACKOFF_S = (1.0, 3.0, 10.0)


class PullProblem(ModelProblem):
    """A model could not be fetched; what was there before is as it was."""

    code, title = "pull_problem", "A model could not be fetched"


class HubUnreachable(PullProblem):
    """The hub cannot be reached or does not answer; a later try, or a network, may help."""

    code, title = "hub_unreachable", "A model hub cannot be reached"


class HubBusy(HubUnreachable):
    """The hub asks to come back later."""

    code, title = "hub_busy", "A model hub wants to be asked later"


class HubRefused(PullProblem):
    """The hub answers, and does not give the file."""

    code, title = "hub_refused", "A model hub does not give a file"


class DamagedFile(PullProblem):
    """A file is not what its publisher, or the lock, says that it is."""

    code, title = "damaged_file", "A file is not what it should be"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What is known of a file beforehand, by its publisher or by the lock; None: not known."""

    size_bytes: int | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    md5: str | None = None
    git_sha1: str | None = None

    @property
    def has_digest(self) -> bool:
        """Whether any digest is known."""
        return any((self.sha256, self.sha256_prefix, self.md5, self.git_sha1))


@dataclass(frozen=True, slots=True)
class Digests:
    """What a file really is."""

    size_bytes: int
    sha256: str


Progress = Callable[[int, int | None], None]
"""Hears how many bytes of a file are there, and of how many; None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a hub is waited for. `sleep` is what waits between tries."""

    timeout_s: float = 30.0
    attempts: int = 4
    max_wait_s: float = 120.0
    sleep: Callable[[float], None] = time.sleep

    def timeout(self) -> httpx.Timeout:
        """Return the limits of one answer: for connecting, and for each silence in it."""
        return httpx.Timeout(self.timeout_s, connect=min(10.0, self.timeout_s))


def ask(
    client: httpx.Client,
    url: str,
    receive: Callable[[httpx.Response], bool],
    *,
    patience: Patience,
    headers: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Hand answers for `url` to `receive`, their bodies still to be read, until it says that it has all it needs.

    Each try is made with the `headers` of that moment. Between tries it waits as long as the hub asks for, or longer
    and longer. Raises `HubUnreachable`, `HubBusy` and `HubRefused`, in words for the person who pulls.
    """
    host = httpx.URL(url).host
    problem = HubUnreachable(f"{host} ended every answer too early; try again, it goes on from there.")
    for attempt in range(patience.attempts):
        wait_s = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
        try:
            with client.stream("GET", url, headers=dict(headers())) as response:
                status = response.status_code
                if response.url.scheme == "http" and url.startswith("https:"):
                    raise HubRefused(f"{host} sends to {response.url.host} without encryption, which is not followed.")
                if status < 400 or status == 416:
                    if receive(response):
                        return
                    wait_s = 0.0
                elif status in (429, 503):
                    asked_s = _retry_after_s(response.headers.get("retry-after"))
                    wait_s = wait_s if asked_s is None else asked_s
                    problem = HubBusy(f"{host} has too much to do; try again in {wait_s:.0f} s.", retry_after_s=wait_s)
                    if wait_s > patience.max_wait_s:
                        break
                elif status >= 500:
                    problem = HubUnreachable(f"{host} has trouble of its own (status {status}); try again later.")
                else:
                    raise _refusal(response, host)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            # Nobody is there: waiting would only make a person without network wait.
            raise HubUnreachable(
                f"{host} cannot be reached ({_reason(error)}). Without network, put the files into the model folder by "
                "hand (`pixelgate models list` shows where), or stay with PIXELGATE_MODELS=starter."
            ) from error
        except httpx.TimeoutException as error:
            problem = HubUnreachable(f"{host} does not answer within {patience.timeout_s:g} s; try again later.")
            problem.__cause__ = error
        except httpx.TransportError as error:
            problem = HubUnreachable(
                f"The connection to {host} broke ({_reason(error)}); a new try goes on from there."
            )
            problem.__cause__ = error
        except (httpx.TooManyRedirects, httpx.DecodingError, httpx.InvalidURL) as error:
            raise HubRefused(f"{host} answers with what cannot be followed ({_reason(error)}).") from error
        if attempt + 1 < patience.attempts and wait_s > 0:
            patience.sleep(wait_s)
    raise problem


def download(
    client: httpx.Client,
    url: str,
    target: Path,
    expected: Expected,
    *,
    patience: Patience,
    progress: Progress,
    identity: str,
) -> Digests:
    """Fetch `url` into `target` and return what it is.

    `identity` names the content (revision and file): a part of another identity is begun anew. Raises what `ask`
    does, `DamagedFile` when the file is not as `expected` (nothing is left of it), and `PullProblem` when the disk
    cannot take it or another process is fetching the same file.
    """
    part, note = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part) as file:
            reception = _Reception(file, note, expected, progress, identity)
            try:
                if not reception.done or reception.done != expected.size_bytes:
                    ask(client, url, reception.receive, patience=patience, headers=reception.headers)
            except BaseException:
                if not reception.done:  # nothing to go on from
                    part.unlink(missing_ok=True)
                    note.unlink(missing_ok=True)
                raise
            file.flush()
            digests = check(part, expected, name=target.name)
            os.fsync(file.fileno())
            part.replace(target)
            _sync_folder(target.parent)
            note.unlink(missing_ok=True)
            return digests
    except DamagedFile:
        part.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        raise
    except OSError as error:
        raise PullProblem(f"{target} cannot be written: {error.strerror or error}.") from error


def check(path: Path, expected: Expected, *, name: str) -> Digests:
    """Return what the file is, or raise `DamagedFile` when it is not as `expected`."""
    size = path.stat().st_size
    hashes: dict[str, Any] = {"sha256": hashlib.sha256()}
    if expected.md5:
        hashes["md5"] = hashlib.md5(usedforsecurity=False)
    if expected.git_sha1:
        hashes["git_sha1"] = hashlib.sha1(b"blob %d\x00" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            for each in hashes.values():
                each.update(chunk)
    found = {kind: each.hexdigest() for kind, each in hashes.items()}
    if expected.size_bytes is not None and size != expected.size_bytes:
        raise DamagedFile(f"{name} has {size:,} bytes; it should have {expected.size_bytes:,}.")
    wrong = [
        (kind, want, found[kind])
        for kind, want in (("sha256", expected.sha256), ("md5", expected.md5), ("git_sha1", expected.git_sha1))
        if want and found[kind] != want
    ]
    if expected.sha256_prefix and not found["sha256"].startswith(expected.sha256_prefix):
        wrong.append(("sha256", f"{expected.sha256_prefix}…", found["sha256"]))
    if wrong:
        kind, want, has = wrong[0]
        raise DamagedFile(f"{name} is not the file that it should be: its {kind} is {has}, expected {want}.")
    return Digests(size, found["sha256"])


class _Reception:
    """The part of a file that has come in, and what to ask for next."""

    def __init__(self, file: IO[bytes], note: Path, expected: Expected, progress: Progress, identity: str) -> None:
        """Go on with the part in `file` if `note` says that it belongs to `identity`, else begin anew."""
        self._file, self._note, self._expected, self._progress, self._identity = (
            file,
            note,
            expected,
            progress,
            identity,
        )
        self._etag = _etag_of(note, identity)
        if not self._may_go_on:
            self._begin_anew()

    @property
    def _may_go_on(self) -> bool:
        # Without a tag the joined bytes could be of two files, which only a digest would find out.
        return self._etag is not None and (self._etag != "" or self._expected.has_digest)

    @property
    def done(self) -> int:
        """How many bytes are there."""
        return self._file.seek(0, os.SEEK_END)

    def headers(self) -> dict[str, str]:
        """Return what to send: for the rest only, and only of the same content."""
        headers = {"Accept-Encoding": "identity"}  # the bytes on disk are what is counted and gone on from
        if not self._may_go_on:
            self._begin_anew()
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if self._etag:
                headers["If-Range"] = self._etag
        return headers

    def receive(self, response: httpx.Response) -> bool:
        """Add what the answer brings; True when the file is whole."""
        status, done = response.status_code, self.done
        if status == 416 or (status == 206 and _range_start(response) != done):
            self._begin_anew()  # the part is longer than the file, or other than what comes
            return False
        if status != 206:
            self._begin_anew()
            done = 0
        etag = response.headers.get("etag", "")
        self._etag = "" if etag.startswith("W/") else etag  # a weak one promises too little to join bytes on it
        write_atomically(self._note, json.dumps({"identity": self._identity, "etag": self._etag}).encode())
        total = _total(response, done, self._expected.size_bytes)
        _refuse_what_does_not_fit(self._note.parent, total, done)
        self._progress(done, total)
        # In pieces as they come: what a larger buffer holds would be lost when the connection breaks.
        for chunk in response.iter_raw():
            self._file.write(chunk)
            done += len(chunk)
            if total is not None and done > total:
                raise DamagedFile(f"{response.url.host} sends more than the {total:,} bytes that it announced.")
            self._progress(done, total)
        return total is None or done == total

    def _begin_anew(self) -> None:
        self._file.truncate(0)
        self._note.unlink(missing_ok=True)
        self._etag = None


def _etag_of(note: Path, identity: str) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(note.read_text())
        if content["identity"] == identity:
            return str(content["etag"])
    return None


def _total(response: httpx.Response, done: int, expected: int | None) -> int | None:
    announced = response.headers.get("content-length", "")
    total = done + int(announced) if announced.isdecimal() else None
    if expected is not None and total is not None and total != expected:
        raise DamagedFile(f"{response.url.host} announces {total:,} bytes; the file should have {expected:,}.")
    return total if total is not None else expected


def _range_start(response: httpx.Response) -> int | None:
    unit, _, rest = response.headers.get("content-range", "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdecimal() else None


def _refuse_what_does_not_fit(folder: Path, total: int | None, done: int) -> None:
    free = shutil.disk_usage(folder).free
    if total is not None and total - done + _SPARE_BYTES > free:
        raise PullProblem(
            f"{folder} has {free / 1e6:,.0f} MB free; {(total - done) / 1e6:,.0f} MB and some to spare are needed."
        )


@contextmanager
def _alone(part: Path) -> Iterator[IO[bytes]]:
    with part.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _fetched_by_another(part) from error
        # Another one may have put its part in place between the opening and the lock; that file is not to be touched.
        if not part.exists() or not os.path.samestat(os.fstat(file.fileno()), part.stat()):
            raise _fetched_by_another(part)
        yield file


def _fetched_by_another(part: Path) -> PullProblem:
    return PullProblem(f"Another process is fetching {part.name.removesuffix('.part')} just now.")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refusal(response: httpx.Response, host: str) -> HubRefused:
    status, path = response.status_code, response.request.url.path
    if status in (401, 403):
        return HubRefused(f"{host} gives {path} only to those it knows (status {status}); see PIXELGATE_HF_TOKEN.")
    if status in (404, 410):
        return HubRefused(f"{host} has no {path} (status {status}).")
    return HubRefused(f"{host} does not give {path} (status {status}).")


def _retry_after_s(value: str | None) -> float | None:
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
