"""Models as they are served: loaded, checked against their golden answers, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from pixelgate_common.contracts.models import ServedModel
from pixelgate_common.inference.errors import WrongAnswer
from pixelgate_common.inference.memory import LOAD_FACTOR
from pixelgate_common.inference.model_lock import ModelLock
from pixelgate_common.inference.model_sets import STARTER, ModelSource
from pixelgate_common.inference.openvino_runtime import Graph, Precision
from pixelgate_common.inference.resident import MemoryBudget, Resident

from detect_service import golden
from detect_service.artifacts import Artifact
from detect_service.detectors.detr import DetrDetector, DetrFacts
from detect_service.detectors.protocol import Detector, Question
from detect_service.detectors.yolo import YoloDetector, YoloFacts
from detect_service.matte import MatteFacts, MatteNetwork, network_input, to_alpha
from detect_service.settings import Settings

T = TypeVar("T")
_ACTIVATIONS_BYTES = 150_000_000  # of a network that looks at 640 or 320 pixels, with one of them on each thread
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """A model in memory, and the precision that it computes in."""

    model: T
    precision: Precision


@dataclass(slots=True)
class Served(Generic[T]):
    """A model that requests can name: in memory or not."""

    slot: str
    name: str
    fingerprint: str
    precision: Precision
    resident: Resident[Loaded[T]]

    def about(self) -> ServedModel:
        """Return what is told of the model."""
        if self.resident.state == "loaded":
            self.precision = self.resident.current.precision
        return ServedModel(
            slot=self.slot,
            model=self.name,
            fingerprint=self.fingerprint,
            backend="openvino",
            precision=self.precision,
            state=self.resident.state,
        )


def serve_detector(
    source: ModelSource, artifact: Artifact, settings: Settings, budget: MemoryBudget
) -> Served[Detector]:
    """Return the detector of `artifact`, to be loaded when it is wanted. Raises `ModelChanged`."""
    expected = _expected(source, artifact, settings)

    def load(precision: Precision) -> Detector:
        graph = Graph(artifact.graph, precision, settings.thread_count, side_by_side=settings.thread_count > 1)
        detector: Detector
        if artifact.family == "yolo":
            detector = YoloDetector(graph, YoloFacts.from_json(artifact.facts))
        else:
            detector = DetrDetector(graph, DetrFacts.from_json(artifact.facts))
        picture = golden.picture()
        question = Question(detector.prepare(picture, picture.size), golden.FLOOR)
        golden.check_objects(source.name, detector.find([question])[0], expected, precision)
        return detector

    return _serve(source, artifact, settings, budget, load)


def serve_matte(
    source: ModelSource, artifact: Artifact, settings: Settings, budget: MemoryBudget
) -> Served[MatteNetwork]:
    """Return the cutout network of `artifact`, to be loaded when it is wanted. Raises `ModelChanged`."""
    expected, facts = _expected(source, artifact, settings), MatteFacts.from_json(artifact.facts)

    def load(precision: Precision) -> MatteNetwork:
        graph = Graph(artifact.graph, precision, settings.thread_count, side_by_side=settings.thread_count > 1)
        network = MatteNetwork(graph, facts)
        picture = golden.picture()
        alpha = to_alpha(network.find(network_input(picture, facts)), picture.size, facts)
        golden.check_alpha(source.name, alpha, expected, precision)
        return network

    return _serve(source, artifact, settings, budget, load)


def _serve(
    source: ModelSource,
    artifact: Artifact,
    settings: Settings,
    budget: MemoryBudget,
    load: Callable[[Precision], T],
) -> Served[T]:
    first = settings.first_precision

    def load_checked() -> Loaded[T]:
        try:
            return Loaded(load(first), first)
        except WrongAnswer as error:
            if first == "fp32" or settings.precision != "auto":
                raise
            # Some models are not made for bf16. Their answers in fp32 are right, at half the speed; if they are not,
            # the fault lies elsewhere and the load ends here.
            log.warning("bf16_is_too_coarse", model=source.name, slot=source.slot, reason=error.detail)
            return Loaded(load("fp32"), "fp32")

    resident = Resident(
        f"{source.slot} model {source.name}",
        load_checked,
        need_bytes=int(artifact.size_bytes * LOAD_FACTOR) + _ACTIVATIONS_BYTES,
        idle_s=settings.model_idle_s,
        budget=budget,
    )
    return Served(source.slot, source.name, artifact.fingerprint, first, resident)


def _expected(source: ModelSource, artifact: Artifact, settings: Settings) -> golden.Answer:
    """Return the recorded answer to the golden question; a model that is new is recorded now."""
    known = golden.known_answers()
    if artifact.fingerprint in known:
        return known[artifact.fingerprint]
    # A starter model changes with the repository, so its name alone promises nothing.
    key = f"{source.slot}:{source.name}" + (f":{artifact.fingerprint}" if source.name == STARTER else "")
    entry = {
        "fingerprint": artifact.fingerprint,
        "weights_sha256": artifact.weights_sha256,
        "golden": artifact.golden,
    }
    recorded = ModelLock(settings.lock_path).check_or_record("detect", key, entry, name=source.name)
    answer: golden.Answer = recorded["golden"]
    return answer
