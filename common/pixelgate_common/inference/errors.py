"""What can go wrong with models, in words for the person who starts a service or asks it."""

from __future__ import annotations

from pixelgate_common.errors import PixelgateError


class ModelProblem(PixelgateError):
    """A model cannot be used as it is; a service that loads it at its start does not start."""

    code, title = "model_problem", "A model cannot be used"


class ModelMissing(ModelProblem):
    """The weights or configuration of a model are not on this machine."""

    code, title = "model_missing", "A model is not on this machine"


class ModelChanged(ModelProblem):
    """A name stands for other weights or another configuration than when it was first loaded or pulled."""

    code, title = "model_changed", "A model is not the one that it was"


class WrongAnswer(ModelProblem):
    """A loaded model does not give the answer that is recorded for it."""

    code, title = "wrong_answer", "A model gives another answer than recorded"


class NotEnoughMemory(ModelProblem):
    """A model was not loaded, because it would take more memory than there is."""

    status, code, title = 503, "not_enough_memory", "There is not enough memory for a model at the moment"

    def __init__(self, detail: str, *, retry_after_s: float = 30.0) -> None:
        """Say how much is needed and how much there is."""
        super().__init__(detail, retry_after_s=retry_after_s)
