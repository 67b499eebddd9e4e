"""The guarded fetch: the only way in which a user's URL is fetched.

A host name is resolved once, every answer is checked, and the connection goes to the checked address itself, so that a
name that changes its address between check and use (DNS rebinding) gains nothing; TLS is still verified against the
name. Redirects are followed by hand and each hop is checked again in full. No proxy, cookie, credential or environment
variable takes part. Bytes and time are limited over everything: names, connections, redirects and slow bodies.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from ipaddress import ip_address
from types import TracebackType
from typing import ClassVar, Self

import certifi
import httpcore
import httpx
import structlog

from pixelgate_common import __version__
from pixelgate_common.addresses import (
    AddressPolicy,
    AddressRefused,
    IPAddress,
    parse_networks,
    refusal,
)
from pixelgate_common.errors import PixelgateError

__all__ = [
    "AddressRefused",
    "FetchFailed",
    "FetchLimits",
    "FetchTimeout",
    "FetchTooLarge",
    "FetchWrongType",
    "Fetched",
    "GuardedFetcher",
]

USER_AGENT = f"Pixelgate/{__version__} (+self-hosted image search)"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_URL_LENGTH = 8192
_MAX_ADDRESSES_TRIED = 4
_RESOLVER_THREADS = 4
log = structlog.get_logger(__name__)

#: Resolves a host name and port to all its addresses; an empty list or OSError when it has none.
Resolver = Callable[[str, int], Awaitable[Sequence[IPAddress]]]


class FetchFailed(PixelgateError):
    """The URL could not be fetched, for a reason that lies with the URL or its server: 422, never our own 5xx."""

    status: ClassVar[int] = 422
    code: ClassVar[str] = "fetch_failed"
    title: ClassVar[str] = "The URL could not be fetched"


class FetchTimeout(FetchFailed):
    """The URL's server was too slow. 422 as well: 5xx would blame this service for another's slowness."""

    code: ClassVar[str] = "fetch_timeout"
    title: ClassVar[str] = "The URL took too long"


class FetchTooLarge(FetchFailed):
    """What the URL leads to has more bytes than allowed."""

    status: ClassVar[int] = 413
    code: ClassVar[str] = "fetch_too_large"
    title: ClassVar[str] = "The file behind the URL is too large"


class FetchWrongType(FetchFailed):
    """The URL's server says that what it sends is not a picture."""

    status: ClassVar[int] = 415
    code: ClassVar[str] = "fetch_wrong_type"
    title: ClassVar[str] = "The URL does not lead to a picture"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """The limits of one fetch. `allow_networks` are CIDR texts (setting `PIXELGATE_FETCH_ALLOW`).

    `allowed_media_types` are exact or end in `/*`; an answer without a Content-Type passes, because the bytes are
    judged by the safe decode. `ports` None means any port. At most `max_concurrent` fetches run at once, others wait
    their turn, so that memory stays below `max_concurrent` × 2 × `max_bytes`.
    """

    max_bytes: int = 25 * 1024 * 1024
    connect_timeout_s: float = 5.0
    total_timeout_s: float = 20.0
    max_redirects: int = 5
    allowed_media_types: tuple[str, ...] = ("image/*", "application/octet-stream", "binary/octet-stream")
    allow_networks: tuple[str, ...] = ()
    ports: tuple[int, ...] | None = None
    max_concurrent: int = 16


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a URL led to: `final_url` after redirects, without userinfo and fragment; `body` decoded and complete."""

    url: str
    final_url: str
    media_type: str | None
    body: bytes = field(repr=False)
    etag: str | None = None
    last_modified: str | None = None


class GuardedFetcher:
    """Fetches users' URLs within `limits`. Close it when done, or use it as an async context manager.

    `resolver` answers names (default: the system's, in threads of its own so that slow name servers starve nobody),
    `ssl_context` verifies servers (default: certifi's and the system's roots).
    """

    def __init__(
        self,
        limits: FetchLimits | None = None,
        *,
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self.limits = limits or FetchLimits()
        self._policy = AddressPolicy(parse_networks(self.limits.allow_networks))
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolve")
        self._resolver = resolver or self._resolve_by_system
        self._ssl_context = ssl_context or _default_ssl_context()
        self._backend = backend or httpcore.AnyIOBackend()
        self._slots = asyncio.Semaphore(self.limits.max_concurrent)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the resolver's threads; nothing else is kept between fetches."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, url: str) -> Fetched:
        """Return what `url` leads to.

        Raises `AddressRefused` (422) when a host on the way is not public, `FetchTooLarge` (413), `FetchWrongType`
        (415), `FetchTimeout` (422) and `FetchFailed` (422) for everything else that the URL or its server causes.
        """
        async with self._slots:
            try:
                async with asyncio.timeout(self.limits.total_timeout_s):
                    return await self._follow(url)
            except (TimeoutError, httpcore.TimeoutException) as error:
                raise FetchTimeout(
                    f"The URL did not answer within {self.limits.total_timeout_s:g} s. Try again later, or upload the"
                    " picture itself.",
                    field="url",
                ) from error
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
                log.info("fetch_failed", kind=type(error).__name__)
                raise FetchFailed(
                    "The URL's server could not be reached, or broke off its answer. Check the URL, or upload the"
                    " picture itself.",
                    field="url",
                ) from error

    async def _follow(self, url: str) -> Fetched:
        target = _parse_url(url)
        for _ in range(self.limits.max_redirects + 1):
            async with self._get(target) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(url, target, response)
                location = _header(response, b"location")
            if location is None:
                raise FetchFailed("The URL's server answered with a redirect to nowhere.", field="url")
            target = _parse_url(location, base=target)
        raise FetchFailed(f"The URL redirects more than {self.limits.max_redirects} times.", field="url")

    @asynccontextmanager
    async def _get(self, target: httpx.URL) -> AsyncIterator[httpcore.Response]:
        """Check, pin and connect to `target`'s host, and yield the answer with its body unread."""
        host = target.raw_host.decode("ascii")
        port = target.port if target.port is not None else 443 if target.scheme == "https" else 80
        if not 0 < port < 65536 or (self.limits.ports is not None and port not in self.limits.ports):
            raise FetchFailed(f"Port {port} may not be fetched from.", field="url")
        literal = self._policy.check_host(host)
        name = host.lower().removesuffix(".")
        pinned = (literal,) if literal else self._policy.check_answers(host, await self._resolve(host, name, port))
        connection = httpcore.AsyncHTTPConnection(
            httpcore.Origin(target.raw_scheme, name.encode(), port),
            ssl_context=self._ssl_context,
            network_backend=_PinnedBackend(self._backend, host, pinned),
        )
        shown = f"[{name}]" if ":" in name else name
        request = httpcore.Request(
            "GET",
            httpcore.URL(scheme=target.raw_scheme, host=name.encode(), port=port, target=target.raw_path),
            headers=[
                (b"Host", (shown if target.port is None else f"{shown}:{port}").encode()),
                (b"User-Agent", USER_AGENT.encode()),
                (b"Accept", b"image/*,*/*;q=0.1"),
                (b"Accept-Encoding", b"identity"),
                (b"Connection", b"close"),
            ],
            extensions={
                "timeout": {
                    "connect": self.limits.connect_timeout_s,
                    "read": self.limits.total_timeout_s,
                    "write": self.limits.connect_timeout_s,
                    "pool": self.limits.connect_timeout_s,
                }
            },
        )
        try:
            response = await connection.handle_async_request(request)
            try:
                yield response
            finally:
                await response.aclose()
        finally:
            await connection.aclose()

    async def _resolve(self, host: str, name: str, port: int) -> Sequence[IPAddress]:
        try:
            return await asyncio.wait_for(self._resolver(name, port), self.limits.connect_timeout_s)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise refusal(host) from error

    async def _resolve_by_system(self, name: str, port: int) -> Sequence[IPAddress]:
        lookup = partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        except UnicodeError as error:  # a label that the system's own IDNA codec does not take
            raise OSError("not a name that can be resolved") from error
        return [ip_address(answer[4][0]) for answer in answers]

    async def _read(self, url: str, target: httpx.URL, response: httpcore.Response) -> Fetched:
        if response.status not in (200, 203):
            raise FetchFailed(f"The URL's server answered with status {response.status}.", field="url")
        media_type = self._check_media_type(_header(response, b"content-type"))
        declared = _header(response, b"content-length")
        if declared is not None and declared.isdecimal() and int(declared) > self.limits.max_bytes:
            raise self._too_large()
        inflater = _inflater(_header(response, b"content-encoding"))
        body = bytearray()
        received = 0
        async for chunk in response.aiter_stream():
            received += len(chunk)
            if received > self.limits.max_bytes:
                raise self._too_large()
            # One byte more than fits is enough to know; a bomb is never unpacked further than that.
            body += inflater.unpack(chunk, self.limits.max_bytes + 1 - len(body)) if inflater else chunk
            if len(body) > self.limits.max_bytes:
                raise self._too_large()
        if inflater:
            inflater.check_complete()
        return Fetched(
            url=url,
            final_url=str(target),
            media_type=media_type,
            body=bytes(body),
            etag=_header(response, b"etag"),
            last_modified=_header(response, b"last-modified"),
        )

    def _check_media_type(self, content_type: str | None) -> str | None:
        media_type = (content_type or "").partition(";")[0].strip().lower() or None
        if media_type is None:
            return None
        for allowed in self.limits.allowed_media_types:
            if media_type == allowed or (allowed.endswith("/*") and media_type.startswith(allowed[:-1])):
                return media_type
        raise FetchWrongType(
            f"The URL leads to {media_type[:100]!r}, not to a picture. Give the address of the picture itself.",
            field="url",
        )

    def _too_large(self) -> FetchTooLarge:
        return FetchTooLarge(
            f"The file behind the URL has more than {self.limits.max_bytes} bytes (limit PIXELGATE_MAX_UPLOAD_MB).",
            field="url",
        )


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the `pinned` addresses in turn, whatever the name says by now, and checks who answered."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend, host: str, pinned: Sequence[IPAddress]) -> None:
        self._inner = inner
        self._host = host
        self._pinned = pinned[:_MAX_ADDRESSES_TRIED]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception | None = None
        for ip in self._pinned:
            try:
                stream = await self._inner.connect_tcp(str(ip), port, timeout, local_address)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            peer = stream.get_extra_info("server_addr")
            if peer is None or ip_address(peer[0]) != ip:
                await stream.aclose()
                log.warning("fetch_peer_differs", host=self._host, pinned=str(ip))
                raise refusal(self._host)
            return stream
        assert failure is not None
        raise failure


def _parse_url(url: str, *, base: httpx.URL | None = None) -> httpx.URL:
    """Return `url` (relative to `base` if given) with userinfo and fragment taken off. Raises `FetchFailed`."""
    if len(url) > _MAX_URL_LENGTH:
        raise FetchFailed(f"The URL is longer than {_MAX_URL_LENGTH} characters.", field="url")
    try:
        parsed = httpx.URL(url.strip()) if base is None else base.join(url.strip())
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise FetchFailed("The URL must start with http:// or https:// and name a host.", field="url")
        return parsed.copy_with(userinfo=b"", fragment=None)
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchFailed("This is not a URL that can be fetched. Check its spelling.", field="url") from error


def _header(response: httpcore.Response, name: bytes) -> str | None:
    for key, value in response.headers:
        if key.lower() == name:
            return value.decode("latin-1").strip()
    return None


class _Inflater:
    """Unpacks gzip and zlib piece by piece, never more than it is asked for."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def unpack(self, chunk: bytes, max_bytes: int) -> bytes:
        """Return at most `max_bytes` (> 0) of what `chunk` unpacks to. Raises `FetchFailed` for a broken stream."""
        try:
            return self._stream.decompress(self._stream.unconsumed_tail + chunk, max_bytes)
        except zlib.error as error:
            raise FetchFailed("The URL's server sent a body that cannot be unpacked.", field="url") from error

    def check_complete(self) -> None:
        """Raise `FetchFailed` if the stream ended early."""
        if not self._stream.eof:
            raise FetchFailed("The URL's server broke off a packed body.", field="url")


def _inflater(encoding: str | None) -> _Inflater | None:
    """Return what undoes a Content-Encoding, None for identity. Raises `FetchFailed` for any but gzip and deflate.

    Identity is all that we ask for; some servers compress whatever is asked.
    """
    encoding = (encoding or "identity").lower()
    if encoding == "identity":
        return None
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise FetchFailed(f"The URL's server sent an encoding that was not asked for: {encoding[:40]!r}.", field="url")
    return _Inflater()


@cache
def _default_ssl_context() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()
    return context
