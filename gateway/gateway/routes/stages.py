"""`/v1/stages`: how far the analysis is, and how it is steered."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.contracts.storage import RequestAnalysis, StageList, StageName, StageProgress

from gateway.answers import json_answer
from gateway.clients.storage import StageAction
from gateway.parts import Parts

router = APIRouter(prefix="/v1/stages", tags=["stages"])


@router.get("", response_model=StageList)
async def list_stages(parts: Parts) -> Response:
    """Return, for each stage, what is left, what is done, what failed, and how long the rest will take."""
    return json_answer(await parts.storage.stages())


@router.post(
    "/{stage}/request",
    response_model=StageProgress,
    responses={404: {"model": Problem, "description": "There is no such stage or picture, or it is off"}},
)
async def request_analysis(stage: StageName, wanted: RequestAnalysis, parts: Parts) -> Response:
    """Have a stage look at these pictures, also where it does not look at every one by itself (`cutout`)."""
    return json_answer(await parts.storage.request_analysis(stage, wanted))


@router.post(
    "/{stage}/{action}",
    response_model=StageProgress,
    responses={404: {"model": Problem, "description": "There is no such stage, or it is off"}},
)
async def steer(stage: StageName, action: StageAction, parts: Parts) -> Response:
    """Pause or resume a stage, try its failed pictures again, or do all of them anew; return its state after that."""
    return json_answer(await parts.storage.steer(stage, action))
