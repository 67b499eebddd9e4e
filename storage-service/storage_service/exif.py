"""EXIF as JSON: known tags under their usual names, with bounded numbers of short values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from PIL import ExifTags, Image

MAX_TAGS = 200
MAX_TEXT_CHARACTERS = 500
MAX_LIST_LENGTH = 16
JsonValue = str | int | float | list[int | float]
# Offsets into the file, and blocks that only their maker can read.
_LEFT_OUT = {"ExifOffset", "GPSInfo", "InteroperabilityIndex", "MakerNote", "PrintImageMatching", "XMLPacket",
             "StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts", "JPEGTables", "InterColorProfile",
             "JpegIFOffset", "JpegIFByteCount", "ImageResources", "ComponentsConfiguration", "SubIFDs"}  # fmt: skip
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_TIME = re.compile(r"(\d{4})[:\-/](\d{2})[:\-/](\d{2})[ T](\d{2}):(\d{2}):(\d{2})")
_OFFSET = re.compile(r"([+-])(\d{2}):?(\d{2})")


def read_exif(block: bytes) -> dict[str, JsonValue]:
    """Return what an EXIF block (TIFF structure, with or without `Exif\\0\\0` in front) says; {} when it is broken.

    `GPSLatitude` and `GPSLongitude` are degrees (south and west negative), `GPSAltitude` metres over the sea.
    """
    exif = Image.Exif()
    found: dict[str, JsonValue] = {}
    try:
        exif.load(block)
        groups: list[tuple[Mapping[int, Any], Mapping[int, str]]] = [
            (exif, ExifTags.TAGS),
            (exif.get_ifd(ExifTags.IFD.Exif), ExifTags.TAGS),
        ]
        gps = {ExifTags.GPSTAGS.get(tag, ""): value for tag, value in exif.get_ifd(ExifTags.IFD.GPSInfo).items()}
        for tags, names in groups:
            for tag, value in tags.items():
                name = names.get(tag)
                if name is None or name in _LEFT_OUT or name.endswith("IFDPointer") or len(found) >= MAX_TAGS:
                    continue
                plain = _plain(value)
                if plain is not None:
                    found[name] = plain
        found.update(_position(gps))
    except Exception:  # Pillow's parser throws whatever a broken block makes it stumble over; a picture needs no EXIF
        return found
    return found


def captured_at(exif: Mapping[str, JsonValue]) -> datetime | None:
    """Return when the picture was taken, None when that is not said; UTC where the camera named no zone."""
    for name, offset_name, part_name in (
        ("DateTimeOriginal", "OffsetTimeOriginal", "SubsecTimeOriginal"),
        ("DateTimeDigitized", "OffsetTimeDigitized", "SubsecTimeDigitized"),
    ):
        match = _TIME.match(str(exif.get(name, "")))
        if match is None:
            continue
        zone = UTC
        if offset := _OFFSET.fullmatch(str(exif.get(offset_name, "")).strip()):
            minutes = int(offset[2]) * 60 + int(offset[3])
            zone = timezone(timedelta(minutes=min(minutes, 14 * 60)) * (-1 if offset[1] == "-" else 1))
        part = str(exif.get(part_name, "")).strip()
        microseconds = int(part[:6].ljust(6, "0")) if part.isascii() and part.isdecimal() else 0
        try:
            moment = datetime(*map(int, match.groups()), microseconds, tzinfo=zone)  # type: ignore[arg-type, misc]
            # Postgres keeps it as UTC: a day at either end of the calendar would not fit.
            return moment if 1 < moment.year < 9999 else None
        except ValueError:  # cameras without a set clock write 0000:00:00
            continue
    return None


def _plain(value: Any) -> JsonValue | None:
    """Return `value` as something that JSON and Postgres can keep; None when there is nothing to keep."""
    if isinstance(value, bytes):
        if len(value) > MAX_TEXT_CHARACTERS:
            return None
        value = value.decode("ascii", "ignore")
    if isinstance(value, str):
        text = _CONTROLS.sub("", value.split("\x00", 1)[0]).strip()[:MAX_TEXT_CHARACTERS]
        return text or None
    if isinstance(value, tuple | list):
        numbers = [_number(part) for part in value[:MAX_LIST_LENGTH]]
        return (
            None if not numbers or any(number is None for number in numbers) else [n for n in numbers if n is not None]
        )
    return _number(value)


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value if abs(value) < 1 << 53 else None
    try:
        number = float(value)  # Pillow's rationals are numbers; some have a denominator of 0
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return round(number, 9) if math.isfinite(number) else None


def _position(gps: Mapping[str, Any]) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for name, limit, negative in (("GPSLatitude", 90, "S"), ("GPSLongitude", 180, "W")):
        parts = _plain(gps.get(name))
        if not isinstance(parts, list) or len(parts) != 3:
            continue
        degrees = float(parts[0]) + float(parts[1]) / 60 + float(parts[2]) / 3600
        if 0 <= degrees <= limit:
            found[name] = round(-degrees if _plain(gps.get(name + "Ref")) == negative else degrees, 7)
    altitude = _number(gps.get("GPSAltitude"))
    if altitude is not None:
        below = gps.get("GPSAltitudeRef") in (1, b"\x01")
        found["GPSAltitude"] = -altitude if below else altitude
    if len(found) == 0:
        return found
    for name in ("GPSImgDirection", "GPSDateStamp"):
        value = _plain(gps.get(name))
        if value is not None:
            found[name] = value
    return found
