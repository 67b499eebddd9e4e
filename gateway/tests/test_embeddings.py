"""The shape of OpenAI's API, tried with OpenAI's own client."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import openai
import pytest
from gateway.testing.embed import BROKEN, DIM, vector_of
from numpy.testing import assert_allclose

Jpeg = Callable[..., bytes]


def data_uri(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


@pytest.fixture
async def client(gateway: Any) -> Any:
    async with openai.AsyncOpenAI(
        base_url="http://gateway/v1", api_key="none", http_client=gateway.client, max_retries=0
    ) as client:
        yield client


@pytest.mark.parametrize("encoding", [openai.NOT_GIVEN, "float", "base64"], ids=["default", "float", "base64"])
async def test_the_openai_client_gets_its_vectors(gateway: Any, client: Any, encoding: Any) -> None:
    answer = await client.embeddings.create(input=["a dog", "a cat"], model="clip", encoding_format=encoding)
    assert [item.index for item in answer.data] == [0, 1]
    for item, text in zip(answer.data, (b"a dog", b"a cat"), strict=True):
        vector = item.embedding
        if isinstance(vector, str):
            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        assert len(vector) == DIM
        assert_allclose(vector, vector_of(text, "clip"), atol=1e-6)
    assert (answer.model, answer.object) == ("fake clip", "list")
    assert gateway.embed.calls == [("texts", 2, "interactive")]


async def test_texts_and_pictures_can_be_mixed(gateway: Any, client: Any, jpeg: Jpeg) -> None:
    answer = await client.embeddings.create(
        input=["a dog", data_uri(jpeg(1)), "a cat", data_uri(jpeg(2))], model="clip"
    )
    expected = [b"a dog", jpeg(1), b"a cat", jpeg(2)]
    for item, what in zip(answer.data, expected, strict=True):
        assert_allclose(item.embedding, vector_of(what, "clip"), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet", "fake resnet", "fake-resnet/1"], ids=["slot", "name", "fingerprint"])
async def test_a_model_goes_by_slot_name_or_fingerprint(client: Any, jpeg: Jpeg, name: str) -> None:
    answer = await client.embeddings.create(input=data_uri(jpeg(1)), model=name)
    assert_allclose(answer.data[0].embedding, vector_of(jpeg(1), "resnet"), atol=1e-6)
    assert answer.fingerprint == "fake-resnet/1"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({"input": "a"}, "model", id="no-model"),
        pytest.param({"model": "clip"}, "input", id="no-input"),
        pytest.param({"model": "clip", "input": []}, "input", id="empty"),
        pytest.param({"model": "clip", "input": ["a", ""]}, "input.1", id="empty-text"),
        pytest.param({"model": "clip", "input": [[1, 2]]}, "input.0", id="tokens"),
        pytest.param({"model": "clip", "input": "a" * 2001}, "input.0", id="long"),
        pytest.param({"model": "clip", "input": ["a"] * 257}, "input", id="257-inputs"),
        pytest.param({"model": "clip", "input": "a", "dimensions": 8}, "dimensions", id="dimensions"),
        pytest.param({"model": "clip", "input": "a", "encoding_format": "int8"}, "encoding_format", id="format"),
        pytest.param({"model": "gpt", "input": "a"}, "model", id="unknown-model"),
        pytest.param({"model": "resnet", "input": "a"}, "input.0", id="text-for-resnet"),
        pytest.param({"model": "clip", "input": ["a", "data:image/png;base64,???"]}, "input.1", id="bad-data-uri"),
        pytest.param({"model": "clip", "input": ["a", "http://127.1/"]}, "input.1", id="own-address"),
        pytest.param({"model": "clip", "input": ["a", data_uri(BROKEN)]}, "input.1", id="broken-picture"),
    ],
)
async def test_what_cannot_be_embedded_is_422_with_the_field_named(gateway: Any, body: Any, field: str) -> None:
    answer = await gateway.client.post("/v1/embeddings", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field


async def test_more_than_fit_into_one_inner_call_are_sent_in_several(gateway: Any, client: Any, jpeg: Jpeg) -> None:
    pictures = [jpeg(n, (8, 6)) for n in range(70)]
    answer = await client.embeddings.create(input=[data_uri(picture) for picture in pictures], model="clip")
    assert len(answer.data) == 70
    assert_allclose(answer.data[69].embedding, vector_of(pictures[69], "clip"), atol=1e-6)
    assert [count for _, count, _ in gateway.embed.calls] == [64, 6]


async def test_a_refusal_is_an_error_of_the_client(client: Any) -> None:
    with pytest.raises(openai.UnprocessableEntityError):
        await client.embeddings.create(input="a", model="nothing")
