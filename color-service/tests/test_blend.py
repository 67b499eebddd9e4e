from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from color_pictures import BLUE, RED, encoded, plain, scenery
from color_service.blend import blend, blend_files, seam
from PIL import Image
from pixelgate_common.contracts.color import BlendOptions
from pixelgate_common.images import DecodeLimits, NotAnImage

LIMITS = DecodeLimits()
MANY = 8_000_000
Pixels = npt.NDArray[np.uint8]


def files_blended(first: bytes, second: bytes, mask: bytes | None = None, **options: object) -> Pixels:
    return np.asarray(blend_files(first, second, mask, BlendOptions.model_validate(options), LIMITS, MANY))


def flat(level: int, size: tuple[int, int] = (256, 64)) -> Pixels:
    return np.full((size[1], size[0], 3), level, np.uint8)


def transition_px(row: npt.NDArray[np.float64]) -> int:
    """The number of pixels between a tenth and nine tenths of the way from the row's first value to its last."""
    part = (row - row[0]) / (row[-1] - row[0])
    return int(((part > 0.1) & (part < 0.9)).sum())


@pytest.mark.parametrize("levels", range(1, 7))
def test_each_further_level_mixes_a_step_about_twice_as_wide(levels: int) -> None:
    row = blend(flat(40), flat(200), seam((256, 64), 0.5, "horizontal"), levels)[32, :, 0].astype(float)
    assert (row[0], row[-1]) == (40, 200)
    assert (np.diff(row) >= 0).all()
    expected_px = 0 if levels == 1 else 2 ** (levels - 1)
    assert expected_px * 0.5 <= transition_px(row) <= expected_px * 2.5


def test_low_bands_are_mixed_wide_and_high_bands_narrow() -> None:
    # Both pictures: a ground (low) with a checkerboard of single pixels (high), which the second has the other way.
    checks = (np.indices((64, 256)).sum(axis=0) % 2 * 2 - 1)[..., None] * 30
    first, second = (flat(80) + checks).astype(np.uint8), (flat(170) - checks).astype(np.uint8)
    mixed = blend(first, second, seam((256, 64), 0.5, "horizontal"), 6)[32].astype(float)[:, 0]
    ground = np.convolve(mixed, [0.25, 0.5, 0.25], mode="same")[2:-2]
    contrast = ((mixed - np.convolve(mixed, [0.25, 0.5, 0.25], mode="same")) * checks[32, :, 0] / 30)[2:-2]
    assert transition_px(ground) > 20
    assert transition_px(contrast) <= 4


@pytest.mark.parametrize("size", [(64, 48), (65, 49), (1, 1), (1, 50), (50, 1), (2, 3), (300, 7)], ids=str)
def test_the_mask_alone_decides_where_it_is_constant(size: tuple[int, int]) -> None:
    one, two = (np.asarray(scenery(*size, seed=seed)) for seed in (1, 2))
    black, white = np.zeros(size[::-1], np.float32), np.ones(size[::-1], np.float32)
    assert np.array_equal(blend(one, two, black), one)
    assert np.array_equal(blend(one, two, white), two)


