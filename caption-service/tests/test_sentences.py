"""Word pieces to sentences."""

from __future__ import annotations

import pytest
from caption_service.sentences import finish, join, loop_length, tidy


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("a dog on a beach", "a dog on a beach"),
        ("two dogs and a red bus", "two dogs and a red bus"),
        ("a black and white photo of a cat", "a black and white photo of a cat"),
        ("a drawing of a cat", "a drawing of a cat"),
        ("this image shows a dog", "a dog"),
        ("the picture shows two cats", "two cats"),
        ("a picture of a dog", "a dog"),
        ("an image of the sea", "the sea"),
        ("this is a photo of a man", "a man"),
        ("this is a picture of a photo of a man", "a man"),
        ("there are three cats on a bed", "three cats on a bed"),
        ("there is a woman", "a woman"),
        ("image of two dogs", "two dogs"),
        ("we can see a boat", "a boat"),
        ("i see a boat", "a boat"),
        ("photo : a boat", "a boat"),
        ("photographs of a boat", "photographs of a boat"),
        ("araffe dog sitting", "a dog sitting"),
        ("arafed man in a hat", "a man in a hat"),
        ("there is an araffe man", "a man"),
        ("two araffes in a field", "two in a field"),
        ("a man ' s hat", "a man's hat"),
        ("a dog that isn ' t there", "a dog that isn't there"),
        ("a black - and - white cat", "a black-and-white cat"),
        ("a t - shirt , a hat and a bag .", "a t-shirt, a hat and a bag"),
        ('a sign that says " stop "', 'a sign that says "stop"'),
        ("  a   dog ", "a dog"),
        (", a dog", "a dog"),
        (". , -", ""),
        ("", ""),
        ("a picture of", ""),
        ("this is", ""),
    ],
)
def test_a_sentence_is_what_a_person_would_have_written(said: str, caption: str) -> None:
    assert finish(said.split(" "), cut=False) == caption


@pytest.mark.parametrize(
    ("said", "min_words", "caption"),
    [
        ("a dog on a red", 0, "a dog on a red"),
        ("a dog on the", 0, "a dog"),
        ("a dog and", 0, "a dog"),
        ("a dog , and the", 0, "a dog"),
        ("a dog on the", 4, "a dog on the"),
        ("a dog on the", 3, "a dog on"),
        ("a picture of a", 0, "a"),
        ("the", 0, "the"),
    ],
)
def test_what_was_cut_does_not_end_in_an_article(said: str, min_words: int, caption: str) -> None:
    assert finish(said.split(), cut=True, min_words=min_words) == caption


def test_pieces_make_words() -> None:
    assert join(["a", "chi", "##hua", "##hua", "run", "##s"]) == ["a", "chihuahua", "runs"]
    assert join(["##s", "a"]) == ["s", "a"]
    assert tidy(join(["skate", "##board", "##er", "'", "s"])) == "skateboarder's"


@pytest.mark.parametrize(
    ("said", "length"),
    [
        ("a dog and a dog and", 3),
        ("a dog a dog", 2),
        ("red red", 1),
        ("a red car and a red bus", 0),
        ("a man in a suit and a man in a hat", 0),
        ("two dogs and two cats", 0),
        ("a cat on top of a cat on top of", 5),
        ("a", 0),
        ("", 0),
    ],
)
def test_a_loop_is_what_is_said_twice_in_a_row(said: str, length: int) -> None:
    assert loop_length(said.split()) == length
