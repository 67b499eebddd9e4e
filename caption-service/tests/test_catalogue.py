"""Folders that are, and are not, what captions can be made with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from blip_folders import change
from caption_service.catalogue import CaptionSource, find, model_set, wanted
from caption_service.settings import Settings
from pixelgate_common.inference.errors import ModelMissing, ModelProblem


@pytest.fixture
def folder(small_blip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_blip, tmp_path / "blip"))


def source_of(settings: Settings, folder: Path) -> CaptionSource:
    return find(settings, str(folder))


def test_names_folders_and_sets(settings: Settings, small_blip: Path) -> None:
    shutil.copytree(small_blip, settings.starter_dir / "caption")
    named = settings.model_dir / "caption" / "mine" / "blip"
    shutil.copytree(small_blip, named)
    assert wanted(settings)[0].folder == settings.starter_dir / "caption"
    assert model_set(settings) == "starter"
    several = settings.model_copy(update={"caption_model": f"mine/blip, starter,{small_blip}"})
    assert [source.folder for source in wanted(several)] == [named, settings.starter_dir / "caption", small_blip]
    assert wanted(settings.model_copy(update={"caption_model": "none"})) == []


def test_standard_is_taken_once_it_is_whole_and_refused_by_name_before(settings: Settings, small_blip: Path) -> None:
    shutil.copytree(small_blip, settings.starter_dir / "caption")
    place = settings.model_dir / "caption" / "blip-image-captioning-base"
    shutil.copytree(small_blip, place)
    (place / "vocab.txt").write_text("[PAD]\n")
    assert wanted(settings)[0].folder == place
    assert model_set(settings) == "standard"
    (place / "config.json").unlink()
    assert wanted(settings)[0].name == "starter"
    with pytest.raises(ModelMissing, match=r"config\.json"):
        wanted(settings.model_copy(update={"models": "standard"}))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_file_that_is_missing_or_damaged_is_named(settings: Settings, folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(ModelProblem, match=name):
        source_of(settings, folder)
    (folder / name).write_text("[]")
    with pytest.raises(ModelProblem, match=name):
        source_of(settings, folder)
    (folder / name).unlink()
    with pytest.raises(ModelMissing, match=name):
        source_of(settings, folder)


def test_another_architecture_is_refused(settings: Settings, folder: Path) -> None:
    change(folder, "config.json", model_type="blip-2")
    with pytest.raises(ModelProblem, match="not a BLIP"):
        source_of(settings, folder)


def test_no_weights_is_said_plainly(settings: Settings, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelMissing, match="no weights"):
        source_of(settings, folder)


def test_safetensors_come_before_pickles(settings: Settings, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert source_of(settings, folder).weights.name == "model.safetensors"
