"""Search: the terms of a query become one vector, and storage-service ranks pictures by it and by the words.

The query vector is q = Σ wᵢ·uᵢ / ‖Σ wᵢ·uᵢ‖, where uᵢ is the unit vector of term i and wᵢ its weight; a negative weight
turns the query away from that term (Rocchio's formula, 1971, without its averages). Texts and pictures may be mixed in
`clip`, whose texts and pictures share one space. Texts of positive weight are also looked up as words. Colours are a
ranking of their own (`color_query.py`), and a query of colours alone asks no model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pixelgate_common.contracts.embed import Embedded, EmbedModel, EmbedTexts
from pixelgate_common.contracts.storage import Search, VectorQuery, VectorsWanted, WordQuery
from pixelgate_common.errors import FingerprintMismatch, InvalidRequest, PixelgateError, UpstreamProblem
from pixelgate_common.fetch import GuardedFetcher
from pixelgate_common.vectors import FloatVector, decode_vector, encode_vector

from gateway.clients.embed import EmbedClient
from gateway.clients.inner import BadAnswer
from gateway.clients.storage import StorageClient
from gateway.color_query import ColorQueries
from gateway.model_directory import ModelDirectory
from gateway.pictures import PictureTooLarge, from_base64
from gateway.problems import about, put_field, renamed, status_of
from gateway.query import Found, Page, Term
from gateway.settings import GatewaySettings

_MOST_PICTURES = 2
"""The pictures of one query have together at most this many times the bytes that one may have: all are in memory."""
_SHORTEST = 1e-4
"""A sum of unit vectors that is shorter than this has no direction to search in: its terms cancel each other out."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture file that came with the query, as one of its terms."""

    data: bytes
    weight: float
    by_palette: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What was found, and the picture that was searched by: a stored one's id, a file, or None."""

    found: Found
    picture: int | bytes | None = None


class Searcher:
    """Turns queries into vectors, and vectors into hits."""

    def __init__(
        self,
        settings: GatewaySettings,
        storage: StorageClient,
        embed: EmbedClient,
        models: ModelDirectory,
        fetcher: GuardedFetcher,
        colors: ColorQueries,
    ) -> None:
        """Embed with `embed`, search with `storage`; URLs are fetched by `fetcher` and nothing else."""
        self._settings, self._storage, self._embed = settings, storage, embed
        self._models, self._fetcher, self._colors = models, fetcher, colors

    async def search(self, terms: Sequence[Term], page: Page, upload: Upload | None = None) -> Found:
        """Return a page of pictures that fit the terms (and the uploaded picture), best first."""
        return (await self.find(terms, page, upload)).found

    async def find(self, terms: Sequence[Term], page: Page, upload: Upload | None = None) -> Result:
        """Return the same, and by which picture was searched, if by one."""
        if len(terms) > self._settings.max_terms:
            raise InvalidRequest(f"A search has at most {self._settings.max_terms} terms.", field="terms")
        shown = {place: term for place, term in enumerate(terms) if not term.is_color}
        by_palette = upload is not None and upload.by_palette
        colors = await self._colors.compose(
            {place: term for place, term in enumerate(terms) if term.is_color},
            page,
            (upload.data, upload.weight) if upload is not None and by_palette else None,
        )
        pictures = await self._pictures(shown)
        vectors, models = [], {}
        if shown or (upload is not None and not by_palette):
            model, vector = await self._vector(shown, page, pictures, None if by_palette else upload)
            vectors = [VectorQuery(space=page.space, fingerprint=model.fingerprint, vector=encode_vector(vector))]
            models = {page.space: model.fingerprint}
        words = " ".join(term.text for term in terms if term.text is not None and term.weight > 0)
        named = [image_id for term in terms for image_id in (term.image_id, term.palette_of) if image_id is not None]
        asked = Search(
            vectors=vectors,
            words=self._words(words),
            colors=colors,
            collapse=page.collapse,
            filter=page.filter,
            exclude_ids=[] if page.include_self else named,
            limit=page.limit,
            cursor=page.cursor,
        )
        with renamed({"words": "terms", "colors": "terms", "vectors": "terms"}):
            found = await self._storage.search(asked)
        told = Found(hits=found.hits, next_cursor=found.next_cursor, models=models)
        return Result(told, upload.data if upload is not None else _searched_by(terms, pictures))

    async def _vector(
        self, terms: Mapping[int, Term], page: Page, pictures: dict[int, bytes], upload: Upload | None
    ) -> tuple[EmbedModel, FloatVector]:
        try:
            return await self._compose(terms, page, pictures, upload)
        except PixelgateError as error:
            # embed-service was started again with another model since it was asked which one it has.
            if status_of(error) != 409:
                raise
            self._models.forget()
            return await self._compose(terms, page, pictures, upload)

    def _words(self, text: str) -> WordQuery | None:
        if not text or self._settings.words_weight == 0:
            return None
        return WordQuery(text=text[:2000], weight=self._settings.words_weight)

    async def _pictures(self, terms: Mapping[int, Term]) -> dict[int, bytes]:
        """Return the picture files of the terms that bring one, by the term's place."""

        async def read(place: int, term: Term) -> tuple[int, bytes] | None:
            if term.image is not None:
                limit = self._settings.max_upload_bytes
                return place, from_base64(term.image, field=f"terms.{place}.image", max_bytes=limit)
            if term.image_url is not None:
                with about(f"terms.{place}.image_url"):
                    return place, (await self._fetcher.fetch(term.image_url)).body
            return None

        found = await asyncio.gather(*(read(place, term) for place, term in terms.items()))
        pictures = dict(pair for pair in found if pair is not None)
        if sum(map(len, pictures.values())) > _MOST_PICTURES * self._settings.max_upload_bytes:
            raise PictureTooLarge(
                f"The pictures of one query may have {_MOST_PICTURES * self._settings.max_upload_mb} MB together.",
                field="terms",
            )
        return pictures

    async def _compose(
        self, terms: Mapping[int, Term], page: Page, pictures: dict[int, bytes], upload: Upload | None
    ) -> tuple[EmbedModel, FloatVector]:
        """Return the query vector, and the one model that all its parts come from."""
        model = await self._models.of_slot(page.space, field="space")
        for place, term in terms.items():
            if term.text is not None and "text" not in model.inputs:
                raise InvalidRequest(
                    f"{page.space} compares pictures only; a text can be searched for in clip.",
                    field=f"terms.{place}.text",
                )
        stored = await self._stored(terms, model)
        files = {f"terms.{place}": data for place, data in pictures.items()} | stored.files
        weights = {f"terms.{place}": term.weight for place, term in terms.items()}
        if upload is not None:
            files["image"] = upload.data
            weights["image"] = upload.weight
        texts = {f"terms.{place}": term.text for place, term in terms.items() if term.text is not None}
        vectors = dict(stored.vectors)
        by_text, by_picture = await asyncio.gather(self._of_texts(texts, model), self._of_pictures(files, model))
        vectors |= by_text | by_picture
        total = sum((weights[name] * vectors[name].astype(np.float64) for name in weights), np.zeros(model.dim))
        length = float(np.linalg.norm(total))
        if length < _SHORTEST:
            raise InvalidRequest("The terms cancel each other out: nothing is left to search for.", field="terms")
        return model, (total / length).astype(np.float32)

    async def _stored(self, terms: Mapping[int, Term], model: EmbedModel) -> _Stored:
        """Return the stored vectors of the terms that name a picture; the preview of one that has none yet."""
        places = {place: term.image_id for place, term in terms.items() if term.image_id is not None}
        found = _Stored()
        if not places:
            return found
        wanted = VectorsWanted(
            space=model.slot, image_ids=list(dict.fromkeys(places.values())), fingerprint=model.fingerprint
        )
        stored = (await self._storage.vectors(wanted)).vectors
        for place, image_id in places.items():
            if (text := stored.get(image_id)) is not None:
                found.vectors[f"terms.{place}"] = _unit(decode_vector(text), model)
                continue
            with about(f"terms.{place}.image_id"):
                found.files[f"terms.{place}"] = await self._storage.file(image_id, "preview")
        return found

    async def _of_texts(self, texts: dict[str, str], model: EmbedModel) -> dict[str, FloatVector]:
        if not texts:
            return {}
        asked = EmbedTexts(texts=list(texts.values()), slot=model.slot, fingerprint=model.fingerprint)
        return unpack([f"{name}.text" for name in texts], list(texts), await self._embed.texts(asked), model)

    async def _of_pictures(self, files: dict[str, bytes], model: EmbedModel) -> dict[str, FloatVector]:
        if not files:
            return {}
        answer = await self._embed.images(
            list(files.values()), slot=model.slot, fingerprint=model.fingerprint, priority="interactive"
        )
        return unpack(list(files), list(files), answer, model)


