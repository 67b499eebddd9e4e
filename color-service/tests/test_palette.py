from __future__ import annotations

import numpy as np
import pytest
from color_pictures import BLUE, RED, WHITE, encoded, plain, scenery, stripes
from color_service.palette import fingerprint, palette_of, picture_colors
from PIL import Image, ImageDraw
from pixelgate_common.colors import ciede2000, parse_color, srgb_to_lab, to_hex
from pixelgate_common.contracts.color import MAX_COLORS, Color
from pixelgate_common.images import DecodeLimits, ImageTooLarge, NotAnImage

LIMITS = DecodeLimits()


def whole(picture: Image.Image, form: str = "PNG") -> list[Color]:
    return picture_colors(encoded(picture, form), LIMITS).palette


def shares(palette: list[Color]) -> dict[str, float]:
    return {color.hex: color.share for color in palette}


@pytest.mark.parametrize("size", [(90, 60), (300, 200), (900, 600), (30, 2)], ids=str)
def test_a_flag_of_three_flat_colors_has_exactly_these(size: tuple[int, int]) -> None:
    assert shares(whole(stripes(size, BLUE, WHITE, RED))) == {
        to_hex(color): pytest.approx(1 / 3, abs=1e-5) for color in (BLUE, WHITE, RED)
    }


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_large_flag_has_its_colors_within_a_hundredth(form: str) -> None:
    palette = whole(stripes((3000, 1700), BLUE, WHITE, RED), form)
    assert len(palette) == 3
    for color in palette:
        assert color.share == pytest.approx(1 / 3, abs=0.01)
        assert min(float(ciede2000(color.lab, srgb_to_lab(rgb))) for rgb in (BLUE, WHITE, RED)) < 1


def test_soft_edges_belong_to_the_colors_beside_them() -> None:
    disc = Image.new("RGB", (1600, 1600), BLUE)
    ImageDraw.Draw(disc).ellipse((200, 200, 1400, 1400), fill=RED)
    palette = shares(whole(disc.resize((400, 400), Image.Resampling.LANCZOS)))
    assert palette == {to_hex(BLUE): pytest.approx(0.56, abs=0.02), to_hex(RED): pytest.approx(0.44, abs=0.02)}


def test_a_palette_is_ordered_adds_up_and_is_the_same_each_time() -> None:
    palette = whole(scenery(500, 300))
    assert 2 <= len(palette) <= MAX_COLORS
    assert sum(color.share for color in palette) == pytest.approx(1, abs=1e-4)
    assert [color.share for color in palette] == sorted((color.share for color in palette), reverse=True)
    assert palette == whole(scenery(500, 300))
    for color in palette:
        assert color.share >= 0.01
        assert float(ciede2000(color.lab, srgb_to_lab(parse_color(color.hex)))) < 0.7


def test_colors_that_look_alike_are_one_and_different_ones_are_not() -> None:
    assert len(whole(stripes((80, 20), (200, 30, 30), (203, 33, 31)))) == 1
    assert len(whole(stripes((80, 20), (200, 30, 30), (200, 90, 30)))) == 2


def test_a_small_object_of_its_own_color_is_kept_and_a_speck_is_not() -> None:
    picture = np.asarray(scenery(400, 400)).copy() // 4 + 100  # a soft grey ground
    picture[50:130, 50:130] = (255, 0, 0)  # 4 %
    picture[300:310, 300:310] = (0, 255, 0)  # 0.06 %
    palette = whole(Image.fromarray(picture))
    assert shares(palette)["#ff0000"] == pytest.approx(0.04, abs=0.003)
    assert all(float(ciede2000(color.lab, srgb_to_lab((0, 255, 0)))) > 30 for color in palette)


@pytest.mark.parametrize("colors", [1, 3, 8])
def test_no_more_colors_than_asked_for_and_the_largest_stay(colors: int) -> None:
    ten = [(30 + 25 * i, 255 - 25 * i, 90 * i % 256) for i in range(10)]
    palette = palette_of(np.asarray(stripes((200, 20), *ten)).reshape(-1, 3), colors=colors)
    assert len(palette) == colors
    most = palette_of(np.array([BLUE] * 70 + [RED] * 20 + [WHITE] * 10, np.uint8), colors=1)
    assert [color.share for color in most] == [1]


