"""Guides: limits of words, loops, and what must never be said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from caption_service.decoding import FloatMatrix, PlainGuide, SentenceGuide, Step, TokenIds, ToldGuide, speak
from caption_service.pixels import Pixels
from caption_service.vocabulary import Vocabulary

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat", "and", "on", "the", "red", "two", "s", "##s", ",", "of"),
    *("picture", "house", "sea"),
]
VOCABULARY = Vocabulary(
    tokens=tuple(WORDS), size=len(WORDS) + 2, begin_id=len(WORDS), end_id=3, special_ids=(0, 1, 2, 3), max_tokens=64
)
NOTHING: Pixels = np.zeros((2, 2, 3), np.uint8)


class Parrot:
    """A model that wants to say given sentences, one for each row, and repeats the last word when they are over.

    Tokens that come later in a sentence's list of favourites are second best.
    """

    good_batch = 4

    def __init__(self, *sentences: str) -> None:
        self.sentences = [sentence.split() for sentence in sentences]
        self.rooms: list[int] = []
        self.newest: list[list[int]] = []

    @contextmanager
    def look(self, pixels: Sequence[Pixels], room: int) -> Iterator[Step]:
        self.rooms.append(room)
        at = 0

        def step(tokens: TokenIds) -> FloatMatrix:
            nonlocal at
            assert at < room
            self.newest.append(tokens.tolist())
            scores = np.zeros((len(pixels), VOCABULARY.size), np.float32)
            scores[:, -1] = 50  # a score that stands for no token
            scores[:, 2] = 40  # a special token
            scores[:, VOCABULARY.end_id] = 1
            for row, words in enumerate(self.sentences[: len(pixels)]):
                scores[row, WORDS.index(words[at % len(words)])] = 10
            at += 1
            return scores

        yield step


def caption(sentence: str, min_words: int = 0, max_words: int = 30) -> str:
    guide = SentenceGuide(VOCABULARY, min_words, max_words)
    speak(Parrot(sentence), [NOTHING], [guide], VOCABULARY.begin_id)
    return guide.caption()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("a dog on the sea [SEP]", "a dog on the sea"),
        ("two dog ##s and a cat [SEP]", "two dogs and a cat"),
        ("a dog and a dog and", "a dog"),
        ("a dog on the sea on the sea on the sea", "a dog on the sea"),
        ("a dog , a cat , a dog , a cat ,", "a dog, a cat"),
        ("a dog and a cat and a dog and a cat and", "a dog and a cat"),
        ("a red dog and a red cat [SEP]", "a red dog and a red cat"),
        ("two dog ##s and two cat ##s [SEP]", "two dogs and two cats"),
        ("a picture of a dog [SEP]", "a dog"),
        ("[SEP]", ""),
    ],
)
def test_loops_and_openings_are_cut_and_counts_stay(wanted: str, said: str) -> None:
    assert caption(wanted) == said


@pytest.mark.parametrize(("most", "said"), [(1, "two"), (2, "two dogs"), (3, "two dogs"), (5, "two dogs and a cat")])
def test_a_caption_has_at_most_so_many_words(most: int, said: str) -> None:
    words = caption("two dog ##s and a cat on the sea [SEP]", max_words=most)
    assert len(words.split()) <= most
    assert words == said


def test_openings_do_not_count_as_words() -> None:
    assert caption("a picture of a dog on the sea [SEP]", max_words=5) == "a dog on the sea"


def test_a_caption_has_at_least_so_many_words_although_the_model_wants_to_end() -> None:
    assert len(caption("a dog [SEP]", min_words=6, max_words=8).split()) >= 6
    assert len(caption("a dog and a dog and", min_words=9, max_words=9).split()) == 9


def test_a_word_is_not_said_twice_in_a_row() -> None:
    assert "red red" not in caption("a red red dog [SEP]")


def test_one_batch_has_rows_with_limits_of_their_own_and_each_ends_by_itself() -> None:
    parrot = Parrot("a dog on the sea [SEP]", "a dog on the sea [SEP]", "two dog ##s [SEP]")
    guides = [SentenceGuide(VOCABULARY, 0, 2), SentenceGuide(VOCABULARY, 0, 30), SentenceGuide(VOCABULARY, 0, 30)]
    speak(parrot, [NOTHING] * 3, guides, VOCABULARY.begin_id)
    assert [guide.caption() for guide in guides] == ["a dog", "a dog on the sea", "two dogs"]
    assert len(parrot.newest) == 6, "it stops when the last row has ended"
    assert parrot.newest[0] == [VOCABULARY.begin_id] * 3
    assert parrot.rooms == [64], "room for the longest of them, not for each"


def test_there_is_an_end_where_the_positions_of_the_model_end() -> None:
    short = Vocabulary(
        tokens=VOCABULARY.tokens,
        size=VOCABULARY.size,
        begin_id=len(WORDS),
        end_id=3,
        special_ids=(0, 1, 2, 3),
        max_tokens=6,
    )
    guide = SentenceGuide(short, 0, 30)
    speak(Parrot("a dog on the sea and a cat"), [NOTHING], [guide], short.begin_id)
    assert guide.caption() == "a dog on the sea"


def test_what_is_told_is_said_and_the_scores_are_kept() -> None:
    parrot = Parrot("a dog [SEP]")
    told = ToldGuide([7, 8, 3])
    speak(parrot, [NOTHING], [told], VOCABULARY.begin_id)
    assert parrot.newest == [[19], [7], [8]]
    assert len(told.scores) == 3


def test_plain_takes_the_best_until_the_end() -> None:
    guide = PlainGuide(end_id=VOCABULARY.size - 1, limit=5)
    speak(Parrot("a dog"), [NOTHING], [guide], VOCABULARY.begin_id)
    assert guide.tokens == [VOCABULARY.size - 1]
