"""The tokens of a model's own tokenizer, as far as speaking needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

CONTINUES = "##"
"""How a word piece begins that goes on with the word before it."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens by number; `size` is the number of scores, which may be larger than the number of tokens.

    A sentence begins with `begin_id`, ends with `end_id` and has at most `max_tokens`; `special_ids` are no words.
    """

    tokens: tuple[str, ...]
    size: int
    begin_id: int
    end_id: int
    special_ids: tuple[int, ...]
    max_tokens: int

    @cached_property
    def silent_ids(self) -> tuple[int, ...]:
        """Return what must never be said: special tokens except the end, and scores that stand for no token."""
        special = {number for number in self.special_ids if number != self.end_id}
        return (*sorted(number for number in special if number < self.size), *range(len(self.tokens), self.size))

    def continues(self, number: int) -> bool:
        """Whether a token goes on with the word before it."""
        return self.tokens[number].startswith(CONTINUES)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave."""
        return cls(**{**fields, "tokens": tuple(fields["tokens"]), "special_ids": tuple(fields["special_ids"])})
