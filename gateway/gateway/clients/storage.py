"""The client of storage-service, the only owner of records, files, vectors and work to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import httpx
from pixelgate_common.contracts.storage import (
    ARRIVAL_HEADER,
    Arrival,
    Arrived,
    DecideDuplicates,
    DuplicatePage,
    GenerationList,
    ImagePage,
    ImagePatch,
    ImageRecord,
    LeaseBatch,
    LeaseReturn,
    LeaseWanted,
    ListImages,
    PreviewsWanted,
    RequestAnalysis,
    ResultsTaken,
    Search,
    SearchPage,
    StageList,
    StageModel,
    StageProgress,
    StageResults,
    Stats,
    StoredVectors,
    Tier,
    Variant,
    VectorsWanted,
)
from pixelgate_common.frames import decode_frames
from pydantic import BaseModel

from gateway.clients.inner import BadAnswer, Body, InnerClient, Patience

StageAction = Literal["pause", "resume", "retry-failed", "rerun"]
_NOT_CHANGED_OR_PART = frozenset({304, 416})


class StorageClient(InnerClient):
    """Asks storage-service; every call here may be repeated without harm (uploads are known by their content)."""

    service = "storage-service"

    async def store(self, arrival: Arrival, body: Body, size: int, *, patience: Patience, timeout_s: float) -> Arrived:
        """Store a picture of `size` bytes, or return the record that is there already."""
        headers = {
            ARRIVAL_HEADER: arrival.to_header(),
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
        }
        answer = await self._send(
            "POST",
            "/v1/images",
            body=body,
            headers=headers,
            patience=patience,
            retry_busy=True,
            read_timeout_s=timeout_s,
        )
        return self._read(answer, Arrived)

    async def record(self, image_id: int) -> ImageRecord:
        """Return a picture's record; 404 when there is none."""
        return self._read(await self._send("GET", f"/v1/images/{image_id}"), ImageRecord)

    async def change(self, image_id: int, patch: ImagePatch) -> ImageRecord:
        """Change what people say of a picture, and return the new record."""
        answer = await self._post(f"/v1/images/{image_id}", patch, method="PATCH", exclude_unset=True)
        return self._read(answer, ImageRecord)

    async def delete(self, image_id: int) -> None:
        """Delete a picture from all stores; 404 when there is none."""
        # Not tried again: after an answer that got lost, a second try would say that there is no such picture.
        await self._send("DELETE", f"/v1/images/{image_id}", patience=Patience(0))

    async def images(self, asked: ListImages) -> ImagePage:
        """Return a page of pictures."""
        return self._read(await self._post("/v1/images/query", asked), ImagePage)

    async def open_file(
        self, method: str, image_id: int, variant: Variant, headers: Mapping[str, str]
    ) -> httpx.Response:
        """Return a file's answer with its body unread (200, 206, 304 or 416); the caller closes it."""
        path = f"/v1/images/{image_id}/{variant}"
        return await self._send(method, path, headers=dict(headers), stream=True, accept=_NOT_CHANGED_OR_PART)

    async def file(self, image_id: int, variant: Variant) -> bytes:
        """Return a file's bytes."""
        return (await self._send("GET", f"/v1/images/{image_id}/{variant}")).content

    async def files(self, image_ids: Sequence[int], variant: Variant = "preview") -> dict[int, bytes]:
        """Return the files of several pictures by id; a picture without that file is left out."""
        answer = await self._post("/v1/files", PreviewsWanted(image_ids=list(image_ids), variant=variant))
        try:
            return {int(name): data for name, data in decode_frames(answer.content) if data is not None}
        except ValueError as error:
            raise BadAnswer(f"{self.service} gave files that cannot be read.") from error

    async def search(self, asked: Search) -> SearchPage:
        """Return a page of hits."""
        return self._read(await self._post("/v1/search", asked), SearchPage)

    async def vectors(self, asked: VectorsWanted) -> StoredVectors:
        """Return stored vectors by picture."""
        return self._read(await self._post("/v1/vectors", asked), StoredVectors)

    async def stages(self) -> StageList:
        """Return the progress of every stage."""
        return self._read(await self._send("GET", "/v1/stages"), StageList)

    async def steer(self, stage: str, action: StageAction) -> StageProgress:
        """Pause or resume a stage, or make its failed or all its results due again; return its state after that."""
        return self._read(await self._send("POST", f"/v1/stages/{stage}/{action}"), StageProgress)

    async def request_analysis(self, stage: str, wanted: RequestAnalysis) -> StageProgress:
        """Have a stage look at some pictures; return its state after that."""
        return self._read(await self._post(f"/v1/stages/{stage}/request", wanted), StageProgress)

    async def generations(self) -> GenerationList:
        """Return all generations of vectors."""
        return self._read(await self._send("GET", "/v1/generations"), GenerationList)

    async def stats(self) -> Stats:
        """Return counts, bytes, rates and times."""
        return self._read(await self._send("GET", "/v1/stats"), Stats)

    async def set_model(self, stage: str, model: StageModel) -> None:
        """Say which model a stage's results must come from."""
        await self._post(f"/v1/stages/{stage}/model", model, method="PUT")

    async def lease(self, stage: str, wanted: LeaseWanted) -> LeaseBatch:
        """Take work; what an answer that got lost held comes back when its lease expires."""
        return self._read(await self._post(f"/v1/stages/{stage}/lease", wanted, patience=Patience(0)), LeaseBatch)

    async def post_results(self, stage: str, results: StageResults, patience: Patience) -> ResultsTaken:
        """Hand in results; a second time they are stale, and no harm is done."""
        answer = await self._post(f"/v1/stages/{stage}/results", results, patience=patience)
        return self._read(answer, ResultsTaken)

    async def put_file(
        self, stage: str, image_id: int, token: str, data: bytes, patience: Patience | None = None
    ) -> None:
        """Keep the file that a stage made of a picture; it shows once the picture's result is handed in as well."""
        await self._send(
            "PUT",
            f"/v1/stages/{stage}/files/{image_id}",
            params={"token": token},
            content=data,
            headers={"Content-Type": "application/octet-stream"},
            patience=patience,
        )

    async def duplicates(self, tier: Tier, limit: int, cursor: str | None) -> DuplicatePage:
        """Return a page of groups of duplicates."""
        params = {"tier": tier, "limit": str(limit)} | ({} if cursor is None else {"cursor": cursor})
        return self._read(await self._send("GET", "/v1/duplicates", params=params), DuplicatePage)

    async def decide_duplicates(self, decision: DecideDuplicates) -> None:
        """Remember what a person says of some pictures, for good; saying it twice changes nothing."""
        await self._post("/v1/duplicates/decisions", decision)

    async def release(self, stage: str, tokens: Sequence[str]) -> None:
        """Give leases back unused."""
        await self._post(f"/v1/stages/{stage}/release", LeaseReturn(tokens=list(tokens)))

    async def _post(
        self,
        path: str,
        shape: BaseModel,
        *,
        method: str = "POST",
        exclude_unset: bool = False,
        patience: Patience | None = None,
    ) -> httpx.Response:
        content = shape.model_dump_json(by_alias=True, exclude_unset=exclude_unset, exclude_none=not exclude_unset)
        headers = {"Content-Type": "application/json"}
        return await self._send(method, path, content=content, headers=headers, patience=patience)
