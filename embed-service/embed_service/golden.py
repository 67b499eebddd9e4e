"""The golden question: a known picture and a known text, whose vectors every loaded model must give again.

Where the right answer comes from: for checkpoints that are known here it stands in `data/golden.json`; for any other
it is computed once in fp32, by the library's own code and preprocessing, and recorded in `MODEL_DIR/models.lock`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pixelgate_common.inference.errors import ModelProblem, WrongAnswer
from pixelgate_common.inference.model_lock import ModelLock
from pixelgate_common.vectors import decode_vector

from embed_service.artifacts import Artifact
from embed_service.catalogue import ModelSource
from embed_service.pixels import Preprocess, fit

TEXT = "a photograph of two cats and a red bus in front of a café, 1987"
MIN_COSINE = 0.999
_MAX_MEAN_ERROR, _MAX_ERROR = 0.5, 4.0  # of 255: rounding in other places, and nothing else


def picture_bytes() -> bytes:
    """Return the golden picture's file: a PNG, so that every decoder gives the same pixels."""
    return files("embed_service").joinpath("data/golden.png").read_bytes()


def picture() -> Image.Image:
    """Return the golden picture, mode RGB, wider than high so that each way of cropping gives another vector."""
    with Image.open(BytesIO(picture_bytes())) as image:
        return image.convert("RGB")


def check_preprocess(reference: Callable[[Image.Image], Any], preprocess: Preprocess, name: str) -> None:
    """Compare our pixels of the golden picture with `reference`, the library's (3, size, size); else `ModelProblem`."""
    theirs = np.asarray(reference(picture())).transpose(1, 2, 0) * preprocess.std + preprocess.mean
    ours = fit(picture(), preprocess).astype(np.float64)
    error = np.abs(theirs * 255 - ours)
    if error.mean() > _MAX_MEAN_ERROR or error.max() > _MAX_ERROR:
        raise ModelProblem(
            f"{name}: its own preprocessing gives other pixels than ours "
            f"(mean difference {error.mean():.2f}, largest {error.max():.0f} of 255)."
        )


def expected_vectors(source: ModelSource, artifact: Artifact, lock: Path) -> dict[str, str]:
    """Return the recorded answers, base64 by kind (`image`, `text`); a model that is new is recorded now.

    Raises `ModelChanged` when the name stands for other weights or preprocessing than when it was recorded.
    """
    known = json.loads(files("embed_service").joinpath("data/golden.json").read_text())
    if artifact.fingerprint in known:
        return dict(known[artifact.fingerprint])
    # A starter model changes with the repository, so its name alone promises nothing.
    key = f"{source.slot}:{source.name}" + (f":{artifact.fingerprint}" if source.name == "starter" else "")
    entry = {
        "fingerprint": artifact.fingerprint,
        "weights_sha256": artifact.weights_sha256,
        "image": artifact.image_vector,
    }
    if artifact.text_vector is not None:
        entry["text"] = artifact.text_vector
    entry = ModelLock(lock).check_or_record("embed", key, entry, name=source.name)
    return {kind: entry[kind] for kind in ("image", "text") if kind in entry}


def check(name: str, kind: str, vector: npt.NDArray[np.float32], expected: str) -> None:
    """Compare a model's answer, shape (dim,), with the recorded one; `WrongAnswer` below a cosine of 0.999."""
    right = decode_vector(expected)
    if right.shape != vector.shape:
        raise WrongAnswer(f"{name} gives {kind} vectors of length {vector.shape[0]}, recorded is {right.shape[0]}.")
    length = float(np.linalg.norm(vector))
    cosine = float(vector @ right) / max(length * float(np.linalg.norm(right)), 1e-12)
    if not cosine >= MIN_COSINE or abs(length - 1) > 1e-2:
        raise WrongAnswer(
            f"{name} gives another vector for the known {kind} than recorded (cosine {cosine:.4f}, length "
            f"{length:.3f}): its weights, its preprocessing or this machine's arithmetic are not what they were."
        )
