"""The bundled weights: they name what is in a drawn scene, and their golden answer is the recorded one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from blip_folders import convert_here, png
from caption_service import record_golden
from caption_service.loading import Job, load_all
from caption_service.settings import Settings
from pixelgate_common.inference.openvino_runtime import cpu_has_bf16

STARTER = Path(__file__).parents[2] / "starter-models" / "weights"
SCENES = 20


def test_captions_name_what_is_in_drawn_scenes(settings: Settings, shared_cache: Path) -> None:
    measures = pytest.importorskip("starter_models.measures", reason="starter-models is not installed")
    scenes = pytest.importorskip("starter_models.scenes", reason="starter-models is not installed")
    settings = settings.model_copy(update={"starter_dir": STARTER, "cache_dir_set": shared_cache, "models": "starter"})
    artifact = convert_here(settings, half=cpu_has_bf16())
    known = json.loads(record_golden.TARGET.read_text())
    assert artifact.fingerprint in known, "run `python -m caption_service.record_golden`: the starter has changed"
    (model,) = load_all(settings)
    drawn = [scenes.draw_scene("test", index) for index in range(SCENES)]
    captions = model.resident.current.caption([Job(model.prepare(png(scene.picture)), 0, 60) for scene in drawn])
    truths = [Counter(thing.label for thing in scene.objects) for scene in drawn]
    agreement = measures.label_agreement([measures.caption_labels(text) for text in captions], truths)
    assert agreement.f1 >= 0.8, f"{agreement}: {captions}"