def test_what_is_hidden_is_not_in_the_foreground_and_white_in_the_whole() -> None:
    picture = np.zeros((40, 40, 4), np.uint8)
    picture[:, :] = (*BLUE, 0)
    picture[:10] = (*RED, 255)
    found = picture_colors(encoded(Image.fromarray(picture)), LIMITS)
    assert found.foreground is not None
    assert shares(found.foreground) == {to_hex(RED): 1}
    assert shares(found.palette) == {"#ffffff": 0.75, to_hex(RED): 0.25}


def test_half_transparent_pixels_count_half() -> None:
    picture = np.zeros((40, 40, 4), np.uint8)
    picture[:20] = (*RED, 255)
    picture[20:] = (*BLUE, 51)
    found = picture_colors(encoded(Image.fromarray(picture)), LIMITS)
    assert found.foreground is not None
    assert shares(found.foreground) == {
        to_hex(RED): pytest.approx(5 / 6, abs=1e-5),
        to_hex(BLUE): pytest.approx(1 / 6, abs=1e-5),
    }


def test_an_alpha_channel_that_hides_nothing_makes_no_foreground() -> None:
    assert picture_colors(plain((*RED, 255)), LIMITS).foreground is None
    assert picture_colors(plain(RED), LIMITS).foreground is None


def test_a_picture_that_is_hidden_as_a_whole_has_an_empty_foreground() -> None:
    found = picture_colors(plain((*RED, 0)), LIMITS)
    assert found.foreground == []
    assert shares(found.palette) == {"#ffffff": 1}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (plain(RED, (1, 1)), "#ef4135"),
        (encoded(Image.new("L", (50, 40), 128)), "#808080"),
        (encoded(Image.new("1", (50, 40), 1)), "#ffffff"),
        (encoded(Image.new("CMYK", (50, 40), (0, 255, 255, 0)), "JPEG", quality=95), None),
        (encoded(Image.fromarray(np.full((30, 40), 0x8080, np.uint16))), "#808080"),
        (plain(BLUE, (12_000, 200)), "#0055a4"),
        (plain(BLUE, (200, 12_000)), "#0055a4"),
        (encoded(Image.new("P", (8, 8), 0), "GIF"), "#000000"),
    ],
    ids=["1x1", "grey", "bilevel", "CMYK", "16 bit", "12000x200", "200x12000", "GIF"],
)
def test_pictures_of_every_kind_have_a_palette(data: bytes, expected: str | None) -> None:
    palette = picture_colors(data, LIMITS).palette
    assert len(palette) == 1
    assert palette[0].share == 1
    if expected is None:
        assert float(ciede2000(palette[0].lab, srgb_to_lab((237, 28, 36)))) < 12, "some red, by whichever profile"
    else:
        assert palette[0].hex == expected


def test_a_very_long_picture_keeps_its_rows() -> None:
    long = stripes((200, 12_000), BLUE, RED).transpose(Image.Transpose.ROTATE_90)
    assert shares(whole(long)) == {to_hex(BLUE): pytest.approx(0.5, 0.01), to_hex(RED): pytest.approx(0.5, 0.01)}


def test_what_cannot_be_decoded_is_refused() -> None:
    with pytest.raises(NotAnImage):
        picture_colors(b"no picture", LIMITS)
    with pytest.raises(ImageTooLarge):
        picture_colors(plain(RED, (100, 100)), DecodeLimits(max_pixels=9999))


def test_the_fingerprint_names_the_method_the_colors_and_the_version() -> None:
    assert fingerprint() == "palette/lab-kmeans-8/1"
    assert fingerprint(3) == "palette/lab-kmeans-3/1"


RECORDED = [
    ("#8d5c83", 0.21),
    ("#7b9866", 0.16),
    ("#627ea6", 0.14),
    ("#7854a1", 0.12),
    ("#a2676a", 0.12),
    ("#757a7d", 0.09),
    ("#997b5d", 0.09),
    ("#61998e", 0.08),
]


def test_a_version_gives_the_palettes_that_it_gave() -> None:
    # Stored palettes are compared under their fingerprint: when this changes, raise VERSION.
    found = [(color.hex, round(color.share, 2)) for color in whole(scenery(320, 240))]
    assert found == RECORDED
