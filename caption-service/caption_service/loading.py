"""Models as they are served: loaded when wanted, checked by the golden question each time, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from pixelgate_common.contracts.models import ServedModel
from pixelgate_common.images import DecodeLimits
from pixelgate_common.inference.errors import WrongAnswer
from pixelgate_common.inference.memory import need_bytes
from pixelgate_common.inference.openvino_runtime import Precision, cpu_has_bf16
from pixelgate_common.inference.resident import MemoryBudget, Resident

from caption_service import decoding, golden, pixels
from caption_service.artifacts import Answer, Artifact, get_artifact
from caption_service.catalogue import SLOT, CaptionSource, wanted
from caption_service.decoding import Runner, SentenceGuide
from caption_service.pixels import Pixels, Preprocess
from caption_service.runners import OpenVinoRunner
from caption_service.settings import Settings
from caption_service.vocabulary import Vocabulary

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to be captioned within these numbers of words."""

    pixels: Pixels
    min_words: int
    max_words: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model in memory; blocking, to be called from threads."""

    runner: Runner
    vocabulary: Vocabulary
    precision: Precision

    def caption(self, jobs: Sequence[Job]) -> list[str]:
        """Return a caption for each picture, "" for one of which the model has nothing to say."""
        guides = [SentenceGuide(self.vocabulary, job.min_words, job.max_words) for job in jobs]
        decoding.speak(self.runner, [job.pixels for job in jobs], guides, self.vocabulary.begin_id)
        return [guide.caption() for guide in guides]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model that is served: what is known of it without its weights in memory, and the weights while wanted."""

    name: str
    fingerprint: str
    backend: str
    device: str
    good_batch: int
    precision: Precision
    preprocess: Preprocess
    limits: DecodeLimits
    resident: Resident[Loaded]

    def about(self) -> ServedModel:
        """Return how the model is named to others, and whether it is in memory now."""
        state = self.resident.state
        return ServedModel(
            slot=SLOT,
            model=self.name,
            fingerprint=self.fingerprint,
            backend=self.backend,
            precision=self.resident.current.precision if state == "loaded" else self.precision,
            device=self.device,
            state=state,
        )

    def prepare(self, data: bytes) -> Pixels:
        """Return the pixels that the model takes. Raises `ImageRefused` when the bytes are no picture."""
        return pixels.prepare(data, self.preprocess, self.limits)


def load_all(settings: Settings) -> list[Model]:
    """Return the models to serve, the one in use first; that one is in memory, the others are when they are asked.

    Raises `ModelProblem` (and its kin `ModelMissing`, `ModelChanged`, `WrongAnswer`, `NotEnoughMemory`) with a
    sentence for the person who starts this.
    """
    budget = MemoryBudget(settings.model_memory_bytes)
    models = [make_model(source, settings, budget) for source in wanted(settings)]
    for model in models[:1]:
        model.resident.load_at_start()
    return models


def make_model(source: CaptionSource, settings: Settings, budget: MemoryBudget | None = None) -> Model:
    """Return one model, converted and known but not in memory. Raises `ModelProblem`."""
    precision = _first_choice(settings)
    uses_torch = settings.backend == "torch" or _uses_cuda(settings)
    artifact = get_artifact(source, settings.cache_dir, half=precision != "fp32")
    right, sentence = golden.expected(source.name, artifact, settings.lock_path)
    good_batch = OpenVinoRunner.good_batch
    device = "cpu"
    if uses_torch:
        from caption_service import blip  # seconds and half a gigabyte: only when torch computes

        device = "cuda" if blip.cuda_is_available() else "cpu"
        good_batch = blip.good_batch(device)

    def load() -> Loaded:
        return _load_checked(source, settings, right, sentence=sentence)

    files = [source.weights] if uses_torch else artifact.graph_weights
    return Model(
        name=source.name,
        fingerprint=artifact.fingerprint,
        backend="torch" if uses_torch else "openvino",
        device=device,
        good_batch=good_batch,
        precision=precision,
        preprocess=artifact.preprocess,
        limits=DecodeLimits(max_bytes=settings.max_upload_bytes, max_pixels=settings.max_pixels),
        resident=Resident(
            f"{SLOT}: {source.name}",
            load,
            need_bytes=need_bytes(files) + (settings.max_batch or good_batch) * artifact.picture_bytes,
            idle_s=settings.model_idle_s,
            budget=budget,
        ),
    )


def _load_checked(source: CaptionSource, settings: Settings, right: Answer, *, sentence: bool) -> Loaded:
    precision = _first_choice(settings)
    try:
        return _load(source, settings, precision, right, sentence=sentence)
    except WrongAnswer as error:
        if precision == "fp32" or settings.precision != "auto":
            raise
        # Some models are not made for bf16. Their captions in fp32 are right, at a third of the speed; if they are
        # not, the fault lies elsewhere and the load ends here.
        log.warning("bf16_is_too_coarse", model=source.name, slot=SLOT, reason=error.detail)
        return _load(source, settings, "fp32", right, sentence=sentence)


def _load(source: CaptionSource, settings: Settings, precision: Precision, right: Answer, *, sentence: bool) -> Loaded:
    # What is computed in bf16 (8 bits of mantissa) loses nothing when its weights lie on disk in half precision (11).
    artifact = get_artifact(source, settings.cache_dir, half=precision != "fp32")
    runner = _make_runner(source, artifact, settings, precision)
    golden.check(source.name, runner, artifact, right, precision, sentence=sentence)
    log.info("model_loaded", slot=SLOT, model=source.name, fingerprint=artifact.fingerprint, precision=precision)
    return Loaded(runner=runner, vocabulary=artifact.vocabulary, precision=precision)


def _make_runner(source: CaptionSource, artifact: Artifact, settings: Settings, precision: Precision) -> Runner:
    if settings.backend == "torch" or _uses_cuda(settings):
        from caption_service import blip  # see above

        return blip.TorchRunner(blip.load(source), "cuda" if blip.cuda_is_available() else "cpu", precision)
    return OpenVinoRunner(artifact, precision, settings.thread_count)


def _first_choice(settings: Settings) -> Precision:
    if settings.precision != "auto":
        return settings.precision
    return "bf16" if _uses_cuda(settings) or cpu_has_bf16() else "fp32"


def _uses_cuda(settings: Settings) -> bool:
    # Looked for without importing torch, which takes longer than everything else here.
    return settings.backend != "openvino" and Path("/proc/driver/nvidia/version").exists()
