"""The guarded fetch against small servers on loopback, which has to be allowed wherever a connection must succeed."""

import asyncio
import gzip
import socket
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address

import httpcore
import pytest
import trustme
from pixelgate_common.addresses import IPAddress
from pixelgate_common.fetch import (
    USER_AGENT,
    AddressRefused,
    FetchFailed,
    FetchLimits,
    FetchTimeout,
    FetchTooLarge,
    FetchWrongType,
    GuardedFetcher,
)

Handler = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LOOPBACK = ("127.0.0.0/8",)
BODY = b"\xff\xd8\xff pretend to be a picture"


class Server:
    """A raw HTTP server: `heads` are the requests' heads, and the handler writes the whole answer."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.heads: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/picture.jpg"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.heads.append(head)
            await self.handler(head, reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the fetcher hung up, which many tests want
        finally:
            writer.close()


@asynccontextmanager
async def running(handler: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(handler)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


def answer(
    body: bytes = BODY, *, status: str = "200 OK", media_type: str | None = "image/jpeg", **headers: str
) -> Handler:
    """Return a handler with a plain answer; keyword `content_length` and others become headers."""
    lines = {"content-length": str(len(body)), **{key.replace("_", "-"): value for key, value in headers.items()}}
    if media_type is not None:
        lines["content-type"] = media_type

    async def handle(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
        writer.write(f"HTTP/1.1 {status}\r\n{text}\r\n".encode("latin-1") + body)

    return handle


class Names:
    """A resolver that answers from a table and notes what it was asked; each name's last answer stays."""

    def __init__(self, **answers: Sequence[str]) -> None:
        self.answers = {name.replace("_", "."): list(texts) for name, texts in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[IPAddress]:
        self.asked.append(host)
        texts = self.answers.get(host, ["127.0.0.1"])
        text = texts.pop(0) if len(texts) > 1 else texts[0]
        return [ip_address(part) for part in text.split()]


class Backend(httpcore.AsyncNetworkBackend):
    """Notes every address that is connected to, and connects to loopback in its place, reporting `peer` as the peer."""

    def __init__(self, port: int, peer: str | None = None) -> None:
        self.port = port
        self.peer = peer
        self.connected: list[tuple[str, int]] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: object = None,
    ) -> httpcore.AsyncNetworkStream:
        self.connected.append((host, port))
        stream = await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self.port, timeout)
        return Stream(stream, self.peer or host)


class Stream(httpcore.AsyncNetworkStream):
    """Another stream that says its peer is at `peer`."""

    def __init__(self, inner: httpcore.AsyncNetworkStream, peer: str) -> None:
        self.inner = inner
        self.peer = peer
        self.closed = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self.inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self.inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return await self.inner.start_tls(ssl_context, server_hostname, timeout)

    def get_extra_info(self, info: str) -> object:
        return (self.peer, 80) if info == "server_addr" else self.inner.get_extra_info(info)


def limits(**changes: object) -> FetchLimits:
    return FetchLimits(**{"allow_networks": LOOPBACK, **changes})  # type: ignore[arg-type]


async def fetch(url: str, **changes: object) -> bytes:
    async with GuardedFetcher(limits(**changes)) as fetcher:
        return (await fetcher.fetch(url)).body


# ---- what works


async def test_a_picture_is_fetched_with_its_headers() -> None:
    async with running(answer(etag='"a"', last_modified="Mon, 01 Jan 2024 00:00:00 GMT")) as server:
        async with GuardedFetcher(limits()) as fetcher:
            fetched = await fetcher.fetch(server.url + "?size=1#part")
        assert fetched.body == BODY
        assert fetched.media_type == "image/jpeg"
        assert fetched.etag == '"a"'
        assert fetched.last_modified == "Mon, 01 Jan 2024 00:00:00 GMT"
        assert fetched.url == server.url + "?size=1#part"
        assert fetched.final_url == server.url + "?size=1"


