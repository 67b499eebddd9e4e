"""Word pieces to a sentence that a person would have written: the one place that knows what BLIP says beside it.

Everything here is text to text, and small: it also runs after every token, to count words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from caption_service.vocabulary import CONTINUES

#: Raise when the same tokens become another sentence: it is part of every model's fingerprint.
VERSION = 1

# Openings that say nothing about the picture. Each is removed wherever a sentence begins with it, one after another:
# "this is a picture of a dog" is a dog.
_LEADS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:(?:this|that|the|an|a) )?(?:image|picture|photo|photograph|pic) "
        r"(?:is )?(?:of|shows|showing|depicts|depicting|features|featuring|contains|containing|with)(?: |$)",
        r"(?:this|that|it|here|there)(?: is|'s| are| shows| depicts)(?: |$)",
        r"(?:we|you|i)(?: can)? see(?: |$)",
        r"(?:image|picture|photo|photograph):? (?=an? |the |one |two |three |four |five )",
    )
)
# BLIP large was trained on captions with this non-word in place of an article ("araffe", "arafed", "araffy" …).
_ARTICLE_ARTEFACT = re.compile(r"(^|\ban? )\baraf\w*\b")
_OTHER_ARTEFACT = re.compile(r" ?\baraf\w*\b")
# A caption that was cut must not end in one of these.
_DANGLING = re.compile(
    "a|an|the|and|or|of|on|in|at|to|for|by|from|with|without|near|under|over|behind|above|below|beside|between|into|onto|"
    "is|are|was|were|has|have|its|his|her|their|that|this|which|while|two|one|no"
)
_LOOSE_END = " ,.;:-–'/&("
_PUNCTUATION = ",.;:!?-–'\"()/&"

_SPACE_BEFORE = re.compile(r" +([,.;:!?%)])")
_SPACE_AFTER = re.compile(r"([(]) +")
_APOSTROPHE = re.compile(r" ?' ?(s|t|re|ve|ll|d|m)\b")
_HYPHEN = re.compile(r"(?<=\w) ?- ?(?=\w)")
_QUOTED = re.compile(r'" ?([^"]*?) ?"')
_SPACES = re.compile(r"\s+")


def join(pieces: Iterable[str]) -> list[str]:
    """Return the words that word pieces make, punctuation as words of its own."""
    words: list[str] = []
    for piece in pieces:
        if piece.startswith(CONTINUES) and words:
            words[-1] += piece.removeprefix(CONTINUES)
        else:
            words.append(piece.removeprefix(CONTINUES))
    return words


def tidy(words: Sequence[str]) -> str:
    """Return `words` as text: spaces where they belong, no opening that says nothing, no artefact of the training."""
    text = _SPACES.sub(" ", " ".join(words)).strip()
    for pattern, replacement in (
        (_SPACE_BEFORE, r"\1"),
        (_SPACE_AFTER, r"\1"),
        (_APOSTROPHE, r"'\1"),
        (_HYPHEN, "-"),
        (_QUOTED, r'"\1"'),
        (_ARTICLE_ARTEFACT, "a"),
        (_OTHER_ARTEFACT, ""),
    ):
        text = pattern.sub(replacement, text)
    text = text.lstrip(" " + _PUNCTUATION.replace('"', "").replace("(", ""))
    return _without_lead(text)


def finish(words: Sequence[str], *, cut: bool, min_words: int = 0) -> str:
    """Return the sentence that `words` make, "" when nothing is left of them.

    `cut`: the model had not come to an end, so that articles and the like may be left over, which are taken away as
    long as `min_words` remain.
    """
    text = tidy(words).rstrip(_LOOSE_END)
    kept = text.split()
    while cut and len(kept) > min_words and kept and _DANGLING.fullmatch(kept[-1].strip(_PUNCTUATION)):
        kept.pop()
        while kept and not kept[-1].strip(_PUNCTUATION):
            kept.pop()
    if kept:  # else it was cut after its first words, and those are better than none
        text = " ".join(kept).rstrip(_LOOSE_END)
    return text if re.search(r"\w", text) else ""


def loop_length(words: Sequence[str]) -> int:
    """Return how many words are said twice in a row at the end of `words`, 0 when none are; the shortest such loop."""
    for length in range(1, len(words) // 2 + 1):
        if words[-length:] == words[-2 * length : -length]:
            return length
    return 0


def _without_lead(text: str) -> str:
    while True:
        for lead in _LEADS:
            found = lead.match(text)
            if found is not None and found.end() > 0:
                text = text[found.end() :].lstrip(" ,:")
                break
        else:
            return text