def test_it_is_the_laplacian_pyramid_blend_of_the_paper() -> None:
    import cv2

    one, two = (np.asarray(scenery(150, 117, seed=seed)) for seed in (1, 2))
    mask = np.asarray(scenery(150, 117, seed=3)).mean(axis=2).astype(np.float32) / 255

    def pyramid(picture: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        levels = [picture]
        for _ in range(4):
            levels.append(cv2.pyrDown(levels[-1]))
        return levels

    def bands(picture: Pixels) -> list[npt.NDArray[np.float32]]:
        levels = pyramid(picture.astype(np.float32))
        return [fine - cv2.pyrUp(coarse, dstsize=fine.shape[1::-1]) for fine, coarse in pairwise(levels)] + levels[-1:]

    mixed = [
        a * (1 - m[..., None]) + b * m[..., None] for a, b, m in zip(bands(one), bands(two), pyramid(mask), strict=True)
    ]
    result = mixed.pop()
    while mixed:
        band = mixed.pop()
        result = cv2.pyrUp(result, dstsize=band.shape[1::-1]) + band
    expected = np.clip(np.rint(result), 0, 255)
    assert np.abs(blend(one, two, mask, 5).astype(float) - expected).max() <= 1


def test_nothing_wraps_round_or_changes_its_input() -> None:
    one, two = flat(0), flat(255)
    one[:, ::3], two[:, ::5] = 255, 0
    before = one.copy()
    for position in (0.3, 0.5):
        mixed = blend(one, two, seam((256, 64), position, "horizontal"), 6).astype(int)
        left, right = mixed[:, :20], mixed[:, -20:]
        assert np.abs(left - one[:, :20]).max() <= 40
        assert np.abs(right - two[:, -20:]).max() <= 40
    assert np.array_equal(one, before)


def test_the_seam_lies_where_it_should() -> None:
    assert seam((4, 2), 0.5, "horizontal").tolist() == [[0, 0, 1, 1]] * 2
    assert seam((2, 4), 0.25, "vertical").tolist() == [[0, 0], [1, 1], [1, 1], [1, 1]]
    assert seam((4, 1), 0.625, "horizontal").tolist() == [[0, 0, 0.5, 1]]
    assert seam((4, 1), 0, "horizontal").tolist() == [[1] * 4]
    assert seam((4, 1), 1, "horizontal").tolist() == [[0] * 4]


@pytest.mark.parametrize(
    ("direction", "first", "second"), [("horizontal", (30, 5), (30, 115)), ("vertical", (5, 60), (55, 60))]
)
def test_pictures_of_any_sizes_are_blended_in_the_size_of_the_first(
    direction: str, first: tuple[int, int], second: tuple[int, int]
) -> None:
    mixed = files_blended(plain(RED, (120, 60)), plain(BLUE, (33, 900)), direction=direction, levels=3)
    assert mixed.shape == (60, 120, 3)
    assert tuple(mixed[first]) == RED
    assert tuple(mixed[second]) == BLUE


def test_the_second_covers_the_first_and_is_not_distorted() -> None:
    second = np.zeros((100, 400, 3), np.uint8)
    second[:, 150:250] = 255  # the middle quarter of a wide picture
    mixed = files_blended(plain(RED, (100, 100)), encoded(Image.fromarray(second)), position=0, levels=1)
    assert (mixed[:, 1:-1] == 255).all()


def test_a_mask_of_any_size_chooses_the_second_where_it_is_white() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 255
    mixed = files_blended(plain(RED, (200, 100)), plain(BLUE, (50, 50)), encoded(Image.fromarray(mask)), levels=2)
    assert tuple(mixed[50, 100]) == BLUE
    assert tuple(mixed[3, 3]) == tuple(mixed[97, 197]) == RED


def test_what_is_invisible_leaves_no_trace() -> None:
    hidden = plain((0, 255, 0, 0), (64, 64))
    mixed = files_blended(plain((*RED, 255), (64, 64)), hidden, levels=4)
    assert mixed.shape == (64, 64, 4)
    assert mixed[32, 0].tolist() == [*RED, 255]
    assert mixed[32, 63, 3] == 0
    visible = mixed[..., 3] > 20
    assert np.abs(mixed[visible][:, :3].astype(int) - RED).max() <= 3
    assert 100 < mixed[32, 32, 3] < 160


def test_the_result_is_bounded_by_scaling_the_first_down() -> None:
    mixed = blend_files(plain(RED, (400, 100)), plain(BLUE, (10, 10)), None, BlendOptions(), LIMITS, 10_000)
    assert mixed.size == (200, 50)


@pytest.mark.parametrize("field", ["image_1", "image_2", "mask"])
def test_a_bad_picture_is_named(field: str) -> None:
    files = {"image_1": plain(RED), "image_2": plain(BLUE), "mask": plain(RED)} | {field: b"no picture"}
    with pytest.raises(NotAnImage) as refused:
        files_blended(files["image_1"], files["image_2"], files["mask"])
    assert [error.field for error in refused.value.errors] == [field]