async def test_the_request_says_who_asks_and_carries_nothing_else() -> None:
    async with running(answer(set_cookie="a=b")) as server:
        async with GuardedFetcher(limits()) as fetcher:
            await fetcher.fetch(server.url.replace("http://", "http://user:secret@"))
            await fetcher.fetch(server.url)
        for head in server.heads:
            lines = head.lower().split("\r\n")
            assert lines[0] == "get /picture.jpg http/1.1"
            assert f"user-agent: {USER_AGENT.lower()}" in lines
            assert f"host: 127.0.0.1:{server.port}" in lines
            assert not [line for line in lines if line.startswith(("authorization:", "cookie:", "referer:"))]
        assert USER_AGENT.startswith("Pixelgate/")


async def test_proxies_from_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/")
    async with running(answer()) as server:
        assert await fetch(server.url) == BODY


@pytest.mark.parametrize(
    "media_type",
    ["image/png", "IMAGE/JPEG", "image/webp; charset=binary", "application/octet-stream", "binary/octet-stream", None],
)
async def test_media_types_that_pass(media_type: str | None) -> None:
    async with running(answer(media_type=media_type)) as server:
        assert await fetch(server.url) == BODY


PACKED = {"gzip": gzip.compress(BODY), "x-gzip": gzip.compress(BODY), "deflate": zlib.compress(BODY)}
PACKED |= {"identity": BODY, "GZIP": gzip.compress(BODY)}


@pytest.mark.parametrize("encoding", PACKED)
async def test_encodings_that_nobody_asked_for_are_undone(encoding: str) -> None:
    async with running(answer(PACKED[encoding], content_encoding=encoding)) as server:
        assert await fetch(server.url) == BODY


