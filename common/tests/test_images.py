"""The safe decode against pictures of every kind, and against files that are none; all are made here."""

import io
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, PngImagePlugin
from pixelgate_common.images import (
    MEDIA_TYPES,
    BrokenImage,
    ColorMode,
    DecodeLimits,
    ImageRefused,
    ImageTooLarge,
    NotAnImage,
    UnsupportedFormat,
    decode,
    inspect,
)

WIDTH, HEIGHT = 48, 32
CORNERS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def scene(size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Return a picture with another colour in each quarter: red, green / blue, white."""
    picture = Image.new("RGB", size)
    half = size[0] // 2, size[1] // 2
    for number, color in enumerate(CORNERS.values()):
        left, top = number % 2 * half[0], number // 2 * half[1]
        picture.paste(color, (left, top, left + half[0], top + half[1]))
    return picture


def noise(size: tuple[int, int], channels: int = 3) -> Image.Image:
    values = np.random.default_rng(7).integers(0, 256, (*reversed(size), channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def corners(picture: Image.Image) -> list[str]:
    """Name the colours of the four quarters, row by row."""
    names = []
    for y in (0.25, 0.75):
        for x in (0.25, 0.75):
            pixel = np.array(picture.convert("RGB").getpixel((int(picture.width * x), int(picture.height * y))))
            distances = {name: int(np.abs(pixel - color).sum()) for name, color in CORNERS.items()}
            name = min(distances, key=lambda name: distances[name])
            assert distances[name] < 40, f"{pixel} is none of the colours"
            names.append(name)
    return names


def png(width: int, height: int, *, depth: int = 8, color: int = 2, chunks: bytes = b"", data: bytes = b"") -> bytes:
    """Return a PNG file with the given header, further chunks before the pixels, and compressed `data` as pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunks, chunk(b"IDAT", zlib.compress(data, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def profile(name: Literal["sRGB", "LAB"] = "sRGB") -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def swapped_profile() -> bytes:
    """Return sRGB's profile with red and blue exchanged, so that its use shows."""
    content = profile()
    return content.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")


def in_a_process(code: str, data: bytes) -> tuple[str, float]:
    """Run `code` with `data` in a process of its own: what it prints, and by how many MB its peak memory rose."""
    program = (
        "import resource, sys\nfrom pixelgate_common.images import *\ndata = sys.stdin.buffer.read()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\nbase = peak()\n"
        f"{textwrap.dedent(code)}\nprint(peak() - base)"
    )
    run = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, timeout=120)
    assert run.returncode == 0, run.stderr.decode()
    said, _, rose = run.stdout.decode().strip().rpartition("\n")
    return said, float(rose)


# ---- formats

FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "jpeg-progressive": ("JPEG", {"quality": 95, "progressive": True, "subsampling": 0}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 95}),
    "webp-lossless": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff-jpeg": ("TIFF", {"compression": "jpeg", "quality": 95}),
    "tiff-deflate": ("TIFF", {"compression": "tiff_deflate"}),
    "tiff-big": ("TIFF", {"big_tiff": True}),
    "avif": ("AVIF", {"quality": 95}),
}


@pytest.mark.parametrize(("form", "options"), FORMATS.values(), ids=FORMATS)
def test_each_format_is_known_by_content_and_decoded(form: str, options: dict[str, object]) -> None:
    data = encoded(scene(), form, **options)
    info = inspect(data)
    assert (info.format, info.media_type) == (form, MEDIA_TYPES[form])
    assert (info.width, info.height, info.orientation) == (WIDTH, HEIGHT, 1)
    assert not info.animated
    assert not info.has_icc
    for picture in (decode(data), decode(data, mode="RGBA")):
        assert picture.size == (WIDTH, HEIGHT)
        assert corners(picture) == list(CORNERS)


