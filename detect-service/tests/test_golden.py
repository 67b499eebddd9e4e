from __future__ import annotations

import numpy as np
import pytest
from detect_service import golden
from pixelgate_common.contracts.detect import Box
from pixelgate_common.inference.errors import WrongAnswer

RIGHT = [
    Box(label="dog", score=0.9, box=(10, 10, 50, 40)),
    Box(label="cat", score=0.5, box=(100, 60, 30, 30)),
    Box(label="cup", score=0.1, box=(0, 0, 9, 9)),
]
ALPHA = np.zeros((256, 320), dtype=np.uint8)
ALPHA[60:200, 50:170] = 255


def moved(number: int, **changes: object) -> list[Box]:
    return [one.model_copy(update=changes) if place == number else one for place, one in enumerate(RIGHT)]


@pytest.mark.parametrize(
    ("objects", "precision"),
    [
        pytest.param(RIGHT, "fp32", id="the same"),
        pytest.param(RIGHT[::-1][1:], "fp32", id="in another order, without what is unsure"),
        pytest.param(moved(0, score=0.8, box=(11, 9, 51, 40)), "bf16", id="as near as bf16"),
    ],
)
def test_a_right_answer_passes(objects: list[Box], precision: str) -> None:
    golden.check_objects("m", objects, golden.of_objects(RIGHT), precision)


@pytest.mark.parametrize(
    ("objects", "says"),
    [
        pytest.param(RIGHT[1:], "misses an object of the known picture, dog", id="one is missing"),
        pytest.param(moved(0, label="cat"), "misses", id="another label"),
        pytest.param(moved(0, score=0.7), "misses", id="another score"),
        pytest.param(moved(0, box=(40, 10, 50, 40)), "misses", id="another place"),
        pytest.param([*RIGHT, RIGHT[0].model_copy(update={"label": "fox"})], "invents", id="one too many"),
    ],
)
def test_a_wrong_answer_is_refused(objects: list[Box], says: str) -> None:
    with pytest.raises(WrongAnswer, match=says):
        golden.check_objects("m", objects, golden.of_objects(RIGHT), "bf16")


def test_alphas_are_compared() -> None:
    expected = golden.of_alpha(ALPHA)
    golden.check_alpha("m", ALPHA, expected, "fp32")
    for wrong in (255 - ALPHA, np.zeros_like(ALPHA), np.roll(ALPHA, 40, axis=1)):
        with pytest.raises(WrongAnswer, match="another alpha"):
            golden.check_alpha("m", wrong, expected, "bf16")


def test_the_golden_picture_is_wider_than_high() -> None:
    width, height = golden.picture().size
    assert width > height > 200
