"""Weighted reciprocal rank fusion."""

from __future__ import annotations

import pytest
from storage_service.fusion import fuse


def test_the_score_is_the_sum_of_weight_over_k_plus_rank() -> None:
    assert fuse([(1.0, [7, 8]), (2.0, [8, 9])]) == [
        (8, pytest.approx(1 / 62 + 2 / 61)),
        (9, pytest.approx(2 / 62)),
        (7, pytest.approx(1 / 61)),
    ]


def test_equal_scores_are_ordered_by_id() -> None:
    assert [image_id for image_id, _ in fuse([(1.0, [5, 3]), (1.0, [3, 5]), (1.0, [9]), (1.0, [2])])] == [3, 5, 2, 9]


def test_one_ranking_keeps_its_order() -> None:
    assert [image_id for image_id, _ in fuse([(0.1, [4, 1, 3])])] == [4, 1, 3]


def test_nothing_fuses_to_nothing() -> None:
    assert fuse([]) == []
    assert fuse([(1.0, [])]) == []
