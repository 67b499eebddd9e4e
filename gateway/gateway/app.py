"""The gateway's application: its parts in the order in which they are opened, its routes, its guards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from pixelgate_common import __version__
from pixelgate_common.contracts.problems import Problem
from pixelgate_common.errors import install_error_handlers
from pixelgate_common.fetch import GuardedFetcher
from pixelgate_common.health import Check, health_router
from pixelgate_common.images import DecodeLimits
from pixelgate_common.metrics import metrics_router
from pixelgate_common.middleware import BodyCap, RequestContext

from gateway.analyst import Analyst
from gateway.auth import Authenticator, KeyCheck, OpenAuthenticator
from gateway.clients.caption import CaptionClient
from gateway.clients.color import ColorClient
from gateway.clients.detect import DetectClient
from gateway.clients.embed import EmbedClient
from gateway.clients.inner import open_http
from gateway.clients.storage import StorageClient
from gateway.color_query import ColorQueries
from gateway.composer import Composer
from gateway.embeddings import Embedder
from gateway.feed import StageFeed
from gateway.limits import Admission, body_limit
from gateway.model_directory import ModelDirectory
from gateway.parts import GatewayParts
from gateway.pictures import Cropper
from gateway.routes import (
    analyse,
    compose,
    docs,
    duplicates,
    embeddings,
    events,
    images,
    models,
    renderings,
    search,
    stages,
    stats,
)
from gateway.searcher import Searcher
from gateway.settings import GatewaySettings
from gateway.sources import Sources
from gateway.uploads import Uploads

_DESCRIPTION = "Store pictures, and find them again by words, by picture and by metadata."


def create_app(
    settings: GatewaySettings,
    *,
    storage_http: httpx.AsyncClient | None = None,
    embed_http: httpx.AsyncClient | None = None,
    caption_http: httpx.AsyncClient | None = None,
    detect_http: httpx.AsyncClient | None = None,
    color_http: httpx.AsyncClient | None = None,
    fetcher: GuardedFetcher | None = None,
    authenticator: Authenticator | None = None,
) -> FastAPI:
    """Return the gateway's application; whatever is not given is made from `settings`, and closed at the end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:

            async def way(given: httpx.AsyncClient | None, url: object, timeout_s: float, connections: int) -> Any:
                if given is not None:
                    return given
                http = open_http(url, settings, read_timeout_s=timeout_s, connections=connections)
                return await stack.enter_async_context(http)

            to_storage = await way(storage_http, settings.storage_url, settings.storage_timeout_s, 160)
            to_embed = await way(embed_http, settings.embed_url, settings.embed_timeout_s, 64)
            to_caption = await way(caption_http, settings.caption_url, settings.analyse_timeout_s, 32)
            to_detect = await way(detect_http, settings.detect_url, settings.analyse_timeout_s, 32)
            to_color = await way(color_http, settings.color_url, settings.analyse_timeout_s, 32)
            fetching = fetcher
            if fetching is None:
                fetching = await stack.enter_async_context(GuardedFetcher(settings.fetch_limits))
            storage = StorageClient(to_storage, token=settings.service_token, retry_s=settings.retry_s)
            embed = EmbedClient(to_embed, token=settings.service_token, retry_s=settings.retry_s)
            caption = CaptionClient(to_caption, token=settings.service_token, retry_s=settings.retry_s)
            detect = DetectClient(to_detect, token=settings.service_token, retry_s=settings.retry_s)
            color = ColorClient(to_color, token=settings.service_token, retry_s=settings.retry_s)
            directory = ModelDirectory(embed, settings.models_ttl_s)
            sources = Sources(settings, storage, fetching)
            colors = ColorQueries(storage, color, settings.colors_weight)
            limits = DecodeLimits(max_bytes=settings.max_upload_bytes, max_pixels=settings.max_pixels)
            cropper = Cropper(limits)
            stack.callback(cropper.close)
            feed = StageFeed(storage, poll_s=settings.events_poll_s, subscribers=settings.events_subscribers)
            stack.push_async_callback(feed.close)
            app.state.parts = GatewayParts(
                settings=settings,
                storage=storage,
                embed=embed,
                caption=caption,
                detect=detect,
                color=color,
                models=directory,
                sources=sources,
                analyst=Analyst(storage, caption, detect, color),
                composer=Composer(color, sources),
                uploads=Uploads(settings, storage, fetching),
                searcher=Searcher(settings, storage, embed, directory, fetching, colors),
                embedder=Embedder(settings, embed, directory, fetching),
                cropper=cropper,
                feed=feed,
            )
            yield

    app = FastAPI(
        title="Pixelgate",
        description=_DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={
            422: {"model": Problem, "description": "The request is not valid"},
            503: {"model": Problem, "description": "A part is away, or there is too much work; see Retry-After"},
        },
    )
    # What is made of a picture stands before its files, one of which it would be taken for.
    for module in (
        renderings, images, search, analyse, compose, duplicates, embeddings, stages, events, stats, models, docs,
    ):  # fmt: skip
        app.include_router(module.router)
    checks: dict[str, Check] = {"storage": lambda: _storage(app), "embed": lambda: _embed(app)}
    # Without these, pictures are still stored and found; only their own routes answer 503.
    adding = {name: _compute_check(app, name) for name in ("caption", "detect", "color")}
    app.include_router(health_router(checks | adding, optional=adding))
    app.include_router(metrics_router())
    install_error_handlers(app)
    # Added last runs first: id, then key, then a turn, then the body's size, and only then is a body read.
    app.add_middleware(BodyCap, limit_for=body_limit(settings))
    app.add_middleware(Admission, settings=settings)
    app.add_middleware(KeyCheck, authenticator=authenticator or OpenAuthenticator())
    app.add_middleware(RequestContext, service="gateway")
    return app


def end_streams(app: FastAPI) -> None:
    """End every event stream of `app`, so that a stop need not wait for their readers to go."""
    parts: GatewayParts | None = getattr(app.state, "parts", None)
    if parts is not None:
        parts.feed.end_all()


async def _storage(app: FastAPI) -> Any:
    parts: GatewayParts = app.state.parts
    return (await parts.storage.ready()).get("parts")


async def _embed(app: FastAPI) -> Any:
    parts: GatewayParts = app.state.parts
    await parts.embed.ready()
    known = await parts.embed.models()
    return {"set": known.set, "models": {model.slot: model.fingerprint for model in known.models}}


def _compute_check(app: FastAPI, name: str) -> Check:
    async def check() -> Any:
        client = getattr(app.state.parts, name)
        await client.ready()
        known = await client.models()
        return {"set": known.set, "models": {model.slot: model.fingerprint for model in reversed(known.models)}}

    return check
