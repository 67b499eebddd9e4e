"""Greedy speaking, many pictures at a time: the model gives scores, a guide for each picture picks its next token.

A guide keeps one sentence within its limits of words, out of loops, and free of what is no word. It knows nothing of
the network; the network knows nothing of words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from caption_service import sentences
from caption_service.pixels import Pixels
from caption_service.vocabulary import Vocabulary

TokenIds = npt.NDArray[np.int64]
FloatMatrix = npt.NDArray[np.float32]
Step = Callable[[TokenIds], FloatMatrix]
"""The newest token of each row, (n,), to the scores of the next, (n, vocabulary)."""

#: Raise when the same scores become other tokens: it is part of every model's fingerprint.
VERSION = 1
MASKED = -1e4
"""What is added to the scores of what may not be looked at: far below any, and still a number in every precision."""
_ROOM_STEP = 32  # few different shapes, for each of which OpenVINO prepares itself once
_TRIES = 16


class Runner(Protocol):
    """Computes what BLIP sees and says. Batches above `good_batch` are slower and hardly more efficient."""

    good_batch: int

    def look(self, pixels: Sequence[Pixels], room: int) -> AbstractContextManager[Step]:
        """Look at pictures and give a step that speaks about them, good for `room` calls within the block."""


class Guide(Protocol):
    """Picks one picture's tokens."""

    limit: int
    """How many tokens it takes at most."""

    def pick(self, scores: npt.NDArray[np.float32]) -> int | None:
        """Return the next token given its scores (vocabulary,), which may be changed; None: the sentence has ended."""


def speak(runner: Runner, pixels: Sequence[Pixels], guides: Sequence[Guide], begin_id: int) -> None:
    """Let each guide pick its picture's tokens until the last one has ended."""
    room = -(-max(guide.limit for guide in guides) // _ROOM_STEP) * _ROOM_STEP
    newest = np.full(len(pixels), begin_id, dtype=np.int64)
    going = set(range(len(pixels)))
    with runner.look(pixels, room) as step:
        while going:
            scores = step(newest)
            for row in sorted(going):
                token = guides[row].pick(scores[row])
                if token is None:
                    going.discard(row)
                else:
                    newest[row] = token


class PlainGuide:
    """Takes the best token until the end comes: what transformers' generate() does."""

    def __init__(self, end_id: int, limit: int) -> None:
        """Take at most `limit` tokens."""
        self.limit, self._end_id = limit, end_id
        self.tokens: list[int] = []

    def pick(self, scores: npt.NDArray[np.float32]) -> int | None:
        """See `Guide`."""
        token = int(scores.argmax())
        self.tokens.append(token)
        return None if token == self._end_id or len(self.tokens) == self.limit else token


class ToldGuide:
    """Says tokens that are given, and keeps the scores that the model had for each."""

    def __init__(self, tokens: Sequence[int]) -> None:
        """Say `tokens`, at least one."""
        self.limit, self._tokens = len(tokens), list(tokens)
        self.scores: list[npt.NDArray[np.float32]] = []

    def pick(self, scores: npt.NDArray[np.float32]) -> int | None:
        """See `Guide`."""
        self.scores.append(scores.copy())
        done = len(self.scores)
        return None if done == self.limit else self._tokens[done - 1]


class SentenceGuide:
    """One caption of `min_words` to `max_words` words, which does not say the same thing over and over."""

    def __init__(self, vocabulary: Vocabulary, min_words: int, max_words: int) -> None:
        """Begin a caption."""
        self._vocabulary, self._min_words, self._max_words = vocabulary, min_words, max_words
        # Twice as many pieces as words is more than any caption has; with positions for more it would be a loop.
        self.limit = min(vocabulary.max_tokens, 2 * max_words + 8)
        self._tokens: list[int] = []
        self._looped = 0
        self._ended = False

    def caption(self) -> str:
        """Return the caption so far, "" when there is none."""
        words = self._words()
        if self._looped:
            words = words[: len(words) - self._looped]
        return sentences.finish(words, cut=not self._ended, min_words=self._min_words)

    def pick(self, scores: npt.NDArray[np.float32]) -> int | None:
        """See `Guide`."""
        scores[self._silent] = -np.inf
        words = self._words()
        said = len(sentences.tidy(words).split())
        if len(self._tokens) >= self.limit - 1:
            return None
        for _ in range(_TRIES):
            token = int(scores.argmax())
            if token == self._vocabulary.end_id:
                if said >= self._min_words:
                    self._ended = True
                    return None
            elif self._vocabulary.continues(token) and words:
                return self._take(token)
            else:
                if said >= self._max_words:
                    return None
                loop = sentences.loop_length([*words, self._vocabulary.tokens[token]])
                if not loop:
                    return self._take(token)
                if loop > 1 and said >= self._min_words:
                    self._looped = loop - 1
                    return None
            scores[token] = -np.inf
        return None

    @property
    def _silent(self) -> list[int]:
        return list(self._vocabulary.silent_ids)

    def _take(self, token: int) -> int:
        self._tokens.append(token)
        return token

    def _words(self) -> list[str]:
        return sentences.join(self._vocabulary.tokens[token] for token in self._tokens)
