"""The golden question: a known picture, of which every loaded model must say again what is recorded.

Compared are the scores along the recorded tokens, given to the model one after the other: they show every part (eyes,
memory of what was said, vocabulary), and unlike a sentence they do not jump when bf16 makes two almost equal words
change places. The sentence itself is compared as well where it was seen to be the same in every precision (the known
checkpoints of `data/golden.json`) and in fp32. For any other model both are computed once in fp32, by transformers'
own code, and recorded in `MODEL_DIR/models.lock`.
"""

from __future__ import annotations

import json
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pixelgate_common.inference.errors import ModelProblem, WrongAnswer
from pixelgate_common.inference.model_lock import ModelLock
from pixelgate_common.inference.model_sets import STARTER
from pixelgate_common.vectors import decode_vector, encode_vector

from caption_service import decoding
from caption_service.artifacts import Answer, Artifact
from caption_service.catalogue import SLOT
from caption_service.decoding import Runner, SentenceGuide, ToldGuide
from caption_service.pixels import Pixels, Preprocess, fit
from caption_service.vocabulary import Vocabulary

MIN_COSINE = {"fp32": 0.9999, "bf16": 0.99}
STEPS = 8
MAX_WORDS = 30
_SCORES_OF_STEP = 256
_MAX_MEAN_ERROR, _MAX_ERROR = 0.5, 4.0  # of 255: rounding in other places, and nothing else


def picture_bytes() -> bytes:
    """Return the golden picture's file: a PNG, so that every decoder gives the same pixels."""
    return files("caption_service").joinpath("data/golden.png").read_bytes()


def picture() -> Image.Image:
    """Return the golden picture, mode RGB, wider than high."""
    with Image.open(BytesIO(picture_bytes())) as image:
        return image.convert("RGB")


def check_preprocess(theirs: npt.NDArray[np.float32], preprocess: Preprocess, name: str) -> None:
    """Compare our pixels of the golden picture with the library's, (3, side, side) normalised; else `ModelProblem`."""
    values = theirs.transpose(1, 2, 0) * preprocess.std + preprocess.mean
    ours = fit(picture(), preprocess).astype(np.float64)
    if values.shape != ours.shape:
        raise ModelProblem(f"{name}: its own preprocessing gives {values.shape[:2]} pixels, ours {ours.shape[:2]}.")
    error = np.abs(values * 255 - ours)
    if error.mean() > _MAX_MEAN_ERROR or error.max() > _MAX_ERROR:
        raise ModelProblem(
            f"{name}: its own preprocessing gives other pixels than ours "
            f"(mean difference {error.mean():.2f}, largest {error.max():.0f} of 255)."
        )


def signature(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return some of each step's scores, (steps, vocabulary) to (steps, 256 or fewer), less their mean, unit length.

    All scores of a step may rise or fall together without any word changing; what is left is what tells words apart.
    """
    count = scores.shape[1]
    some = scores[:, np.unique(np.linspace(0, count - 1, min(count, _SCORES_OF_STEP)).astype(int))]
    some = some - some.mean(axis=1, keepdims=True)
    length = np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12)
    return np.asarray(some / length, dtype=np.float32)


def ask(runner: Runner, pixels: Pixels, vocabulary: Vocabulary, tokens: tuple[int, ...]) -> tuple[Any, str]:
    """Return the signature of a model's scores along `tokens`, and its own caption."""
    told = ToldGuide(tokens[:STEPS])
    decoding.speak(runner, [pixels], [told], vocabulary.begin_id)
    own = SentenceGuide(vocabulary, 0, MAX_WORDS)
    decoding.speak(runner, [pixels], [own], vocabulary.begin_id)
    return signature(np.stack(told.scores)), own.caption()


def encode(scores: npt.NDArray[np.float32]) -> str:
    """Return a signature as base64 of float32."""
    return encode_vector(scores.ravel())


def expected(name: str, artifact: Artifact, lock: Path) -> tuple[Answer, bool]:
    """Return the recorded answer, and whether its sentence holds in every precision; a model that is new is recorded.

    Raises `ModelChanged` when the name stands for other weights or preprocessing than when it was recorded.
    """
    known = json.loads(files("caption_service").joinpath("data/golden.json").read_text())
    if artifact.fingerprint in known:
        return Answer.from_json(known[artifact.fingerprint]), True
    # A starter model changes with the repository, so its name alone promises nothing.
    key = f"{name}:{artifact.fingerprint}" if name == STARTER else name
    entry = {
        "fingerprint": artifact.fingerprint,
        "weights_sha256": artifact.weights_sha256,
        **artifact.answer.to_json(),
    }
    return Answer.from_json(ModelLock(lock).check_or_record(SLOT, key, entry, name=name)), False


def check(name: str, runner: Runner, artifact: Artifact, right: Answer, precision: str, *, sentence: bool) -> None:
    """Ask the golden question; raise `WrongAnswer` when the answer is not the right one.

    `sentence`: the caption must be the same too, which in fp32 it must anyhow.
    """
    vocabulary = artifact.vocabulary
    scores, caption = ask(runner, fit(picture(), artifact.preprocess), vocabulary, right.tokens)
    theirs = decode_vector(right.scores)
    if theirs.size != scores.size:
        raise WrongAnswer(f"{name} gives {scores.size} golden scores, recorded are {theirs.size}.")
    cosine = float((theirs.reshape(scores.shape) * scores).sum(axis=1).min())
    if not cosine >= MIN_COSINE[precision]:
        raise WrongAnswer(
            f"{name} scores words otherwise than recorded for the known picture (cosine {cosine:.4f}): its weights, "
            "its preprocessing or this machine's arithmetic are not what they were."
        )
    if (sentence or precision == "fp32") and caption != right.caption:
        raise WrongAnswer(f"{name} says {caption!r} of the known picture; recorded is {right.caption!r}.")