@pytest.mark.parametrize(("form", "options"), FORMATS.values(), ids=FORMATS)
def test_bytes_path_and_open_file_are_the_same(form: str, options: dict[str, object], tmp_path: Path) -> None:
    data = encoded(scene(), form, **options)
    path = tmp_path / "named.txt"
    path.write_bytes(data)
    with path.open("rb") as file:
        file.seek(5)
        assert inspect(file) == inspect(path) == inspect(data)
        assert decode(file).tobytes() == decode(path).tobytes() == decode(data).tobytes()


def in_cielab(picture: Image.Image) -> Image.Image:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(picture, ImageCms.buildTransform(srgb, lab, "RGB", "LAB")) or picture


MODES: dict[str, tuple[Image.Image, str]] = {
    "bilevel": (scene().convert("1"), "PNG"),
    "bilevel-tiff": (scene().convert("1"), "TIFF"),
    "grey": (scene().convert("L"), "PNG"),
    "grey-jpeg": (scene().convert("L"), "JPEG"),
    "grey-alpha": (scene().convert("LA"), "PNG"),
    "palette": (scene().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "palette-gif": (scene().convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
    "rgba": (scene().convert("RGBA"), "PNG"),
    "rgba-webp": (scene().convert("RGBA"), "WEBP"),
    "cmyk-jpeg": (scene().convert("CMYK"), "JPEG"),
    "cmyk-tiff": (scene().convert("CMYK"), "TIFF"),
    "ycbcr-tiff": (scene().convert("YCbCr"), "TIFF"),
    "lab-tiff": (in_cielab(scene()), "TIFF"),
}


@pytest.mark.parametrize(("picture", "form"), MODES.values(), ids=MODES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_each_pixel_mode_becomes_the_wanted_one(picture: Image.Image, form: str, mode: ColorMode) -> None:
    got = decode(encoded(picture, form), mode=mode)
    assert (got.mode, got.size) == (mode, picture.size)
    reference = scene() if picture.mode not in ("1", "L", "LA") else scene().convert(picture.mode[0]).convert("RGB")
    difference = np.abs(np.asarray(got.convert("RGB"), int) - np.asarray(reference, int))
    assert difference.mean() < (6 if picture.mode == "LAB" else 4)  # 8 bits of CIELAB are coarse


# ---- depth


def sixteen_bit_ramp() -> np.ndarray:
    return np.tile(np.linspace(0, 65535, WIDTH).astype(np.uint16), (HEIGHT, 1))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(form: str) -> None:
    got = np.asarray(decode(encoded(Image.fromarray(sixteen_bit_ramp()), form)), int)
    assert np.abs(got[:, :, 0] - sixteen_bit_ramp() / 257).max() <= 1


def test_sixteen_bit_grey_big_endian_tiff() -> None:
    raw = sixteen_bit_ramp().astype(">u2").tobytes()
    tags = [(256, WIDTH), (257, HEIGHT), (258, 16), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4), (277, 1)]
    tags += [(278, HEIGHT), (279, len(raw))]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + struct.pack(">I", 0) + raw
    got = np.asarray(decode(data), int)
    assert np.abs(got[:, :, 0] - sixteen_bit_ramp() / 257).max() <= 1


@pytest.mark.parametrize("color", [2, 6], ids=["rgb", "rgba"])
def test_sixteen_bit_color_png(color: int) -> None:
    channels = {2: 3, 6: 4}[color]
    values = np.repeat(sixteen_bit_ramp()[:, :, None], channels, axis=2)
    values[:, :, 3:] = 65535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    got = np.asarray(decode(png(WIDTH, HEIGHT, depth=16, color=color, data=rows)), int)
    assert np.abs(got[:, :, 0] - sixteen_bit_ramp() / 257).max() <= 1


def test_sixteen_bit_transparent_color_is_the_right_one() -> None:
    values = np.array([[[0x1234, 0x5678, 0x9ABC], [0xFFFF, 0xFFFF, 0xFFFF]]], ">u2")
    key = chunk(b"tRNS", values[0, 0].tobytes())
    data = png(2, 1, depth=16, color=2, chunks=key, data=b"\0" + values.tobytes())
    assert decode(data, mode="RGBA").getchannel("A").tobytes() == b"\0\xff"


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 127, 255]), ([0.0, 100.0, 200.0], [0, 100, 200]), ([0.0, 32768.0, 65535.0], [0, 127, 255])],
    ids=["unit", "byte", "word"],
)
def test_float_tiff_is_scaled_by_its_range(values: list[float], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    got = np.asarray(decode(data), int)[0, :, 0]
    assert np.abs(got - expected).max() <= 1


def test_integer_tiff_is_scaled_by_its_range() -> None:
    data = encoded(Image.fromarray(np.array([[0, 2**30, 2**31 - 1]], np.int32)), "TIFF")
    assert np.abs(np.asarray(decode(data), int)[0, :, 0] - [0, 63, 127]).max() <= 1


# ---- transparency


def test_transparent_is_laid_on_white_or_kept() -> None:
    picture = Image.new("RGBA", (3, 1))
    picture.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)])
    data = encoded(picture)
    assert decode(data).tobytes() == bytes([255, 0, 0, 255, 255, 255, 127, 127, 127])
    assert decode(data, mode="RGBA").tobytes() == picture.tobytes()
    assert inspect(data).has_alpha


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_transparent_palette_entry(form: str) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    data = encoded(picture, form, transparency=0)
    assert inspect(data).has_alpha
    assert decode(data).tobytes() == bytes([255, 255, 255, 200, 100, 50])
    assert decode(data, mode="RGBA").tobytes()[3::4] == b"\0\xff"


