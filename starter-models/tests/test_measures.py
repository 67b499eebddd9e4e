"""Measures on cases small enough to be worked out by hand."""

from collections import Counter

import numpy as np
import pytest
from starter_models.captions import Facts, canonical
from starter_models.labels import LABELS, Label
from starter_models.measures import (
    Detection,
    Located,
    box_iou,
    caption_labels,
    label_agreement,
    mask_iou,
    mean_average_precision_50,
)

BOX = (0.0, 0.0, 10.0, 10.0)
AWAY = (50.0, 50.0, 60.0, 60.0)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("two dogs and a hot dog", {"dog": 2, "hot dog": 1}),
        ("an orange on an orange background", {"orange": 1}),
        ("Three red cars, a bus and skis on a striped green background", {"car": 3, "bus": 1, "skis": 1}),
        ("two pairs of scissors and a pair of skis", {"scissors": 2, "skis": 1}),
        ("three sheep above a fish", {"sheep": 3, "fish": 1}),
        ("dogs", {"dog": 2}),
        ("a slice of pizza, a glass of wine and 4 puppies", {"pizza": 1, "wine glass": 1, "dog": 4}),
        ("a picture of nothing that has a name", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_labels_are_read_from_a_sentence(text: str, labels: dict[str, int]) -> None:
    assert caption_labels(text) == Counter(labels)


@pytest.mark.parametrize("label", LABELS, ids=lambda label: label.name)
def test_every_word_of_a_label_is_read(label: Label) -> None:
    for singular, plural in label.words:
        assert caption_labels(f"a {singular} on a plain red background") == {label.name: 1}
        assert caption_labels(f"three {plural} on a plain red background") == {label.name: 3}


def test_the_canonical_caption_names_what_is_there(facts: list[Facts]) -> None:
    for scene in facts:
        text = canonical(scene)
        assert caption_labels(text) == Counter(thing.label for thing in scene.things), text
        assert f"{scene.background.colour} background" in text
        for thing in scene.things:
            assert thing.colour is None or f"{thing.colour} " in text


def test_agreement_counts_repeats() -> None:
    said = [Counter({"dog": 2}), Counter({"cat": 1}), Counter()]
    true = [Counter({"dog": 1}), Counter({"cat": 1, "bus": 1}), Counter({"key": 1})]

    found = label_agreement(said, true)

    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 4)
    assert found.f1 == pytest.approx(4 / 7)


def test_agreement_of_nothing_is_nothing() -> None:
    assert label_agreement([Counter()], [Counter()]).f1 == 0


def test_overlap_of_boxes() -> None:
    assert box_iou(BOX, BOX) == 1
    assert box_iou(BOX, (5.0, 0.0, 15.0, 10.0)) == pytest.approx(1 / 3)
    assert box_iou(BOX, AWAY) == 0


def test_right_boxes_are_worth_one() -> None:
    truths = [[Located("dog", BOX), Located("dog", AWAY)], [Located("cat", BOX)]]
    found = [[Detection(item.label, 0.9, item.box) for item in some] for some in truths]

    assert mean_average_precision_50(found, truths) == pytest.approx(1)


def test_a_better_scored_mistake_costs_precision() -> None:
    truths = [[Located("dog", BOX)], [Located("dog", BOX)]]
    found = [[Detection("dog", 0.9, AWAY), Detection("dog", 0.8, BOX)], []]

    # One of two found, second in the ranking: precision 1/2 up to recall 0.5, that is at 51 of 101 places.
    assert mean_average_precision_50(found, truths) == pytest.approx(0.5 * 51 / 101)


def test_an_object_is_found_once_only_and_by_its_own_label() -> None:
    truths = [[Located("dog", BOX), Located("cat", AWAY)]]
    found = [[Detection("dog", 0.9, BOX), Detection("dog", 0.8, BOX), Detection("dog", 0.7, AWAY)]]

    assert mean_average_precision_50(found, truths) == pytest.approx(0.5)


def test_measures_refuse_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="argument"):
        mean_average_precision_50([[]], [])
    with pytest.raises(ValueError, match="cannot be compared"):
        mask_iou(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))


def test_overlap_of_masks() -> None:
    first = np.array([[255, 128, 127, 0]], np.uint8)
    second = np.array([[255, 0, 255, 0]], np.uint8)

    assert mask_iou(first, second) == pytest.approx(1 / 3)
    assert mask_iou(first * 0, second * 0) == 1
