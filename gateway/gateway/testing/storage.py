"""A storage-service in memory: pictures by content, stages with leases, search by cosine; no store, no decode."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
from fastapi import FastAPI, Request, Response
from pixelgate_common.contracts.storage import (
    ARRIVAL_HEADER,
    SPACES,
    Arrival,
    Arrived,
    GenerationInfo,
    GenerationList,
    Hit,
    ImagePage,
    ImagePatch,
    ImageRecord,
    LeaseBatch,
    Leased,
    LeaseReturn,
    LeaseWanted,
    ListImages,
    PreviewsWanted,
    ResultsTaken,
    ScoreParts,
    Search,
    SearchPage,
    StageList,
    StageModel,
    StageName,
    StageProgress,
    StageResult,
    StageResults,
    StageStats,
    Stats,
    StoredVectors,
    Times,
    Variant,
    VectorsWanted,
)
from pixelgate_common.errors import Conflict, InvalidRequest, NotFound, install_error_handlers
from pixelgate_common.frames import MEDIA_TYPE, encode_frames
from pixelgate_common.images import NotAnImage
from pixelgate_common.middleware import RequestContext
from pixelgate_common.vectors import decode_vector

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG")


@dataclass
class Work:
    """One picture's row of one stage."""

    state: str = "pending"
    token: str | None = None
    expires_at: float = 0.0
    attempts: int = 0
    result: StageResult | None = None