def test_half_transparent_palette_entries() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 200, 100, 50])
    picture.putdata([0, 1])
    assert decode(encoded(picture, transparency=b"\x80\xff")).tobytes() == bytes([127, 127, 127, 200, 100, 50])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_transparent_color_without_alpha_channel(mode: str) -> None:
    color = 7 if mode == "L" else (1, 2, 3)
    picture = Image.new(mode, (2, 1), color)
    picture.putpixel((1, 0), 99 if mode == "L" else (99, 99, 99))
    data = encoded(picture, transparency=color)
    assert inspect(data).has_alpha
    assert decode(data).tobytes() == bytes([255, 255, 255, 99, 99, 99])


def test_grey_with_alpha_on_white() -> None:
    picture = Image.new("LA", (2, 1), (0, 255))
    picture.putpixel((1, 0), (0, 0))
    assert decode(encoded(picture)).tobytes() == bytes([0, 0, 0, 255, 255, 255])


# ---- orientation

TURNED = {
    1: ["red", "green", "blue", "white"],
    2: ["green", "red", "white", "blue"],
    3: ["white", "blue", "green", "red"],
    4: ["blue", "white", "red", "green"],
    5: ["red", "blue", "green", "white"],
    6: ["blue", "red", "white", "green"],
    7: ["white", "green", "blue", "red"],
    8: ["green", "white", "red", "blue"],
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_orientation_is_applied_once(orientation: int, form: str) -> None:
    data = encoded(scene(), form, exif=exif(orientation), quality=95)
    info = inspect(data)
    assert (info.width, info.height, info.orientation) == (WIDTH, HEIGHT, orientation)
    picture = decode(data)
    assert corners(picture) == TURNED[orientation]
    assert picture.size == info.upright_size == ((WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH))
    assert corners(decode(encoded(picture))) == TURNED[orientation]


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_orientation_and_size_together(orientation: int, form: str) -> None:
    picture = decode(encoded(scene((600, 400)), form, exif=exif(orientation)), max_side_px=60)
    assert picture.size == ((60, 40) if orientation < 5 else (40, 60))
    assert corners(picture) == TURNED[orientation]


BROKEN_EXIF = {
    "empty": b"Exif\0\0",
    "no-order": b"Exif\0\0XX*\0\x08\0\0\0",
    "offset-beyond": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "count-beyond": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    "value-9": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",
    "value-0": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0",
    "text-value": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("block", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_spoils_nothing(block: bytes) -> None:
    data = encoded(scene(), "JPEG", quality=95, exif=block)
    assert inspect(data).orientation == 1
    assert corners(decode(data)) == list(CORNERS)


# ---- colour profiles


def test_srgb_profile_changes_no_byte() -> None:
    picture = noise((64, 64))
    assert inspect(encoded(picture, icc_profile=profile())).has_icc
    assert decode(encoded(picture, icc_profile=profile())).tobytes() == picture.tobytes()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_profile_is_applied_and_not_left_in_the_result(form: str) -> None:
    data = encoded(scene(), form, icc_profile=swapped_profile(), quality=95)
    picture = decode(data)
    assert corners(picture)[0] == "blue"
    assert picture.info == {}
    assert not inspect(encoded(picture)).has_icc


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_profile_with_alpha_and_palette(mode: str) -> None:
    picture = scene().convert("RGBA")
    if mode == "RGBA":
        picture.putalpha(100)
    else:
        picture = scene().convert("P", palette=Image.Palette.ADAPTIVE)
    got = decode(encoded(picture, icc_profile=swapped_profile()), mode="RGBA")
    assert corners(got)[0] == "blue"
    assert got.getchannel("A").getextrema() == ((100, 100) if mode == "RGBA" else (255, 255))


def grey_profile(gamma: float) -> bytes:
    """Return the smallest ICC profile of a grey gamma curve (ICC.1:2010, §8.5 with the tags wtpt and kTRC)."""
    white = b"XYZ \0\0\0\0" + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, len(white), b"kTRC", 156 + len(white), len(curve))
    size = 128 + len(tags) + len(white) + len(curve)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + tags + white + curve


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_profile_is_applied(mode: str) -> None:
    picture = Image.new("L", (4, 4), 128).convert(mode)
    linear = decode(encoded(picture, icc_profile=grey_profile(1.0))).getpixel((0, 0))
    assert linear == pytest.approx((188, 188, 188), abs=2)  # linear 0.5 in sRGB
    plain = decode(encoded(picture)).getpixel((0, 0))
    assert plain == (128, 128, 128)


PROFILES_TO_IGNORE: dict[str, bytes] = {
    "garbage": b"this is no profile",
    "cut-off": profile()[:200],
    "zeros": bytes(500),
    "for-grey": grey_profile(1.0),
    "lab": profile("LAB"),
}


@pytest.mark.parametrize("content", PROFILES_TO_IGNORE.values(), ids=PROFILES_TO_IGNORE)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_unusable_profile_is_left_out(content: bytes, form: str) -> None:
    assert corners(decode(encoded(scene(), form, icc_profile=content, quality=95))) == list(CORNERS)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_huge_profile_is_refused(form: str) -> None:
    data = encoded(scene(), form, icc_profile=profile() + bytes(5 * 1024 * 1024))
    for attempt in (inspect, decode):
        with pytest.raises(ImageTooLarge, match="profile"):
            attempt(data)


def test_many_profiles_keep_no_memory() -> None:
    from pixelgate_common import color_profiles

    for number in range(color_profiles._CACHED_PROFILES + 10):
        decode(encoded(scene(), icc_profile=swapped_profile() + bytes([number])))
    assert len(color_profiles._transforms) <= color_profiles._CACHED_PROFILES


def without_adobe_marker(data: bytes) -> bytes:
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def test_cmyk_jpeg_with_and_without_adobes_marker() -> None:
    data = encoded(scene().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert corners(decode(data)) == list(CORNERS)
    # Without the marker the same bytes mean the opposite: full ink is then 255.
    inverted = decode(without_adobe_marker(data))
    assert inverted.getpixel((WIDTH * 3 // 4, HEIGHT * 3 // 4)) == pytest.approx((0, 0, 0), abs=8)


# ---- frames


def frames(count: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[Image.Image]:
    return [scene(size), *(Image.new("RGB", size, (0, number % 256, 77)) for number in range(count - 1))]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_first_frame_of_several(form: str) -> None:
    first, *others = frames(4)
    data = encoded(first, form, save_all=True, append_images=others, duration=50)
    assert inspect(data).animated
    assert corners(decode(data)) == list(CORNERS)
    assert corners(decode(data, max_side_px=24)) == list(CORNERS)


def test_picture_of_a_phone_with_a_second_one_behind() -> None:
    data = encoded(scene(), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=95)
    info = inspect(data)
    assert (info.format, info.media_type, info.width) == ("JPEG", "image/jpeg", WIDTH)
    assert corners(decode(data)) == list(CORNERS)


def test_gif_of_many_large_frames_costs_one() -> None:
    one = encoded(Image.new("P", (2000, 2000), 1), "GIF")
    frame = one[one.index(b",", 13) : -1]
    said, rose = in_a_process("print(inspect(data).animated, decode(data).size)", one[:-1] + frame * 500 + b";")
    assert said == "True (2000, 2000)"
    assert rose < 80  # the canvases of one frame are 16 MB in RGB; five hundred would be gigabytes


# ---- size


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize(
    ("size", "wanted"),
    [((600, 400), (60, 40)), ((400, 600), (40, 60)), ((60, 40), (60, 40)), ((20, 10), (20, 10)), ((3000, 2), (60, 1))],
)
def test_longer_side_is_limited_and_never_enlarged(form: str, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert decode(encoded(Image.new("RGB", size), form), max_side_px=60).size == wanted


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("max_side_px", [100, 700, 1500])
def test_reduced_jpeg_looks_like_the_whole_one_made_small(mode: str, max_side_px: int) -> None:
    smooth = noise((20, 15)).resize((2000, 1500), Image.Resampling.BICUBIC).convert(mode)
    data = encoded(smooth, "JPEG", quality=95)
    quick = np.asarray(decode(data, max_side_px=max_side_px), int)
    whole = decode(data).resize((max_side_px, max_side_px * 3 // 4), Image.Resampling.LANCZOS)
    assert np.abs(quick - np.asarray(whole, int)).mean() < 2


def test_reduced_jpeg_is_never_decoded_whole() -> None:
    data = encoded(Image.new("RGB", (6000, 6000), (10, 200, 30)), "JPEG")
    _, rose = in_a_process("decode(data, max_side_px=256)", data)
    assert rose < 40  # 36 megapixels are 144 MB


# ---- refused


def bmp_header(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def gif_header(width: int, height: int) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0, 0, 0)
    return b"GIF89a" + screen + b",\0\0\0\0\1\0\1\0\0\2\0;"


def webp_header(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas


def tiff_header(width: int, height: int, *more: tuple[int, int]) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (277, 1), *more]
    if not more:
        tags += [(273, 8), (278, height), (279, 8)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def jpeg_header(width: int, height: int) -> bytes:
    data = encoded(Image.new("RGB", (8, 8)), "JPEG")
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


BOMBS = {
    "png-50000": png(50_000, 50_000, color=0, depth=1, data=bytes(2_000_000)),
    "png-widest": png(2**31 - 1, 2**31 - 1),
    "png-one-row": png(50_000_001, 1),
    "jpeg": jpeg_header(65_000, 65_000),
    "webp": webp_header(16_384, 16_384),
    "webp-widest": webp_header(2**24, 2**24),
    "gif": gif_header(65_535, 65_535),
    "bmp": bmp_header(50_000, 50_000),
    "tiff": tiff_header(50_000, 50_000),
    "tiff-huge-tile": tiff_header(16, 16, (322, 32_768), (323, 32_768), (324, 8), (325, 8)),
    "just-too-many": png(7072, 7071, color=0, depth=1, data=bytes(7_000_000)),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bomb_is_refused_by_its_header(data: bytes) -> None:
    for attempt in (inspect, decode):
        with pytest.raises(ImageTooLarge, match="PIXELGATE_MAX_PIXELS") as refused:
            attempt(data)
        assert refused.value.status == 413


def test_bomb_costs_no_memory() -> None:
    data = BOMBS["png-50000"]
    assert len(data) < 5_000
    code = """
    for attempt in (inspect, decode):
        try:
            attempt(data)
        except ImageTooLarge:
            print("refused")
    """
    for bomb in (data, BOMBS["webp"], BOMBS["tiff-huge-tile"], BOMBS["gif"]):
        said, rose = in_a_process(code, bomb)
        assert said.split() == ["refused", "refused"]
        assert rose < 30


def test_pixels_beyond_the_header_are_not_unpacked() -> None:
    data = png(64, 64, data=bytes(300_000_000))
    assert len(data) < 400_000
    _, rose = in_a_process("decode(data)", data)
    assert rose < 30


def test_pixel_limit_is_exact_and_a_setting() -> None:
    data = encoded(scene())
    assert decode(data, DecodeLimits(max_pixels=WIDTH * HEIGHT)).size == (WIDTH, HEIGHT)
    with pytest.raises(ImageTooLarge, match=f"{WIDTH} × {HEIGHT}"):
        decode(data, DecodeLimits(max_pixels=WIDTH * HEIGHT - 1))


def test_limit_above_pillows_own_needs_no_global(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for form in ("JPEG", "PNG", "GIF", "BMP"):
        assert decode(encoded(scene(), form)).size == (WIDTH, HEIGHT)
    with pytest.raises(ImageTooLarge):
        decode(encoded(scene(), "WEBP"))  # its plugin asks the global by itself


def test_byte_limit_is_exact_and_a_setting(tmp_path: Path) -> None:
    data = encoded(scene())
    path = tmp_path / "picture"
    path.write_bytes(data)
    exact, short = DecodeLimits(max_bytes=len(data)), DecodeLimits(max_bytes=len(data) - 1)
    for source in (data, path, io.BytesIO(data)):
        assert decode(source, exact).size == (WIDTH, HEIGHT)
        with pytest.raises(ImageTooLarge, match="PIXELGATE_MAX_UPLOAD_MB") as refused:
            decode(source, short)
        assert refused.value.status == 413


NO_PICTURES = {
    "empty": b"",
    "text": b"This is a text that somebody named picture.jpg.\n" * 20,
    "text-like-bmp": b"BMW is a maker of cars and motorcycles in Munich.",
    "html": b"<!doctype html><html><img src='a.jpg'></html>",
    "zip": b"PK\3\4" + bytes(100),
    "elf": b"\x7fELF" + bytes(100),
    "zeros": bytes(1000),
    "mp4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
    "riff-wave": b"RIFF\0\0\0\0WAVEfmt ",
    "picture-after-text": b"GIF" + encoded(scene(), "GIF"),
    "base64": b"/9j/4AAQSkZJRgABAQ",
}


@pytest.mark.parametrize("data", NO_PICTURES.values(), ids=NO_PICTURES)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    for attempt in (inspect, decode):
        with pytest.raises(NotAnImage) as refused:
            attempt(data)
        assert (refused.value.status, refused.value.code) == (422, "not_an_image")


UNSUPPORTED = {
    "pdf": b"%PDF-1.7\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "svg-entities": b'\xef\xbb\xbf<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a "b">]><svg>&a;</svg>',
    "psd": b"8BPS\0\1" + bytes(50),
    "ico": encoded(scene((16, 16)), "ICO"),
    "jpeg-2000": encoded(scene(), "JPEG2000"),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "jpeg-xl": b"\xff\x0a" + bytes(50),
}


@pytest.mark.parametrize("data", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_other_formats_are_refused_by_name(data: bytes) -> None:
    for attempt in (inspect, decode):
        with pytest.raises(UnsupportedFormat, match="JPEG, PNG") as refused:
            attempt(data)
        assert refused.value.status == 415


@pytest.mark.parametrize("form", ["EPS", "PPM", "TGA", "PCX", "ICNS", "SGI"])
def test_what_pillow_could_read_beside_the_list_is_refused(form: str) -> None:
    with pytest.raises(ImageRefused):
        decode(encoded(scene((64, 64)), form))


def test_list_of_formats_is_a_setting() -> None:
    limits = DecodeLimits(formats=frozenset({"JPEG", "PNG"}))
    assert decode(encoded(scene()), limits).size == (WIDTH, HEIGHT)
    with pytest.raises(UnsupportedFormat, match=r"GIF files are not taken.*JPEG, PNG"):
        decode(encoded(scene(), "GIF"), limits)


@pytest.mark.parametrize(("form", "options"), FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_cut_off_file_is_refused(form: str, options: dict[str, object], share: float) -> None:
    data = encoded(noise((96, 64)), form, **options)
    with pytest.raises(ImageRefused) as refused:
        decode(data[: int(len(data) * share)])
    assert refused.value.status in (413, 422)


def test_cut_off_file_is_called_broken() -> None:
    data = encoded(noise((96, 64)), "JPEG")
    assert inspect(data[:-200]).width == 96
    with pytest.raises(BrokenImage, match="Send the complete file") as refused:
        decode(data[:-200])
    assert (refused.value.status, refused.value.code) == (422, "broken_image")


POLYGLOTS: dict[str, tuple[bytes, str]] = {
    "jpeg-then-zip": (encoded(scene(), "JPEG") + b"PK\3\4" + bytes(100), "JPEG"),
    "gif-then-script": (encoded(scene(), "GIF") + b"*/=1;alert(1)//", "GIF"),
    "png-then-html": (encoded(scene()) + b"<script>alert(1)</script>", "PNG"),
    "png-then-jpeg": (encoded(scene()) + encoded(scene(), "JPEG"), "PNG"),
}


@pytest.mark.parametrize(("data", "form"), POLYGLOTS.values(), ids=POLYGLOTS)
def test_polyglot_is_what_it_begins_as_and_leaves_nothing_of_the_rest(data: bytes, form: str) -> None:
    info = inspect(data)
    assert (info.format, info.media_type) == (form, MEDIA_TYPES[form])
    clean = encoded(decode(data))
    assert b"alert" not in clean
    assert b"PK\3\4" not in clean


def text_chunk(size: int) -> bytes:
    return chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(size), 9))


def pixel_with(chunks: bytes) -> bytes:
    return png(1, 1, chunks=chunks, data=bytes(4))


PART_BOMBS = {
    "png-compressed-text": pixel_with(text_chunk(200_000_000)),
    "png-many-texts": pixel_with(text_chunk(1_000_000) * 100),
    "png-compressed-profile": pixel_with(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(50_000_000)))),
    "png-million-chunks": pixel_with(b"".join(chunk(b"tEXt", b"%d\0" % number) for number in range(300_000))),
    "jpeg-million-segments": b"\xff\xd8" + b"\xff\xe1\0\x09Exif\0\0a" * 500_000,
    "jpeg-segments-after-end": b"\xff\xd8\xff\xd9" + b"\xff\xe1\0\x09Exif\0\0a" * 500_000,
    "jpeg-padding": b"\xff\xd8\xff" + b"\xff" * 20_000_000,
    "jpeg-junk": b"\xff\xd8\xff\xd9" + b"\0" * 20_000_000,
    "jpeg-unskipped-segments": b"\xff\xd8" + b"\xff\xf0\xff\xe1\0\x09Exif\0\0a" * 500_000,
}


@pytest.mark.parametrize("data", PART_BOMBS.values(), ids=PART_BOMBS)
def test_file_of_too_many_or_too_large_parts_is_refused_cheaply(data: bytes) -> None:
    code = """
    for attempt in (inspect, decode):
        try:
            attempt(data)
        except ImageRefused:
            print("refused")
    """
    said, rose = in_a_process(code, data)
    assert said.split() == ["refused", "refused"]
    assert rose < 80


def test_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(noise((64, 64)), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    scan = data[at:-2]
    assert decode(data).size == (64, 64)
    with pytest.raises(BrokenImage):
        decode(data[:at] + scan * 1000 + b"\xff\xd9")


# ---- whatever comes

SEEDS = [encoded(noise((24, 16)), form, **options) for form, options in FORMATS.values()]
SEEDS += [encoded(noise((24, 16), 4), form) for form in ("PNG", "WEBP", "TIFF")]
SEEDS += [encoded(noise((24, 16)).convert("CMYK"), "JPEG", icc_profile=profile(), exif=exif(6))]
SEEDS += [encoded(scene().convert("P"), "GIF", save_all=True, append_images=frames(3)[1:])]


def survives(data: bytes) -> None:
    for attempt in (inspect, decode, lambda data: decode(data, mode="RGBA", max_side_px=7)):
        with suppress(ImageRefused):
            attempt(data)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=400), start=st.sampled_from([b"", *(seed[:12] for seed in SEEDS)]))
def test_any_bytes_give_a_picture_or_one_of_our_errors(data: bytes, start: bytes) -> None:
    survives(start + data)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=6)), max_size=8),
    end=st.floats(0.2, 1),
)
def test_any_damage_gives_a_picture_or_one_of_our_errors(
    seed: bytes, edits: list[tuple[float, bytes]], end: float
) -> None:
    data = bytearray(seed)
    for place, content in edits:
        # Headers are short: a cube of the place puts most of the damage there.
        at = int(place**3 * len(data))
        data[at : at + len(content)] = content
    survives(bytes(data[: max(1, int(len(data) * end))]))


THROWN = [OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError, RuntimeError]
THROWN += [AssertionError, OverflowError, RecursionError, NotImplementedError, struct.error, zlib.error]


@pytest.mark.parametrize("error", THROWN)
def test_whatever_pillow_throws_is_broken_image(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def throwing(self: object) -> None:
        raise error("internal detail")

    data = encoded(scene())
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", throwing)
    with pytest.raises(BrokenImage) as refused:
        decode(data)
    assert "internal detail" not in refused.value.detail


@pytest.mark.parametrize("error", [MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning])
def test_whatever_is_too_much_for_pillow_is_too_large(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def throwing(self: object) -> None:
        raise error("internal detail")

    data = encoded(scene())
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", throwing)
    with pytest.raises(ImageTooLarge):
        decode(data)


def test_pillows_globals_stay_as_they_are() -> None:
    code = """
    from PIL import Image, ImageFile, PngImagePlugin
    decode(data)
    print(Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK)
    """
    said, _ = in_a_process(code, encoded(scene()))
    assert said == f"{1024**3 // 4 // 3} False {1024**2}"
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_common_jpeg_takes_nothing_but_pillows_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise((64, 64)), "JPEG", icc_profile=profile(), quality=90)
    decode(data)  # judges the profile once

    def unwanted(name: str) -> Callable[..., None]:
        def raising(*_: object, **__: object) -> None:
            raise AssertionError(name)

        return raising

    for name in ("convert", "copy", "transpose", "resize", "getexif", "tobytes"):
        monkeypatch.setattr(Image.Image, name, unwanted(name))
    for name in ("applyTransform", "buildTransform"):
        monkeypatch.setattr(ImageCms, name, unwanted(name))
    assert decode(data).size == (64, 64)
