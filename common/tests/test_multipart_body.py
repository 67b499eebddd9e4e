from __future__ import annotations

import random

import httpx
import pytest
from pixelgate_common.errors import InvalidRequest
from pixelgate_common.multipart_body import read_files

MARK = "xyz"
TYPE = f"multipart/form-data; boundary={MARK}"


def part(content: bytes, head: str = 'Content-Disposition: form-data; name="images"; filename="a.jpg"') -> bytes:
    return f"--{MARK}\r\n{head}\r\n\r\n".encode() + content + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{MARK}--\r\n".encode()


@pytest.mark.parametrize("count", [1, 2, 64])
def test_reads_what_a_real_client_writes(count: int) -> None:
    rng = random.Random(count)
    contents = [rng.randbytes(rng.choice([0, 1, 999, 5000])) for _ in range(count)]
    request = httpx.Request(
        "POST", "http://x", files=[("images", (f"ü {n}.jpg", data)) for n, data in enumerate(contents)]
    )
    assert read_files(request.headers["content-type"], request.read(), "images", 64) == contents


def test_contents_may_look_like_multipart() -> None:
    tricky = b"\r\n--xy\r\n\r\n--\r\n--XYZ--\r\n\r\n"
    assert read_files(TYPE, body(part(tricky), part(b"--")), "images", 2) == [tricky, b"--"]


@pytest.mark.parametrize(
    "content_type",
    [TYPE, f'multipart/form-data; boundary="{MARK}"', f"Multipart/Form-Data; charset=utf-8; boundary={MARK}"],
)
def test_takes_every_spelling_of_the_header(content_type: str) -> None:
    assert read_files(content_type, b"preamble\r\n" + body(part(b"1")), "images", 1) == [b"1"]


def test_an_empty_form_has_no_files() -> None:
    assert read_files(TYPE, body(), "images", 1) == []


@pytest.mark.parametrize(
    ("content_type", "data", "says"),
    [
        pytest.param("application/json", body(part(b"1")), "multipart/form-data", id="another type"),
        pytest.param("", body(part(b"1")), "multipart/form-data", id="no type"),
        pytest.param("multipart/form-data", body(part(b"1")), "boundary", id="no boundary"),
        pytest.param(f"multipart/form-data; boundary={'x' * 71}", b"", "boundary", id="a boundary too long"),
        pytest.param("multipart/form-data; boundary=ä", b"", "ASCII", id="a boundary that is not ASCII"),
        pytest.param(TYPE, b"", "cut short", id="nothing"),
        pytest.param(TYPE, b"no boundary anywhere", "cut short", id="no boundary in the body"),
        pytest.param(TYPE, body(part(b"1"))[:-6], "cut short", id="no end"),
        pytest.param(TYPE, part(b"1")[:-3], "cut short", id="cut inside a file"),
        pytest.param(TYPE, b"--xyz\r\nContent-Disposition: form-data", "cut short", id="cut inside a head"),
        pytest.param(TYPE, b"--xyz junk\r\n\r\n1\r\n--xyz--", "cut short", id="junk after a boundary"),
        pytest.param(TYPE, body(part(b"1", "A: " + "b" * 9000)), "cut short", id="a head without end"),
        pytest.param(TYPE, body(part(b"1", "Content-Type: image/jpeg")), "named images", id="a part without a name"),
        pytest.param(
            TYPE, body(part(b"1", 'Content-Disposition: form-data; name="x"')), "named images", id="other name"
        ),
        pytest.param(TYPE, body(part(b"1"), part(b"2"), part(b"3")), "At most 2", id="too many"),
    ],
)
def test_refuses_what_is_not_well_formed(content_type: str, data: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read_files(content_type, data, "images", 2)


def test_damage_is_refused_or_harmless_and_never_anything_else() -> None:
    rng = random.Random(5)
    whole = body(part(b"hello"), part(b"world"))
    for _ in range(2000):
        damaged = bytearray(whole[: rng.randrange(len(whole) + 1)])
        for _ in range(rng.randrange(3)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            files = read_files(TYPE, bytes(damaged), "images", 3)
        except InvalidRequest:
            continue
        assert all(isinstance(file, bytes) for file in files)
