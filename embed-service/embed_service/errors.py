"""What can go wrong when models are loaded, in words for the person who starts the service."""

from __future__ import annotations

from typing import ClassVar

from pixelgate_common.errors import NotFound, PixelgateError


class ModelProblem(PixelgateError):
    """A model cannot be used as it is; the service does not start with it."""

    code: ClassVar[str] = "model_problem"
    title: ClassVar[str] = "A model cannot be used"


class ModelMissing(ModelProblem):
    """The weights or configuration of a model are not on this machine."""

    code: ClassVar[str] = "model_missing"
    title: ClassVar[str] = "A model is not on this machine"


class ModelChanged(ModelProblem):
    """A name stands for other weights or another configuration than when it was first loaded."""

    code: ClassVar[str] = "model_changed"
    title: ClassVar[str] = "A model is not the one that it was"


class WrongAnswer(ModelProblem):
    """A loaded model does not give the vector that is recorded for it."""

    code: ClassVar[str] = "wrong_answer"
    title: ClassVar[str] = "A model gives another answer than recorded"


class UnknownSlot(NotFound):
    """No model is loaded for this slot."""

    code: ClassVar[str] = "unknown_slot"
    title: ClassVar[str] = "No model is loaded for this slot"
