"""Several pictures in one: two blended along a seam or by a mask, many laid out in a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pixelgate_common.contracts.color import MAX_COLLAGE_IMAGES, BlendOptions, CollageOptions
from pixelgate_common.contracts.storage import Variant
from pixelgate_common.errors import InvalidRequest, NotFound
from pydantic import ConfigDict, Field, model_validator

from gateway.clients.color import ColorClient
from gateway.problems import renamed
from gateway.query import Query
from gateway.searcher import Result
from gateway.sources import Brought, ImageId, Place, Sources, Url

BLEND_PLACES = (
    Place("image_1", "url_1", "image_id_1"),
    Place("image_2", "url_2", "image_id_2"),
    Place("mask", "mask_url", "mask_id", needed=False),
)
_MEDIUM_SIDE_PX = 300


class BlendWanted(BlendOptions):
    """`POST /v1/blend`: of each picture exactly one way, of the mask at most one."""

    url_1: Url | None = None
    image_id_1: ImageId | None = None
    url_2: Url | None = None
    image_id_2: ImageId | None = None
    mask_url: Url | None = Field(None, description="Where it is white, image_1 shows; where it is black, image_2.")
    mask_id: ImageId | None = None


class CollageWanted(CollageOptions):
    """`POST /v1/collage`: stored pictures, or what a search finds, in a grid."""

    model_config = ConfigDict(extra="forbid")

    image_ids: list[ImageId] | None = Field(None, min_length=1, max_length=MAX_COLLAGE_IMAGES)
    search: Query | None = Field(None, description="A search; a picture searched by comes first, framed.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.image_ids is None) == (self.search is None):
            raise ValueError("exactly one of image_ids and search is needed")
        return self


class Composer:
    """Has pictures put together by color-service."""

    def __init__(self, color: ColorClient, sources: Sources) -> None:
        """Stored pictures are read through `sources`, which bounds what is in memory."""
        self._color, self._sources = color, sources

    async def blend(self, pictures: dict[str, Brought], wanted: BlendWanted) -> bytes:
        """Return two pictures blended into one (PNG) of the first one's size."""
        options = BlendOptions.model_validate(
            wanted.model_dump(include=set(BlendOptions.model_fields), exclude_unset=True)
        )
        mask = pictures.get("mask")
        with renamed({name: one.field for name, one in pictures.items()}):
            return await self._color.blend(
                pictures["image_1"].data, pictures["image_2"].data, None if mask is None else mask.data, options
            )

    async def collage(self, image_ids: Sequence[int], options: CollageOptions) -> bytes:
        """Return stored pictures in a grid; 404 naming the place of one that is not there."""
        variant = _variant(options)
        async with self._sources.stored(image_ids, variant) as files:
            for place, image_id in enumerate(image_ids):
                if image_id not in files:
                    raise NotFound(f"There is no picture {image_id}.", field=f"image_ids.{place}")
            with renamed({"images": "image_ids"}):
                return await self._color.collage([files[image_id] for image_id in image_ids], options)

    async def collage_of(self, result: Result, options: CollageOptions) -> tuple[bytes, list[int]]:
        """Return what a search found in a grid, and which stored pictures stand in it, in order.

        A picture that was searched by comes first, in a frame unless `options` say otherwise. 404 when there is
        nothing to show.
        """
        found = [hit.image.id for hit in result.found.hits]
        query = result.picture
        first = [query] if isinstance(query, int) else []
        room = MAX_COLLAGE_IMAGES - (query is not None)
        ids = [*first, *found[:room]]
        if query is not None and "frame_first" not in options.model_fields_set:
            options = options.model_copy(update={"frame_first": True})
        async with self._sources.stored(ids, _variant(options)) as files:
            # What was deleted since the search found it is left out.
            there = [image_id for image_id in ids if image_id in files]
            pictures = [files[image_id] for image_id in there]
            if isinstance(query, bytes):
                pictures.insert(0, query)
            if not pictures:
                raise NotFound("Nothing was found, so there is nothing to show.")
            return await self._color.collage(pictures, options), there


def collage_options(wanted: CollageWanted) -> CollageOptions:
    """Return what color-service is told of how the grid looks."""
    return CollageOptions.model_validate(
        wanted.model_dump(include=set(CollageOptions.model_fields), exclude_unset=True)
    )


def check_room(limit: int, *, field: str) -> None:
    """Raise `InvalidRequest` about `field` when so many hits do not fit into a collage."""
    if limit > MAX_COLLAGE_IMAGES:
        raise InvalidRequest(f"A collage has at most {MAX_COLLAGE_IMAGES} pictures.", field=field)


def _variant(options: CollageOptions) -> Variant:
    return "medium" if options.cell_px <= _MEDIUM_SIDE_PX else "preview"
