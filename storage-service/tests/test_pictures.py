"""What the child process makes of pictures of every kind."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pictures_made as made
import pytest
from PIL import Image, ImageCms
from pixelgate_common.images import BrokenImage, DecodeLimits, ImageTooLarge, NotAnImage, UnsupportedFormat, decode
from storage_service.pictures import Processed, process


def run(tmp_path: Path, data: bytes, limits: DecodeLimits | None = None) -> Processed:
    path, folder = tmp_path / "original", tmp_path / "variants"
    path.write_bytes(data)
    folder.mkdir(exist_ok=True)
    processed = process(path, folder, limits or DecodeLimits())
    assert path.read_bytes() == data, "the original is never touched"
    return processed


def variant(processed: Processed, name: str) -> Image.Image:
    return made.opened(processed.variants[name].read_bytes())


def distance(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures of one size, 0 to 255."""
    assert one.size == other.size
    pixels = (np.asarray(picture.convert("RGB"), np.float32) for picture in (one, other))
    return float(np.abs(next(pixels) - next(pixels)).mean())


def test_variants_fit_their_squares_and_nothing_is_enlarged(tmp_path: Path) -> None:
    processed = run(tmp_path, made.jpeg(width=2000, height=1000))
    assert (processed.width, processed.height, processed.format) == (2000, 1000, "jpeg")
    sizes = {name: variant(processed, name).size for name in processed.variants}
    assert sizes == {"preview": (1024, 512), "medium": (300, 150), "small": (150, 75)}
    small = run(tmp_path, made.jpeg(width=100, height=60))
    assert {variant(small, name).size for name in small.variants} == {(100, 60)}


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (5, 2048)], ids=str)
def test_extreme_shapes(tmp_path: Path, size: tuple[int, int]) -> None:
    processed = run(tmp_path, made.encoded(Image.new("RGB", size, (9, 200, 9)), "PNG"))
    assert (processed.width, processed.height) == size
    assert all(max(variant(processed, name).size) <= 1024 for name in processed.variants)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("PNG", {"interlace": 1}), ("WEBP", {}),
        ("WEBP", {"lossless": True}), ("GIF", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}),
        ("AVIF", {}),
    ],
    ids=str,
)  # fmt: skip
def test_every_format_gives_the_same_picture(tmp_path: Path, form: str, options: dict[str, object]) -> None:
    scene = made.scene(1200, 800)
    processed = run(tmp_path, made.encoded(scene, form, **options))
    assert processed.format == form.lower()
    assert not processed.has_alpha
    preview = variant(processed, "preview")
    assert preview.format == "JPEG"
    assert distance(preview, scene.resize(preview.size, Image.Resampling.LANCZOS)) < 6


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "I;16"])
def test_every_colour_mode_looks_as_the_safe_decode_sees_it(tmp_path: Path, mode: str) -> None:
    scene = made.scene(900, 600)
    form = "JPEG" if mode == "CMYK" else "PNG"
    data = made.sixteen_bit_png() if mode == "I;16" else made.encoded(scene.convert(mode), form)
    processed = run(tmp_path, data)
    preview = variant(processed, "preview")
    assert preview.mode == "RGB"
    # Compared small: a palette is dithered, and JPEG smooths that.
    expected = decode(data).resize((90, 60), Image.Resampling.BOX)
    assert distance(preview.resize((90, 60), Image.Resampling.BOX), expected) < 4


def test_sixteen_bits_keep_their_whole_range(tmp_path: Path) -> None:
    preview = np.asarray(variant(run(tmp_path, made.sixteen_bit_png()), "preview").convert("L"), np.int16)
    assert preview[:, 0].max() < 8
    assert preview[:, -1].min() > 247
    assert abs(int(preview[50, 100]) - 128) < 6


@pytest.mark.parametrize("bands", [3, 4])
def test_sixteen_bit_colour(tmp_path: Path, bands: int) -> None:
    import pyvips

    pixels = np.zeros((60, 80, bands), np.uint16)
    pixels[..., 0] = 65535
    pixels[..., 1] = 32896
    if bands == 4:
        pixels[:, :40, 3] = 65535
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="rgb16")
    processed = run(tmp_path, image.pngsave_buffer())
    assert processed.has_alpha == (bands == 4)
    red, green, blue = variant(processed, "preview").convert("RGB").getpixel((10, 10))  # type: ignore[misc]
    assert red > 248
    assert abs(green - 128) < 6
    assert blue < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    data = made.rotated_jpeg(orientation)
    processed = run(tmp_path, data)
    upright = (200, 400) if orientation >= 5 else (400, 200)
    assert (processed.width, processed.height) == upright
    preview = variant(processed, "preview")
    assert preview.size == upright
    assert preview.getexif().get(0x0112, 1) == 1
    assert distance(preview, decode(data)) < 3


def test_transparency_is_kept_as_webp(tmp_path: Path) -> None:
    picture = made.scene(600, 400).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((600, 400)))
    processed = run(tmp_path, made.encoded(picture, "PNG"))
    assert processed.has_alpha
    for name in processed.variants:
        stored = variant(processed, name)
        assert (stored.format, stored.mode) == ("WEBP", "RGBA")
        alpha = np.asarray(stored.getchannel("A"))
        assert alpha[0].max() < 10
        assert alpha[-1].min() > 245


