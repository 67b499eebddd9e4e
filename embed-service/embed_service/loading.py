"""Models as they are served: loaded, checked against their golden vectors, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from pixelgate_common.contracts.embed import EmbedModel
from pixelgate_common.images import DecodeLimits
from pixelgate_common.inference.errors import ModelChanged, WrongAnswer
from pixelgate_common.inference.memory import need_bytes
from pixelgate_common.inference.openvino_runtime import Precision, cpu_has_bf16
from pixelgate_common.inference.resident import MemoryBudget, Resident

from embed_service import golden, pixels, tokens
from embed_service.artifact_cache import get_artifact, make_missing, order_for
from embed_service.artifacts import Artifact
from embed_service.catalogue import ModelSource, wanted
from embed_service.pixels import Preprocess
from embed_service.runners import FloatMatrix, OpenVinoRunner, Runner
from embed_service.settings import Settings
from embed_service.tokens import TokenIds, Tokenize

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSide:
    """The part of a model that takes texts."""

    artifact: Artifact
    tokenize: Tokenize
    runner: Runner

    def prepare(self, texts: list[str]) -> list[TokenIds]:
        """Return token ids for each text, cut after its end where the model allows it."""
        assert self.artifact.text is not None
        return tokens.trim(self.tokenize(texts), self.artifact.text)

    def infer(self, rows: Sequence[TokenIds]) -> FloatMatrix:
        """Return unit vectors (n, dim) of what `prepare` gave."""
        return self.runner(list(tokens.same_length(list(rows))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One loaded model: prepares and infers; blocking, to be called from threads."""

    about: EmbedModel
    preprocess: Preprocess
    limits: DecodeLimits
    image_runner: Runner
    text: TextSide | None

    def prepare_image(self, data: bytes) -> pixels.Pixels:
        """Return the pixels that the model takes. Raises `ImageRefused` when the bytes are no picture."""
        return pixels.prepare(data, self.preprocess, self.limits)

    def infer_images(self, batch: Sequence[pixels.Pixels]) -> FloatMatrix:
        """Return unit vectors (n, dim) of what `prepare_image` gave."""
        return self.image_runner(batch)


def load_all(settings: Settings) -> dict[str, list[Resident[Model]]]:
    """Return the models by slot, the one in use first, all in memory; idle ones leave it when the settings say so.

    Raises `ModelProblem` (and its kin `ModelMissing`, `ModelChanged`, `WrongAnswer`, `NotEnoughMemory`) with a
    sentence for the person who starts this.
    """
    sources = wanted(settings)
    half = _first_choice(settings) != "fp32"
    make_missing([order_for(source, settings.cache_dir, half=half) for some in sources.values() for source in some])
    budget = MemoryBudget(settings.model_memory_bytes)
    models: dict[str, list[Resident[Model]]] = {
        slot: [_resident(source, settings, budget) for source in some] for slot, some in sources.items()
    }
    for some in models.values():
        for resident in some:
            resident.load_at_start()
    return models


def _resident(source: ModelSource, settings: Settings, budget: MemoryBudget) -> Resident[Model]:
    artifact = get_artifact(source, settings.cache_dir, half=_first_choice(settings) != "fp32")
    fingerprint = artifact.fingerprint

    def load() -> Model:
        model = load_model(source, settings)
        if model.about.fingerprint != fingerprint:  # only now, hours after the start, while it was not in memory
            raise ModelChanged(f"The files of {source.name} have changed since this service started; start it again.")
        return model

    files = [source.weights] if _computes_by_torch(settings) else sorted(artifact.folder.glob("*.bin"))
    return Resident(
        f"{source.slot}: {source.name}",
        load,
        need_bytes=need_bytes(files),
        idle_s=settings.model_idle_s,
        budget=budget,
    )


