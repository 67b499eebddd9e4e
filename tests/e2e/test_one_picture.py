"""What can be asked of one picture with nothing stored: by upload, by address and by id."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageColor
from starter_models.measures import box_iou, caption_labels, mask_iou
from starter_models.scenes import Scene, draw_scene

from tests.evaluation.content import alpha_of, foreground
from tests.system import System, running, upload, wait_analysed

SCENE, OTHER = 32_000, 32_001
WAYS = ("upload", "url", "id")
REFUSED = (
    "http://10.0.0.1/dog.jpg",
    "http://192.168.1.1/dog.jpg",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]:{port}/dog.jpg",
    "http://127.0.0.2:{port}/dog.jpg",
    "file:///etc/passwd",
)


class Pictures(ThreadingHTTPServer):
    """A web server on 127.0.0.1 with pictures by path."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Pictures

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        data = self.server.files.get(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the test's own output is enough."""


@pytest.fixture(scope="module")
def scenes() -> tuple[Scene, Scene]:
    return draw_scene("test", SCENE), draw_scene("test", OTHER, (300, 200))


@pytest.fixture(scope="module")
def web(scenes: tuple[Scene, Scene]) -> Iterator[Pictures]:
    with Pictures({"/scene.jpg": scenes[0].jpeg(), "/other.jpg": scenes[1].jpeg()}) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    # One address of this machine may be fetched from, and no other.
    env = {"PIXELGATE_FETCH_ALLOW": "127.0.0.1/32"}
    with running(tmp_path_factory.mktemp("one") / "data", env) as system:
        yield system.wait_all_ready()


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[httpx.Client]:
    with system.client() as client:
        yield client


@pytest.fixture(scope="module")
def ids(client: httpx.Client, scenes: tuple[Scene, Scene]) -> tuple[int, int]:
    outcomes = upload(client, [(f"{number}.jpg", scene.jpeg()) for number, scene in enumerate(scenes)])
    wait_analysed(client)
    return outcomes[0]["image"]["id"], outcomes[1]["image"]["id"]


@pytest.fixture(params=WAYS)
def ask(
    request: pytest.FixtureRequest,
    client: httpx.Client,
    web: Pictures,
    ids: tuple[int, int],
    scenes: tuple[Scene, Scene],
) -> Any:
    """What asks a route about the first scene: by upload, by address or by id."""

    def by_upload(what: str, **options: Any) -> httpx.Response:
        fields = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
        return client.post(f"/v1/{what}", files={"image": ("scene.jpg", scenes[0].jpeg())}, data=fields)

    def by_url(what: str, **options: Any) -> httpx.Response:
        url = f"http://127.0.0.1:{web.server_port}/scene.jpg"
        return client.post(f"/v1/{what}", json={"url": url, **options})

    def by_id(what: str, **options: Any) -> httpx.Response:
        return client.post(f"/v1/{what}", json={"image_id": ids[0], **options})

    return {"upload": by_upload, "url": by_url, "id": by_id}[request.param]


def opened(answer: httpx.Response, *, kind: str = "image/png") -> Image.Image:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == kind
    return Image.open(io.BytesIO(answer.content))


def test_a_caption(ask: Any, scenes: tuple[Scene, Scene]) -> None:
    answer = ask("caption").raise_for_status().json()
    assert answer["model"]
    named = caption_labels(answer["caption"])
    assert (named & Counter(thing.label for thing in scenes[0].objects)).total() >= 1, answer


def test_of_a_stored_picture_the_answer_is_what_its_record_says(client: httpx.Client, ids: tuple[int, int]) -> None:
    for image_id in ids:
        record = client.get(f"/v1/images/{image_id}").raise_for_status().json()
        told = {
            what: client.post(f"/v1/{what}", json={"image_id": image_id}).raise_for_status().json()
            for what in ("caption", "objects", "palette")
        }
        assert told["caption"]["caption"] == record["caption"]
        assert [found["label"] for found in told["objects"]["objects"]] == [
            found["label"] for found in record["objects"]
        ]
        for found, kept in zip(told["objects"]["objects"], record["objects"], strict=True):
            assert found["box"] == pytest.approx(kept["box"], abs=1)
        assert [color["hex"] for color in told["palette"]["palette"]] == [color["hex"] for color in record["palette"]]


def test_objects(ask: Any, scenes: tuple[Scene, Scene]) -> None:
    answer = ask("objects").raise_for_status().json()
    assert answer["model"]
    assert answer["objects"]
    assert [found["score"] for found in answer["objects"]] == sorted(
        (found["score"] for found in answer["objects"]), reverse=True
    )
    best = answer["objects"][0]
    x, y, width, height = best["box"]
    assert max(box_iou((x, y, x + width, y + height), thing.box) for thing in scenes[0].objects) >= 0.5


def test_objects_drawn_on_the_picture(ask: Any, scenes: tuple[Scene, Scene]) -> None:
    picture = opened(ask("objects", annotated=True), kind="image/jpeg").convert("RGB")
    assert picture.size == scenes[0].picture.size
    changed = np.abs(np.asarray(picture, dtype=int) - np.asarray(scenes[0].picture, dtype=int)).max(axis=2) > 60
    assert 0.005 < changed.mean() < 0.6


def test_a_cutout(ask: Any, scenes: tuple[Scene, Scene]) -> None:
    answer = ask("cutout")
    assert opened(answer).mode == "RGBA"
    assert mask_iou(alpha_of(answer.content, scenes[0].picture.size), foreground(scenes[0])) >= 0.75


def test_a_cutout_as_mask(ask: Any, scenes: tuple[Scene, Scene]) -> None:
    mask = opened(ask("cutout", mask_only=True))
    assert (mask.mode, mask.size) == ("L", scenes[0].picture.size)
    assert np.array_equal(np.asarray(mask), np.asarray(opened(ask("cutout")).getchannel("A")))


def test_a_cutout_without_its_empty_border(ask: Any) -> None:
    whole, trimmed = opened(ask("cutout")), opened(ask("cutout", trim=True))
    # What is left out is so faint that nobody sees it, if it is not empty.
    boxes = [
        whole.getchannel("A").point(lambda alpha, least=least: alpha >= least and 255).getbbox()
        for least in range(1, 33)
    ]
    parts = [whole.crop(box) for box in boxes if box is not None]
    assert any(part.size == trimmed.size and part.tobytes() == trimmed.tobytes() for part in parts)
    assert trimmed.size != whole.size


def test_a_cutout_on_a_colour(ask: Any) -> None:
    picture = opened(ask("cutout", background="#12ab9f")).convert("RGBA")
    alpha = np.asarray(opened(ask("cutout")).getchannel("A"))
    pixels = np.asarray(picture)
    assert pixels[..., 3].min() == 255, "something is see-through"
    assert (pixels[alpha == 0][:, :3] == (0x12, 0xAB, 0x9F)).all()


def test_a_palette(ask: Any, scenes: tuple[Scene, Scene]) -> None:
    palette = ask("palette").raise_for_status().json()["palette"]
    assert 1 <= len(palette) <= 8
    assert sum(color["share"] for color in palette) == pytest.approx(1, abs=0.01)
    # Its mean is the picture's mean, as far as eight colours can say it.
    pixels = np.asarray(scenes[0].picture, dtype=float).reshape(-1, 3)
    mean = sum(np.array(ImageColor.getrgb(color["hex"])) * color["share"] for color in palette)
    assert np.abs(mean - pixels.mean(axis=0)).max() < 25
    assert len(ask("palette", colors=2).raise_for_status().json()["palette"]) <= 2


def test_a_cutout_is_kept_for_the_pictures_it_was_requested_for(client: httpx.Client, ids: tuple[int, int]) -> None:
    assert client.get(f"/v1/images/{ids[0]}").json()["stages"]["cutout"]["state"] == "off"
    client.post("/v1/stages/cutout/request", json={"image_ids": [ids[0]]}).raise_for_status()
    deadline = time.monotonic() + 60
    while (first := client.get(f"/v1/images/{ids[0]}").json())["stages"]["cutout"]["state"] != "done":
        assert time.monotonic() < deadline, first["stages"]["cutout"]
        time.sleep(0.2)
    assert client.get(first["links"]["cutout"]).raise_for_status().headers["etag"]
    second = client.get(f"/v1/images/{ids[1]}").json()
    assert second["stages"]["cutout"]["state"] == "off"
    assert "cutout" not in second["links"]


@pytest.mark.parametrize("what", ["caption", "objects", "cutout", "palette"])
def test_nothing_of_it_is_stored(client: httpx.Client, ids: tuple[int, int], what: str) -> None:
    before = client.get("/v1/stats").json()["images"]
    picture = draw_scene("test", SCENE + 7).jpeg()
    client.post(f"/v1/{what}", files={"image": ("new.jpg", picture)}).raise_for_status()
    assert client.get("/v1/stats").json()["images"] == before == len(ids)


@pytest.mark.parametrize("what", ["caption", "objects", "cutout", "palette"])
@pytest.mark.parametrize("url", REFUSED)
def test_no_other_address_of_this_machine_or_network_is_asked(
    client: httpx.Client, web: Pictures, what: str, url: str
) -> None:
    asked = len(web.asked)
    answer = client.post(f"/v1/{what}", json={"url": url.format(port=web.server_port)})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert len(web.asked) == asked


@pytest.mark.parametrize("what", ["caption", "objects", "cutout", "palette"])
def test_what_cannot_be_is_said(client: httpx.Client, what: str) -> None:
    assert client.post(f"/v1/{what}", json={"image_id": 999_999}).status_code == 404
    assert client.post(f"/v1/{what}", json={}).status_code == 422
    assert client.post(f"/v1/{what}", files={"image": ("a.jpg", b"no picture" * 30)}).status_code == 422


@pytest.mark.parametrize("way", WAYS)
def test_a_blend_has_one_picture_on_each_side(
    client: httpx.Client, web: Pictures, ids: tuple[int, int], scenes: tuple[Scene, Scene], way: str
) -> None:
    url = f"http://127.0.0.1:{web.server_port}"
    if way == "upload":
        files = {f"image_{number}": ("p.jpg", scene.jpeg()) for number, scene in enumerate(scenes, 1)}
        answer = client.post("/v1/blend", files=files)
    elif way == "url":
        answer = client.post("/v1/blend", json={"url_1": f"{url}/scene.jpg", "url_2": f"{url}/other.jpg"})
    else:
        answer = client.post("/v1/blend", json={"image_id_1": ids[0], "image_id_2": ids[1]})
    blend = opened(answer).convert("RGB")
    for number, edge in ((0, 0.02), (1, 0.98)):
        own = scenes[number].picture.resize(blend.size)
        other = scenes[1 - number].picture.resize(blend.size)
        column = round(edge * (blend.width - 1))
        seen, like, unlike = (np.asarray(each, dtype=float)[:, column] for each in (blend, own, other))
        assert np.abs(seen - like).mean() < np.abs(seen - unlike).mean()


def test_a_collage_has_each_picture_once(client: httpx.Client, ids: tuple[int, int]) -> None:
    answer = client.post("/v1/collage", json={"image_ids": list(ids), "columns": 2, "cell_px": 100, "gap_px": 0})
    collage = opened(answer, kind="image/jpeg")
    assert collage.size == (200, 100)


def test_a_collage_of_a_search(client: httpx.Client, ids: tuple[int, int]) -> None:
    answer = client.post("/v1/collage", json={"search": {"terms": [{"image_id": ids[0]}], "limit": 4}})
    assert min(opened(answer, kind="image/jpeg").size) >= 100
