from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from embed_fakes import SQUASH_8, fake_model
from embed_service import golden
from embed_service.artifacts import Artifact
from embed_service.catalogue import ModelSource
from pixelgate_common.inference.errors import ModelChanged, ModelProblem, WrongAnswer
from pixelgate_common.vectors import encode_vector

RIGHT = encode_vector(np.array([0.6, 0.8, 0.0]))


def source(name: str = "some/model") -> ModelSource:
    return ModelSource(slot="clip", name=name, folder=Path("f"), weights=Path("f/w"), config=None)


@pytest.fixture
def artifact() -> Artifact:
    side = fake_model().text
    assert side is not None
    return side.artifact


def test_the_golden_picture_tells_ways_of_cropping_apart() -> None:
    width, height = golden.picture().size
    assert width > height > 224


@pytest.mark.parametrize("vector", [[0.6, 0.8, 0.0], [0.61, 0.79, 0.0]], ids=["the same", "as near as bf16"])
def test_a_right_answer_passes(vector: list[float]) -> None:
    golden.check("m", "image", np.array(vector, dtype=np.float32), RIGHT)


@pytest.mark.parametrize(
    "vector",
    [[0.7, 0.714, 0.0], [-0.6, -0.8, 0.0], [6.0, 8.0, 0.0], [0.0, 0.0, 0.0], [np.nan, 0.8, 0.0], [0.6, 0.8]],
    ids=["other", "opposite", "not of unit length", "zero", "not a number", "of another length"],
)
def test_a_wrong_answer_is_refused(vector: list[float]) -> None:
    with pytest.raises(WrongAnswer, match="m gives"):
        golden.check("m", "image", np.array(vector, dtype=np.float32), RIGHT)


def test_the_first_load_records_and_later_ones_must_match(tmp_path: Path, artifact: Artifact) -> None:
    lock = tmp_path / "models" / "models.lock"
    first = golden.expected_vectors(source(), artifact, lock)
    assert first == {"image": artifact.image_vector, "text": artifact.text_vector}
    recomputed = replace(artifact, image_vector=RIGHT)
    assert golden.expected_vectors(source(), recomputed, lock) == first, "the record counts, not what is computed now"
    with pytest.raises(ModelChanged, match=r"other weights.*remove the entry 'clip:some/model'"):
        golden.expected_vectors(source(), replace(artifact, fingerprint="clip-x", weights_sha256="1"), lock)
    with pytest.raises(ModelChanged, match="other configuration or preprocessing"):
        golden.expected_vectors(source(), replace(artifact, fingerprint="clip-x"), lock)


def test_what_others_wrote_into_the_lock_stays(tmp_path: Path, artifact: Artifact) -> None:
    lock = tmp_path / "models.lock"
    lock.write_text(json.dumps({"files": {"a": {"sha256": "00"}}}))
    golden.expected_vectors(source(), artifact, lock)
    golden.expected_vectors(source("another/model"), artifact, lock)
    content = json.loads(lock.read_text())
    assert content["files"] == {"a": {"sha256": "00"}}
    assert set(content["embed"]) == {"clip:some/model", "clip:another/model"}


def test_models_that_load_side_by_side_are_all_recorded(tmp_path: Path, artifact: Artifact) -> None:
    lock = tmp_path / "models.lock"
    names = [f"model/{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: golden.expected_vectors(source(name), artifact, lock), names))
    assert set(json.loads(lock.read_text())["embed"]) == {f"clip:{name}" for name in names}


def test_a_starter_model_may_change_with_the_repository(tmp_path: Path, artifact: Artifact) -> None:
    lock = tmp_path / "models.lock"
    golden.expected_vectors(source("starter"), artifact, lock)
    changed = replace(artifact, fingerprint="clip-next", image_vector=RIGHT)
    assert golden.expected_vectors(source("starter"), changed, lock)["image"] == RIGHT


def test_a_damaged_lock_is_not_overwritten(tmp_path: Path, artifact: Artifact) -> None:
    lock = tmp_path / "models.lock"
    lock.write_text("{")
    with pytest.raises(ModelProblem, match="cannot be read"):
        golden.expected_vectors(source(), artifact, lock)
    assert lock.read_text() == "{"


def test_preprocessing_that_differs_from_the_librarys_is_refused() -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    def reference(mode: str) -> object:
        return image_transform_v2(
            PreprocessCfg(size=8, mean=SQUASH_8.mean, std=SQUASH_8.std, interpolation="bicubic", resize_mode=mode),
            is_train=False,
        )

    golden.check_preprocess(reference("squash"), SQUASH_8, "m")  # type: ignore[arg-type]
    with pytest.raises(ModelProblem, match="other pixels"):
        golden.check_preprocess(reference("shortest"), SQUASH_8, "m")  # type: ignore[arg-type]
