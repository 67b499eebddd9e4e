from typing import Any

import pytest
from pixelgate_common.contracts.filters import RECORD_FIELDS, Filter, leaves
from pixelgate_common.contracts.storage import Arrival, ImageRecord, ListImages
from pixelgate_common.errors import field_problems
from pydantic import TypeAdapter, ValidationError

FILTER: TypeAdapter[Any] = TypeAdapter(Filter)


def test_a_nested_filter_is_read_and_written_back() -> None:
    tree = {"all": [{"field": "width", "gte": 800, "lt": 2000}, {"not": {"field": "tags", "in": ["dog", "cat"]}}]}
    parsed = FILTER.validate_python(tree)
    assert FILTER.dump_python(parsed, by_alias=True, exclude_none=True) == tree
    assert [leaf.field for leaf in leaves(parsed)] == ["width", "tags"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        pytest.param({"field": "wdith", "eq": 1}, "no field 'wdith'", id="misspelt-field"),
        pytest.param({"field": "attributes.", "eq": 1}, "no field", id="free-field-without-name"),
        pytest.param({"field": "width"}, "is needed", id="no-comparison"),
        pytest.param({"field": "width", "eq": 1, "gt": 2}, "can stand together", id="two-comparisons"),
        pytest.param({"field": "width", "eq": "wide"}, "a number is needed", id="text-for-number"),
        pytest.param({"field": "width", "eq": True}, "a number is needed", id="bool-for-number"),
        pytest.param({"field": "objects.dog", "gte": "2"}, "a number is needed", id="text-for-count"),
        pytest.param({"field": "tags", "gt": "a"}, "tags: take eq", id="order-of-tags"),
        pytest.param({"field": "created_at", "gt": "yesterday"}, "ISO 8601", id="no-time"),
        pytest.param({"field": "width", "prefix": "8"}, "prefix is for text", id="prefix-of-number"),
        pytest.param({"field": "filename", "eq": "a\x00b"}, "without NUL", id="nul"),
        pytest.param({"field": "width", "equals": 1}, "equals", id="unknown-operator"),
        pytest.param({"all": []}, "at least 1", id="empty-all"),
    ],
)
def test_what_cannot_be_filtered_by_is_refused_with_a_reason(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FILTER.validate_python(tree)


def test_a_filter_nested_too_deep_or_too_wide_is_refused() -> None:
    deep: dict[str, Any] = {"field": "width", "eq": 1}
    for _ in range(12):
        deep = {"not": deep}
    with pytest.raises(ValidationError, match="nested at most"):
        ListImages(filter=deep)
    wide = {"any": [{"all": [{"field": "width", "eq": n}] * 40} for n in range(3)]}
    with pytest.raises(ValidationError, match="at most 64 comparisons"):
        ListImages(filter=wide)


def test_an_error_names_the_field_as_the_client_wrote_it() -> None:
    with pytest.raises(ValidationError) as caught:
        ListImages.model_validate({"filter": {"all": [{"not": {"field": "width", "equals": 1}}]}})
    assert [problem.field for problem in field_problems(caught.value.errors())] == ["filter.all.0.not.equals"]


def test_every_filterable_field_stands_in_the_record() -> None:
    assert set(RECORD_FIELDS) <= set(ImageRecord.model_fields)


def test_an_arrival_survives_its_header() -> None:
    arrival = Arrival(filename="ä “quoted”\n.jpg", tags=["dog", "dog", "cat"], attributes={"n": 1.5, "ok": True})
    assert Arrival.from_header(arrival.to_header()) == arrival
    assert arrival.tags == ["dog", "cat"]
    assert Arrival.from_header(None) == Arrival()


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("no base64!", id="not-base64"),
        pytest.param("bm90IGpzb24=", id="not-json"),
        pytest.param("A" * 60_000, id="too-long"),
        pytest.param("eyJ3cm9uZyI6IDF9", id="unknown-field"),
    ],
)
def test_a_header_that_cannot_be_read_is_an_error(header: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Arrival.from_header(header)
