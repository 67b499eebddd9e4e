"""Routes: the stages of analysis, their work, and the statistics of all."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.contracts.storage import (
    LeaseBatch,
    LeaseReturn,
    LeaseWanted,
    RequestAnalysis,
    ResultsTaken,
    StageList,
    StageModel,
    StageName,
    StageProgress,
    StageResults,
    Stats,
)
from pixelgate_common.errors import NotFound

from storage_service import analyses, stages
from storage_service.parts import Parts, PartsNow
from storage_service.routes.images import RAW_BODY, ImageId, request_body
from storage_service.stats import fetch_stats

router = APIRouter(prefix="/v1", tags=["stages"])


@router.get("/stages")
async def progress(parts: PartsNow) -> StageList:
    """Say how far every stage is that is on."""
    return StageList(stages=await stages.fetch_progress(parts.db))


@router.put("/stages/{stage}/model")
async def want_model(stage: StageName, model: StageModel, parts: PartsNow) -> StageProgress:
    """Name the model that the stage's results must come from; results of another one become pending again."""
    await stages.want_model(parts.db, parts.generations, stage, model)
    return await _progress_of(parts, stage)


@router.post("/stages/{stage}/lease")
async def lease(stage: StageName, wanted: LeaseWanted, parts: PartsNow) -> LeaseBatch:
    """Take work: each picture goes to one worker at a time, the oldest first."""
    return LeaseBatch(items=await analyses.lease(parts.db, stage, wanted, parts.retry))


@router.post("/stages/{stage}/results")
async def take_results(stage: StageName, results: StageResults, parts: PartsNow) -> ResultsTaken:
    """Keep what a worker found."""
    return await analyses.take_results(parts.db, parts.generations, stage, results, parts.retry)


@router.put(
    "/stages/cutout/files/{image_id}",
    status_code=204,
    responses={
        409: {"model": Problem, "description": "The lease has gone to somebody else"},
        413: {"model": Problem},
        415: {"model": Problem},
        422: {"model": Problem},
    },
    openapi_extra=RAW_BODY,
)
async def put_cutout(
    image_id: ImageId,
    token: Annotated[str, Query(min_length=1, max_length=100)],
    request: Request,
    parts: PartsNow,
) -> Response:
    """Keep the PNG that is the request's raw body as the picture's cutout; it is shown once its result has come."""
    declared = request.headers.get("content-length", "")
    await parts.cutouts.put(image_id, token, request_body(request), int(declared) if declared.isdecimal() else None)
    return Response(status_code=204)


@router.post("/stages/{stage}/request")
async def request_analysis(stage: StageName, wanted: RequestAnalysis, parts: PartsNow) -> StageProgress:
    """Have the stage look at these pictures, also where it does not look at every one by itself (cutout)."""
    await analyses.request(parts.db, stage, wanted.image_ids)
    return await _progress_of(parts, stage)


@router.post("/stages/{stage}/release", status_code=204)
async def release(stage: StageName, returned: LeaseReturn, parts: PartsNow) -> None:
    """Give leases back unused; the attempts are not counted."""
    await analyses.release(parts.db, stage, returned.tokens)


@router.post("/stages/{stage}/pause")
async def pause(stage: StageName, parts: PartsNow) -> StageProgress:
    """Hand out no more work of this stage."""
    await stages.set_paused(parts.db, stage, True)
    return await _progress_of(parts, stage)


@router.post("/stages/{stage}/resume")
async def resume(stage: StageName, parts: PartsNow) -> StageProgress:
    """Hand out work of this stage again."""
    await stages.set_paused(parts.db, stage, False)
    return await _progress_of(parts, stage)


@router.post("/stages/{stage}/retry-failed")
async def retry_failed(stage: StageName, parts: PartsNow) -> StageProgress:
    """Try again what was parked as failed."""
    await analyses.retry_failed(parts.db, stage)
    return await _progress_of(parts, stage)


@router.post("/stages/{stage}/rerun")
async def rerun(stage: StageName, parts: PartsNow) -> StageProgress:
    """Do every picture of this stage again."""
    await analyses.rerun(parts.db, stage)
    return await _progress_of(parts, stage)


@router.get("/stats")
async def stats(parts: PartsNow) -> Stats:
    """Return counts, rates and times of the whole store."""
    return await fetch_stats(parts.db)


async def _progress_of(parts: Parts, stage: StageName) -> StageProgress:
    for found in await stages.fetch_progress(parts.db):
        if found.stage == stage:
            return found
    raise NotFound(f"The stage {stage!r} is not on here (PIXELGATE_STORAGE_STAGES).")
