"""EXIF as cameras write it, as broken files have it, and as an attacker would."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import IFDRational
from storage_service.exif import MAX_LIST_LENGTH, MAX_TEXT_CHARACTERS, captured_at, read_exif

EXIF, GPS = 0x8769, 0x8825


def block(
    first: dict[int, object] | None = None, exif: dict[int, object] | None = None, gps: dict[int, object] | None = None
) -> bytes:
    made = Image.Exif()
    made.update(first or {})
    if exif:
        made.get_ifd(EXIF).update(exif)
    if gps:
        made.get_ifd(GPS).update(gps)
    return made.tobytes()


def test_a_camera() -> None:
    found = read_exif(
        block(
            {0x010F: "Canon", 0x0110: "EOS 5D", 0x0112: 6, 0x0132: "2024:05:06 07:08:09"},
            {
                0x829A: IFDRational(1, 250), 0x829D: IFDRational(28, 10), 0x8827: 400, 0x9003: "2024:05:06 07:08:09",
                0x9011: "+02:00", 0x9291: "25", 0x920A: IFDRational(50, 1), 0xA434: "EF 50mm",
            },
            {
                1: "S", 2: (IFDRational(33), IFDRational(51), IFDRational(3120, 100)), 3: "E",
                4: (IFDRational(151), IFDRational(12), IFDRational(0)), 5: b"\x00", 6: IFDRational(125, 2),
            },
        )
    )  # fmt: skip
    assert (found["Make"], found["Model"], found["Orientation"]) == ("Canon", "EOS 5D", 6)
    assert (found["ExposureTime"], found["FNumber"], found["ISOSpeedRatings"]) == (0.004, 2.8, 400)
    assert (found["FocalLength"], found["LensModel"]) == (50, "EF 50mm")
    assert found["GPSLatitude"] == pytest.approx(-33.858667, abs=1e-6)
    assert (found["GPSLongitude"], found["GPSAltitude"]) == (151.2, 62.5)
    taken = captured_at(found)
    assert taken == datetime(2024, 5, 6, 7, 8, 9, 250_000, tzinfo=timezone(timedelta(hours=2)))
    json.dumps(found, allow_nan=False)


def test_values_are_bounded_and_fit_into_postgres() -> None:
    found = read_exif(
        block(
            {0x010E: "x" * 5000, 0x010F: "nul\x00hidden", 0x0110: "\x01\x02", 0x013E: tuple([IFDRational(1, 3)] * 50)},
            {0x829A: IFDRational(1, 0), 0x927C: b"maker" * 500, 0x9286: b"ASCII\x00\x00\x00hello"},
        )
    )
    assert len(str(found["ImageDescription"])) == MAX_TEXT_CHARACTERS
    assert found["Make"] == "nul"
    assert "Model" not in found
    assert "MakerNote" not in found
    assert "ExposureTime" not in found, "1/0 is no number"
    assert found["WhitePoint"] == [round(1 / 3, 9)] * MAX_LIST_LENGTH
    assert "\\u0000" not in json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("exif", "expected"),
    [
        ({}, None),
        ({"DateTimeOriginal": "0000:00:00 00:00:00"}, None),
        ({"DateTimeOriginal": "    :  :     :  :  "}, None),
        ({"DateTimeOriginal": "2024:13:45 99:99:99"}, None),
        ({"DateTimeOriginal": "0001:01:01 00:00:00", "OffsetTimeOriginal": "+14:00"}, None),
        ({"DateTimeOriginal": "2024:01:02 03:04:05"}, datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ({"DateTimeOriginal": "2024-01-02T03:04:05"}, datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ({"DateTimeOriginal": 5, "DateTimeDigitized": "2020:01:01 00:00:00"}, datetime(2020, 1, 1, tzinfo=UTC)),
        (
            {"DateTimeOriginal": "2024:01:02 03:04:05", "OffsetTimeOriginal": "-99:99"},
            datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone(-timedelta(hours=14))),
        ),
    ],
)
def test_when_it_was_taken(exif: dict[str, str | int], expected: datetime | None) -> None:
    assert captured_at(dict(exif)) == expected


@pytest.mark.parametrize(
    "gps",
    [{2: (IFDRational(91), IFDRational(0), IFDRational(0))}, {2: (IFDRational(1, 0),) * 3}, {2: (1, 2)}],
    ids=["over 90", "no number", "two parts"],
)
def test_positions_that_are_none(gps: dict[int, object]) -> None:
    assert "GPSLatitude" not in read_exif(block({0x010F: "x"}, gps=gps))


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_no_bytes_make_it_stumble(data: bytes) -> None:
    for prefix in (b"", b"Exif\x00\x00", b"Exif\x00\x00II*\x00\x08\x00\x00\x00", b"MM\x00*\x00\x00\x00\x08"):
        found = read_exif(prefix + data)
        json.dumps(found, allow_nan=False)
        captured_at(found)
