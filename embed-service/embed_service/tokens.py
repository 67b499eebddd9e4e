"""Texts to token ids, without torch: open_clip's tokenizers in the form of the `tokenizers` library.

The light form is written when a model is converted, compared there with open_clip's own on `PROBES`, and used only if
it gave the same ids.
"""

from __future__ import annotations

import html
import string
from collections.abc import Callable

import ftfy
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from embed_service.artifacts import Artifact, Clean, TextFacts

TokenIds = npt.NDArray[np.int64]
Tokenize = Callable[[list[str]], TokenIds]

_STEP = 8  # lengths are rounded up to this: each new length costs the graph's runtime some planning

PROBES = [
    "a photograph of two cats and a red bus",
    "A  Photo\tof THE “Eiffel Tower” at night, 1987!",
    "naïve café — 東京の夜 — Москва",
    "emoji 🦊🚲 and entities &lt;b&gt; &amp;amp; it's they're we'll",
    "under_scores, hy-phens & sÃ¼Ã\x9f broken encoding",
    "word " * 300,
    "?",
]


def cleaner(kind: Clean) -> Callable[[str], str]:
    """Return what open_clip does to a text before it is tokenized, by its own name for it."""

    def basic(text: str) -> str:
        return html.unescape(html.unescape(ftfy.fix_text(text))).strip()

    def whitespace(text: str) -> str:
        return " ".join(basic(text).split())

    def lower(text: str) -> str:
        return whitespace(text).lower()

    def canonicalize(text: str) -> str:
        kept = basic(text).replace("_", " ").translate(_NO_PUNCTUATION).lower()
        return " ".join(kept.split())

    return {"whitespace": whitespace, "lower": lower, "canonicalize": canonicalize}[kind]


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class LightTokenizer:
    """Gives token ids (n, context), padded and cut as the model needs them."""

    def __init__(self, tokenizer: Tokenizer, clean: Clean, context: int) -> None:
        """Use `tokenizer`, which pads and cuts to `context` by itself, after cleaning texts by `clean`."""
        self._tokenizer, self._clean, self._context = tokenizer, cleaner(clean), context

    def __call__(self, texts: list[str]) -> TokenIds:
        """Return the ids of `texts`."""
        encoded = self._tokenizer.encode_batch([self._clean(text) for text in texts])
        ids = np.array([one.ids for one in encoded], dtype=np.int64)
        if ids.shape != (len(texts), self._context):
            raise ValueError(f"the tokenizer gave ids of shape {ids.shape}")
        return ids


def load_tokenizer(artifact: Artifact, facts: TextFacts, load_open_clips: Callable[[], Tokenize]) -> Tokenize:
    """Return the light tokenizer of `artifact`, or what `load_open_clips` loads where there is none."""
    if not facts.light:
        return load_open_clips()
    return LightTokenizer(Tokenizer.from_file(str(artifact.tokenizer)), facts.clean, facts.context)


def trim(ids: TokenIds, facts: TextFacts) -> list[TokenIds]:
    """Return each row of `ids` cut after its end token (rounded up), where the model allows it."""
    if not facts.trims:
        return list(ids)
    ends = ids.argmax(axis=1) if facts.end_id is None else (ids == facts.end_id).argmax(axis=1)
    return [row[: min(facts.context, -(-(int(end) + 1) // _STEP) * _STEP)] for row, end in zip(ids, ends, strict=True)]


def same_length(rows: list[TokenIds]) -> TokenIds:
    """Return rows of different lengths as one array, filled with 0 behind their end, where nothing is read."""
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return ids