def _searched_by(terms: Sequence[Term], pictures: Mapping[int, bytes]) -> int | bytes | None:
    """Return the first picture that is asked for: pictures unlike it are not asked for by it."""
    for place, term in enumerate(terms):
        if term.weight > 0:
            if place in pictures:
                return pictures[place]
            if (image_id := term.image_id or term.palette_of) is not None:
                return image_id
    return None


@dataclass(frozen=True, slots=True)
class _Stored:
    """What storage has of the pictures that a query names: vectors, or else files, by the term's name."""

    vectors: dict[str, FloatVector] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def unpack(fields: Sequence[str], names: Sequence[str], answer: Embedded, model: EmbedModel) -> dict[str, FloatVector]:
    """Return the answer's vectors by name, each of unit length; raises the first item's problem about its field."""
    if answer.fingerprint != model.fingerprint:
        raise FingerprintMismatch(f"The model changed from {model.fingerprint} to {answer.fingerprint} meanwhile.")
    if len(answer.items) != len(names):
        raise BadAnswer("embed-service answered with another number of vectors than was asked for.")
    vectors = {}
    for about_field, name, item in zip(fields, names, answer.items, strict=True):
        if item.vector is None:
            if item.problem is None:
                raise BadAnswer("embed-service answered with neither a vector nor a problem.")
            error = UpstreamProblem(item.problem, retry_after_s=2.0 if item.problem.status >= 500 else None)
            put_field(error, about_field)
            raise error
        vectors[name] = _unit(decode_vector(item.vector), model)
    return vectors


def _unit(vector: FloatVector, model: EmbedModel) -> FloatVector:
    length = float(np.linalg.norm(vector))
    if vector.shape != (model.dim,) or length == 0:
        raise BadAnswer(f"A vector of {model.slot} has not the {model.dim} dimensions that the model says.")
    return vector / np.float32(length)
