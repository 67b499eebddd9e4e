"""What is in a scene, and sentences that say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from starter_models.backgrounds import Background
from starter_models.labels import BACKGROUND_KINDS, BY_NAME, LABEL_INDEX

Box = tuple[int, int, int, int]
_COUNTS = ("no", "one", "two", "three", "four", "five")
_OPENINGS = ("", "", "", "", "a picture of ", "a photo of ", "an image of ", "a scene with ", "this is ", "show me ")
#: How far apart two centres must be, as a part of the picture's side, to be called left/right or above/below.
RELATION_GAP = 0.18


@dataclass(frozen=True)
class Thing:
    """One object of a scene: its label, the colour it is painted in (None: its natural one), its box in pixels.

    The box is (left, top, right, bottom) of what is visible; right and bottom are exclusive.
    """

    label: str
    colour: str | None
    box: Box

    def centre(self) -> tuple[float, float]:
        """Return the middle of the box, in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Facts:
    """All that can be said of a scene: its size in pixels, its things from back to front, its background."""

    width: int
    height: int
    things: tuple[Thing, ...]
    background: Background


@dataclass(frozen=True)
class Caption:
    """A sentence and what it demands of a picture.

    Attributes:
        text: lower-case English.
        needs: for each label, and each (label, colour) that is named, how many there must be at least.
        colour: the background's colour when the sentence names it.
        kind: the background's kind when the sentence names it.
        exact: the sentence says where things are, so that only its own scene is sure to fit.
    """

    text: str
    needs: Counter[str | tuple[str, str]] = field(default_factory=Counter)
    colour: str | None = None
    kind: str | None = None
    exact: bool = False

    def fits(self, facts: Facts) -> bool:
        """Say whether a scene has all that the sentence demands; places are not looked at."""
        have = count_things(facts.things)
        return (
            all(have[need] >= count for need, count in self.needs.items())
            and self.colour in (None, facts.background.colour)
            and self.kind in (None, facts.background.kind)
        )


def count_things(things: Sequence[Thing]) -> Counter[str | tuple[str, str]]:
    """Count labels, and (label, colour) pairs of painted things."""
    counts: Counter[str | tuple[str, str]] = Counter(thing.label for thing in things)
    counts.update((thing.label, thing.colour) for thing in things if thing.colour)
    return counts


def describe(facts: Facts, rng: Random, *, background: bool | None = None, places: bool | None = None) -> Caption:
    """Name every thing of a scene, and nothing else.

    Args:
        facts: the scene.
        rng: settles the order and choice of words.
        background: whether to tell the background; None leaves it to chance (three in four).
        places: whether to tell where two of the things are; None leaves it to chance (one in four, if there are two).
    """
    things = list(facts.things)
    rng.shuffle(things)
    told_background = rng.random() < 0.75 if background is None else background
    told_places = rng.random() < 0.25 if places is None else places
    relation = _relation(facts, things, rng) if told_places else None
    if relation is None:
        text, needs = _list(things, rng)
    else:
        text, needs = relation
    return _finish(text, needs, facts, rng, told_background, exact=relation is not None)


def canonical(facts: Facts) -> str:
    """Name every thing of a scene and its background in the one way that the caption slot learns.

    Things are grouped by label and colour and come in the labels' order, each in its usual word; where they are is
    not told, so that the sentence stays true of the mirrored scene.
    """
    groups = Counter((LABEL_INDEX[thing.label], thing.label, thing.colour or "") for thing in facts.things)
    phrases = []
    for (_, label, colour), count in sorted(groups.items()):
        singular, plural = BY_NAME[label].words[0]
        paint = f"{colour} " if colour else ""
        phrases.append(f"{_COUNTS[count]} {paint}{plural}" if count > 1 else _with_article(f"{paint}{singular}"))
    ground = f"{BACKGROUND_KINDS[facts.background.kind][0]} {facts.background.colour} background"
    return f"{_joined(phrases)} on {_with_article(ground)}"


def describe_part(facts: Facts, rng: Random) -> Caption:
    """Name some of a scene's things, or only its background: a query that a user might type."""
    things = list(facts.things)
    rng.shuffle(things)
    if rng.random() < 0.06:
        return _finish("", Counter(), facts, rng, True, exact=False)
    text, needs = _list(things[: rng.randint(1, len(things))], rng)
    return _finish(text, needs, facts, rng, rng.random() < 0.4, exact=False)


