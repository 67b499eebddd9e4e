"""What can go wrong in captioning that other services do not know."""

from __future__ import annotations

from typing import ClassVar

from pixelgate_common.images import ImageRefused


class NoCaption(ImageRefused):
    """The model has nothing to say of this picture."""

    code: ClassVar[str] = "no_caption"
    title: ClassVar[str] = "There is no caption for this picture"
