"""A storage-service in memory: pictures by content, stages with leases, search by cosine or colour; no decode."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from pixelgate_common.colors import palette_distances
from pixelgate_common.contracts.storage import (
    ARRIVAL_HEADER,
    SPACES,
    Arrival,
    Arrived,
    ColorQuery,
    DecideDuplicates,
    DuplicateGroup,
    DuplicatePage,
    Hit,
    ImagePage,
    ImagePatch,
    ImageRecord,
    ListImages,
    ObjectFound,
    PaletteColor,
    PreviewsWanted,
    ScoreParts,
    Search,
    SearchPage,
    StageModel,
    StageName,
    StageOfImage,
    StageProgress,
    StageResult,
    StoredVectors,
    Tier,
    Variant,
    VectorsWanted,
)
from pixelgate_common.errors import InvalidRequest, NotFound, install_error_handlers
from pixelgate_common.frames import MEDIA_TYPE, encode_frames
from pixelgate_common.images import NotAnImage
from pixelgate_common.middleware import RequestContext
from pixelgate_common.vectors import decode_vector

from gateway.testing.storage_stages import add_stage_routes

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
    made: dict[tuple[int, str], bytes] = field(default_factory=dict)
    groups: list[DuplicateGroup] = field(default_factory=list)
    decisions: list[DecideDuplicates] = field(default_factory=list)
    size: tuple[int, int] = (64, 48)
    variants: list[str] = field(default_factory=list)
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
            width=self.size[0],
            height=self.size[1],
            bytes=len(data),
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            source_url=arrival.source_url,
            tags=list(arrival.tags),
            attributes=dict(arrival.attributes),
            stages={stage: StageOfImage(state="pending") for stage in self.stage_names},
        )
        for stage in self.stage_names:
            self.work[stage, image_id] = Work()
        return self.records[image_id], True

    def new_work(self) -> Work:
        """Return a row that is due."""
        return Work()

    def states(self, stage: str) -> dict[int, str]:
        """Return each picture's state in one stage."""
        return {image_id: work.state for (name, image_id), work in self.work.items() if name == stage}

    def vector(self, space: str, image_id: int) -> str | None:
        """Return a picture's vector as it was handed in."""
        work = self.work.get((space, image_id))
        return work.result.vector if work is not None and work.result is not None else None

    def keep(self, stage: str, item: StageResult) -> None:
        """Put what a stage found into the picture's record, boxes scaled to the original's pixels."""
        record, found = self.records[item.image_id], item.result or {}
        record.stages[stage] = StageOfImage(state="failed" if item.problem else "done")
        if stage == "caption":
            record.caption, record.caption_by = found.get("caption"), "model"
        elif stage == "palette":
            record.palette = [PaletteColor.model_validate(color) for color in found.get("palette", [])]
        elif stage == "objects" and found:
            right, down = record.width / found["width"], record.height / found["height"]
            record.objects = [
                ObjectFound(
                    label=one["label"],
                    score=one["score"],
                    box=(one["box"][0] * right, one["box"][1] * down, one["box"][2] * right, one["box"][3] * down),
                )
                for one in found["objects"]
            ]
        if stage in ("palette", "cutout"):
            record.foreground_palette = [PaletteColor.model_validate(one) for one in found.get("foreground") or ()]

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
        add_stage_routes(app, self)

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
        if variant == "cutout":
            if (image_id, variant) not in storage.made:
                raise NotFound(f"Picture {image_id} has no cutout.")
            data = storage.made[image_id, variant]
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
        storage.variants.append(wanted.variant)
        frames = [(str(image_id), storage.files.get(image_id)) for image_id in wanted.image_ids]
        return Response(encode_frames(frames), media_type=MEDIA_TYPE)

    @app.post("/v1/vectors")
    async def vectors(wanted: VectorsWanted) -> StoredVectors:
        return StoredVectors(vectors={place: storage.vector(wanted.space, place) for place in wanted.image_ids})

    @app.post("/v1/search")
    async def search(asked: Search) -> SearchPage:
        storage.searches.append(asked)
        there = [image_id for image_id in storage.records if image_id not in asked.exclude_ids]
        if not asked.vectors and asked.colors is not None:
            far = {image_id: _distance(storage.records[image_id], asked.colors) for image_id in there}
            near = sorted((distance, image_id) for image_id, distance in far.items() if np.isfinite(distance))
            hits = [
                Hit(image=storage.records[image_id], score=1 / (60 + place), parts=ScoreParts(color=distance))
                for place, (distance, image_id) in enumerate(near[: asked.limit], 1)
            ]
            return SearchPage(hits=hits, next_cursor=None)
        (query,) = asked.vectors
        wanted = decode_vector(query.vector)
        scored = []
        for image_id in there:
            text = storage.vector(query.space, image_id)
            if text is not None:
                scored.append((float(np.dot(wanted, decode_vector(text))), image_id))
        hits = [
            Hit(image=storage.records[image_id], score=score, parts=ScoreParts(vector=score))
            for score, image_id in sorted(scored, reverse=True)[: asked.limit]
        ]
        return SearchPage(hits=hits, next_cursor="more" if len(scored) > asked.limit else None)

    @app.get("/v1/duplicates")
    async def duplicates(tier: Tier, limit: int, cursor: str | None = None) -> DuplicatePage:
        if cursor == "nonsense":
            raise InvalidRequest("This is no cursor.", field="cursor")
        start = int(cursor or 0)
        groups = [group for group in storage.groups if group.tier == tier]
        more = str(start + limit) if start + limit < len(groups) else None
        return DuplicatePage(groups=groups[start : start + limit], next_cursor=more, pending=0)

    @app.post("/v1/duplicates/decisions", status_code=204)
    async def decide(decision: DecideDuplicates) -> None:
        for place, image_id in enumerate(decision.image_ids):
            if image_id not in storage.records:
                raise NotFound(f"There is no picture {image_id}.", field=f"image_ids.{place}")
        storage.decisions.append(decision)


def _distance(record: ImageRecord, query: ColorQuery) -> float:
    palette = (record.foreground_palette if query.of == "foreground" else []) or record.palette
    if not palette:
        return float("inf")
    (distance,) = palette_distances(
        [color.lab for color in query.colors],
        [color.weight for color in query.colors],
        [[color.lab for color in palette]],
        [[color.share for color in palette]],
    )
    return float(distance)
