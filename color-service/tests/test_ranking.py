from __future__ import annotations

import numpy as np
import pytest
from color_service.ranking import complements, rank
from pixelgate_common.colors import ciede2000, srgb_to_lab
from pixelgate_common.contracts.color import RankPalettes
from pixelgate_common.errors import InvalidRequest


def color(rgb: tuple[int, int, int], weight: float = 1.0) -> dict[str, object]:
    return {"lab": srgb_to_lab(np.array(rgb, float)).tolist(), "weight": weight}


RED, GREEN, BLUE, CYAN, GREY = (220, 20, 20), (20, 180, 20), (20, 20, 220), (20, 220, 220), (128, 128, 128)


def ranked(*palettes: list[dict[str, object]], **request: object) -> list[tuple[int, float]]:
    found = rank(RankPalettes.model_validate({"palettes": palettes, **request}))
    return [(one.index, one.distance) for one in found]


def test_the_closest_come_first_and_equal_ones_in_their_order() -> None:
    found = ranked([color(BLUE)], [color(RED)], [color(GREEN), color(RED)], [color(RED)], colors=[color(RED)])
    assert [index for index, _ in found] == [1, 2, 3, 0]
    assert [distance for _, distance in found[:3]] == [0, 0, 0]
    expected = ciede2000(srgb_to_lab(np.array(RED, float)), srgb_to_lab(np.array(BLUE, float)))
    assert found[3][1] == pytest.approx(float(expected), abs=1e-3)
    assert len(ranked([color(BLUE)], [color(RED)], colors=[color(RED)], limit=1)) == 1


def test_weights_of_the_query_are_parts_of_their_sum() -> None:
    one, other = ranked([color(RED)], [color(BLUE)], colors=[color(RED, 30), color(BLUE, 10)])
    assert (one[0], other[0]) == (0, 1)
    assert other[1] == pytest.approx(3 * one[1], rel=1e-3)


def test_a_color_with_less_than_a_twentieth_does_not_count() -> None:
    found = ranked([color(RED, 96), color(BLUE, 4)], [color(RED, 94), color(BLUE, 6)], colors=[color(BLUE)])
    assert found[0] == (1, 0)
    assert found[1][1] > 30


def test_complementary_turns_the_colors_and_leaves_greys_out() -> None:
    found = ranked([color(RED)], [color(CYAN)], [color(GREY)], colors=[color(RED), color(GREY)], mode="complementary")
    assert found[0][0] == 1
    assert found[0][1] == pytest.approx(0, abs=0.5)
    with pytest.raises(InvalidRequest, match="greys"):
        ranked([color(RED)], colors=[color(GREY)], mode="complementary")


def test_complements_of_greys_are_none() -> None:
    assert complements(["#FF0000", "#808080", "#c87828"]) == ["#00ffff", None, "#2878c8"]
