"""The golden question: a known picture, whose objects and alpha every loaded model must give again.

Where the right answer comes from: for checkpoints that are known here it stands in `data/golden.json`; for any other it
is computed once in fp32, by the library's own code and preprocessing, and recorded in `MODEL_DIR/models.lock`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib.resources import files
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from pixelgate_common.contracts.detect import Box
from pixelgate_common.inference.errors import WrongAnswer

from detect_service.matte import Alpha

Answer = dict[str, Any]
FLOOR = 0.05
"""The score from which objects of the golden picture are recorded."""
_SURE = 0.3  # from here on an object must be found again
_MAX_SCORE_ERROR = {"fp32": 0.05, "bf16": 0.15}
_MIN_IOU = 0.7
_MOST_RECORDED = 50
_ALPHA_SIDE_PX = 32
_MAX_ALPHA_ERROR = {"fp32": 2.0, "bf16": 6.0}  # mean of 255


def picture() -> Image.Image:
    """Return the golden picture, mode RGB: three of COCO's objects, wider than high. From a PNG: exact pixels."""
    with Image.open(BytesIO(files("detect_service").joinpath("data/golden.png").read_bytes())) as image:
        return image.convert("RGB")


def known_answers() -> dict[str, Answer]:
    """Return the recorded answers of known checkpoints by fingerprint."""
    answers: dict[str, Answer] = json.loads(files("detect_service").joinpath("data/golden.json").read_text())
    return answers


def of_objects(objects: Sequence[Box]) -> Answer:
    """Return `objects` of the golden picture as they are recorded."""
    ranked = sorted(objects, key=lambda one: -one.score)[:_MOST_RECORDED]
    return {
        "objects": [
            {"label": one.label, "score": round(one.score, 4), "box": [round(edge, 2) for edge in one.box]}
            for one in ranked
        ]
    }


def of_alpha(alpha: Alpha) -> Answer:
    """Return the golden picture's alpha as it is recorded: its means in 32 × 32 fields, base64 of bytes."""
    return {"alpha": base64.b64encode(_fields(alpha).tobytes()).decode()}


def check_objects(name: str, objects: Sequence[Box], expected: Answer, precision: str) -> None:
    """Compare a model's `objects` of the golden picture with the recorded ones; else `WrongAnswer`.

    Every object surer than 0.3 on one side must be on the other, with the same label, an overlap of 0.7, and a score
    that differs by at most 0.05 (fp32) or 0.15 (bf16).
    """
    recorded = [Box.model_validate(one) for one in expected["objects"]]
    most = _MAX_SCORE_ERROR[precision]
    # Of a model that sees very much only the surest are recorded, and compared where they are surer than the rest:
    # which of many equally sure boxes stay is decided by the last bit.
    sure = _SURE
    if len(recorded) >= _MOST_RECORDED:
        sure = max(sure, min(one.score for one in recorded) + most)
    for what, wanted, given in (("misses", recorded, objects), ("invents", objects, recorded)):
        for one in wanted:
            if one.score >= sure and not any(_agree(one, other, most) for other in given):
                raise WrongAnswer(
                    f"{name} {what} an object of the known picture, {one.label} ({one.score:.2f}): its weights, its "
                    "preprocessing or this machine's arithmetic are not what they were."
                )


def check_alpha(name: str, alpha: Alpha, expected: Answer, precision: str) -> None:
    """Compare a model's alpha of the golden picture with the recorded one; else `WrongAnswer`."""
    right = np.frombuffer(base64.b64decode(expected["alpha"]), dtype=np.uint8).reshape(_ALPHA_SIDE_PX, -1)
    error = float(np.abs(_fields(alpha).astype(np.int16) - right).mean())
    if not error <= _MAX_ALPHA_ERROR[precision]:
        raise WrongAnswer(
            f"{name} gives another alpha of the known picture than recorded (mean difference {error:.1f} of 255): its "
            "weights, its preprocessing or this machine's arithmetic are not what they were."
        )


def _fields(alpha: Alpha) -> npt.NDArray[np.uint8]:
    small = cv2.resize(alpha, (_ALPHA_SIDE_PX, _ALPHA_SIDE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8)


def _agree(one: Box, other: Box, max_score_error: float) -> bool:
    return (
        one.label == other.label
        and abs(one.score - other.score) <= max_score_error
        and _overlap(one.box, other.box) >= _MIN_IOU
    )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, across) * max(0.0, down)
    return shared / max(a[2] * a[3] + b[2] * b[3] - shared, 1e-9)
