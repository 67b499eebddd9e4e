"""Full text: what a person types, as a tsquery that can match and can never be a syntax error.

Every word must match: as the beginning of a word, whole words by their English stem or in the other number (`plurals`),
with its punctuation (`example.com`) or in its parts (`IMG_2034.jpg`). Words that English sentences are full of ("the",
"on") are passed over unless there is nothing else. "Words in quotes" must stand one after the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pixelgate_common.errors import InvalidRequest
from psycopg import sql

from storage_service.database import Connection
from storage_service.filters_sql import Parameters
from storage_service.plurals import other_numbers

_PIECES = re.compile(r'"([^"]*)"|([^\s"]+)')
_PARTS = re.compile(r"[^\W_]+")
_ONE_PREFIX = re.compile(r"'(\w+)':\*")
_ONE_LEXEME = re.compile(r"'(\w+)'")
NORMALIZATION = 1 | 32
"""ts_rank_cd's own bits: divided by 1 + log(length), then rank / (rank + 1), so that ranks lie in [0, 1)."""


@dataclass(frozen=True, slots=True)
class Word:
    """One piece of a query: the text, and whether it stood in quotes."""

    text: str
    phrase: bool


def split_words(text: str, max_words: int) -> list[Word]:
    """Return the words and phrases of `text`; InvalidRequest when they are more than `max_words`.

    What has no letter or digit in it is left out, as is a quotation mark without its partner.
    """
    words = []
    for match in _PIECES.finditer(text):
        phrase = match[1] is not None
        piece = match[1] if phrase else match[2]
        if _PARTS.search(piece):
            words.append(Word(piece, phrase and len(_PARTS.findall(piece)) > 1))
    if sum(len(word.text.split()) for word in words) > max_words:
        raise InvalidRequest(f"A search may have at most {max_words} words.", field="words.text")
    return words


async def compile_words(conn: Connection, text: str, max_words: int) -> str | None:
    """Return `text` as a tsquery's text, or None when there is nothing in it to search for."""
    words = split_words(text, max_words)
    if not words:
        return None
    rows = await conn.execute(
        "SELECT CASE WHEN phrase THEN phraseto_tsquery('simple', word) ELSE to_tsquery('simple', whole) END::text,"
        " CASE WHEN phrase THEN '' ELSE to_tsquery('simple', parts)::text END,"
        " CASE WHEN phrase THEN phraseto_tsquery('english', word) ELSE plainto_tsquery('english', word) END::text"
        ", to_tsquery('simple', number)::text"
        " FROM unnest(%s::text[], %s::bool[], %s::text[], %s::text[], %s::text[]) WITH ORDINALITY"
        " AS given (word, phrase, whole, parts, number, place) ORDER BY place",
        (
            [word.text for word in words],
            [word.phrase for word in words],
            [_prefix(word.text) for word in words],
            [" & ".join(_prefix(part) for part in _PARTS.findall(word.text)) for word in words],
            [" | ".join(f"'{form}'" for form in other_numbers(word.text) if not word.phrase) for word in words],
        ),
    )
    compiled = [
        (_alternatives(whole, parts, stem, number), not stem) for whole, parts, stem, number in await rows.fetchall()
    ]
    telling = [query for query, stop in compiled if query and not stop] or [query for query, _ in compiled if query]
    return " & ".join(f"({query})" for query in telling) or None


def _alternatives(whole: str, parts: str, stem: str, number: str) -> str:
    """Return what is left of the four when none says what another says: each one more makes ranking slower."""
    found = [query for query in dict.fromkeys((whole, parts)) if query]
    prefix = _ONE_PREFIX.fullmatch(whole)
    lexeme = _ONE_LEXEME.fullmatch(stem)
    if stem and not (prefix and lexeme and lexeme[1].startswith(prefix[1])):
        found.append(stem)
    if number and number != stem:
        found.append(number)
    return " | ".join(f"({query})" if "&" in query else query for query in found)


def _prefix(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}':*"


async def rank_by_words(
    conn: Connection, query: str, where: sql.Composable, parameters: Parameters, limit: int, max_ranked: int
) -> list[tuple[int, float]]:
    """Return at most `limit` (image id, rank) of the pictures `i` that fit `where` and match `query`, the best first.

    Equal ranks by id. The values of `where` stand in `parameters`. Of a word that very many pictures have, only the
    newest `max_ranked` are ranked: a rank takes 3–10 µs, which would be half a second at 100,000.
    """
    parameters = Parameters(parameters)
    tsquery = sql.SQL("{}::tsquery").format(parameters.add(query))
    statement = sql.SQL(
        "SELECT found.id, ts_rank_cd(found.search, {query}, {normalization}) AS rank FROM"
        " (SELECT i.id, i.search FROM images i WHERE i.search @@ {query} AND {where} ORDER BY i.seq DESC LIMIT {most})"
        " AS found ORDER BY rank DESC, found.id LIMIT {limit}"
    ).format(
        query=tsquery,
        normalization=sql.Literal(NORMALIZATION),
        where=where,
        most=parameters.add(max_ranked),
        limit=parameters.add(limit),
    )
    return [(row[0], row[1]) for row in await (await conn.execute(statement, parameters, prepare=False)).fetchall()]
