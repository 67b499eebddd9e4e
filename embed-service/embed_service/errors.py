"""What is asked of embed-service and is not there; problems of models themselves stand in common."""

from __future__ import annotations

from typing import ClassVar

from pixelgate_common.errors import NotFound


class UnknownSlot(NotFound):
    """No model is loaded for this slot."""

    code: ClassVar[str] = "unknown_slot"
    title: ClassVar[str] = "No model is loaded for this slot"
