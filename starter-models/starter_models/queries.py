"""Queries with known answers, made from scenes: what search is measured with, by words and by picture."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image

from starter_models.captions import Facts, describe, label_query
from starter_models.labels import LABELS


@dataclass(frozen=True)
class Query:
    """A text and the positions, within the scenes it was made for, of all right answers."""

    text: str
    answers: tuple[int, ...]


def scene_query(facts: Facts, seed: int) -> str:
    """Describe one scene as a whole: every object, and the background's colour and mostly its kind."""
    return describe(facts, _seeded(f"query {seed}"), background=True).text


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


def altered_picture(picture: Image.Image, seed: int) -> bytes:
    """Return a JPEG of what somebody made of a picture: cut, turned by 10° either way, encoded again.

    The cut removes 10 to 25 % of the area, spread over the four sides by chance; the turned picture keeps its size and
    gets black corners; the JPEG quality is 40 to 75.
    """
    rng = _seeded(f"alteration {seed}")
    kept = rng.uniform(0.75, 0.90)
    width = kept ** rng.uniform(0.3, 0.7)
    height = kept / width
    left, top = rng.uniform(0, 1 - width) * picture.width, rng.uniform(0, 1 - height) * picture.height
    cut = picture.crop(
        (round(left), round(top), round(left + width * picture.width), round(top + height * picture.height))
    )
    turned = cut.rotate(rng.choice((-10, 10)), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", quality=rng.randint(40, 75))
    return buffer.getvalue()


def _seeded(what: str) -> Random:
    digest = hashlib.blake2b(f"pixelgate {what}".encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))
