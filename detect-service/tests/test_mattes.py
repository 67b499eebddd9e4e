"""Cutout networks in the files of their publishers, from ONNX to alpha, against rembg's own remove()."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from detect_fakes import convert_here, scenery, write_matte, write_matte_folder
from detect_service.conversions.rembg_sessions import open_session
from detect_service.matte import MatteNetwork, network_input, to_alpha
from detect_service.served import Shelf
from detect_service.settings import Settings
from PIL import Image
from pixelgate_common.inference import model_sets
from pixelgate_common.inference.errors import ModelMissing, ModelProblem

SIZES = [(640, 480), (200, 300), (50, 40), (900, 30), (1, 1)]


@pytest.fixture
def none_of_objects(settings: Settings, shared_cache: Path) -> Settings:
    return settings.model_copy(update={"objects_model": "none", "cache_dir_set": shared_cache, "precision": "fp32"})


def load(settings: Settings) -> MatteNetwork:
    convert_here(model_sets.resolve_all("cutout", settings), settings)
    return Shelf(settings).begin().mattes[0].resident.current.model


def alpha_of(network: MatteNetwork, picture: Image.Image) -> npt.NDArray[np.int16]:
    found = network.find(network_input(picture, network.facts))
    return to_alpha(found, picture.size, network.facts).astype(np.int16)


def compare(network: MatteNetwork, session: Any) -> None:
    from rembg.bg import remove

    for size in SIZES:
        picture = scenery(*size)
        theirs = np.asarray(remove(picture, session=session))[..., 3].astype(np.int16)
        error = np.abs(alpha_of(network, picture) - theirs)
        assert error.mean() < 0.5, size
        assert error.max() <= 4, size


@pytest.mark.parametrize(
    ("name", "side_px"), [("u2net", 320), ("u2netp", 320), ("silueta", 320), ("isnet-general-use", 1024)]
)
def test_rembgs_models_by_name_give_rembgs_alpha(none_of_objects: Settings, name: str, side_px: int) -> None:
    weights = write_matte(none_of_objects.model_dir / "cutout" / f"{name}.onnx", side_px=side_px)
    network = load(none_of_objects.model_copy(update={"cutout_model": name}))
    assert network.facts.size_px == side_px
    if side_px == 320:
        compare(network, open_session(name, weights, {}, 2))


def test_a_model_with_a_configuration_gives_the_alpha_of_a_session_by_it(
    none_of_objects: Settings, tmp_path: Path
) -> None:
    folder = write_matte_folder(tmp_path / "narrow", side_px=64)
    network = load(none_of_objects.model_copy(update={"cutout_model": str(folder)}))
    config = {"size": 64, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    compare(network, open_session("narrow", folder / "model.onnx", config, 2))


def test_other_models_on_the_disk_are_served_by_name_and_loaded_when_asked_for(none_of_objects: Settings) -> None:
    write_matte(none_of_objects.model_dir / "cutout" / "u2net.onnx")
    write_matte(none_of_objects.model_dir / "cutout" / "u2netp.onnx", seed=1)
    (none_of_objects.model_dir / "cutout" / "silueta.onnx").write_bytes(b"no model")
    settings = none_of_objects.model_copy(update={"cutout_model": "u2net"})
    sources = [model_sets.find("cutout", name, settings) for name in ("u2net", "u2netp")]
    convert_here(sources, settings)
    shelf = Shelf(settings)
    models = shelf.begin().mattes
    assert [(model.name, model.about().state) for model in models] == [("u2net", "loaded"), ("u2netp", "idle")]
    with pytest.raises(ModelMissing, match="pixelgate models pull"):
        shelf.matte("isnet-general-use")
    with pytest.raises(ModelMissing):
        shelf.matte("../cutout/u2net")


@pytest.mark.parametrize("missing", ["size", "mean", "std"])
def test_a_configuration_must_say_everything(none_of_objects: Settings, tmp_path: Path, missing: str) -> None:
    folder = write_matte_folder(tmp_path / "narrow", **{missing: None})
    with pytest.raises(ModelProblem, match=f"says no {missing}"):
        load(none_of_objects.model_copy(update={"cutout_model": str(folder)}))


def test_a_file_that_rembg_does_not_know_needs_a_configuration(none_of_objects: Settings) -> None:
    write_matte(none_of_objects.model_dir / "cutout" / "mine.onnx")
    with pytest.raises(ModelProblem, match="rembg knows no model mine"):
        load(none_of_objects.model_copy(update={"cutout_model": "mine"}))