@dataclass
class FakeStorage:
    """The state; `app()` serves it. Public for tests to look at and to disturb."""

    stage_names: Sequence[StageName] = SPACES
    records: dict[int, ImageRecord] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)
    work: dict[tuple[str, int], Work] = field(default_factory=dict)
    models: dict[str, StageModel] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    searches: list[Search] = field(default_factory=list)
    listings: list[ListImages] = field(default_factory=list)
    request_ids: list[str | None] = field(default_factory=list)
    request_headers: list[dict[str, str]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    stale: int = 0

    def add(self, data: bytes, arrival: Arrival | None = None) -> tuple[ImageRecord, bool]:
        """Store a picture, and return its record and whether it is new."""
        arrival = arrival or Arrival()
        digest = hashlib.sha256(data).hexdigest()
        for record in self.records.values():
            if record.sha256 == digest:
                return record, False
        image_id = len(self.files) + 1
        self.files[image_id] = data
        self.records[image_id] = ImageRecord(
            id=image_id,
            sha256=digest,
            filename=arrival.filename,
            media_type="image/jpeg",
            format="jpeg",
            width=64,
            height=48,
            bytes=len(data),
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            source_url=arrival.source_url,
            tags=list(arrival.tags),
            attributes=dict(arrival.attributes),
        )
        for stage in self.stage_names:
            self.work[stage, image_id] = Work()
        return self.records[image_id], True

    def states(self, stage: str) -> dict[int, str]:
        """Return each picture's state in one stage."""
        return {image_id: work.state for (name, image_id), work in self.work.items() if name == stage}

    def vector(self, space: str, image_id: int) -> str | None:
        """Return a picture's vector as it was handed in."""
        work = self.work.get((space, image_id))
        return work.result.vector if work is not None and work.result is not None else None

    def progress(self, stage: StageName) -> StageProgress:
        """Return one stage's counts."""
        states = list(self.states(stage).values())
        model = self.models.get(stage)
        return StageProgress(
            stage=stage,
            fingerprint=model.fingerprint if model else None,
            paused=stage in self.paused,
            pending=states.count("pending"),
            running=states.count("running"),
            done=states.count("done"),
            failed=states.count("failed"),
            rate_per_s=0.0,
            seconds_left=None,
        )

    def app(self) -> FastAPI:
        """Return the application."""
        app = FastAPI()
        install_error_handlers(app)
        _add_image_routes(app, self)
        _add_stage_routes(app, self)

        @app.middleware("http")
        async def note(request: Request, call_next: Any) -> Response:
            self.request_ids.append(request.headers.get("x-request-id"))
            self.request_headers.append(dict(request.headers))
            answer: Response = await call_next(request)
            return answer

        app.add_middleware(RequestContext, service="fake-storage")
        return app

    def found(self, image_id: int) -> ImageRecord:
        """Return a picture's record; 404 when there is none."""
        if image_id not in self.records:
            raise NotFound(f"There is no picture {image_id}.")
        return self.records[image_id]


def _add_image_routes(app: FastAPI, storage: FakeStorage) -> None:
    @app.post("/v1/images")
    async def arrive(request: Request, response: Response) -> Arrived:
        data = await request.body()
        if not data.startswith(_BEGINNINGS):
            raise NotAnImage("These bytes are no picture.")
        record, new = storage.add(data, Arrival.from_header(request.headers.get(ARRIVAL_HEADER)))
        response.status_code = 201 if new else 200
        return Arrived(outcome="created" if new else "duplicate", image=record)

    @app.post("/v1/images/query")
    async def query(asked: ListImages) -> ImagePage:
        if asked.cursor == "nonsense":
            raise InvalidRequest("This is no cursor.", field="cursor")
        storage.listings.append(asked)
        records = list(storage.records.values())
        return ImagePage(images=records[: asked.limit], next_cursor=None, total=len(records))

    @app.get("/v1/images/{image_id}")
    async def read(image_id: int) -> ImageRecord:
        return storage.found(image_id)

    @app.patch("/v1/images/{image_id}")
    async def change(image_id: int, patch: ImagePatch) -> ImageRecord:
        record = storage.found(image_id).model_copy(update=patch.model_dump(exclude_unset=True))
        storage.records[image_id] = record
        return record

    @app.delete("/v1/images/{image_id}", status_code=204)
    async def delete(image_id: int) -> None:
        storage.found(image_id)
        del storage.records[image_id]

    @app.api_route("/v1/images/{image_id}/{variant}", methods=["GET", "HEAD"])
    async def file(image_id: int, variant: Variant, request: Request) -> Response:
        data, etag = storage.files[storage.found(image_id).id], f'"{image_id}-{variant}"'
        headers = {"ETag": etag, "Cache-Control": "private, max-age=31536000, immutable", "Accept-Ranges": "bytes"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        if asked := request.headers.get("range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            if int(first) >= len(data):
                return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{len(data)}"})
            end = min(int(last or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            return Response(data[int(first) : end + 1], 206, headers, media_type="image/jpeg")
        return Response(data, headers=headers, media_type="image/jpeg")

    @app.post("/v1/files")
    async def previews(wanted: PreviewsWanted) -> Response:
        frames = [(str(image_id), storage.files.get(image_id)) for image_id in wanted.image_ids]
        return Response(encode_frames(frames), media_type=MEDIA_TYPE)

    @app.post("/v1/vectors")
    async def vectors(wanted: VectorsWanted) -> StoredVectors:
        return StoredVectors(vectors={place: storage.vector(wanted.space, place) for place in wanted.image_ids})

    @app.post("/v1/search")
    async def search(asked: Search) -> SearchPage:
        storage.searches.append(asked)
        (query,) = asked.vectors
        wanted = decode_vector(query.vector)
        scored = []
        for image_id in storage.records:
            text = storage.vector(query.space, image_id)
            if text is not None and image_id not in asked.exclude_ids:
                scored.append((float(np.dot(wanted, decode_vector(text))), image_id))
        hits = [
            Hit(image=storage.records[image_id], score=score, parts=ScoreParts(vector=score))
            for score, image_id in sorted(scored, reverse=True)[: asked.limit]
        ]
        return SearchPage(hits=hits, next_cursor=None)


def _add_stage_routes(app: FastAPI, storage: FakeStorage) -> None:
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
        return ResultsTaken(accepted=accepted, stale=len(results.items) - accepted)

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
            done = list(storage.states(space).values()).count("done")
            found.append(
                GenerationInfo(
                    space=cast(StageName, space),
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
