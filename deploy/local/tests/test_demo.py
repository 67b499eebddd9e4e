"""The demo's parts that need no running system; the whole of it is run with all services in tests/e2e."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from pixelgate_local import demo
from pixelgate_local.collage import CELL, Hit, Row, draw_collage
from pixelgate_local.errors import LocalError
from pixelgate_local.samples import Sample, altered, read_samples


def hit(colour: str, detail: str = "a thing", is_right: bool | None = None) -> Hit:
    return Hit(Image.new("RGB", (384, 300), colour), "0.5", detail, is_right)


def share_of(page: Image.Image, colour: tuple[int, int, int]) -> float:
    """Return the share of `page` that has about this colour."""
    distance = np.abs(np.asarray(page).astype(int) - colour).max(axis=2)
    return float((distance < 12).mean())


def test_every_search_of_the_demo_has_a_right_answer_among_the_samples() -> None:
    samples = read_samples()
    assert len(samples) == 60
    for asked in demo.SEARCHES:
        right = [name for name, sample in samples.items() if asked.is_right(name, sample)]
        assert right, asked
        assert asked.picture is None or right == [asked.picture]


def test_a_picture_of_ones_own_is_neither_right_nor_wrong() -> None:
    assert demo.SEARCHES[0].is_right("mine.jpg", None) is None


def test_missing_samples_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="The sample pictures are not at"):
        read_samples(tmp_path)


def test_a_sample_in_words_counts_what_is_there_more_than_once() -> None:
    sample = Sample(Path("x.jpg"), "black", (("dog", None), ("butterfly", None), ("dog", "brown")))
    assert sample.in_words() == "dog (2), butterfly on black"


def test_an_altered_copy_is_another_file_of_another_size() -> None:
    sample = next(iter(read_samples().values()))
    copy = Image.open(io.BytesIO(altered(sample)))
    assert copy.format == "JPEG"
    with Image.open(sample.path) as original:
        assert copy.width < original.width * 0.7


def test_the_collage_shows_every_picture_of_every_row() -> None:
    rows = [
        Row("some words", None, "by words", [hit("#ff0000"), hit("#00ff00")]),
        Row(None, Image.new("RGB", (50, 200), "#0000ff"), "by picture", [hit("#ff00ff", is_right=True)]),
    ]
    page = draw_collage("Title", "subtitle", rows, "footer")
    wide = CELL * CELL * 0.6 / (page.width * page.height)
    for colour in ((255, 0, 0), (0, 255, 0), (255, 0, 255)):
        assert share_of(page, colour) > wide
    assert share_of(page, (0, 0, 255)) > wide / 4


def test_only_a_right_hit_gets_a_tick() -> None:
    ticked, plain, unknown = (
        draw_collage("T", "s", [Row("w", None, "by words", [hit("#777777", is_right=right)])], "f")
        for right in (True, False, None)
    )
    assert plain == unknown
    assert ticked != plain


def test_a_row_without_hits_and_endless_words_still_make_a_page() -> None:
    rows = [Row("word " * 500, None, "by words", []), Row("w" * 500, None, "by words", [hit("red", "label " * 100)])]
    page = draw_collage("Title", "subtitle", rows, "footer")
    assert page.height < 1000


@pytest.mark.parametrize(
    ("response", "line"),
    [
        (httpx.Response(422, json={"detail": "q: too long"}), r"refused GET /v1/search: q: too long"),
        (httpx.Response(500, text="oh no"), r"refused GET /v1/search: oh no"),
    ],
    ids=["problem", "plain"],
)
def test_a_refusal_becomes_the_line_that_the_problem_says(response: httpx.Response, line: str) -> None:
    response.request = httpx.Request("GET", "http://127.0.0.1/v1/search")
    with pytest.raises(LocalError, match=line):
        demo.answer_of(response)
