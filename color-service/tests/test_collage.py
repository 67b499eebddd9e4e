from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from color_pictures import BLUE, RED, plain
from color_service.collage import collage, grid, in_cell
from pixelgate_common.contracts.color import CollageOptions
from pixelgate_common.errors import InvalidRequest
from pixelgate_common.images import DecodeLimits

LIMITS = DecodeLimits()
FRAME = (0xE5, 0x39, 0x35)


def made(pictures: list[bytes], **options: object) -> npt.NDArray[np.uint8]:
    how = CollageOptions.model_validate(options)
    columns, rows = grid(len(pictures), how, 10**7)
    tiles = [
        in_cell(picture, how, LIMITS, framed=how.frame_first and place == 0) for place, picture in enumerate(pictures)
    ]
    return np.asarray(collage(tiles, columns, rows, how))


@pytest.mark.parametrize(
    ("count", "columns", "expected"),
    [(1, None, (1, 1)), (5, None, (3, 2)), (25, None, (5, 5)), (26, None, (6, 5)), (7, 2, (2, 4)), (2, 20, (2, 1))],
    ids=str,
)
def test_a_grid_is_as_square_as_can_be_or_as_wide_as_asked(
    count: int, columns: int | None, expected: tuple[int, int]
) -> None:
    assert grid(count, CollageOptions(columns=columns), 10**8) == expected


def test_pictures_lie_row_by_row_whole_in_the_middle_of_their_cells() -> None:
    pixels = made([plain(RED, (40, 20)), plain(BLUE, (20, 40)), plain(RED, (3, 3))], cell_px=100, gap_px=10, columns=2)
    assert pixels.shape == (230, 230, 3)
    assert tuple(pixels[60, 12]) == RED, "the width fills the cell"
    assert tuple(pixels[30, 60]) == (255, 255, 255), "above it is background"
    assert tuple(pixels[12, 170]) == BLUE
    assert tuple(pixels[60, 130]) == (255, 255, 255)
    assert tuple(pixels[122, 12]) == RED, "a small one is enlarged, in the second row"
    assert tuple(pixels[170, 170]) == (255, 255, 255), "the last cell is empty"


def test_the_first_is_framed_on_request_and_nothing_else() -> None:
    pictures = [plain(BLUE, (50, 50))] * 2
    pixels = made(pictures, cell_px=100, gap_px=0, frame_first=True)
    assert tuple(pixels[0, 0]) == tuple(pixels[99, 50]) == FRAME
    assert tuple(pixels[50, 50]) == tuple(pixels[0, 101]) == BLUE
    assert tuple(made(pictures, cell_px=100, gap_px=0)[0, 0]) == BLUE


def test_the_background_shows_between_and_through_the_pictures() -> None:
    pixels = made([plain((*RED, 0))] * 2, background="#102030", cell_px=50, frame_first=True, frame_color="#00ff00")
    assert tuple(pixels[0, 0]) == tuple(pixels[31, 31]) == tuple(pixels[31, 85]) == (0x10, 0x20, 0x30)
    assert (pixels == (0, 255, 0)).all(axis=2).any()


def test_very_long_pictures_fit() -> None:
    pixels = made([plain(RED, (12_000, 1)), plain(BLUE, (1, 12_000))], cell_px=64, gap_px=0)
    assert tuple(pixels[31, 10]) == RED
    assert tuple(pixels[10, 95]) == BLUE


def test_the_same_pictures_make_the_same_collage() -> None:
    pictures = [plain((10 * i, 90, 200 - 10 * i), (10 + i, 20)) for i in range(9)]
    assert np.array_equal(made(pictures), made(pictures))


def test_a_collage_that_would_be_too_large_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most 10000000"):
        grid(100, CollageOptions(cell_px=400), 10**7)
    assert grid(100, CollageOptions(cell_px=300), 10**7) == (10, 10)
