"""Pictures on their way in: outcomes, limits, and what happens when storage goes away for a moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from gateway.testing.embed import vector_of
from gateway.uploads import name_in_url, plain_name, public_form, read_described
from numpy.testing import assert_allclose
from pixelgate_common.contracts.storage import Described
from pixelgate_common.vectors import decode_vector

Jpeg = Callable[..., bytes]


def files(*parts: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", part) for part in parts]


async def test_each_file_has_its_outcome_in_the_order_sent(gateway: Any, jpeg: Jpeg) -> None:
    sent = files(("a.jpg", jpeg(1)), ("notes.jpg", b"just text"), ("b.jpg", jpeg(2)), ("again.jpg", jpeg(1)))
    answer = await gateway.client.post("/v1/images", files=sent)
    assert answer.status_code == 201
    outcomes = answer.json()["outcomes"]
    assert [outcome["filename"] for outcome in outcomes] == ["a.jpg", "notes.jpg", "b.jpg", "again.jpg"]
    assert outcomes[1]["outcome"] == "rejected"
    assert outcomes[1]["image"] is None
    assert outcomes[1]["problem"]["status"] == 422
    assert outcomes[1]["problem"]["type"].endswith("not_an_image")
    assert sorted(outcome["outcome"] for outcome in outcomes) == ["created", "created", "duplicate", "rejected"]
    assert outcomes[2]["image"]["filename"] == "b.jpg"
    assert outcomes[2]["problem"] is None


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        pytest.param(None, ("a.jpg", True), 201, id="new"),
        pytest.param("same", ("a.jpg", True), 200, id="known"),
        pytest.param(None, ("a.jpg", False), 422, id="no-picture"),
    ],
)
async def test_the_status_says_whether_anything_was_created(
    gateway: Any, jpeg: Jpeg, first: str | None, second: tuple[str, bool], status: int
) -> None:
    if first:
        gateway.storage.add(jpeg(1))
    name, good = second
    answer = await gateway.client.post("/v1/images", files=files((name, jpeg(1) if good else b"text")))
    assert answer.status_code == status


async def test_known_and_rejected_together_are_422(gateway: Any, jpeg: Jpeg) -> None:
    gateway.storage.add(jpeg(1))
    answer = await gateway.client.post("/v1/images", files=files(("a.jpg", jpeg(1)), ("b.jpg", b"text")))
    assert answer.status_code == 422
    assert [outcome["outcome"] for outcome in answer.json()["outcomes"]] == ["duplicate", "rejected"]


async def test_101_files_are_refused_with_the_field_named_and_nothing_stored(gateway: Any, jpeg: Jpeg) -> None:
    sent = files(*((f"{n}.jpg", jpeg(n)) for n in range(101)))
    answer = await gateway.client.post("/v1/images", files=sent)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] == "files"
    assert not gateway.storage.records


async def test_100_files_are_taken(gateway: Any, jpeg: Jpeg) -> None:
    answer = await gateway.client.post("/v1/images", files=files(*((f"{n}.jpg", jpeg(n)) for n in range(100))))
    assert answer.status_code == 201
    assert [outcome["filename"] for outcome in answer.json()["outcomes"]] == [f"{n}.jpg" for n in range(100)]
    assert len(gateway.storage.records) == 100


async def test_a_file_that_is_too_large_is_rejected_alone(start: Any, jpeg: Jpeg) -> None:
    async with start(max_upload_mb=1) as gateway:
        big = jpeg(1) + b"\0" * 1024 * 1024
        answer = await gateway.client.post("/v1/images", files=files(("big.jpg", big), ("small.jpg", jpeg(2))))
        assert answer.status_code == 201
        first, second = answer.json()["outcomes"]
        assert (first["outcome"], first["problem"]["status"]) == ("rejected", 413)
        assert first["problem"]["type"].endswith("file_too_large")
        assert second["outcome"] == "created"
        alone = await gateway.client.post("/v1/images", files=files(("big.jpg", big)))
        assert alone.status_code == 422


async def test_a_30_mb_file_is_rejected_with_413_under_the_default_limits(gateway: Any) -> None:
    answer = await gateway.client.post("/v1/images", files=files(("big.jpg", b"\xff\xd8\xff" + b"\0" * 30_000_000)))
    assert answer.status_code == 422
    assert answer.json()["outcomes"][0]["problem"]["status"] == 413
    assert not gateway.storage.records


async def test_a_body_over_the_cap_is_413_before_it_is_read(start: Any) -> None:
    async with start(max_body_mb=1) as gateway:
        read = 0

        async def body() -> Any:
            nonlocal read
            for _ in range(64):
                read += 1
                yield b"\0" * 65536

        headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(64 * 65536)}
        answer = await gateway.client.post("/v1/images", content=body(), headers=headers)
        assert answer.status_code == 413
        assert answer.json()["type"].endswith("body_too_large")
        assert read == 0


async def test_a_body_of_unknown_length_is_cut_at_the_cap(start: Any) -> None:
    async with start(max_body_mb=1) as gateway:
        read = 0

        async def body() -> Any:
            nonlocal read
            yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
            for _ in range(640):
                read += 1
                yield b"\0" * 65536

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = await gateway.client.post("/v1/images", content=body(), headers=headers)
        assert answer.status_code == 413
        assert read <= 18


@pytest.mark.parametrize(
    ("data", "tags", "attributes"),
    [
        pytest.param({"tags": ["dog", "red car"]}, ["dog", "red car"], {}, id="repeated"),
        pytest.param({"tags": "dog, red car,,"}, ["dog", "red car"], {}, id="commas"),
        pytest.param({"tags": '["dog", "red, car"]'}, ["dog", "red, car"], {}, id="json"),
        pytest.param({"attributes": '{"album": "x", "n": 2}'}, [], {"album": "x", "n": 2}, id="attributes"),
        pytest.param({}, [], {}, id="none"),
    ],
)
async def test_tags_and_attributes_stand_in_every_record(
    gateway: Any, jpeg: Jpeg, data: dict[str, Any], tags: list[str], attributes: dict[str, Any]
) -> None:
    sent = files(("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)))
    answer = await gateway.client.post("/v1/images", files=sent, data=data)
    assert answer.status_code == 201
    for outcome in answer.json()["outcomes"]:
        assert (outcome["image"]["tags"], outcome["image"]["attributes"]) == (tags, attributes)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        pytest.param({"tags": "[1"}, "tags", id="tags-json"),
        pytest.param({"tags": "x" * 101}, "tags.0", id="tag-too-long"),
        pytest.param({"attributes": "[1]"}, "attributes", id="attributes-list"),
        pytest.param({"attributes": '{"a": {"b": 1}}'}, "attributes.a.bool", id="attributes-nested"),
        pytest.param({"attributes": json.dumps({str(n): "ä" * 1000 for n in range(20)})}, "attributes", id="long"),
        pytest.param({"tag": "dog"}, "tag", id="unknown-field"),
    ],
)
async def test_a_bad_form_field_is_422_with_its_name_and_nothing_stored(
    gateway: Any, jpeg: Jpeg, data: dict[str, Any], field: str
) -> None:
    answer = await gateway.client.post("/v1/images", files=files(("a.jpg", jpeg(1))), data=data)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field
    assert not gateway.storage.records


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        pytest.param({"files": {"file": ("a.jpg", b"x")}}, "file", id="other-file-field"),
        pytest.param({"files": {"tags": (None, "a")}}, "files", id="no-file"),
        pytest.param({"files": {"files": (None, "a")}}, "files", id="text-for-file"),
        pytest.param({"data": {"files": "a"}}, "body", id="urlencoded"),
        pytest.param({"content": b"{", "headers": {"Content-Type": "application/json"}}, "body", id="bad-json"),
        pytest.param({"json": {"urls": []}}, "urls", id="no-urls"),
        pytest.param({"json": {"urls": ["http://x/"] * 101}}, "urls", id="101-urls"),
        pytest.param({"json": {"url": "http://x/"}}, "urls", id="missing-urls"),
        pytest.param({"json": {"urls": ["http://x/"], "tags": [""]}}, "tags.0", id="empty-tag"),
        pytest.param(
            {"content": b"--x\r\nnonsense", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            "body",
            id="broken-multipart",
        ),
        pytest.param({"content": b"", "headers": {"Content-Type": "multipart/form-data"}}, "body", id="no-boundary"),
    ],
)
async def test_what_cannot_be_read_is_422_with_the_field_named(gateway: Any, request_: Any, field: str) -> None:
    answer = await gateway.client.post("/v1/images", **request_)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field


LOOPBACK = [
    "http://127.0.0.1:{port}/",
    "http://localhost:{port}/",
    "http://a.localhost:{port}/",
    "http://127.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://017700000001:{port}/",
    "http://127.000.000.001:{port}/",
    "http://0.0.0.0:{port}/",
    "http://0:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:1::80ff:fffe]:{port}/",
    "http://[fe80::5efe:7f00:1]:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://127.0.0.1%2f@localhost:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://ｌｏｃａｌｈｏｓｔ:{port}/",
    "http://127。0。0。1:{port}/",
    "http://LOCALHOST:{port}/",
    "  http://127.0.0.1:{port}/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "data:image/png;base64,AAAA",
    "not a url",
]


async def test_no_disguise_of_this_machine_is_fetched(gateway: Any) -> None:
    urls = [url.format(port=8004) for url in LOOPBACK]
    answer = await gateway.client.post("/v1/images", json={"urls": urls})
    assert answer.status_code == 422
    outcomes = answer.json()["outcomes"]
    assert [outcome["url"] for outcome in outcomes] == urls
    for outcome in outcomes:
        assert (outcome["outcome"], outcome["problem"]["status"]) == ("rejected", 422), outcome
    assert not gateway.storage.records


@asynccontextmanager
async def web_server(pages: dict[str, tuple[str, bytes]]) -> AsyncIterator[str]:
    """Serve `pages` (media type and body by path) on the loopback interface; yield the address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        media_type, body = pages[path]
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        writer.write(body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_urls_are_fetched_and_stored_where_the_network_is_allowed(start: Any, jpeg: Jpeg) -> None:
    pages = {
        "/pictures/a%20dog.jpg?size=1": ("image/jpeg", jpeg(1)),
        "/page": ("text/html", b"<html>"),
        "/large.jpg": ("image/jpeg", jpeg(2) + b"\0" * 1024 * 1024),
        "/text.jpg": ("image/jpeg", b"just text"),
    }
    async with start(fetch_allow="127.0.0.0/8", max_upload_mb=1) as gateway, web_server(pages) as url:
        body = {"urls": [url.replace("//", "//me:secret@") + path for path in pages], "tags": ["web"]}
        answer = await gateway.client.post("/v1/images", json=body)
        assert answer.status_code == 201
        dog, page, large, text = answer.json()["outcomes"]
        assert (dog["outcome"], dog["filename"], dog["image"]["tags"]) == ("created", "a dog.jpg", ["web"])
        assert dog["image"]["source_url"] == f"{url}/pictures/a%20dog.jpg?size=1"
        assert [outcome["problem"]["status"] for outcome in (page, large, text)] == [415, 413, 422]

        terms = [{"image_url": f"{url}/pictures/a%20dog.jpg?size=1"}]
        assert (await gateway.client.post("/v1/search", json={"terms": terms})).status_code == 200
        assert_allclose(
            decode_vector(gateway.storage.searches[-1].vectors[0].vector), vector_of(jpeg(1), "clip"), atol=1e-6
        )
        wanted = {"model": "resnet", "input": f"{url}/pictures/a%20dog.jpg?size=1"}
        assert (await gateway.client.post("/v1/embeddings", json=wanted)).status_code == 200


class TestWhenStorageIsAway:
    async def test_a_connection_that_breaks_is_made_again_and_the_picture_is_there_once(
        self, gateway: Any, jpeg: Jpeg
    ) -> None:
        gateway.inner.to_storage.faults = [
            (httpx.ConnectError("refused"), False),
            (httpx.ReadError("cut"), False),
            (httpx.RemoteProtocolError("cut"), False),
        ]
        answer = await gateway.client.post("/v1/images", files=files(("a.jpg", jpeg(1))))
        assert answer.status_code == 201
        assert len(gateway.storage.records) == 1

    async def test_an_answer_that_got_lost_makes_no_second_picture(self, gateway: Any, jpeg: Jpeg) -> None:
        gateway.inner.to_storage.faults = [(httpx.ReadError("cut"), True)]
        answer = await gateway.client.post("/v1/images", files=files(("a.jpg", jpeg(1))))
        assert answer.status_code == 200
        assert answer.json()["outcomes"][0]["outcome"] == "duplicate"
        assert len(gateway.storage.records) == 1

    async def test_after_the_time_allowed_it_is_503_with_retry_after(self, start: Any, jpeg: Jpeg) -> None:
        async with start(upload_retry_s=0.2) as gateway:
            gateway.inner.to_storage.down = True
            sent = files(*((f"{n}.jpg", jpeg(n)) for n in range(30)))
            answer = await gateway.client.post("/v1/images", files=sent)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            # Together they waited once: a try for each file, and the few that fit into 0.2 s beside them.
            assert gateway.inner.to_storage.requests < 30 * 3


class TestNames:
    @pytest.mark.parametrize(
        ("sent", "kept"),
        [
            ("a.jpg", "a.jpg"),
            ("../../etc/passwd", "passwd"),
            ("C:\\Users\\me\\a.jpg", "a.jpg"),
            ("a\x00b\n.jpg", "ab.jpg"),
            ("ünï.jpg", "ünï.jpg"),
            ("", None),
            ("..//", None),
            (None, None),
        ],
    )
    def test_of_a_file_name_the_last_part_is_kept(self, sent: str | None, kept: str | None) -> None:
        assert plain_name(sent) == kept

    def test_a_url_gives_its_last_part(self) -> None:
        assert name_in_url("https://example.org/a/b%20c.jpg?size=1") == "b c.jpg"
        assert name_in_url("https://example.org/") is None

    def test_no_password_stands_in_a_record(self) -> None:
        assert public_form("https://me:secret@example.org/a.jpg") == "https://example.org/a.jpg"

    def test_nothing_said_is_nothing_described(self) -> None:
        assert read_described([], []) == Described()
