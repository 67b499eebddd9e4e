"""All models of this service: resolved, converted, and loaded at the start where they are in use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from pixelgate_common.inference import model_sets
from pixelgate_common.inference.errors import ModelMissing, ModelProblem
from pixelgate_common.inference.model_sets import ModelSource
from pixelgate_common.inference.resident import MemoryBudget

from detect_service.converting import get_artifacts
from detect_service.detectors.protocol import Detector
from detect_service.loading import Served, serve_detector, serve_matte
from detect_service.matte import MatteNetwork
from detect_service.settings import Settings

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The models that a service begins with, of each slot the one in use first."""

    set: str
    detectors: Sequence[Served[Detector]]
    mattes: Sequence[Served[MatteNetwork]]


class Shelf:
    """Finds models on the disk and makes them ready to be served, within one budget of memory."""

    def __init__(self, settings: Settings) -> None:
        """Look where `settings` say."""
        self._settings = settings
        self._budget = MemoryBudget(settings.model_memory_bytes)

    def begin(self) -> Models:
        """Return all models, those in use loaded and checked. Raises `ModelProblem` with a sentence for a person.

        Of cutouts every model on the disk is served, because requests can name them; of objects those that the
        settings name.
        """
        settings = self._settings
        objects = model_sets.resolve_all("objects", settings)
        cutouts = model_sets.resolve_all("cutout", settings)
        in_use = [*objects, *cutouts]
        artifacts = get_artifacts(in_use, settings)
        detectors = [
            serve_detector(source, artifact, settings, self._budget)
            for source, artifact in zip(objects, artifacts, strict=False)
        ]
        mattes = [
            serve_matte(source, artifact, settings, self._budget)
            for source, artifact in zip(cutouts, artifacts[len(objects) :], strict=True)
        ]
        for detector in detectors:
            detector.resident.load_at_start()
            log.info("model_loaded", **detector.about().model_dump())
        for matte in mattes:
            matte.resident.load_at_start()
            log.info("model_loaded", **matte.about().model_dump())
        if mattes:
            mattes.extend(self._others({source.name for source in cutouts}))
        return Models(set=model_sets.set_in_use(in_use), detectors=detectors, mattes=mattes)

    def matte(self, name: str) -> Served[MatteNetwork]:
        """Return the cutout model called `name`, converted if it has not been; it is loaded when it is used.

        Blocking. Raises `ModelMissing` when there is none, and other `ModelProblem`s when it cannot be used. The name
        is compared with those that are on the disk; no path is made of it.
        """
        source = next((source for source in self._cutouts_on_disk() if source.name == name), None)
        if source is None:
            raise ModelMissing(
                f"The cutout model {name} is not on this machine. `pixelgate models list` shows what can be pulled, "
                "and `pixelgate models pull NAME` fetches it."
            )
        (artifact,) = get_artifacts([source], self._settings)
        return serve_matte(source, artifact, self._settings, self._budget)

    def _others(self, taken: set[str]) -> list[Served[MatteNetwork]]:
        others: list[Served[MatteNetwork]] = []
        for source in self._cutouts_on_disk():
            if source.name not in taken:
                try:
                    others.append(self.matte(source.name))
                except ModelProblem as error:  # one bad file that nobody asked for must not end the start
                    log.warning("model_left_out", model=source.name, reason=error.detail)
        return others

    def _cutouts_on_disk(self) -> list[ModelSource]:
        sources = {source.name: source for source in model_sets.on_disk("cutout", self._settings)}
        folder = self._settings.model_dir / "cutout"
        for file in sorted(folder.glob("*.onnx")) if folder.is_dir() else []:
            if file.stem not in sources and _FILE_NAME.fullmatch(file.stem) and file.is_file():
                sources[file.stem] = model_sets.find("cutout", file.stem, self._settings)
        return list(sources.values())
