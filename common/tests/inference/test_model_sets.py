from __future__ import annotations

from pathlib import Path

import pytest
from pixelgate_common.inference.errors import ModelMissing, ModelProblem
from pixelgate_common.inference.known_models import KNOWN, SLOTS, STANDARD, Slot
from pixelgate_common.inference.model_sets import find, on_disk, resolve, resolve_all, set_in_use
from pixelgate_common.inference.settings import ModelSettings

STARTER_FILES: dict[Slot, str] = {
    "clip": "open_clip_model.safetensors",
    "resnet": "model.safetensors",
    "caption": "model.safetensors",
    "objects": "model.pt",
    "cutout": "model.onnx",
}


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> ModelSettings:
    for slot, name in STARTER_FILES.items():
        put(tmp_path / "starter" / slot, name, "config.json")
    return ModelSettings(data_dir=tmp_path / "data", starter_dir=tmp_path / "starter")


def put_standard(slot: Slot, settings: ModelSettings) -> Path:
    row = STANDARD[slot]
    return put(settings.model_dir / row.folder, *(file.names[-1] for file in row.files if file.required))


@pytest.mark.parametrize("slot", SLOTS)
def test_auto_is_standard_for_a_slot_as_soon_as_its_files_are_whole(slot: Slot, settings: ModelSettings) -> None:
    assert (resolve(slot, settings).name, resolve(slot, settings).set) == ("starter", "starter")
    folder = put_standard(slot, settings)
    source = resolve(slot, settings)
    assert (source.name, source.set, source.kind) == (STANDARD[slot].name, "standard", STANDARD[slot].kind)
    assert source.folder == folder
    others = [resolve(other, settings) for other in SLOTS if other != slot]
    assert set_in_use(others) == "starter"
    assert set_in_use([source, *others]) == "mixed"
    assert [each.name for each in on_disk(slot, settings)] == [STANDARD[slot].name, "starter"]
    assert resolve(slot, settings.model_copy(update={"models": "starter"})).name == "starter"


@pytest.mark.parametrize("slot", SLOTS)
def test_standard_that_is_not_there_says_what_to_do(slot: Slot, settings: ModelSettings) -> None:
    name = STANDARD[slot].name
    with pytest.raises(ModelMissing, match=rf"{name} is not on this machine.*pixelgate models pull {name}"):
        resolve(slot, settings.model_copy(update={"models": "standard"}))


def test_half_a_folder_is_not_standard_and_says_what_is_missing(settings: ModelSettings) -> None:
    folder = put(settings.model_dir / "caption" / "blip-image-captioning-base", "config.json", "pytorch_model.bin")
    assert resolve("caption", settings).name == "starter"
    asked = settings.model_copy(update={"caption_model": "blip-image-captioning-base"})
    with pytest.raises(ModelMissing, match=r"only partly.*preprocessor_config.json, vocab.txt missing in"):
        resolve("caption", asked)
    put(folder, "preprocessor_config.json", "vocab.txt")
    assert resolve("caption", asked).path == folder


def test_a_draft_of_a_download_is_no_model(settings: ModelSettings) -> None:
    put(settings.model_dir / "objects", "yolo26n.pt.part")
    assert STANDARD["objects"].state(settings.model_dir) == "partly"
    assert resolve("objects", settings).name == "starter"


def test_files_are_found_by_name_by_folder_and_by_path(settings: ModelSettings, tmp_path: Path) -> None:
    objects = put(settings.model_dir / "objects", "yolo26n.pt", "yolo11s.pt", "mine.pt")
    detr = put(objects / "rtdetr_r18vd", "config.json", "preprocessor_config.json", "model.safetensors")
    assert find("objects", "yolo11s", settings).path == objects / "yolo11s.pt"
    assert find("objects", "mine", settings).path == objects / "mine.pt"
    assert find("objects", "mine.pt", settings).kind == "yolo"
    assert (find("objects", "rtdetr_r18vd", settings).path, find("objects", "rtdetr_r18vd", settings).kind) == (
        detr,
        "detr",
    )
    own = put(tmp_path / "own", "fine.onnx")
    for name in (str(own), str(own / "fine.onnx")):
        source = find("cutout", name, settings)
        assert (source.path, source.kind, source.set) == (own / "fine.onnx", "matte", "named")


def test_several_models_keep_their_order_and_none_switches_a_slot_off(settings: ModelSettings) -> None:
    put(settings.model_dir / "cutout", "u2net.onnx", "silueta.onnx")
    several = settings.model_copy(update={"cutout_model": "silueta, starter,u2net,starter"})
    assert [source.name for source in resolve_all("cutout", several)] == ["silueta", "starter", "u2net"]
    off = settings.model_copy(update={"cutout_model": "none"})
    assert resolve_all("cutout", off) == []
    assert set_in_use([]) == "none"
    with pytest.raises(ModelMissing, match="PIXELGATE_CUTOUT_MODEL=none"):
        resolve("cutout", off)


@pytest.mark.parametrize("name", ["a/../../b", "..", "a b", "a//b", "-x", "a\nb", ".hidden"])
def test_what_is_neither_a_name_nor_a_path_is_refused(settings: ModelSettings, name: str) -> None:
    with pytest.raises(ModelProblem, match="neither"):
        find("clip", name, settings)


def test_the_known_file_wins_and_several_unknown_ones_are_refused(settings: ModelSettings, tmp_path: Path) -> None:
    folder = put(tmp_path / "one", "zzz.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    assert find("clip", str(folder), settings).weights.name == "open_clip_model.safetensors"
    with pytest.raises(ModelProblem, match=r"several weights \(a.pth, b.pth\)"):
        find("resnet", str(put(tmp_path / "two", "a.pth", "b.pth")), settings)


def test_names_are_unique_and_every_slot_has_a_standard_model() -> None:
    names = [(row.slot, row.name) for row in KNOWN]
    assert len(set(names)) == len(names)
    assert set(STANDARD) == set(SLOTS)


def test_rembgs_digests_are_those_of_the_installed_library() -> None:
    """Read as text: importing rembg takes seconds, and only detect-service needs it."""
    from importlib.util import find_spec

    spec = find_spec("rembg")
    assert spec is not None
    assert spec.origin is not None
    sessions = "".join(path.read_text() for path in (Path(spec.origin).parent / "sessions").glob("*.py"))
    for row in KNOWN:
        if row.hub == "rembg":
            assert f"{row.source}/{row.name}.onnx" in sessions
            assert f"md5:{row.files[0].md5}" in sessions
