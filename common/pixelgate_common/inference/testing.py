"""A model hub on loopback for tests: the addresses of the real ones, ranges, redirects, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from pixelgate_common.inference.hubs import HubSettings


@dataclass(frozen=True, slots=True)
class Fault:
    """What one request gets in place of a right answer.

    `cut`: `argument` bytes and then the end of the connection. `status`: that status, with `retry_after`.
    `hang`: nothing, until the hub is closed.
    """

    kind: Literal["cut", "status", "hang"]
    argument: int = 0
    retry_after: str | None = None


@dataclass
class FakeHub:
    """What the hub has: files by path, repositories by name; and what was asked of it."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    wants_token: str | None = None
    states_digests: bool = True

    def settings(self, **changes: object) -> HubSettings:
        """Return settings under which all hubs are this one, and no test waits for long."""
        given = {
            "hf_endpoint": self.url,
            "torchvision_endpoint": self.url,
            "github_endpoint": self.url,
            "pull_timeout_s": 5.0,
            **changes,
        }
        return HubSettings(**given)  # type: ignore[arg-type]

    def commit(self, repository: str) -> str:
        """Return the commit that the repository's branch stands for: it follows the content."""
        content = self.repositories[repository]
        whole = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(content.items())})
        return hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest()

    def listing(self, repository: str) -> bytes:
        """Return what the hub's API says of the repository: files over 1,000 bytes are large ones."""
        siblings = []
        for name, data in self.repositories[repository].items():
            one: dict[str, object] = {"rfilename": name, "size": len(data)}
            if self.states_digests and len(data) > 1000:
                one["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            elif self.states_digests:
                blob = b"blob %d\x00" % len(data) + data
                one["blobId"] = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
            siblings.append(one)
        return json.dumps({"sha": self.commit(repository), "siblings": siblings}).encode()

    def find(self, path: str) -> bytes | None:
        """Return what lies at `path`, None when nothing does."""
        path = path.partition("?")[0]
        for repository, content in self.repositories.items():
            commit = self.commit(repository)
            if path in (f"/api/models/{repository}/revision/{ref}" for ref in ("main", commit)):
                return self.listing(repository)
            prefix = f"/{repository}/resolve/{commit}/"
            if path.startswith(prefix):
                return content.get(path.removeprefix(prefix))
        return self.files.get(path.removeprefix("/storage"))


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """Give a hub on a free port of loopback, and end it afterwards."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: tests look at `asked`."""

        def do_GET(self) -> None:
            path, span = self.path.partition("?")[0], self.headers.get("Range")
            hub.asked.append((path, span))
            if hub.wants_token and self.headers.get("Authorization") != f"Bearer {hub.wants_token}":
                return self._send(401, b"")
            data = hub.find(self.path)
            fault = hub.faults[path].pop(0) if hub.faults[path] else None
            if fault is not None and fault.kind == "status":
                extra = {"Retry-After": fault.retry_after} if fault.retry_after else {}
                return self._send(fault.argument, b"", extra)
            if fault is not None and fault.kind == "hang":
                hub.closed.wait()
                return None
            if data is None:
                return self._send(404, b"")
            if "/releases/download/" in path and not path.startswith(
                "/storage"
            ):  # as GitHub does, which keeps files elsewhere
                return self._send(302, b"", {"Location": f"{hub.url}/storage{path}"})
            self._send_data(data, span, fault)

        def _send_data(self, data: bytes, span: str | None, fault: Fault | None) -> None:
            etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            headers = {"ETag": etag, "Accept-Ranges": "bytes"}
            start, status = 0, 200
            if span is not None and self.headers.get("If-Range") in (None, etag):
                start, status = int(span.removeprefix("bytes=").partition("-")[0]), 206
                if start >= len(data):
                    return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(status, data[start:], headers, cut=fault.argument if fault is not None else None)

        def _send(
            self, status: int, data: bytes, headers: dict[str, str] | None = None, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data if cut is None else data[:cut])
            self.wfile.flush()
            self.close_connection = cut is not None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()
