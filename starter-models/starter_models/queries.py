"""Queries with known answers, made from the truth of scenes: what search is measured with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from starter_models.captions import Facts, describe, label_query
from starter_models.labels import LABELS


@dataclass(frozen=True)
class Query:
    """A text and the positions, within the scenes it was made for, of all right answers."""

    text: str
    answers: tuple[int, ...]


def scene_query(facts: Facts, seed: int) -> str:
    """Describe one scene as a whole: every object, and the background's colour and mostly its kind."""
    digest = hashlib.blake2b(f"pixelgate query {seed}".encode(), digest_size=8).digest()
    return describe(facts, Random(int.from_bytes(digest, "big")), background=True).text


def scene_queries(scenes: Sequence[Facts]) -> list[Query]:
    """Return one query for each scene; its only answer is that scene (recall@10 is measured with these)."""
    return [Query(scene_query(facts, place), (place,)) for place, facts in enumerate(scenes)]


def label_queries(scenes: Sequence[Facts], min_answers: int = 10) -> list[Query]:
    """Return "a dog" for each label that at least ``min_answers`` scenes contain; they all are right answers."""
    queries = []
    for label in LABELS:
        answers = tuple(
            place for place, facts in enumerate(scenes) if any(thing.label == label.name for thing in facts.things)
        )
        if len(answers) >= min_answers:
            queries.append(Query(label_query(label.name).text, answers))
    return queries
