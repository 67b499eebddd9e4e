"""The other number of an English noun where its stem does not tell: bus and buses, knife and knives, person and people.

Postgres' English stemmer makes "dogs" of "dog" and "benches" of "bench", and takes these for different words.
"""

from __future__ import annotations

_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "goose": "geese",
    "foot": "feet", "tooth": "teeth", "ox": "oxen", "die": "dice", "fireman": "firemen", "policeman": "policemen",
    "snowman": "snowmen", "cactus": "cacti", "octopus": "octopuses",
}  # fmt: skip
_SINGULAR = {plural: singular for singular, plural in _IRREGULAR.items()}
_LEAVES = {
    one: f"{one.removesuffix('e').removesuffix('f')}ves"
    for one in ("calf", "elf", "half", "hoof", "knife", "leaf", "life", "loaf", "scarf", "shelf", "thief", "wharf",
                "wife", "wolf", "bookshelf")
}  # fmt: skip
_LEAF = {plural: singular for singular, plural in _LEAVES.items()}


def other_numbers(word: str) -> list[str]:
    """Return the singular or plural of `word` (any case) as far as its stem would not find it; often nothing."""
    word = word.lower()
    found = [table[word] for table in (_IRREGULAR, _SINGULAR, _LEAVES, _LEAF) if word in table]
    if not found and len(word) > 4 and word.endswith("ses") and word[-4] in "aiou":
        found.append(word[:-2])  # buses, gases, irises; "houses" keeps its stem, so that nothing is lost by "hous"
    return found
