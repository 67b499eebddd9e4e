"""One stage's loop: lease a batch, fetch its previews, have it analysed in one call, hand the results in.

What can go wrong, and what then happens:
- one picture has a problem: its result is that problem, and the others are not concerned;
- a call fails as a whole (5xx, no answer in time): it is split in halves until the picture to blame is alone;
- the connection breaks during a call: the service may have died of a picture, so the same, after it is back;
- a service is away, or has another model by now: the leases go back, no attempt is counted, and the stage waits;
- this process is stopped: batches under way are finished or given back; when it is killed, the leases expire.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

import structlog
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.contracts.storage import Leased, LeaseWanted, StageModel, StageResult, StageResults
from pixelgate_common.errors import Overloaded, PixelgateError, Unavailable
from pixelgate_common.logs import begin_request
from prometheus_client import Counter, Histogram

from gateway.clients.inner import ConnectionCut, NotAccepted, Patience, TimedOut
from gateway.clients.storage import StorageClient
from gateway.pipeline.analysers import Finding
from gateway.pipeline.breaker import Breaker
from gateway.pipeline.pace import Pace, Suspects
from gateway.pipeline.precedence import Precedence, StagesOn
from gateway.pipeline.settings import PipelineSettings
from gateway.pipeline.stages import Stage
from gateway.problems import status_of

log = structlog.get_logger(__name__)
PICTURES = Counter("pixelgate_pipeline_pictures_total", "Pictures that a stage is done with", ["stage", "outcome"])
BATCH_SECONDS = Histogram("pixelgate_pipeline_batch_seconds", "Seconds from a batch's lease to its results", ["stage"])


class GiveBack(Exception):
    """The batch cannot be worked on now, through no fault of its pictures; `error` says why."""

    def __init__(self, error: PixelgateError) -> None:
        """`error` is what stands in the way."""
        super().__init__(error.detail)
        self.error = error


class StageWorker:
    """Works one stage off, with several batches under way."""

    def __init__(
        self,
        stage: Stage,
        storage: StorageClient,
        settings: PipelineSettings,
        *,
        precedence: Precedence,
        stages_on: StagesOn,
    ) -> None:
        """Get work from `storage` and hand it to `stage`'s analyser."""
        self.stage = stage
        self.off = False
        self._storage, self._settings, self._precedence, self._stages_on = storage, settings, precedence, stages_on
        self._lease_s = settings.slow_lease_s if stage.slow else settings.lease_s
        self.breaker = Breaker(stage.name, min_s=settings.backoff_min_s, max_s=settings.backoff_max_s)
        self._pace = Pace(min(settings.batch, stage.most), self._lease_s, stage.first)
        self._suspects = Suspects()
        self._model: StageModel | None = None
        self._model_known_at = -math.inf
        # One looks for work at a time: with nothing to do, one question a second is enough for all.
        self._looking = asyncio.Lock()
        self._idle_s = settings.idle_min_s
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until `stop`; no error ends it."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._settings.workers):
                group.create_task(self._work())

    @property
    def call_timeout_s(self) -> float:
        """The longest call to a compute service: what takes longer could not hand in its results in time."""
        return self._lease_s * 0.8

    def stop(self) -> None:
        """Begin no further batch."""
        self._stopping.set()

    async def _work(self) -> None:
        while not self._stopping.is_set():
            begin_request(None)
            ticket = self.breaker.begin()
            try:
                await self._once()
                self.breaker.worked(ticket)
            except PixelgateError as error:
                self._precedence.note(self.stage.name, self.stage.rank, False)
                self._model_known_at = (
                    -math.inf
                )  # so that the service is asked whether it is back before any work is taken
                await self._pause(self.breaker.failed(error.detail))
            except Exception as error:
                # A stage must not stand still for ever because of one unforeseen answer.
                log.exception("stage_failed", stage=self.stage.name)
                self._precedence.note(self.stage.name, self.stage.rank, False)
                await self._pause(self.breaker.failed(f"{type(error).__name__}, see the log"))

    async def _once(self) -> None:
        async with self._looking:
            await self._precedence.wait(self.stage.rank, self._stopping.is_set)
            if self._stopping.is_set():
                return
            self.off = not await self._stages_on.has(self.stage.name)
            if self.off:
                self._precedence.note(self.stage.name, self.stage.rank, False)
                await self._pause(self._settings.models_ttl_s)
                return
            started = time.monotonic()
            wanted = self._pace.batch
            model, items = await self._lease(wanted)
            self._precedence.note(self.stage.name, self.stage.rank, len(items) == wanted)
            if not items:
                await self._pause(self._idle_s)
                self._idle_s = min(self._settings.idle_max_s, self._idle_s * 1.5)
                return
            self._idle_s = self._settings.idle_min_s
        held = {item.token: item for item in items}
        try:
            await self._analyse(model, held, started)
            seconds = time.monotonic() - started
            self._pace.took(len(items), seconds)
            BATCH_SECONDS.labels(self.stage.name).observe(seconds)
        except GiveBack as back:
            raise back.error from back
        finally:
            if held:
                await self._release(list(held))

    async def _lease(self, count: int) -> tuple[StageModel, list[Leased]]:
        if self._model is None or time.monotonic() - self._model_known_at > self._settings.models_ttl_s:
            model = await self.stage.analyser.model()
            if model != self._model:
                await self._storage.set_model(self.stage.name, model)
                log.info("stage_model", stage=self.stage.name, model=model.model, fingerprint=model.fingerprint)
            self._model, self._model_known_at = model, time.monotonic()
        wanted = LeaseWanted(fingerprint=self._model.fingerprint, limit=count, lease_s=self._lease_s)
        try:
            return self._model, (await self._storage.lease(self.stage.name, wanted)).items
        except PixelgateError:
            # Whatever it is (another store, another wanted model), saying again which model there is can only help.
            self._model = None
            raise

    async def _analyse(self, model: StageModel, held: dict[str, Leased], started: float) -> None:
        items = list(held.values())
        files = await self._storage.files([item.image_id for item in items], self.stage.variant)
        there = [item for item in items if item.image_id in files]
        if missing := [item for item in items if item.image_id not in files]:
            findings = [Finding(problem=_no_file(self.stage.variant)) for _ in missing]
            await self._hand_in(model, missing, findings, started, held)
        todo = self._suspects.groups(there)
        while todo:
            group = todo.pop(0)
            try:
                findings = await self.stage.analyser.analyse(
                    [files[item.image_id] for item in group], model.fingerprint, self._left_s(started)
                )
            except PixelgateError as error:
                findings = self._after_failure(error, group)
                if not findings:
                    middle = (len(group) + 1) // 2
                    todo[:0] = [group[:middle], group[middle:]]
                    continue
            await self._hand_in(model, group, findings, started, held)

    def _after_failure(self, error: PixelgateError, group: Sequence[Leased]) -> list[Finding]:
        """Return the finding of the one picture that is to blame, or nothing: then the group is to be split.

        Raises `GiveBack` when the pictures are not to blame, or the service must come back before more can be known.
        """
        if status_of(error) == 409:
            self._model = None
            raise GiveBack(error) from error
        if not _may_be_the_pictures(error):
            raise GiveBack(error) from error
        self._suspects.blame(group)
        if len(group) == 1:
            log.warning("picture_fails", stage=self.stage.name, image_id=group[0].image_id, reason=error.detail)
            return [Finding(problem=error.to_problem())]
        log.info("batch_is_split", stage=self.stage.name, pictures=len(group), reason=error.detail)
        if isinstance(error, ConnectionCut):
            raise GiveBack(error) from error
        return []

    def _left_s(self, started: float) -> float:
        """Return the time that a call may still take; raises `GiveBack` when too little of the lease is left."""
        left_s = self.call_timeout_s - (time.monotonic() - started)
        if left_s < self._lease_s * 0.1:
            raise GiveBack(TimedOut("The lease is over before the batch is done."))
        return left_s

    async def _hand_in(
        self,
        model: StageModel,
        group: Sequence[Leased],
        findings: Sequence[Finding],
        started: float,
        held: dict[str, Leased],
    ) -> None:
        took_ms = (time.monotonic() - started) * 1000 / max(1, len(group))
        patience = Patience(self._settings.results_retry_s)
        group, findings = await self._put_files(group, findings, held, patience)
        if not group:
            return
        results = [
            StageResult(
                image_id=item.image_id,
                token=item.token,
                took_ms=took_ms,
                vector=finding.vector,
                result=finding.result,
                problem=finding.problem,
                # 4xx is a verdict on the picture's bytes, which do not change; 5xx may have had other reasons.
                retry=finding.problem is None or finding.problem.status >= 500,
            )
            for item, finding in zip(group, findings, strict=True)
        ]
        await self._storage.post_results(
            self.stage.name, StageResults(fingerprint=model.fingerprint, items=results), patience
        )
        for item, finding in zip(group, findings, strict=True):
            held.pop(item.token, None)
            PICTURES.labels(self.stage.name, "failed" if finding.problem else "done").inc()
        self._suspects.clear(item for item, found in zip(group, findings, strict=True) if not found.problem)

    async def _put_files(
        self, group: Sequence[Leased], findings: Sequence[Finding], held: dict[str, Leased], patience: Patience
    ) -> tuple[list[Leased], list[Finding]]:
        """Keep the files that belong to findings; return those findings whose pictures are still ours."""
        kept: list[Leased] = []
        good: list[Finding] = []
        for item, finding in zip(group, findings, strict=True):
            said = finding
            if finding.file is not None:
                try:
                    await self._storage.put_file(
                        self.stage.name, item.image_id, item.token, finding.file, patience=patience
                    )
                except PixelgateError as error:
                    status = status_of(error)
                    if status in (404, 409):  # deleted meanwhile, or the lease is somebody else's by now
                        log.info("file_came_too_late", stage=self.stage.name, image_id=item.image_id)
                        held.pop(item.token, None)
                        continue
                    if status >= 500 or status in (401, 429):
                        raise
                    said = Finding(problem=error.to_problem())
            kept.append(item)
            good.append(said)
        return kept, good

    async def _release(self, tokens: Sequence[str]) -> None:
        """Give leases back; when that fails too, they expire."""
        try:
            async with asyncio.timeout(2.0):
                await self._storage.release(self.stage.name, tokens)
        except (PixelgateError, TimeoutError) as error:
            log.debug("leases_left_to_expire", stage=self.stage.name, leases=len(tokens), reason=str(error))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return


def _may_be_the_pictures(error: PixelgateError) -> bool:
    """Return whether a call can have failed because of what was sent, and not because nobody was there to take it."""
    if isinstance(error, ConnectionCut | TimedOut):
        return True
    return not isinstance(error, Unavailable | Overloaded | NotAccepted) and status_of(error) not in (429, 503)


def _no_file(variant: str) -> Problem:
    return Problem(
        type="urn:pixelgate:problem:file_missing",
        title="The file is missing",
        status=500,
        detail=f"The picture's {variant} could not be read from the object store.",
    )
