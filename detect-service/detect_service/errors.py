"""What can be wrong with a request here, beyond what all services share."""

from __future__ import annotations

from pixelgate_common.errors import NotFound


class UnknownModel(NotFound):
    """No model of this name is on this machine, or the slot is switched off."""

    code, title = "unknown_model", "There is no such model here"
