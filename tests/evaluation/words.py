"""Search by words that stand in captions and objects: the ranking by words must know every picture that has them."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

from tests.evaluation.figures import Figure
from tests.evaluation.library import Library

LIMIT = 200
CASES = 20
_GRAMMAR = {
    "and",
    "with",
    "the",
    "left",
    "right",
    "above",
    "below",
    "front",
    "background",
    "one",
    "two",
    "three",
    "four",
}
"""What captions say of any picture; English search leaves such words out."""


def found_by_words(library: Library, cases: int = CASES, aim: float | None = 0.99) -> list[Figure]:
    """Measure the share of pictures with a word that a search for it finds by the word, for objects and captions."""
    labels: dict[str, set[int]] = {}
    words: dict[str, set[int]] = {}
    for image_id, record in library.records.items():
        for label in {found["label"] for found in record["objects"]}:
            labels.setdefault(label, set()).add(image_id)
        for word in set(re.findall(r"[a-z]{3,}", (record["caption"] or "").lower())) - _GRAMMAR:
            words.setdefault(word, set()).add(image_id)
    for label in labels:  # what finds pictures by a caption's word must not be the objects' label
        for part in label.split():
            words.pop(part, None)
    return [
        _figure(library, "an object's label finds its pictures", labels, cases, aim),
        _figure(library, "a caption's word finds its pictures", words, cases, aim),
    ]


def _figure(library: Library, name: str, having: dict[str, set[int]], cases: int, aim: float | None) -> Figure:
    # A word of half of all pictures finds more than one answer holds.
    usable = sorted(word for word, ids in having.items() if len(ids) <= LIMIT // 4)
    chosen = Random(name).sample(usable, min(cases, len(usable)))
    found, wanted, missed = 0, 0, Counter[str]()
    for word in chosen:
        hits = library.search(terms=[{"text": word}], limit=LIMIT)
        by_word = {hit["image"]["id"] for hit in hits if hit["parts"]["words"] is not None}
        found, wanted = found + len(by_word & having[word]), wanted + len(having[word])
        missed[word] += len(having[word] - by_word)
    note = ", ".join(f"{word}: {count} missed" for word, count in missed.most_common(3) if count)
    return Figure(name, found / wanted if wanted else 0.0, aim, wanted, note)
