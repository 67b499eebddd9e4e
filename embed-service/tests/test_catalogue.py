from __future__ import annotations

from pathlib import Path

import pytest
from embed_service.catalogue import find, set_in_use, wanted
from embed_service.settings import Settings
from pixelgate_common.inference.errors import ModelMissing, ModelProblem

CLIP, RESNET = "clip/ViT-B-32/laion2b_s34b_b79k", "resnet/resnet34/IMAGENET1K_V1"


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def with_starter(settings: Settings, **changes: object) -> Settings:
    put(settings.starter_dir / "clip", "open_clip_config.json", "open_clip_model.safetensors")
    put(settings.starter_dir / "resnet", "config.json", "model.safetensors")
    return settings.model_copy(update=changes)


def with_standard(settings: Settings, **changes: object) -> Settings:
    put(settings.model_dir / CLIP, "open_clip_pytorch_model.bin")
    put(settings.model_dir / RESNET, "resnet34-b627a593.pth")
    return settings.model_copy(update=changes)


def names(settings: Settings) -> dict[str, list[str]]:
    return {slot: [source.name for source in sources] for slot, sources in wanted(settings).items()}


def test_each_slot_is_standard_as_soon_as_its_weights_are_on_disk(settings: Settings) -> None:
    settings = with_starter(settings)
    assert set_in_use(settings) == "starter"
    assert names(settings) == {"clip": ["starter"], "resnet": ["starter"]}
    put(settings.model_dir / CLIP, "open_clip_model.safetensors")
    assert set_in_use(settings) == "mixed"
    assert names(settings) == {"clip": ["ViT-B-32/laion2b_s34b_b79k"], "resnet": ["starter"]}
    with_standard(settings)
    assert set_in_use(settings) == "standard"
    assert names(settings) == {"clip": ["ViT-B-32/laion2b_s34b_b79k"], "resnet": ["resnet34/IMAGENET1K_V1"]}
    off = settings.model_copy(update={"clip_model": "none", "resnet_model": "starter"})
    assert set_in_use(off) == "starter"


def test_a_set_can_be_asked_for_and_a_single_model_beside_it(settings: Settings) -> None:
    settings = with_standard(with_starter(settings, models="starter", resnet_model="resnet34/IMAGENET1K_V1"))
    assert names(settings) == {"clip": ["starter"], "resnet": ["resnet34/IMAGENET1K_V1"]}


def test_several_models_of_a_slot_keep_their_order_and_none_leaves_it_out(settings: Settings) -> None:
    settings = with_standard(
        with_starter(settings, clip_model="ViT-B-32/laion2b_s34b_b79k, starter,starter", resnet_model="none")
    )
    assert names(settings) == {"clip": ["ViT-B-32/laion2b_s34b_b79k", "starter"]}


def test_standard_that_is_not_there_is_said_plainly(settings: Settings) -> None:
    with pytest.raises(ModelMissing, match=r"laion2b_s34b_b79k is not on this machine: no weights in .*clip"):
        wanted(settings.model_copy(update={"models": "standard"}))


def test_a_folder_can_be_named(settings: Settings, tmp_path: Path) -> None:
    folder = put(tmp_path / "mine", "open_clip_config.json", "weights.pt")
    source = find(settings, "clip", str(folder))
    assert (source.folder, source.weights, source.config) == (folder, folder / "weights.pt", {})


@pytest.mark.parametrize("name", ["a/../../b", "..", "a b", "a//b", "-x", "a\nb", ".hidden"])
def test_what_is_neither_a_name_nor_a_folder_is_refused(settings: Settings, name: str) -> None:
    with pytest.raises(ModelProblem, match="neither"):
        find(settings, "clip", name)


def test_the_known_file_wins_and_several_unknown_ones_are_refused(settings: Settings, tmp_path: Path) -> None:
    folder = put(tmp_path / "one", "zzz.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    assert find(settings, "clip", str(folder)).weights.name == "open_clip_model.safetensors"
    with pytest.raises(ModelProblem, match=r"several weights \(a.pth, b.pth\)"):
        find(settings, "resnet", str(put(tmp_path / "two", "a.pth", "b.pth")))


@pytest.mark.parametrize(("text", "says"), [("{", "cannot be read"), ("[]", "not a JSON object")])
def test_a_damaged_configuration_is_said_plainly(settings: Settings, tmp_path: Path, text: str, says: str) -> None:
    folder = put(tmp_path / "bad", "model.safetensors")
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelProblem, match=says):
        find(settings, "resnet", str(folder))


def test_a_name_that_says_nothing_needs_a_configuration(settings: Settings) -> None:
    put(settings.model_dir / "clip" / "mystery", "model.safetensors")
    with pytest.raises(ModelProblem, match=r"no open_clip_config.json in .*ARCHITECTURE/TAG"):
        _ = find(settings, "clip", "mystery").architecture_and_tag
