"""Bad input is normal: each kind gets its documented answer through the gateway, and memory stays bounded."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.system import System, running, upload, wait_analysed


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("bad") / "data") as system:
        yield system


@pytest.fixture
def client(system: System) -> Iterator[httpx.Client]:
    with system.client() as client:
        yield client


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noisy(width: int = 320, height: int = 240, mode: str = "RGB", seed: int = 1) -> Image.Image:
    channels = {"RGB": 3, "CMYK": 4, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, channels), dtype=np.uint8)
    picture = Image.fromarray(pixels.squeeze(), None if mode != "CMYK" else "CMYK")
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def png_bomb(side: int) -> bytes:
    """Return a valid grey PNG of side × side pixels that is a few kilobytes... per gigabyte of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    deflate = zlib.compressobj(9)
    row = b"\0" * (1 + side // 8)
    data = b"".join(deflate.compress(row) for _ in range(side // 50)) + deflate.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def sixteen_bit_png() -> bytes:
    pixels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    return encoded(Image.fromarray(pixels), "PNG")


def animated_gif() -> bytes:
    frames = [noisy(64, 64, seed=seed) for seed in range(5)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be looked at turned by 90 degrees clockwise
    return encoded(noisy(320, 200, seed=9), "JPEG", exif=exif)


REFUSED = {
    "text-named-jpg": (b"this is no picture, whatever its name says\n" * 20, 422, "not_an_image"),
    "truncated-jpeg": (encoded(noisy(seed=3), "JPEG")[:-3000], 422, "broken_image"),
    "50000x50000-png": (png_bomb(50_000), 413, "image_too_large"),
    "0-bytes": (b"", 422, "not_an_image"),
    "svg": (
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        415,
        "unsupported_format",
    ),
}

TAKEN = {
    "animated-gif": (animated_gif(), (64, 64)),
    "cmyk-jpeg": (encoded(noisy(mode="CMYK", seed=5), "JPEG"), (320, 240)),
    "16-bit-png": (sixteen_bit_png(), (64, 64)),
    "exif-rotated": (rotated_jpeg(), (200, 320)),
    "rgba-png": (encoded(noisy(mode="RGBA", seed=6), "PNG"), (320, 240)),
    "grey": (encoded(noisy(mode="L", seed=7), "JPEG"), (320, 240)),
    "1x1": (encoded(Image.new("RGB", (1, 1), "red"), "PNG"), (1, 1)),
    "12000x200": (encoded(noisy(12_000, 200, seed=8), "JPEG"), (12_000, 200)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_sound_picture_is_refused_alone(client: httpx.Client, name: str) -> None:
    data, status, code = REFUSED[name]
    assert len(data) < 100_000
    good = encoded(noisy(seed=hash(name) % 2**32), "JPEG")
    answer = client.post("/v1/images", files=[("files", (f"{name}.jpg", data)), ("files", ("good.jpg", good))])
    assert answer.status_code == 201
    bad, fine = answer.json()["outcomes"]
    assert (bad["outcome"], bad["image"]) == ("rejected", None)
    assert bad["problem"]["status"] == status, bad
    assert bad["problem"]["type"].endswith(code), bad
    assert fine["outcome"] == "created"
    assert client.post("/v1/images", files={"files": (f"{name}.jpg", data)}).status_code == 422


@pytest.mark.parametrize("name", TAKEN)
def test_unusual_pictures_are_stored_and_shown_upright(client: httpx.Client, name: str) -> None:
    data, size = TAKEN[name]
    (outcome,) = upload(client, [(name, data)])
    assert outcome["outcome"] == "created", outcome
    record = outcome["image"]
    assert (record["width"], record["height"]) == size
    preview = Image.open(io.BytesIO(client.get(f"/v1/images/{record['id']}/preview").raise_for_status().content))
    assert (preview.width > preview.height) == (size[0] > size[1])
    assert max(preview.size) <= 1024
    assert preview.mode in ("RGB", "RGBA", "L")


def test_all_unusual_pictures_are_analysed(client: httpx.Client) -> None:
    for stage in wait_analysed(client).values():
        assert stage["failed"] == 0, stage


def test_16_bits_are_scaled_not_cut_off(client: httpx.Client) -> None:
    (outcome,) = upload(client, [("ramp.png", sixteen_bit_png())])
    preview = client.get(f"/v1/images/{outcome['image']['id']}/preview").content
    rows = np.asarray(Image.open(io.BytesIO(preview)).convert("L")).mean(axis=1)
    assert rows[0] < 20
    assert 108 < rows[32] < 148
    assert rows[-1] > 235


def test_101_files_are_refused_before_anything_is_stored(client: httpx.Client) -> None:
    before = client.get("/v1/stats").json()["images"]
    files = [("files", (f"{n}.png", encoded(Image.new("RGB", (8, 8), (n, 0, 77)), "PNG"))) for n in range(101)]
    answer = client.post("/v1/images", files=files)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "files"
    assert client.get("/v1/stats").json()["images"] == before


def test_a_30_mb_picture_is_refused_alone_and_as_a_query_at_once(client: httpx.Client) -> None:
    big = b"\xff\xd8\xff" + b"\0" * 30_000_000
    answer = client.post("/v1/images", files={"files": ("big.jpg", big)})
    assert answer.status_code == 422
    assert answer.json()["outcomes"][0]["problem"]["status"] == 413
    answer = client.post("/v1/search/by-image", files={"image": ("big.jpg", big)})
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")


LOOPBACK = [
    "http://127.0.0.1:{port}/healthz",
    "http://localhost:{port}/healthz",
    "http://127.1:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://[::1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://0.0.0.0:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/",
]


def test_no_url_reaches_this_machine_in_any_disguise(system: System, client: httpx.Client) -> None:
    urls = [url.format(port=system.port) for url in LOOPBACK]
    answer = client.post("/v1/images", json={"urls": urls})
    assert answer.status_code == 422
    outcomes = answer.json()["outcomes"]
    assert len(outcomes) == len(urls)
    for url, outcome in zip(urls, outcomes, strict=True):
        assert outcome["outcome"] == "rejected", url
        assert outcome["problem"]["status"] == 422, (url, outcome)
    answer = client.post("/v1/search", json={"terms": [{"image_url": urls[0]}]})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({"terms": []}, "terms", id="no-terms"),
        pytest.param({"terms": [{"text": "a"}], "limit": 0}, "limit", id="limit-0"),
        pytest.param({"terms": [{"text": "a"}], "filter": {"field": "wdith", "eq": 1}}, "filter", id="unknown-field"),
        pytest.param({"terms": [{"text": "a"}], "cursor": "nonsense"}, "cursor", id="cursor"),
        pytest.param({"terms": [{"text": "a"}], "space": "resnet"}, "terms", id="text-for-resnet"),
        pytest.param({"terms": [{"text": "a", "weight": "heavy"}]}, "terms.0.weight", id="weight"),
    ],
)
def test_a_search_that_cannot_be_names_the_field(client: httpx.Client, body: dict[str, Any], field: str) -> None:
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 422, answer.text
    assert any(error["field"].startswith(field) for error in answer.json()["errors"]), answer.text


@pytest.mark.parametrize("path", ["/v1/images/999999", "/v1/images/999999/preview"])
def test_an_unknown_picture_is_404(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_memory_stays_bounded_under_all_that(system: System, client: httpx.Client) -> None:
    before = system.memory_mb()
    big = b"\xff\xd8\xff" + b"\0" * 20_000_000
    bombs = [("files", (f"{n}.png", png_bomb(50_000))) for n in range(20)]
    for _ in range(5):
        client.post("/v1/images", files=[("files", (f"{n}.jpg", big)) for n in range(5)])
        client.post("/v1/images", files=bombs)
    after = system.memory_mb()
    for service, now in after.items():
        # A single 50,000 × 50,000 picture would be 2,400 MiB, one body of the five 95 MiB.
        assert now - before[service] < 90, (service, before, after)


def test_after_all_that_it_works_as_before(client: httpx.Client) -> None:
    (outcome,) = upload(client, [("after.jpg", encoded(noisy(seed=99), "JPEG"))])
    assert outcome["outcome"] == "created"
    for stage in wait_analysed(client).values():
        assert stage["failed"] == 0
