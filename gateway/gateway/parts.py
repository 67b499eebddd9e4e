"""Everything that the routes work with, put together once and handed to each request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from gateway.analyst import Analyst
from gateway.clients.caption import CaptionClient
from gateway.clients.color import ColorClient
from gateway.clients.detect import DetectClient
from gateway.clients.embed import EmbedClient
from gateway.clients.storage import StorageClient
from gateway.composer import Composer
from gateway.embeddings import Embedder
from gateway.feed import StageFeed
from gateway.model_directory import ModelDirectory
from gateway.pictures import Cropper
from gateway.searcher import Searcher
from gateway.settings import GatewaySettings
from gateway.sources import Sources
from gateway.uploads import Uploads


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """The gateway's parts."""

    settings: GatewaySettings
    storage: StorageClient
    embed: EmbedClient
    caption: CaptionClient
    detect: DetectClient
    color: ColorClient
    models: ModelDirectory
    sources: Sources
    analyst: Analyst
    composer: Composer
    uploads: Uploads
    searcher: Searcher
    embedder: Embedder
    cropper: Cropper
    feed: StageFeed


def _of_request(request: Request) -> GatewayParts:
    return cast(GatewayParts, request.app.state.parts)


Parts = Annotated[GatewayParts, Depends(_of_request)]
"""What a route takes to get at the gateway's parts."""
