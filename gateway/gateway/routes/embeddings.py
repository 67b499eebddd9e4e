"""`/v1/embeddings`: vectors of texts and pictures in the shape of OpenAI's API."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pixelgate_common.contracts.problems import Problem

from gateway.answers import json_answer
from gateway.embeddings import Embeddings, EmbeddingsWanted
from gateway.parts import Parts

router = APIRouter(prefix="/v1", tags=["embeddings"])


@router.post("/embeddings", response_model=Embeddings, responses={413: {"model": Problem}})
async def embed(wanted: EmbeddingsWanted, parts: Parts) -> Response:
    """Return one vector for each input: a data URI or an http(s) URL is a picture, everything else a text."""
    return json_answer(await parts.embedder.embed(wanted))
