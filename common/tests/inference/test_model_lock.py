from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pixelgate_common.inference.errors import ModelChanged, ModelProblem
from pixelgate_common.inference.model_lock import ModelLock

ENTRY = {"fingerprint": "a-1", "weights_sha256": "11", "golden": [1.0]}


def test_the_first_entry_is_recorded_and_later_ones_must_match(tmp_path: Path) -> None:
    lock = ModelLock(tmp_path / "new" / "models.lock")
    assert lock.check_or_record("caption", "blip", ENTRY) == ENTRY
    again = {**ENTRY, "golden": [2.0]}
    assert lock.check_or_record("caption", "blip", again) == ENTRY, "the record counts, not what is computed now"
    assert lock.check_or_record("detect", "blip", again) == again, "another section is another matter"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights_sha256": "22", "fingerprint": "a-2"}, "other weights"),
        ({"fingerprint": "a-2"}, "other configuration or preprocessing"),
    ],
    ids=["weights", "configuration"],
)
def test_what_differs_is_told_with_what_to_do(tmp_path: Path, change: dict[str, str], says: str) -> None:
    lock = ModelLock(tmp_path / "models.lock")
    lock.check_or_record("caption", "blip", ENTRY)
    with pytest.raises(ModelChanged, match=rf"My BLIP has {says} .*remove the entry 'blip' of 'caption' from"):
        lock.check_or_record("caption", "blip", {**ENTRY, **change}, name="My BLIP")
    assert lock.read("caption") == {"blip": ENTRY}


def test_a_revision_that_differs_is_told_too(tmp_path: Path) -> None:
    lock = ModelLock(tmp_path / "models.lock")
    lock.check_or_record("files", "m", {"revision": "aa"})
    with pytest.raises(ModelChanged, match=r"another revision \(bb, recorded aa\)"):
        lock.check_or_record("files", "m", {"revision": "bb"})


def test_what_others_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    path.write_text(json.dumps({"files": {"a": {"size": 1}}, "note": "by hand"}))
    ModelLock(path).check_or_record("caption", "blip", ENTRY)
    ModelLock(path).record("caption", "blip", {"fingerprint": "b"})
    assert json.loads(path.read_text()) == {
        "files": {"a": {"size": 1}},
        "note": "by hand",
        "caption": {"blip": {"fingerprint": "b"}},
    }


def test_many_who_record_at_once_are_all_recorded(tmp_path: Path) -> None:
    lock = ModelLock(tmp_path / "models.lock")
    names = [f"m{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: lock.check_or_record("caption", name, ENTRY), names))
    assert set(lock.read("caption")) == set(names)


@pytest.mark.parametrize("text", ["{", "[]", '{"caption": []}', '{"caption": {"a": 1}}'])
def test_a_damaged_lock_is_told_and_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "models.lock"
    path.write_text(text)
    with pytest.raises(ModelProblem, match="cannot be read"):
        ModelLock(path).check_or_record("caption", "blip", ENTRY)
    assert path.read_text() == text


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelProblem, match="cannot be used"):
        ModelLock(tmp_path / "file" / "models.lock").record("caption", "blip", ENTRY)


def test_what_is_loaded_must_be_what_was_pulled(tmp_path: Path) -> None:
    lock = ModelLock(tmp_path / "models.lock")
    lock.record("files", "caption:blip", {"files": {"config.json": {"sha256": "00"}, "m.bin": {"sha256": "11"}}})
    assert lock.check_or_record("caption", "any key", ENTRY, name="blip") == ENTRY
    other = {"fingerprint": "b", "weights_sha256": "22"}
    with pytest.raises(ModelChanged, match=r"blip has other weights than those that were pulled.*verify blip"):
        lock.check_or_record("detect", "another key", other, name="blip")
    assert lock.read("detect") == {}
    assert lock.check_or_record("detect", "own", other) == other, "nothing of this name was pulled"