def test_colour_behind_transparent_pixels_does_not_bleed(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (1200, 1200), (0, 255, 0, 0))
    picture.paste((200, 0, 0, 255), (0, 0, 600, 1200))
    small = np.asarray(variant(run(tmp_path, made.encoded(picture, "PNG")), "small"), np.int16)
    seen = small[small[..., 3] > 200]
    assert seen[:, 1].max() < 40


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    processed = run(tmp_path, made.animated_gif())
    assert (processed.format, processed.width, processed.height) == ("gif", 40, 30)
    red = variant(processed, "preview").convert("RGB").getpixel((20, 15))
    assert isinstance(red, tuple)
    assert red[0] > 200
    assert max(red[1:]) < 60


def test_an_embedded_profile_becomes_srgb(tmp_path: Path) -> None:
    swapped = swapped_channels_profile()
    data = made.encoded(Image.new("RGB", (300, 200), (230, 20, 20)), quality=95, icc_profile=swapped)
    preview = variant(run(tmp_path, data), "preview")
    assert distance(preview, decode(data)) < 3
    assert "icc_profile" not in preview.info
    assert distance(preview, made.opened(data)) > 20, "the profile must change something for this test to say anything"


def swapped_channels_profile() -> bytes:
    """sRGB with its red and green primaries exchanged: what is stored as red is to be shown as green."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def test_nothing_but_pixels_stands_in_a_variant(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera of the test"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (52.0, 30.0, 0.0)
    data = made.jpeg(exif=exif.tobytes(), comment=b"a secret comment")
    processed = run(tmp_path, data)
    assert processed.exif["Make"] == "Camera of the test"
    for path in processed.variants.values():
        stored = path.read_bytes()
        assert b"Camera" not in stored
        assert b"secret" not in stored
        assert not made.opened(stored).getexif()


def test_near_duplicates_have_near_hashes_and_others_do_not(tmp_path: Path) -> None:
    scene = made.scene(1000, 700, seed=3)

    def phash(picture: Image.Image, form: str = "JPEG", **options: object) -> int:
        return run(tmp_path, made.encoded(picture, form, **options)).phash

    first = phash(scene, quality=95)
    again = phash(scene.resize((400, 280)), quality=50)
    webp = phash(scene, "WEBP", quality=40)
    noise = phash(Image.effect_noise((500, 500), 80).convert("RGB"))

    def differing(one: int, other: int) -> int:
        return ((one ^ other) & (2**64 - 1)).bit_count()

    assert differing(first, again) <= 4
    assert differing(first, webp) <= 4
    assert differing(first, noise) >= 16


def test_thumbhash_says_the_average_colour(tmp_path: Path) -> None:
    hashed = run(tmp_path, made.encoded(Image.new("RGB", (300, 200), (200, 100, 50)), "PNG")).thumbhash
    assert len(base64.b64encode(hashed)) <= 40
    head = int.from_bytes(hashed[:3], "little")
    luma, p, q = (head & 63) / 63, (head >> 6 & 63) / 31.5 - 1, (head >> 12 & 63) / 31.5 - 1
    blue = luma - 2 / 3 * p
    red = (3 * luma - blue + q) / 2
    assert abs(red - 200 / 255) < 0.05
    assert abs(red - q - 100 / 255) < 0.05
    assert abs(blue - 50 / 255) < 0.05


REFUSED = {
    "text named .jpg": (b"this is no picture at all\n" * 20, NotAnImage),
    "nothing": (b"", NotAnImage),
    "html": (b"<!DOCTYPE html><html></html>", NotAnImage),
    "truncated JPEG": (made.jpeg(width=1600, height=1200)[:-4000], BrokenImage),
    "half a progressive JPEG": (made.jpeg(width=1600, height=1200, progressive=True)[:9000], BrokenImage),
    "JPEG header only": (made.jpeg()[:700], BrokenImage),
    "truncated PNG": (made.encoded(made.scene(), "PNG")[:-3000], BrokenImage),
    "damaged PNG": (
        (lambda data: data[: len(data) // 2] + b"\xff" * 64 + data[len(data) // 2 + 64 :])(
            made.encoded(made.scene(), "PNG")
        ),
        BrokenImage,
    ),
    "truncated WebP": (made.encoded(made.scene(), "WEBP")[:-500], BrokenImage),
    "truncated GIF": (made.encoded(made.scene(), "GIF")[:3000], BrokenImage),
    "truncated TIFF": (made.encoded(made.scene(), "TIFF")[:9000], BrokenImage),
    "50,000 × 50,000 PNG of a few KB": (made.png_bomb(), ImageTooLarge),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', UnsupportedFormat),
    "PDF": (b"%PDF-1.7\n", UnsupportedFormat),
}


@pytest.mark.parametrize(("data", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_whole_picture_is_refused(tmp_path: Path, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(tmp_path, data)


def test_too_many_pixels_are_refused_before_any_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(ImageTooLarge, match="PIXELGATE_MAX_PIXELS"):
        run(tmp_path, made.jpeg(width=200, height=101), DecodeLimits(max_pixels=20_000))


def test_a_file_cut_off_anywhere_is_refused_or_whole(tmp_path: Path) -> None:
    data = made.jpeg(width=320, height=240)
    taken = []
    for cut in range(200, len(data), max(1, len(data) // 60)):
        try:
            run(tmp_path, data[:cut])
            taken.append(cut)
        except (BrokenImage, NotAnImage):
            continue
    # Only what lacks nothing but the end marker may pass: every pixel is there.
    assert all(cut >= len(data) - 2 for cut in taken)
    assert run(tmp_path, io.BytesIO(data).read()).width == 320
