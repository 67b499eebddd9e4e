"""The order of work on a picture: THE one place where it is written.

Every stage works on the stored preview and on nothing that another stage made, so none waits for another; a stage that
needs another's result says so here when it comes. To add a stage, write what calls its service (`analysers.py`) and
add a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from pixelgate_common.contracts import caption, color, detect, embed
from pixelgate_common.contracts.storage import StageName, Variant

from gateway.clients.caption import CaptionClient
from gateway.clients.color import ColorClient
from gateway.clients.detect import DetectClient
from gateway.clients.embed import EmbedClient
from gateway.pipeline.analysers import Analyser, Captioning, CuttingOut, Detecting, Embedding, PaletteTaking


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the table: a stage, what it looks at, and who does it.

    A call takes `first` pictures to begin with and `most` at most. A `slow` stage has a longer lease. A stage stands
    back while one of a lower `rank` has more work than fits into one call.
    """

    name: StageName
    variant: Variant
    analyser: Analyser
    first: int = 32
    most: int = embed.MAX_IMAGES
    rank: int = 0
    slow: bool = False


@dataclass(frozen=True, slots=True)
class Services:
    """The clients of the services that analyse."""

    embed: EmbedClient
    caption: CaptionClient
    detect: DetectClient
    color: ColorClient


def stages(ask: Services) -> tuple[Stage, ...]:
    """Return the table of stages."""
    return (
        Stage("clip", "preview", Embedding(ask.embed, "clip")),
        Stage("resnet", "preview", Embedding(ask.embed, "resnet")),
        Stage("palette", "preview", PaletteTaking(ask.color), first=16, most=color.MAX_IMAGES),
        Stage("objects", "preview", Detecting(ask.detect), first=8, most=detect.MAX_IMAGES, rank=1, slow=True),
        Stage("caption", "preview", Captioning(ask.caption), first=4, most=caption.MAX_IMAGES, rank=2, slow=True),
        Stage(
            "cutout",
            "preview",
            CuttingOut(ask.detect, ask.color),
            first=2,
            most=detect.MAX_CUTOUT_IMAGES,
            rank=3,
            slow=True,
        ),
    )
