from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from pixelgate_common.colors import (
    EMPTY_CODE,
    GREY_SPREAD,
    ColorTable,
    Floats,
    ciede2000,
    complement,
    encode_lab,
    encode_palettes,
    lab_to_srgb,
    palette_distances,
    parse_color,
    srgb_to_lab,
    to_hex,
)
from pixelgate_common.contracts.color import MAX_COLORS, MIN_SHARE
from skimage.color import deltaE_ciede2000, rgb2lab

# Table 1 of Sharma, Wu, Dalal (2005): two CIELAB colours and their CIEDE2000.
SHARMA_WU_DALAL = [
    ((50.0000, 2.6772, -79.7751), (50.0000, 0.0000, -82.7485), 2.0425),
    ((50.0000, 3.1571, -77.2803), (50.0000, 0.0000, -82.7485), 2.8615),
    ((50.0000, 2.8361, -74.0200), (50.0000, 0.0000, -82.7485), 3.4412),
    ((50.0000, -1.3802, -84.2814), (50.0000, 0.0000, -82.7485), 1.0000),
    ((50.0000, -1.1848, -84.8006), (50.0000, 0.0000, -82.7485), 1.0000),
    ((50.0000, -0.9009, -85.5211), (50.0000, 0.0000, -82.7485), 1.0000),
    ((50.0000, 0.0000, 0.0000), (50.0000, -1.0000, 2.0000), 2.3669),
    ((50.0000, -1.0000, 2.0000), (50.0000, 0.0000, 0.0000), 2.3669),
    ((50.0000, 2.4900, -0.0010), (50.0000, -2.4900, 0.0009), 7.1792),
    ((50.0000, 2.4900, -0.0010), (50.0000, -2.4900, 0.0010), 7.1792),
    ((50.0000, 2.4900, -0.0010), (50.0000, -2.4900, 0.0011), 7.2195),
    ((50.0000, 2.4900, -0.0010), (50.0000, -2.4900, 0.0012), 7.2195),
    ((50.0000, -0.0010, 2.4900), (50.0000, 0.0009, -2.4900), 4.8045),
    ((50.0000, -0.0010, 2.4900), (50.0000, 0.0010, -2.4900), 4.8045),
    ((50.0000, -0.0010, 2.4900), (50.0000, 0.0011, -2.4900), 4.7461),
    ((50.0000, 2.5000, 0.0000), (50.0000, 0.0000, -2.5000), 4.3065),
    ((50.0000, 2.5000, 0.0000), (73.0000, 25.0000, -18.0000), 27.1492),
    ((50.0000, 2.5000, 0.0000), (61.0000, -5.0000, 29.0000), 22.8977),
    ((50.0000, 2.5000, 0.0000), (56.0000, -27.0000, -3.0000), 31.9030),
    ((50.0000, 2.5000, 0.0000), (58.0000, 24.0000, 15.0000), 19.4535),
    ((50.0000, 2.5000, 0.0000), (50.0000, 3.1736, 0.5854), 1.0000),
    ((50.0000, 2.5000, 0.0000), (50.0000, 3.2972, 0.0000), 1.0000),
    ((50.0000, 2.5000, 0.0000), (50.0000, 1.8634, 0.5757), 1.0000),
    ((50.0000, 2.5000, 0.0000), (50.0000, 3.2592, 0.3350), 1.0000),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((63.0109, -31.0961, -5.8663), (62.8187, -29.7946, -4.0864), 1.2630),
    ((61.2901, 3.7196, -5.3901), (61.4292, 2.2480, -4.9620), 1.8731),
    ((35.0831, -44.1164, 3.7933), (35.0232, -40.0716, 1.5901), 1.8645),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((36.4612, 47.8580, 18.3852), (36.2715, 50.5065, 21.2231), 1.4146),
    ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
    ((90.9257, -0.5406, -0.9208), (88.6381, -0.8985, -0.7239), 1.5381),
    ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


def random_rgb(seed: int, *shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def by_skimage(first: Floats, second: Floats) -> Floats:
    # Its function gives nonsense, silently, for shapes that only broadcast.
    one, two = np.broadcast_arrays(first.astype(np.float64), second.astype(np.float64))
    result: Floats = deltaE_ciede2000(one, two)
    return result


def lifelike(count: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Palettes as pictures have them: two or three families of related colours, few of them large."""
    random = np.random.default_rng(seed)
    themes = srgb_to_lab(np.random.default_rng(7).integers(0, 256, (300, 3), dtype=np.uint8))
    families = themes[random.integers(0, len(themes), (count, 3))]
    of_place = random.integers(0, 3, (count, MAX_COLORS))
    labs = np.take_along_axis(families, of_place[..., None], axis=1)
    labs = labs + random.normal(0, [14, 9, 9], labs.shape).astype(np.float32)
    shares = random.dirichlet(np.full(MAX_COLORS, 0.7), count).astype(np.float32)
    unused = np.arange(MAX_COLORS) >= random.integers(1, MAX_COLORS + 1, count)[:, None]
    shares = np.where(unused, 0, np.sort(shares)[:, ::-1])
    shares /= shares.sum(axis=1, keepdims=True)
    return srgb_to_lab(lab_to_srgb(labs)).astype(np.float32), shares.astype(np.float32)


@pytest.mark.parametrize(
    ("first", "second", "expected"), SHARMA_WU_DALAL, ids=[f"pair {i}" for i in range(1, len(SHARMA_WU_DALAL) + 1)]
)
def test_ciede2000_gives_the_published_differences(
    first: tuple[float, ...], second: tuple[float, ...], expected: float
) -> None:
    assert round(float(ciede2000(first, second)), 4) == expected
    assert ciede2000(first, second) == ciede2000(second, first)
    single = ciede2000(np.array(first, np.float32), np.array(second, np.float32))
    # In float32 the discontinuity at opposite hues (pairs 9-15) may fall to either side.
    assert single.dtype == np.float32
    assert float(single) == pytest.approx(
        expected,
        abs=0.06
        if 7
        <= SHARMA_WU_DALAL.index(
            (first, second, expected)  # type: ignore[arg-type]
        )
        <= 14
        else 1e-4,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-3)], ids=str)
def test_ciede2000_agrees_with_scikit_image(dtype: type, tolerance: float) -> None:
    one: Floats = srgb_to_lab(random_rgb(1, 200, 200).astype(np.float64)).astype(dtype)
    two: Floats = srgb_to_lab(random_rgb(2, 200, 200).astype(np.float64)).astype(dtype)
    ours = ciede2000(one, two)
    assert ours.dtype == dtype
    assert np.abs(ours - by_skimage(one, two)).max() < tolerance
    assert np.array_equal(ours, ciede2000(two, one))
    assert not ciede2000(one, one).any()


def test_ciede2000_of_greys_and_opposite_hues_agrees_with_scikit_image() -> None:
    axis = np.array([-40.0, -1.0, 0.0, 1.0, 40.0])
    some = np.stack(np.meshgrid([20.0, 50.0, 90.0], axis, axis), axis=-1).reshape(-1, 3)
    assert np.abs(ciede2000(some[:, None], some[None]) - by_skimage(some[:, None], some[None])).max() < 1e-9


def test_ciede2000_broadcasts_and_leaves_its_input_alone() -> None:
    many, one = srgb_to_lab(random_rgb(3, 4, 5)), srgb_to_lab(random_rgb(4))
    before = many.copy()
    result = ciede2000(one, many)
    assert result.shape == (4, 5)
    assert np.array_equal(many, before)
    assert result[2, 3] == ciede2000(one, many[2, 3])
    with pytest.raises(ValueError, match="shape"):
        ciede2000(np.zeros(4), one)


def test_srgb_becomes_cielab_and_comes_back() -> None:
    axis = np.arange(0, 256, 5)
    all_colors = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3).astype(np.uint8)
    labs = srgb_to_lab(all_colors)
    assert labs.dtype == np.float32
    assert np.abs(labs - rgb2lab(all_colors)).max() < 0.02
    assert np.array_equal(lab_to_srgb(labs), all_colors)


def test_greys_have_no_chroma_and_white_is_100() -> None:
    greys = srgb_to_lab(np.repeat(np.arange(256.0)[:, None], 3, axis=1))
    assert greys.dtype == np.float64
    assert np.abs(greys[:, 1:]).max() < 1e-9
    assert greys[[0, 255], 0] == pytest.approx([0, 100])
    assert (np.diff(greys[:, 0]) > 0).all()


def test_colors_that_no_screen_can_show_are_clipped() -> None:
    assert lab_to_srgb([[50.0, -200.0, 0.0], [150.0, 0.0, 0.0], [-5.0, 0.0, 0.0]]).tolist()[1:] == [[255] * 3, [0] * 3]
    assert lab_to_srgb([50.0, -200.0, 0.0])[0] == 0


@pytest.mark.parametrize(
    ("text", "rgb"),
    [
        ("#ff8000", (255, 128, 0)),
        (" #FF8000 ", (255, 128, 0)),
        ("#f80", (255, 136, 0)),
        ("RebeccaPurple", (102, 51, 153)),
        ("red", (255, 0, 0)),
    ],
)
def test_colors_are_read(text: str, rgb: tuple[int, int, int]) -> None:
    assert parse_color(text) == rgb
    assert parse_color(to_hex(rgb)) == rgb


@pytest.mark.parametrize(
    "text", ["", "reddish", "#ff80", "#ff800000", "#gg0000", "rgb(1,2,3)", "hsl(0,0%,0%)", "ff8000"]
)
def test_what_is_no_color_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="is no colour: write #rrggbb"):
        parse_color(text)


def test_a_complement_has_the_opposite_hue_and_the_same_saturation_and_value() -> None:
    import colorsys

    assert complement((255, 0, 0)) == (0, 255, 255)
    assert complement((200, 120, 40)) == (40, 120, 200)
    for rgb in random_rgb(5, 200):
        turned = complement(rgb)
        if turned is None:
            continue
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb.astype(float))
        other = colorsys.rgb_to_hsv(*turned)
        assert abs(abs(other[0] - hue) - 0.5) < 1e-9
        assert other[1:] == pytest.approx((saturation, value))
        assert complement(turned) == tuple(rgb)


def test_greys_have_no_complement() -> None:
    assert complement((0, 0, 0)) is None
    assert complement((128, 128, 128 + GREY_SPREAD - 1)) is None
    assert complement((128, 128, 128 + GREY_SPREAD)) == (138, 138, 128)


def test_palette_distances_are_what_the_definition_says() -> None:
    labs, shares = lifelike(50, 1)
    queries, weights = labs[7, :3], np.array([3.0, 2.0, 1.0])
    expected = []
    for colors, parts in zip(labs, shares, strict=True):
        counted = [color for color, part in zip(colors, parts, strict=True) if part >= np.float32(MIN_SHARE)]
        closest = [min(float(by_skimage(query, color)) for color in counted) for query in queries]
        expected.append(np.average(closest, weights=weights))
    assert palette_distances(queries, weights, labs, shares) == pytest.approx(expected, abs=1e-3)


def test_small_shares_and_unused_places_do_not_count() -> None:
    red, blue = srgb_to_lab(np.array([[255, 0, 0], [0, 0, 255]], np.uint8))
    labs = np.array([[red, blue], [red, blue], [red, red]])
    shares = np.array([[0.96, 0.04], [0.95, 0.05], [0.0, 0.04]])
    first, second, third = palette_distances(blue[None], [1.0], labs, shares)
    assert first == pytest.approx(float(ciede2000(red, blue)), abs=1e-3)
    assert second == 0
    assert third == np.inf
    assert palette_distances(blue[None], [1.0], labs, shares, 0.04)[0] == 0
    assert len(palette_distances(blue[None], [1.0], labs[:0], shares[:0])) == 0


def test_threads_change_nothing() -> None:
    labs, shares = lifelike(3000, 2)
    one = palette_distances(labs[0], np.ones(MAX_COLORS), labs, shares)
    assert np.array_equal(one, palette_distances(labs[0], np.ones(MAX_COLORS), labs, shares, threads=2))


@pytest.mark.parametrize("weights", [[0.0], [-1.0], [np.nan], [np.inf], [1.0, 1.0], []], ids=str)
def test_weights_must_be_positive_and_one_for_each_color(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        palette_distances(np.zeros((1, 3)), weights, np.zeros((1, 1, 3)), np.ones((1, 1)))


def test_colors_fall_into_cells() -> None:
    rgb = np.array([[0, 0, 0], [255, 255, 255], [8, 16, 24]], np.uint8)
    assert encode_lab(srgb_to_lab(rgb)).tolist() == [0, 32767, 1 << 10 | 2 << 5 | 3]
    codes = encode_palettes(srgb_to_lab(rgb[None, :2]), [[0.96, 0.04]])
    assert codes.tolist() == [[0], [EMPTY_CODE]]
    assert codes.dtype == np.uint16


def test_the_table_is_close_to_the_truth() -> None:
    labs, shares = lifelike(2000, 3)
    exact = palette_distances(labs[5, :4], shares[5, :4] + 0.01, labs, shares)
    table = ColorTable(labs[5, :4], shares[5, :4] + 0.01)
    error = np.abs(table.distances(encode_palettes(labs, shares)) - exact)
    assert np.median(error) < 1
    assert np.quantile(error, 0.99) < 5
    assert table.distances(np.full((8, 1), EMPTY_CODE, np.uint16)).tolist() == [np.inf]


@pytest.mark.parametrize("colors", [1, 2, 8])
def test_a_few_thousand_candidates_hold_the_24_closest(colors: int) -> None:
    labs, shares = lifelike(20_000, 4)
    codes = encode_palettes(labs, shares)
    found = 0
    for query in range(20):
        queries, weights = labs[query, :colors], np.maximum(shares[query, :colors], 0.01)
        exact = palette_distances(queries, weights, labs, shares)
        candidates = np.argpartition(ColorTable(queries, weights).distances(codes), 2000)[:2000]
        ranked = np.sort(palette_distances(queries, weights, labs[candidates], shares[candidates]))[:24]
        # By distance, not by place: palettes equally far are equally right.
        found += int((ranked <= np.sort(exact)[23]).sum())
    assert found / (20 * 24) >= 0.99