def load_model(source: ModelSource, settings: Settings) -> Model:
    """Load one model and check its golden vectors, at every load; see `load_all`."""
    precision = _first_choice(settings)
    try:
        return _load_checked(source, settings, precision)
    except WrongAnswer as error:
        if precision == "fp32" or settings.precision != "auto":
            raise
        # Some models are not made for bf16. Their vectors in fp32 are right, at half the speed; if they are not, the
        # fault lies elsewhere and the start ends here.
        log.warning("bf16_is_too_coarse", model=source.name, slot=source.slot, reason=error.detail)
        return _load_checked(source, settings, "fp32")


def _first_choice(settings: Settings) -> Precision:
    if settings.precision != "auto":
        return settings.precision
    return "bf16" if _uses_cuda(settings) or cpu_has_bf16() else "fp32"


def _computes_by_torch(settings: Settings) -> bool:
    return settings.backend == "torch" or _uses_cuda(settings)


def _uses_cuda(settings: Settings) -> bool:
    # Looked for without importing torch, which takes longer than everything else here.
    return settings.backend != "openvino" and Path("/proc/driver/nvidia/version").exists()


def _load_checked(source: ModelSource, settings: Settings, precision: Precision) -> Model:
    # What is computed in bf16 (8 bits of mantissa) loses nothing when its weights lie on disk in half precision (11).
    artifact = get_artifact(source, settings.cache_dir, half=precision != "fp32")
    expected = golden.expected_vectors(source, artifact, settings.model_dir / "models.lock")
    model = _load(source, artifact, settings, precision)
    image = model.infer_images([model.prepare_image(golden.picture_bytes())])[0]
    golden.check(source.name, "image", image, expected["image"])
    if model.text is not None:
        text = model.text.infer(model.text.prepare([golden.TEXT]))[0]
        golden.check(source.name, "text", text, expected["text"])
    log.info("model_loaded", **model.about.model_dump())
    return model


def _load(source: ModelSource, artifact: Artifact, settings: Settings, precision: Precision) -> Model:
    image_runner: Runner
    text_runner: Runner | None = None
    device, backend = "cpu", "openvino"
    if _computes_by_torch(settings):
        from embed_service import towers  # seconds and half a gigabyte: only when torch computes

        backend, device = "torch", "cuda" if towers.cuda_is_available() else "cpu"
        loaded = towers.load(source)
        image_runner = towers.TorchRunner(loaded.image, device, precision)
        if loaded.text is not None:
            text_runner = towers.TorchRunner(loaded.text, device, precision)
    else:
        image_runner = OpenVinoRunner(
            artifact.image_graph, precision, settings.thread_count, side_by_side=settings.thread_count > 1
        )
        if artifact.text is not None:
            text_runner = OpenVinoRunner(
                artifact.text_graph, precision, settings.thread_count, side_by_side=False, good_batch=32
            )
    text = None
    if artifact.text is not None and text_runner is not None:
        tokenize = tokens.load_tokenizer(artifact, artifact.text, lambda: _open_clips_tokenizer(source))
        text = TextSide(artifact=artifact, tokenize=tokenize, runner=text_runner)
    return Model(
        about=EmbedModel(
            slot=source.slot,
            model=source.name,
            fingerprint=artifact.fingerprint,
            dim=artifact.dim,
            inputs=["image", "text"] if text else ["image"],
            image_size_px=artifact.preprocess.size_px,
            backend=backend,
            precision=precision,
            device=device,
        ),
        preprocess=artifact.preprocess,
        limits=DecodeLimits(max_bytes=settings.max_upload_bytes, max_pixels=settings.max_pixels),
        image_runner=image_runner,
        text=text,
    )


def _open_clips_tokenizer(source: ModelSource) -> Tokenize:
    from embed_service import towers  # see above

    own: Any = towers.load(source).tokenizer

    def tokenize(texts: list[str]) -> npt.NDArray[np.int64]:
        return np.asarray(own(texts), dtype=np.int64)

    return tokenize
