"""Search by colours: what becomes of the terms, what the rankings are, and that no model is needed for it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gateway.testing.color import palette_of
from numpy.testing import assert_allclose
from PIL import Image
from pixelgate_common.colors import srgb_to_lab
from pixelgate_common.contracts.storage import PaletteColor, StageResult

Scene = Callable[..., bytes]
COLORS = {"red": "#e01010", "green": "#10c020", "blue": "#1030d0", "grey": "#808080"}


def lab(text: str) -> Any:
    channels = [int(text[start : start + 2], 16) for start in (1, 3, 5)]
    return srgb_to_lab(np.array(channels, dtype=np.float64))


@pytest.fixture
def plain() -> Callable[[str], bytes]:
    """Return what makes a picture of one colour."""

    def make(color: str) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (32, 24), color).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def library(gateway: Any, plain: Callable[[str], bytes]) -> Any:
    """Return a gateway whose storage has a red, a green, a blue and a grey picture (1 to 4), analysed."""
    for color in COLORS.values():
        record, _ = gateway.storage.add(plain(color))
        keep_palette(gateway, record, plain(color))
    return gateway


def keep_palette(gateway: Any, record: Any, data: bytes) -> None:
    found = palette_of(data)
    plain = {
        "palette": [color.model_dump() for color in found.palette],
        "foreground": None if found.foreground is None else [color.model_dump() for color in found.foreground],
    }
    gateway.storage.keep("palette", StageResult(image_id=record.id, token="t", took_ms=1, result=plain))


async def found(gateway: Any, **asked: Any) -> list[int]:
    answer = await gateway.client.post("/v1/search", json=asked)
    assert answer.status_code == 200, answer.text
    return [hit["image"]["id"] for hit in answer.json()["hits"]]


@pytest.mark.parametrize(
    ("text", "first"),
    [("#ff0000", 1), ("#F00", 1), ("crimson", 1), ("lime", 2), ("navy", 3), ("#7a7a7a", 4), (" Gray ", 4)],
)
async def test_a_colour_finds_the_picture_of_that_colour(library: Any, text: str, first: int) -> None:
    ids = await found(library, terms=[{"color": text}])
    assert ids[0] == first
    assert sorted(ids) == [1, 2, 3, 4]


async def test_colours_alone_need_no_model(library: Any) -> None:
    library.inner.to_embed.down = library.inner.to_color.down = True
    answer = await library.client.post("/v1/search", json={"terms": [{"color": "red"}]})
    assert answer.status_code == 200
    assert answer.json()["models"] == {}
    assert answer.json()["hits"][0]["parts"]["color"] < 10
    short = await library.client.get("/v1/search", params={"color": "blue"})
    assert short.json()["hits"][0]["image"]["id"] == 3
    assert library.inner.to_embed.requests == 0


async def test_weights_travel_with_the_colours(library: Any) -> None:
    await found(library, terms=[{"color": "#102030", "weight": 2.5}, {"color": "#f0e0d0"}])
    (asked,) = library.storage.searches
    assert (asked.vectors, asked.words, asked.colors.of, asked.colors.weight) == ([], None, "whole", 1.0)
    first, second = asked.colors.colors
    assert (first.weight, second.weight) == (2.5, 1.0)
    assert_allclose(first.lab, lab("#102030"), atol=1e-6)
    assert_allclose(second.lab, lab("#f0e0d0"), atol=1e-6)


async def test_complementary_turns_each_colour_and_leaves_greys_out(library: Any) -> None:
    await found(library, terms=[{"color": "#ff8000"}, {"color": "#777777"}, {"color": "#00ff00"}], mode="complementary")
    (asked,) = library.storage.searches
    assert_allclose([color.lab for color in asked.colors.colors], [lab("#007fff"), lab("#ff00ff")], atol=1e-6)


async def test_a_stored_pictures_palette_is_its_colours_with_their_shares(library: Any) -> None:
    record = library.storage.records[1]
    record.palette = [
        PaletteColor(lab=(50, 60, 40), hex="#c81e28", share=0.75),
        PaletteColor(lab=(30, 20, -60), hex="#2030a0", share=0.25),
    ]
    ids = await found(library, terms=[{"palette_of": 1, "weight": 4}])
    (asked,) = library.storage.searches
    assert [(color.lab, color.weight) for color in asked.colors.colors] == [((50, 60, 40), 3.0), ((30, 20, -60), 1.0)]
    assert 1 not in ids
    assert 1 in await found(library, terms=[{"palette_of": 1}], include_self=True)


async def test_a_palette_of_the_foreground(library: Any) -> None:
    record = library.storage.records[1]
    record.foreground_palette = [PaletteColor(lab=(1, 2, 3), hex="#000000", share=1.0)]
    await found(library, terms=[{"palette_of": 1}], color_of="foreground")
    (asked,) = library.storage.searches
    assert (asked.colors.of, [color.lab for color in asked.colors.colors]) == ("foreground", [(1, 2, 3)])
    # A picture without a foreground palette counts as a whole.
    await found(library, terms=[{"palette_of": 2}], color_of="foreground")
    assert len(library.storage.searches[-1].colors.colors) == 1


async def test_a_palette_that_is_not_there_yet_is_taken_from_the_preview(
    library: Any, plain: Callable[[str], bytes]
) -> None:
    record, _ = library.storage.add(plain("#d02020"))
    assert (await found(library, terms=[{"palette_of": record.id}]))[0] == 1
    assert library.inner.color.calls == [("palette", 1, "interactive")]


async def test_an_unknown_picture_is_404_with_the_field_named(library: Any) -> None:
    answer = await library.client.post("/v1/search", json={"terms": [{"text": "a"}, {"palette_of": 77}]})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (404, "terms.1.palette_of")


async def test_a_palette_of_greys_has_no_complement(library: Any) -> None:
    body = {"terms": [{"palette_of": 4}], "mode": "complementary"}
    answer = await library.client.post("/v1/search", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "mode")
    assert "greys" in answer.json()["detail"]


async def test_too_many_colours_are_refused(library: Any) -> None:
    library.storage.records[1].palette = [PaletteColor(lab=(50, 0, 0), hex="#777777", share=0.125)] * 8
    body = {"terms": [{"palette_of": 1}] * 9}
    answer = await library.client.post("/v1/search", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "terms")


async def test_colours_words_pictures_and_filters_go_together(library: Any) -> None:
    tree = {"field": "objects.dog", "gte": 2}
    body = {
        "terms": [{"text": "a dog"}, {"color": "gold", "weight": 0.5}],
        "filter": tree,
        "collapse": "same",
        "limit": 5,
    }
    answer = await library.client.post("/v1/search", json=body)
    assert answer.status_code == 200
    assert answer.json()["models"] == {"clip": "fake-clip/1"}
    (asked,) = library.storage.searches
    assert (len(asked.vectors), asked.words.text, len(asked.colors.colors)) == (1, "a dog", 1)
    assert (asked.collapse, asked.limit) == ("same", 5)
    assert asked.filter.model_dump(by_alias=True, exclude_none=True) == tree


async def test_the_short_form_takes_several_colours_beside_the_words(library: Any) -> None:
    params = [("q", "a dog"), ("color", "red"), ("color", "#0000ff"), ("mode", "complementary")]
    assert (await library.client.get("/v1/search", params=params)).status_code == 200
    (asked,) = library.storage.searches
    assert (asked.words.text, len(asked.colors.colors)) == ("a dog", 2)
    assert_allclose(asked.colors.colors[0].lab, lab("#00ffff"), atol=1e-6)
    bad = await library.client.get("/v1/search", params={"color": "reddish"})
    assert (bad.status_code, bad.json()["errors"][0]["field"]) == (422, "color.0")


async def test_an_uploaded_picture_by_its_colours(library: Any, plain: Callable[[str], bytes]) -> None:
    library.inner.to_embed.down = True
    files = {"image": ("a.png", plain("#1133cc"))}
    fields = {"match": "palette", "terms": json.dumps([{"color": "navy", "weight": 0.5}])}
    answer = await library.client.post("/v1/search/by-image", files=files, data=fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["hits"][0]["image"]["id"] == 3
    turned = await library.client.post(
        "/v1/search/by-image", files=files, data={"match": "palette", "mode": "complementary"}
    )
    assert turned.status_code == 200
    assert_allclose(library.storage.searches[-1].colors.colors[0].lab, lab("#ccaa11"), atol=1.0)
    broken = await library.client.post(
        "/v1/search/by-image", files={"image": ("a.png", b"no picture" * 9)}, data={"match": "palette"}
    )
    assert (broken.status_code, broken.json()["errors"][0]["field"]) == (422, "image")


async def test_without_color_service_only_what_needs_it_is_503(library: Any, plain: Callable[[str], bytes]) -> None:
    library.inner.to_color.down = True
    assert await found(library, terms=[{"palette_of": 1}])
    files = {"image": ("a.png", plain("#1133cc"))}
    answer = await library.client.post("/v1/search/by-image", files=files, data={"match": "palette"})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("tier", ["same", "similar"])
async def test_collapse_is_passed_on(library: Any, tier: str) -> None:
    await found(library, terms=[{"text": "a"}], collapse=tier)
    assert library.storage.searches[-1].collapse == tier
