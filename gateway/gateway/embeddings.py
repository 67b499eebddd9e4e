"""Embeddings in the shape of OpenAI's API, of texts and of pictures (data URIs and http(s) URLs)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pixelgate_common.contracts.embed import MAX_IMAGES, MAX_TEXT_CHARS, MAX_TEXTS, EmbedModel, EmbedTexts
from pixelgate_common.errors import InvalidRequest, PixelgateError
from pixelgate_common.fetch import GuardedFetcher
from pixelgate_common.vectors import FloatVector, encode_vector
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gateway.clients.embed import EmbedClient
from gateway.model_directory import ModelDirectory
from gateway.pictures import PictureTooLarge, from_base64, is_data_uri
from gateway.problems import about, status_of
from gateway.searcher import unpack
from gateway.settings import GatewaySettings

Item = TypeVar("Item")
_MOST_PICTURES = 2


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _no_dimensions(value: Any) -> Any:
    if value is not None:
        raise ValueError("the vectors of these models cannot be shortened: leave `dimensions` out")
    return value


class EmbeddingsWanted(BaseModel):
    """What OpenAI's clients send (`POST /v1/embeddings`)."""

    model_config = ConfigDict(extra="forbid")

    input: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
        Field(
            min_length=1,
            max_length=2048,
            description="One input or several: a data URI or an http(s) URL is a picture, everything else a text.",
        ),
    ]
    model: str = Field(min_length=1, max_length=200, description="A slot (`clip`), a model's name, or a fingerprint.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int | None, BeforeValidator(_no_dimensions)] = None
    user: str | None = Field(None, description="Taken, and not used.")


class Embedding(BaseModel):
    """One input's vector, of unit length."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Numbers, or base64 of little-endian float32.")


class Usage(BaseModel):
    """OpenAI's clients need this part; Pixelgate counts no tokens, so both are 0."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class Embeddings(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    fingerprint: str
    usage: Usage = Usage()


class Embedder:
    """Sorts inputs into texts and pictures, and has each embedded."""

    def __init__(
        self, settings: GatewaySettings, embed: EmbedClient, models: ModelDirectory, fetcher: GuardedFetcher
    ) -> None:
        """Embed with `embed`; URLs are fetched by `fetcher` and nothing else."""
        self._settings, self._embed, self._models, self._fetcher = settings, embed, models, fetcher

    async def embed(self, wanted: EmbeddingsWanted) -> Embeddings:
        """Return one vector for each input; one that cannot be embedded makes the whole request a problem."""
        if len(wanted.input) > self._settings.max_inputs:
            raise InvalidRequest(f"At most {self._settings.max_inputs} inputs are taken.", field="input")
        pictures = await self._pictures(wanted.input)
        texts = {place: text for place, text in enumerate(wanted.input) if place not in pictures}
        try:
            model, vectors = await self._vectors(wanted.model, texts, pictures)
        except PixelgateError as error:
            if status_of(error) != 409:
                raise
            self._models.forget()
            model, vectors = await self._vectors(wanted.model, texts, pictures)
        data = [
            Embedding(
                index=place,
                embedding=encode_vector(vectors[str(place)])
                if wanted.encoding_format == "base64"
                else vectors[str(place)].tolist(),
            )
            for place in range(len(wanted.input))
        ]
        return Embeddings(data=data, model=model.model, fingerprint=model.fingerprint)

    async def _pictures(self, inputs: Sequence[str]) -> dict[int, bytes]:
        limit = self._settings.max_upload_bytes

        async def read(place: int, text: str) -> tuple[int, bytes] | None:
            field = f"input.{place}"
            if is_data_uri(text):
                return place, from_base64(text, field=field, max_bytes=limit)
            if text[:8].lower().startswith(("http://", "https://")) and not any(map(str.isspace, text.strip())):
                with about(field):
                    return place, (await self._fetcher.fetch(text)).body
            if len(text) > MAX_TEXT_CHARS:
                raise InvalidRequest(f"A text has at most {MAX_TEXT_CHARS:,} characters.", field=field)
            return None

        found: dict[int, bytes] = {}
        held = 0
        # A few at a time: what is fetched stays in memory, and the sum is checked before more is asked for.
        for start in range(0, len(inputs), 8):
            part = await asyncio.gather(*(read(at, inputs[at]) for at in range(start, min(start + 8, len(inputs)))))
            for pair in part:
                if pair is not None:
                    found[pair[0]] = pair[1]
                    held += len(pair[1])
            if held > _MOST_PICTURES * limit:
                raise PictureTooLarge(
                    f"The pictures of one request have at most {_MOST_PICTURES * limit:,} bytes together.",
                    field="input",
                )
        return found

    async def _vectors(
        self, name: str, texts: dict[int, str], pictures: dict[int, bytes]
    ) -> tuple[EmbedModel, dict[str, FloatVector]]:
        model = await self._models.named(name, field="model")
        if texts and "text" not in model.inputs:
            raise InvalidRequest(f"{model.slot} embeds pictures only.", field=f"input.{min(texts)}")
        vectors: dict[str, FloatVector] = {}
        for part in _parts(texts, MAX_TEXTS):
            asked = EmbedTexts(texts=[text for _, text in part], slot=model.slot, fingerprint=model.fingerprint)
            vectors |= unpack(*_names([place for place, _ in part]), await self._embed.texts(asked), model)
        for batch in _parts(pictures, MAX_IMAGES):
            answer = await self._embed.images(
                [data for _, data in batch], slot=model.slot, fingerprint=model.fingerprint, priority="interactive"
            )
            vectors |= unpack(*_names([place for place, _ in batch]), answer, model)
        return model, vectors


def _names(places: Sequence[int]) -> tuple[list[str], list[str]]:
    return [f"input.{place}" for place in places], [str(place) for place in places]


def _parts(items: dict[int, Item], size: int) -> list[list[tuple[int, Item]]]:
    pairs = list(items.items())
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]