def label_query(label: str, rng: Random | None = None) -> Caption:
    """Ask for one label: "a dog"; with ``rng``, in varied words."""
    singular, plural = BY_NAME[label].words[0] if rng is None else _words(label, rng)
    text = _with_article(singular)
    if rng is not None:
        text = rng.choice(_OPENINGS) + rng.choice((text, text, text, singular, plural))
    return Caption(text, Counter({label: 1}))


def _finish(
    text: str, needs: Counter[str | tuple[str, str]], facts: Facts, rng: Random, background: bool, *, exact: bool
) -> Caption:
    """Put an opening before and the background after a list of things."""
    colour = kind = None
    opening = rng.choice(_OPENINGS) if text else ""
    if background:
        colour = facts.background.colour
        kind = facts.background.kind if rng.random() < 0.7 else None
        ground = f"{colour} background"
        if kind is not None:
            ground = f"{rng.choice(BACKGROUND_KINDS[kind])} {ground}"
        ground = _with_article(ground)
        text = f"{text} {rng.choice(('on', 'on', 'on', 'in front of', 'against'))} {ground}" if text else ground
    return Caption(opening + text, needs, colour, kind, exact)


def _list(things: Sequence[Thing], rng: Random) -> tuple[str, Counter[str | tuple[str, str]]]:
    """Group things of one label (and colour, when told) and join them: "two dogs and a red bus"."""
    told_colours = rng.random() < 0.7
    groups: Counter[tuple[str, str | None]] = Counter()
    for thing in things:
        groups[thing.label, thing.colour if told_colours else None] += 1
    needs: Counter[str | tuple[str, str]] = Counter()
    phrases = []
    for (label, colour), count in groups.items():
        needs[label] += count
        if colour is not None:
            needs[label, colour] += count
        singular, plural = _words(label, rng)
        paint = f"{colour} " if colour else ""
        if count > 1:
            phrases.append(f"{_COUNTS[count]} {paint}{plural}")
        elif rng.random() < 0.12:
            phrases.append(f"one {paint}{singular}")
        else:
            phrases.append(_with_article(f"{paint}{singular}"))
    return _joined(phrases), needs


def _joined(phrases: list[str]) -> str:
    """Put commas and an "and" between phrases."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _relation(facts: Facts, things: list[Thing], rng: Random) -> tuple[str, Counter[str | tuple[str, str]]] | None:
    """Say where one thing is from another, each the only one of its label, then list the rest; None if none fits."""
    counts = count_things(things)
    single = [thing for thing in things if counts[thing.label] == 1]
    if len(single) < 2:
        return None
    first, second = single[:2]
    word = relation_word(facts, first, second)
    if word is None:
        return None
    rest = [thing for thing in things if thing is not first and thing is not second]
    text_first, needs = _list([first], rng)
    text_second, more = _list([second], rng)
    text = f"{text_first} {word} {text_second}"
    needs.update(more)
    if rest:
        text_rest, more = _list(rest, rng)
        needs.update(more)
        text = f"{text}, {text_rest}" if " and " in text_rest else f"{text} and {text_rest}"
    return text, needs


def relation_word(facts: Facts, first: Thing, second: Thing) -> str | None:
    """Return the words for where ``first`` is as seen from ``second``; None when it is not clear."""
    (x1, y1), (x2, y2) = first.centre(), second.centre()
    across, down = (x1 - x2) / facts.width, (y1 - y2) / facts.height
    if max(abs(across), abs(down)) < RELATION_GAP or abs(abs(across) - abs(down)) < 0.08:
        return None
    if abs(across) > abs(down):
        return "to the left of" if across < 0 else "to the right of"
    return "above" if down < 0 else "below"


def _words(label: str, rng: Random) -> tuple[str, str]:
    """Choose (singular, plural); the usual word three times in four."""
    words = BY_NAME[label].words
    return words[0] if len(words) == 1 or rng.random() < 0.75 else rng.choice(words[1:])


def _with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase; skis and scissors come in pairs, broccoli in pieces, sheep alone."""
    if phrase.endswith(("skis", "scissors")):
        return f"a pair of {phrase}"
    return f"{'an' if phrase[0] in 'aeio' or phrase.startswith('umbrella') else 'a'} {phrase}"