async def test_a_body_in_chunks_and_one_until_the_end_of_the_connection() -> None:
    async def chunked(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    async def until_end(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nabcde")

    for handler in (chunked, until_end):
        async with running(handler) as server:
            assert await fetch(server.url) == b"abcde"


# ---- addresses

DISGUISES = {
    "loopback": "http://127.0.0.1/",
    "loopback-other": "http://127.1.2.3/",
    "port": "http://127.0.0.1:8106/",
    "https": "https://127.0.0.1/",
    "decimal": "http://2130706433/",
    "octal": "http://0177.0.0.1/",
    "octal-all": "http://017700000001/",
    "hex": "http://0x7f000001/",
    "hex-dotted": "http://0x7f.0x0.0x0.0x1/",
    "short": "http://127.1/",
    "zero": "http://0/",
    "unspecified": "http://0.0.0.0/",
    "leading-zeros": "http://127.000.000.001/",
    "v6-loopback": "http://[::1]/",
    "v6-loopback-long": "http://[0000:0000:0000:0000:0000:0000:0000:0001]/",
    "v6-unspecified": "http://[::]/",
    "v6-mapped": "http://[::ffff:127.0.0.1]/",
    "v6-mapped-hex": "http://[::ffff:7f00:1]/",
    "v6-compatible": "http://[::127.0.0.1]/",
    "v6-nat64": "http://[64:ff9b::7f00:1]/",
    "v6-6to4": "http://[2002:7f00:1::]/",
    "v6-teredo": "http://[2001:0:808:808:0:0:80ff:fffe]/",
    "v6-isatap": "http://[2a00:1450::5efe:7f00:1]/",
    "v6-zone": "http://[fe80::1%25eth0]/",
    "v6-zone-raw": "http://[fe80::1%eth0]/",
    "v6-unique-local": "http://[fd00:ec2::254]/",
    "localhost": "http://localhost/",
    "localhost-dot": "http://localhost./",
    "localhost-upper": "http://LOCALHOST/",
    "localhost-sub": "http://pictures.localhost/",
    "trailing-dot": "http://127.0.0.1./",
    "trailing-dots": "http://127.0.0.1../",
    "circled-digits": "http://①②⑦.⓪.⓪.①/",
    "full-width-digits": "http://１２７.０.０.１/",
    "full-width-dots": "http://127。0。0。1/",
    "half-width-dots": "http://127｡0｡0｡1/",
    "arabic-digits": "http://١٢٧.٠.٠.١/",
    "full-width-localhost": "http://ｌｏｃａｌｈｏｓｔ/",
    "soft-hyphen": "http://local\u00adhost/",
    "zero-width": "http://local\u200bhost/",
    "userinfo": "http://example.com@127.0.0.1/",
    "userinfo-password": "http://example.com:80@127.0.0.1/",
    "userinfo-slash": "http://example.com%2f@127.0.0.1/",
    "userinfo-twice": "http://a@example.com@127.0.0.1/",
    "fragment-trick": "http://127.0.0.1#@example.com/",
    "query-trick": "http://127.0.0.1?@example.com/",
    "backslash": "http://example.com\\@127.0.0.1/",
    "percent-dot": "http://127%2e0%2e0%2e1/",
    "percent-digits": "http://%31%32%37.0.0.1/",
    "leading-space": " http://127.0.0.1/",
    "tab": "http://127.0.0.1\t/",
    "newline": "http://127.0\n.0.1/",
    "upper-scheme": "HTTP://127.0.0.1/",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "private-10": "http://10.0.0.1/",
    "private-172": "http://172.16.0.1/",
    "private-192": "http://192.168.0.1/",
    "cgnat": "http://100.64.0.1/",
    "broadcast": "http://255.255.255.255/",
    "name-to-loopback": "http://loopback.example/",
    "name-to-private": "http://private.example/",
    "name-to-mixed": "http://mixed.example/",
    "name-to-mixed-private-last": "http://mixed-last.example/",
    "name-to-v6-loopback": "http://six.example/",
    "name-to-mapped": "http://mapped.example/",
    "name-to-metadata": "http://metadata.example/",
    "name-to-nothing": "http://nothing.example/",
    "name-with-trailing-dot": "http://private.example./",
}


@pytest.mark.parametrize("url", DISGUISES.values(), ids=DISGUISES)
async def test_disguised_private_address_is_refused_without_a_connection(url: str) -> None:
    names = Names(
        private_example=["10.0.0.1"],
        mixed_example=["93.184.216.34 192.168.0.1"],
        six_example=["::1"],
        mapped_example=["::ffff:127.0.0.1"],
        metadata_example=["169.254.169.254"],
        nothing_example=[""],
    )
    names.answers["mixed-last.example"] = ["10.0.0.1 93.184.216.34"]
    backend = Backend(port=1)
    async with GuardedFetcher(resolver=names, backend=backend) as fetcher:
        with pytest.raises((AddressRefused, FetchFailed)) as refused:
            await fetcher.fetch(url)
    assert backend.connected == []
    assert refused.value.status == 422
    assert [problem.field for problem in refused.value.errors] == ["url"]


@pytest.mark.parametrize("url", [url for name, url in DISGUISES.items() if not name.startswith("name-")])
async def test_disguises_are_refused_by_the_system_resolver_too(url: str) -> None:
    backend = Backend(port=1)
    async with GuardedFetcher(backend=backend) as fetcher:
        with pytest.raises((AddressRefused, FetchFailed)):
            await fetcher.fetch(url)
    assert backend.connected == []


NO_WEB_ADDRESSES = [
    "file:///etc/hostname",
    "ftp://example.com/a.jpg",
    "gopher://example.com/",
    "data:image/png;base64,AA",
]
NO_WEB_ADDRESSES += ["//a/b", "example.com/a.jpg", "", "http://", "http:///a.jpg", "javascript:1", "http://[::1"]
NO_WEB_ADDRESSES += ["http://a:99999/", "http://a:0/", "http://a:b/", "http://a\x00b/", "unix:/run/docker.sock"]
NO_WEB_ADDRESSES += ["http://" + "a" * 9000]


@pytest.mark.parametrize("url", NO_WEB_ADDRESSES, ids=[repr(url[:30]) for url in NO_WEB_ADDRESSES])
async def test_what_is_no_web_address_is_refused(url: str) -> None:
    backend = Backend(port=1)
    async with GuardedFetcher(resolver=Names(a=["93.184.216.34"]), backend=backend) as fetcher:
        with pytest.raises(FetchFailed) as refused:
            await fetcher.fetch(url)
    assert refused.value.status == 422
    assert backend.connected == []


async def test_a_name_is_asked_once_and_the_checked_address_is_connected_to() -> None:
    names = Names(rebinding_example=["93.184.216.34", "127.0.0.1"])
    async with running(answer()) as server:
        backend = Backend(server.port)
        async with GuardedFetcher(resolver=names, backend=backend) as fetcher:
            await fetcher.fetch("http://rebinding.example/a.jpg")
            assert names.asked == ["rebinding.example"]
            assert backend.connected == [("93.184.216.34", 80)]
            assert "Host: rebinding.example\r\n" in server.heads[0]
            with pytest.raises(AddressRefused):  # a second fetch asks again, and is refused
                await fetcher.fetch("http://rebinding.example/a.jpg")
    assert len(backend.connected) == 1


async def test_another_peer_than_the_checked_address_is_refused() -> None:
    async with running(answer()) as server:
        backend = Backend(server.port, peer="10.0.0.1")
        async with GuardedFetcher(resolver=Names(a_example=["93.184.216.34"]), backend=backend) as fetcher:
            with pytest.raises(AddressRefused):
                await fetcher.fetch("http://a.example/")
        assert server.heads == []


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async with running(answer()) as server:  # listens on 127.0.0.1 only
        resolver = Names(two_example=["127.0.0.2 127.0.0.1"])
        async with GuardedFetcher(limits(), resolver=resolver) as fetcher:
            fetched = await fetcher.fetch(f"http://two.example:{server.port}/")
    assert fetched.body == BODY


async def test_an_unusual_name_is_sent_in_its_ascii_form() -> None:
    names = Names()
    names.answers["xn--bcher-kva.example"] = ["127.0.0.1"]
    async with running(answer()) as server:
        async with GuardedFetcher(limits(), resolver=names) as fetcher:
            await fetcher.fetch(f"http://bücher.example.:{server.port}/ü?q=ö")
        assert names.asked == ["xn--bcher-kva.example"]
        assert f"Host: xn--bcher-kva.example:{server.port}\r\n" in server.heads[0]
        assert server.heads[0].startswith("GET /%C3%BC?q=%C3%B6 HTTP/1.1\r\n")


async def test_a_resolver_that_fails_looks_like_a_private_name() -> None:
    async def failing(host: str, port: int) -> Sequence[IPAddress]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    details = []
    for resolver in (failing, Names(inside_example=["10.0.0.1"])):
        async with GuardedFetcher(resolver=resolver) as fetcher:
            with pytest.raises(AddressRefused) as refused:
                await fetcher.fetch("http://inside.example/")
        details.append(refused.value.to_problem())
    assert details[0] == details[1]


async def test_only_listed_ports() -> None:
    async with running(answer()) as server:
        assert await fetch(server.url, ports=(server.port,)) == BODY
        with pytest.raises(FetchFailed, match="Port"):
            await fetch(server.url, ports=(80, 443))


def test_a_network_that_is_none_is_named_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/99"):
        GuardedFetcher(FetchLimits(allow_networks=("10.0.0.0/99",)))


# ---- redirects


def redirect(location: str | None, status: str = "302 Found") -> Handler:
    return answer(
        b"", status=status, media_type="text/html", **({"location": location} if location is not None else {})
    )


@pytest.mark.parametrize(
    "status",
    ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"],
)
async def test_redirects_are_followed_with_names_asked_anew(status: str) -> None:
    names = Names()
    async with running(answer()) as target, running(redirect(f"http://b.example:{target.port}/x?y", status)) as first:
        async with GuardedFetcher(limits(), resolver=names) as fetcher:
            fetched = await fetcher.fetch(f"http://a.example:{first.port}/")
        assert fetched.body == BODY
        assert fetched.final_url == f"http://b.example:{target.port}/x?y"
        assert names.asked == ["a.example", "b.example"]


async def test_relative_redirects() -> None:
    async def handler(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reply = answer() if head.startswith("GET /dir/next") else redirect("next")
        await reply(head, reader, writer)

    async with running(handler) as server:
        assert await fetch(f"http://127.0.0.1:{server.port}/dir/first") == BODY


PRIVATE_TARGETS = ["http://10.0.0.1/", "http://[::1]/", "http://2130706433/", "http://[::ffff:a00:1]/", "//10.0.0.1/x"]
PRIVATE_TARGETS += ["http://169.254.169.254/latest/", "http://inside.example/", "https://user@10.0.0.1/"]


@pytest.mark.parametrize("location", PRIVATE_TARGETS)
async def test_redirect_to_a_private_address_is_refused(location: str) -> None:
    async with running(redirect(location)) as server:
        names = Names(inside_example=["10.0.0.1"])
        async with GuardedFetcher(limits(), resolver=names) as fetcher:
            with pytest.raises(AddressRefused):
                await fetcher.fetch(f"http://a.example:{server.port}/")
        assert len(server.heads) == 1


@pytest.mark.parametrize(
    "location", ["file:///etc/hostname", "gopher://a/", "data:,x", "http://", "http://[::1", None, ""]
)
async def test_redirect_to_no_web_address_is_refused(location: str | None) -> None:
    async with running(redirect(location)) as server:
        with pytest.raises(FetchFailed):
            await fetch(server.url)


async def test_redirect_that_rebinds_the_same_name_is_refused() -> None:
    async with running(redirect("/again")) as server:
        names = Names(a_example=["127.0.0.1", "10.0.0.1"])
        async with GuardedFetcher(limits(), resolver=names) as fetcher:
            with pytest.raises(AddressRefused):
                await fetcher.fetch(f"http://a.example:{server.port}/")
        assert len(server.heads) == 1


async def test_credentials_in_a_redirect_are_not_sent_nor_returned() -> None:
    async with (
        running(answer()) as target,
        running(redirect(f"http://user:secret@127.0.0.1:{target.port}/")) as first,
        GuardedFetcher(limits()) as fetcher,
    ):
        fetched = await fetcher.fetch(first.url)
        assert "secret" not in fetched.final_url
        assert "authorization" not in target.heads[0].lower()


@pytest.mark.parametrize(("allowed", "heads"), [(5, 6), (0, 1)])
async def test_redirect_loop_ends(allowed: int, heads: int) -> None:
    async with running(redirect("/loop")) as server:
        with pytest.raises(FetchFailed, match="redirects more than"):
            await fetch(server.url, max_redirects=allowed)
        assert len(server.heads) == heads


# ---- size


async def test_declared_size_is_refused_before_the_body() -> None:
    async with running(answer(b"", content_length=str(10**12))) as server:
        with pytest.raises(FetchTooLarge) as refused:
            await fetch(server.url, max_bytes=1000)
    assert refused.value.status == 413


@pytest.mark.parametrize(("size", "fits"), [(1000, True), (1001, False)])
async def test_size_limit_is_exact(size: int, fits: bool) -> None:
    async with running(answer(b"x" * size)) as server:
        if fits:
            assert len(await fetch(server.url, max_bytes=1000)) == size
        else:
            with pytest.raises(FetchTooLarge):
                await fetch(server.url, max_bytes=1000)


async def test_endless_body_is_cut_at_the_limit() -> None:
    sent = 0

    async def endless(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/jpeg\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with running(endless) as server:
        with pytest.raises(FetchTooLarge):
            await fetch(server.url, max_bytes=1_000_000)
    assert sent < 50_000_000


async def test_gzip_bomb_is_not_unpacked() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(500)) + packer.flush()
    async with running(answer(bomb, content_encoding="gzip")) as server:
        tracemalloc.start()
        try:
            with pytest.raises(FetchTooLarge):
                await fetch(server.url, max_bytes=1_000_000)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(bomb) < 600_000  # so it is the unpacked size that was refused
    assert peak < 20_000_000


@pytest.mark.parametrize(
    "body_and_encoding",
    [
        (b"not gzip at all", "gzip"),
        (gzip.compress(BODY)[:-9], "gzip"),
        (BODY, "br"),
        (gzip.compress(BODY), "gzip, gzip"),
    ],
    ids=["not-gzip", "cut-off", "brotli", "twice"],
)
async def test_bodies_that_cannot_be_unpacked(body_and_encoding: tuple[bytes, str]) -> None:
    body, encoding = body_and_encoding
    async with running(answer(body, content_encoding=encoding)) as server:
        with pytest.raises(FetchFailed):
            await fetch(server.url)


async def test_endless_header_is_refused() -> None:
    async def handler(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-filler: " + b"x" * 60_000 + b"\r\n")
            await writer.drain()

    async with running(handler) as server:
        with pytest.raises(FetchFailed):
            await fetch(server.url)


# ---- time


async def test_slow_body_is_cut_by_the_total_time_though_every_read_is_quick() -> None:
    async def drip(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/jpeg\r\ncontent-length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with running(drip) as server:
        with pytest.raises(FetchTimeout) as refused:
            await fetch(server.url, total_timeout_s=0.3)
    assert refused.value.status == 422


async def test_silent_server_redirects_and_resolver_count_as_well() -> None:
    async def silent(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def slow_redirect(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        await redirect("/next")(head, reader, writer)

    for handler in (silent, slow_redirect):
        async with running(handler) as server:
            with pytest.raises(FetchTimeout):
                await fetch(server.url, total_timeout_s=0.3)

    async def never(host: str, port: int) -> Sequence[IPAddress]:
        await asyncio.Event().wait()
        return []

    async with GuardedFetcher(limits(connect_timeout_s=0.1), resolver=never) as fetcher:
        with pytest.raises(FetchTimeout):
            await fetcher.fetch("http://a.example/")


async def test_at_most_so_many_at_once() -> None:
    now = most = 0

    async def handler(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        await answer()(head, reader, writer)

    async with running(handler) as server, GuardedFetcher(limits(max_concurrent=2)) as fetcher:
        bodies = await asyncio.gather(*(fetcher.fetch(server.url) for _ in range(8)))
    assert len(bodies) == 8
    assert most == 2


# ---- answers that are not a picture


@pytest.mark.parametrize("media_type", ["text/html; charset=utf-8", "application/json", "video/mp4", "imagex/png", "a"])
async def test_wrong_type_is_refused(media_type: str) -> None:
    async with running(answer(media_type=media_type)) as server:
        with pytest.raises(FetchWrongType) as refused:
            await fetch(server.url)
    assert refused.value.status == 415


@pytest.mark.parametrize(
    "status", ["404 Not Found", "401 Unauthorized", "500 Oops", "204 No Content", "206 Partial Content"]
)
async def test_other_statuses_are_refused_and_named(status: str) -> None:
    async with running(answer(b"" if status.startswith("204") else BODY, status=status)) as server:
        with pytest.raises(FetchFailed, match=status[:3]):
            await fetch(server.url)


@pytest.mark.parametrize(
    "declared", [str(len(BODY) + 5), "-1", "abc", "5, 7"], ids=["longer", "negative", "text", "two"]
)
async def test_wrong_content_length_is_refused(declared: str) -> None:
    async with running(answer(content_length=declared)) as server:
        with pytest.raises(FetchFailed):
            await fetch(server.url)


async def test_a_shorter_content_length_than_the_body_ends_there() -> None:
    async with running(answer(content_length="5")) as server:
        assert await fetch(server.url) == BODY[:5]


@pytest.mark.parametrize("reply", [b"", b"\x00" * 100, b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nbad"])
async def test_what_is_no_http_is_refused(reply: bytes) -> None:
    async def handler(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)

    async with running(handler) as server:
        with pytest.raises(FetchFailed):
            await fetch(server.url)


async def test_nobody_listening_is_refused_without_the_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        async with GuardedFetcher(limits(), resolver=Names(a_example=["127.0.0.1"])) as fetcher:
            with pytest.raises(FetchFailed) as refused:
                await fetcher.fetch(f"http://a.example:{port}/")
    assert "127.0.0.1" not in refused.value.detail


# ---- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize(
    ("certified", "trusted", "works"),
    [("a.example", True, True), ("b.example", True, False), ("a.example", False, False), ("127.0.0.1", True, False)],
    ids=["right-name", "other-name", "unknown-authority", "address-only"],
)
async def test_tls_is_verified_against_the_name(
    authority: trustme.CA, certified: str, trusted: bool, works: bool
) -> None:
    seen: list[str | None] = []
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(certified).configure_cert(server_side)
    server_side.sni_callback = lambda _socket, name, _context: seen.append(name)
    client_side = ssl.create_default_context()
    if trusted:
        authority.configure_trust(client_side)
    async with running(answer(), tls=server_side) as server:
        resolver = Names(a_example=["127.0.0.1"])
        async with GuardedFetcher(limits(), resolver=resolver, ssl_context=client_side) as fetcher:
            if works:
                assert (await fetcher.fetch(f"https://a.example.:{server.port}/")).body == BODY
            else:
                with pytest.raises(FetchFailed):
                    await fetcher.fetch(f"https://a.example:{server.port}/")
    assert seen == ["a.example"]
