"""What the application is made of once it runs, and how the routes get at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from storage_service.analyses import RetryPolicy
from storage_service.arrival import Arrivals
from storage_service.color_index import ColorIndex
from storage_service.cutouts import Cutouts
from storage_service.database import Database
from storage_service.generations import Generations
from storage_service.objects.protocol import ObjectStore
from storage_service.removal import Removals
from storage_service.settings import Settings


@dataclass(frozen=True)
class Parts:
    """Everything that a route may use."""

    settings: Settings
    db: Database
    objects: ObjectStore
    generations: Generations
    palettes: ColorIndex
    arrivals: Arrivals
    cutouts: Cutouts
    removals: Removals
    retry: RetryPolicy


async def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


PartsNow = Annotated[Parts, Depends(_parts)]
"""The parts of the running application, as a route's argument."""
