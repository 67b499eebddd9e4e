"""The stages of the stand-in of storage-service: leases, results, files and counts."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from pixelgate_common.contracts.storage import (
    SPACES,
    GenerationInfo,
    GenerationList,
    LeaseBatch,
    Leased,
    LeaseReturn,
    LeaseWanted,
    RequestAnalysis,
    ResultsTaken,
    StageList,
    StageModel,
    StageName,
    StageProgress,
    StageResults,
    StageStats,
    Stats,
    Times,
)
from pixelgate_common.errors import Conflict, NotFound

if TYPE_CHECKING:
    from gateway.testing.storage import FakeStorage


def add_stage_routes(app: FastAPI, storage: FakeStorage) -> None:
    """Add the routes of stages, statistics and generations."""

    def known(stage: StageName) -> StageName:
        if stage not in storage.stage_names:
            raise NotFound(f"The stage {stage} is off.")
        return stage

    @app.get("/v1/stages")
    async def stages() -> StageList:
        return StageList(stages=[storage.progress(stage) for stage in storage.stage_names])

    @app.get("/v1/stats")
    async def stats() -> Stats:
        times = Times(mean=None, p50=None, p95=None)
        by_stage = {
            stage: StageStats(
                done=storage.progress(stage).done,
                failed=storage.progress(stage).failed,
                success_rate=None,
                failure_rate=None,
                processing_ms=times,
            )
            for stage in storage.stage_names
        }
        size = sum(record.bytes for record in storage.records.values())
        return Stats(images=len(storage.records), bytes=size, stages=by_stage, processing_ms=times)

    @app.put("/v1/stages/{stage}/model")
    async def model(stage: StageName, model: StageModel) -> dict[str, str]:
        storage.models[known(stage)] = model
        return {}

    @app.post("/v1/stages/{stage}/lease")
    async def lease(stage: StageName, wanted: LeaseWanted) -> LeaseBatch:
        if known(stage) not in storage.models or storage.models[stage].fingerprint != wanted.fingerprint:
            raise Conflict("This is not the model that the stage's results must come from.")
        items = []
        for (name, image_id), work in storage.work.items():
            late = work.state == "running" and work.expires_at < time.monotonic()
            if name != stage or stage in storage.paused or not (work.state == "pending" or late):
                continue
            work.state, work.token, work.attempts = "running", uuid.uuid4().hex, work.attempts + 1
            work.expires_at = time.monotonic() + wanted.lease_s
            items.append(Leased(image_id=image_id, token=work.token, attempt=work.attempts))
            if len(items) == wanted.limit:
                break
        return LeaseBatch(items=items)

    @app.post("/v1/stages/{stage}/results")
    async def results(stage: StageName, results: StageResults) -> ResultsTaken:
        accepted = 0
        for item in results.items:
            work = storage.work[known(stage), item.image_id]
            if work.token != item.token or work.state != "running":
                storage.stale += 1
                continue
            accepted += 1
            work.result = item
            again = item.problem is not None and item.retry and work.attempts < 3
            work.state = "pending" if again else "failed" if item.problem else "done"
            if item.image_id in storage.records:
                storage.keep(stage, item)
        return ResultsTaken(accepted=accepted, stale=len(results.items) - accepted)

    @app.put("/v1/stages/{stage}/files/{image_id}", status_code=204)
    async def put_file(stage: StageName, image_id: int, token: str, request: Request) -> None:
        work = storage.work.get((known(stage), image_id))
        if work is None or work.token != token or work.state != "running":
            raise Conflict("The lease is over.")
        storage.made[image_id, stage] = await request.body()

    @app.post("/v1/stages/{stage}/request")
    async def request_analysis(stage: StageName, wanted: RequestAnalysis) -> StageProgress:
        for image_id in wanted.image_ids:
            storage.found(image_id)
            storage.work[known(stage), image_id] = storage.new_work()
        return storage.progress(stage)

    @app.post("/v1/stages/{stage}/release")
    async def release(stage: StageName, back: LeaseReturn) -> dict[str, str]:
        for (name, _), work in storage.work.items():
            if name == stage and work.state == "running" and work.token in back.tokens:
                work.state, work.token, work.attempts = "pending", None, work.attempts - 1
                storage.released.append(stage)
        return {}

    @app.post("/v1/stages/{stage}/{action}")
    async def steer(stage: StageName, action: str) -> StageProgress:
        if action == "pause":
            storage.paused.add(known(stage))
        elif action == "resume":
            storage.paused.discard(known(stage))
        else:
            for work in (work for (name, _), work in storage.work.items() if name == known(stage)):
                if action == "rerun" or work.state == "failed":
                    work.state, work.attempts = "pending", 0
        return storage.progress(stage)

    @app.get("/v1/generations")
    async def generations() -> GenerationList:
        found = []
        for space, model in storage.models.items():
            if space not in SPACES:
                continue
            done = list(storage.states(space).values()).count("done")
            found.append(
                GenerationInfo(
                    space=space,
                    fingerprint=model.fingerprint,
                    model=model.model,
                    dim=model.dim or 0,
                    state="active",
                    images=done,
                )
            )
        return GenerationList(generations=found)

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        return {"ready": True, "parts": {"postgres": {"ready": True}}}
