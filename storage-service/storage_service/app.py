"""The application: its parts are opened in the order in which they need each other, and closed in reverse.

Postgres first, because everything else is told by it what there is; then the stores that it points into; then what
takes work in; upkeep last, so that no loop runs while something is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from pixelgate_common.contracts.storage import SPACES
from pixelgate_common.health import health_router
from pixelgate_common.images import DecodeLimits
from pixelgate_common.service import build_app
from starlette.types import Scope

from storage_service.analyses import RetryPolicy
from storage_service.arrival import Arrivals
from storage_service.color_index import ColorIndex
from storage_service.comparisons import Comparisons, be_nice
from storage_service.cutouts import Cutouts
from storage_service.database import Database
from storage_service.decoders import Decoders
from storage_service.generations import Generations
from storage_service.migrations import Phase, migrate
from storage_service.objects.directory import DirectoryObjects
from storage_service.objects.protocol import ObjectStore
from storage_service.objects.s3 import S3Objects
from storage_service.parts import Parts
from storage_service.pictures import warm_up
from storage_service.removal import Removals
from storage_service.routes import duplicates, files, images, search, stages
from storage_service.settings import Settings
from storage_service.stages import enable_stages, fold_tallies
from storage_service.upkeep import Upkeep
from storage_service.vectors.edge import EdgeVectorIndex
from storage_service.vectors.protocol import VectorIndex
from storage_service.vectors.qdrant import QdrantVectorIndex, connect

_MAX_JSON_BYTES = 32 * 1024 * 1024  # a full batch of results with vectors of 16,384 values
_PHASES: dict[str, tuple[Phase, ...]] = {"all": ("pre", "post"), "pre": ("pre",), "none": ()}


def create_app(settings: Settings) -> FastAPI:
    """Return the application; nothing is opened before its lifespan begins."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            # They need nothing of the others, and a second to start.
            decoders = Decoders(
                settings.decoders,
                timeout_s=settings.decode_timeout_s,
                memory_bytes=settings.decode_memory_mb << 20,
                warm_up=warm_up,
            )
            stack.push_async_callback(decoders.close)
            comparer = _comparer(settings)
            if comparer is not None:
                stack.push_async_callback(comparer.close)
            children_started = asyncio.create_task(_started(decoders, comparer))
            stack.push_async_callback(_settled, children_started)
            await migrate(settings.dsn, _PHASES[settings.migrate])
            db = Database(
                settings.dsn,
                max_connections=settings.database_connections,
                statement_timeout_s=settings.statement_timeout_s,
            )
            await db.open()
            stack.push_async_callback(db.close)
            objects = object_store(settings)
            stack.push_async_callback(objects.close)
            await objects.open()
            generations = Generations(db, vector_index(settings))
            stack.push_async_callback(generations.close)
            await generations.start()
            await enable_stages(db, settings.stages)
            await children_started
            arrivals = Arrivals(
                db,
                objects,
                decoders,
                folder=settings.data_dir / "tmp",
                limits=DecodeLimits(max_bytes=settings.max_upload_bytes, max_pixels=settings.max_pixels),
                max_waiting=settings.max_waiting,
            )
            stack.push_async_callback(arrivals.close)
            await arrivals.start()
            removals = Removals(db, generations, objects)
            cutouts = Cutouts(
                db,
                objects,
                decoders,
                arrivals,
                limits=DecodeLimits(
                    max_bytes=settings.max_cutout_mb << 20,
                    max_pixels=settings.max_pixels,
                    formats=frozenset({"PNG"}),
                ),
            )
            palettes = ColorIndex(db)
            retry = RetryPolicy(settings.max_attempts, settings.retry_base_s, settings.retry_max_s)
            app.state.parts = Parts(settings, db, objects, generations, palettes, arrivals, cutouts, removals, retry)

            async def activate() -> None:
                for space in SPACES:
                    await generations.maybe_activate(space)

            upkeep = Upkeep()
            stack.push_async_callback(upkeep.close)
            upkeep.every(30, "removals", removals.work_off)
            upkeep.every(10, "tallies", lambda: fold_tallies(db))
            # The last thing that a generation waited for may be a deletion, which brings no result.
            upkeep.every(30, "activation", activate)
            # At once, so that the first search by colour does not have to read them all.
            upkeep.every(120, "palettes", palettes.tidy)
            if comparer is not None:
                comparisons = Comparisons(db, generations, objects, comparer, similar_cosine=settings.similar_cosine)
                upkeep.every(1, "duplicates", comparisons.work_off)
            yield

    app = build_app(
        service="storage-service",
        description=__doc__ or "",
        settings=settings,
        lifespan=lifespan,
        routers=[images.router, files.router, stages.router, search.router, duplicates.router],
        body_limit=_body_limit,
    )
    app.include_router(
        health_router(
            {
                "database": lambda: app.state.parts.db.check(),
                "objects": lambda: app.state.parts.objects.check(),
                "vectors": lambda: app.state.parts.generations.check(),
            }
        )
    )
    return app


def object_store(settings: Settings) -> ObjectStore:
    """Return the object store that the settings name."""
    if settings.s3_endpoint is None or settings.s3_access_key is None or settings.s3_secret_key is None:
        return DirectoryObjects(settings.data_dir / "objects")
    return S3Objects(
        settings.s3_endpoint,
        settings.s3_access_key,
        settings.s3_secret_key.get_secret_value(),
        bucket=settings.s3_bucket,
        region=settings.s3_region,
        secure=settings.s3_secure,
    )


def vector_index(settings: Settings) -> VectorIndex:
    """Return the vector index that the settings name."""
    if settings.qdrant_url is None:
        return EdgeVectorIndex(settings.data_dir / "vectors")
    api_key = None if settings.qdrant_api_key is None else settings.qdrant_api_key.get_secret_value()
    return QdrantVectorIndex(connect(settings.qdrant_url, api_key))


def _comparer(settings: Settings) -> Decoders | None:
    """Return the child in which pictures are compared, or None when they are not."""
    if settings.duplicates == "off":
        return None
    memory_bytes = settings.decode_memory_mb << 20
    return Decoders(1, timeout_s=settings.decode_timeout_s, memory_bytes=memory_bytes, warm_up=be_nice)


async def _started(decoders: Decoders, comparer: Decoders | None) -> None:
    await asyncio.gather(decoders.start(), *([] if comparer is None else [comparer.start()]))


async def _settled(task: asyncio.Task[None]) -> None:
    """Wait for `task` however it ends: where that matters it is awaited as well."""
    await asyncio.wait([task])


def _body_limit(scope: Scope) -> int:
    method, path = scope["method"], scope["path"]
    if (method, path) == ("POST", "/v1/images") or (method == "PUT" and path.startswith("/v1/stages/cutout/files/")):
        # Files count for themselves, to name the setting that a refusal is about.
        return 1 << 62
    return _MAX_JSON_BYTES
