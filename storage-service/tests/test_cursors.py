"""Cursors are bound to their question, and whatever a client sends instead is a clear refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pixelgate_common.contracts.storage import ListImages, Search
from storage_service.cursors import InvalidCursor, decode_cursor, encode_cursor
from storage_service.listing import ListPlace
from storage_service.search import SearchPlace

QUESTION = ListImages(sort="filename")


@given(
    key=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=500)),
    image_id=st.integers(0, 2**63 - 1),
)
def test_a_cursor_comes_back_as_it_went(key: int | str | None, image_id: int) -> None:
    place = ListPlace(key=key, id=image_id)
    assert decode_cursor(QUESTION, encode_cursor(QUESTION, place), ListPlace) == place


def test_the_size_of_a_page_and_its_facets_may_change() -> None:
    cursor = encode_cursor(QUESTION, ListPlace(key=None, id=1))
    other = QUESTION.model_copy(update={"limit": 7, "facets": ["tags"], "cursor": cursor})
    assert decode_cursor(other, cursor, ListPlace).id == 1


@given(cursor=st.text(max_size=100))
def test_nonsense_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        decode_cursor(QUESTION, cursor, ListPlace)


def test_cursors_of_other_questions_are_refused() -> None:
    cursor = encode_cursor(QUESTION, ListPlace(key=None, id=1))
    with pytest.raises(InvalidCursor, match="another query"):
        decode_cursor(ListImages(sort="-filename"), cursor, ListPlace)
    with pytest.raises(InvalidCursor, match="another query"):
        decode_cursor(Search(), cursor, SearchPlace)


def test_a_place_that_cannot_be_is_refused() -> None:
    cursor = encode_cursor(QUESTION, SearchPlace(seq=1, shown=1, last=1))
    with pytest.raises(InvalidCursor, match="not one of ours"):
        decode_cursor(QUESTION, cursor, ListPlace)


def test_the_longest_file_name_fits_into_a_cursor() -> None:
    cursor = encode_cursor(QUESTION, ListPlace(key="\U0001f600" * 500, id=2**62))
    assert ListImages(sort="filename", cursor=cursor).cursor == cursor
