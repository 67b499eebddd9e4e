"""Routes: pictures are listed and found, and their vectors handed out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.contracts.storage import (
    GenerationInfo,
    GenerationList,
    ImagePage,
    ListImages,
    Search,
    SearchPage,
    StoredVectors,
    VectorsWanted,
)
from pydantic import BaseModel

from storage_service.listing import Lister
from storage_service.parts import PartsNow
from storage_service.search import Searcher

router = APIRouter(prefix="/v1", tags=["search"])
_MISMATCH: dict[int | str, dict[str, Any]] = {
    409: {"model": Problem, "description": "There are no vectors of this fingerprint"}
}


@router.post("/images/query", response_model=ImagePage)
async def query(wanted: ListImages, parts: PartsNow) -> Response:
    """List pictures by metadata alone, page by page, with a total and facets."""
    return _json(await Lister(parts.db, parts.settings).page(wanted))


@router.post("/search", response_model=SearchPage, responses={**_MISMATCH, 503: {"model": Problem}})
async def search(wanted: Search, parts: PartsNow) -> Response:
    """Find pictures by vectors, by words, by colours, or by several of them, under one filter."""
    return _json(await Searcher(parts.db, parts.generations, parts.settings, parts.palettes).search(wanted))


@router.post("/vectors", response_model=StoredVectors, responses=_MISMATCH)
async def vectors(wanted: VectorsWanted, parts: PartsNow) -> Response:
    """Hand out stored vectors."""
    return _json(await Searcher(parts.db, parts.generations, parts.settings, parts.palettes).vectors(wanted))


@router.get("/generations")
async def generations(parts: PartsNow) -> GenerationList:
    """List all generations of all spaces, and how many pictures each has."""
    return GenerationList(
        generations=[
            GenerationInfo(
                space=one.space,
                fingerprint=one.fingerprint,
                model=one.model,
                dim=one.dim,
                state=one.state,
                images=images,
            )
            for one, images in await parts.generations.overview()
        ]
    )


def _json(answer: BaseModel) -> Response:
    # Checked when it was made; having the framework check it once more takes longer than the search.
    return Response(answer.model_dump_json(), media_type="application/json")
