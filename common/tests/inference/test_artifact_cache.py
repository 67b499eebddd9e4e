from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pixelgate_common.inference.artifact_cache import cache_key, convert_in_child, draft_of
from pixelgate_common.inference.errors import ModelProblem


def test_a_draft_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "model"
    with draft_of(target) as folder:
        (folder / "graph").write_text("whole")
        assert not target.exists()
    assert (target / "graph").read_text() == "whole"
    other = tmp_path / "cache" / "other"

    def interrupted() -> None:
        with draft_of(other) as folder:
            (folder / "graph").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {path.name for path in target.parent.iterdir()} == {"model"}


def test_who_comes_second_leaves_the_first_ones_work(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with draft_of(target) as slow:
        (slow / "by").write_text("slow")
        with draft_of(target) as fast:
            (fast / "by").write_text("fast")
    assert (target / "by").read_text() == "fast"
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_the_key_follows_facts_versions_and_what_lies_beside_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights.bin").write_text("not read: its digest is among the facts")

    def key(facts: dict[str, object], libraries: tuple[str, ...] = ("numpy",)) -> str:
        return cache_key(facts, libraries=libraries, folder=tmp_path)

    first = key({"weights": "1"})
    (tmp_path / "weights.bin").write_text("changed")
    assert key({"weights": "1"}) == first
    keys = {first, key({"weights": "2"}), key({"weights": "1"}, ("numpy", "pillow"))}
    (tmp_path / "config.json").write_text("{ }")
    keys.add(key({"weights": "1"}))
    assert len(keys) == 4


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "converts_for_a_test.py").write_text(
        "import sys, pathlib, time\n"
        "for line in sys.stdin:\n"
        "    what, path = line.split()\n"
        "    if what == 'refuse': sys.exit('blip cannot be loaded: no config')\n"
        "    if what == 'sleep': time.sleep(60)\n"
        "    pathlib.Path(path).write_text('made')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return "converts_for_a_test"


def test_the_child_gets_all_orders(tmp_path: Path, module: str) -> None:
    convert_in_child(module, [f"make {tmp_path / 'a'}", f"make {tmp_path / 'b'}"], names="a, b")
    assert [(tmp_path / name).read_text() for name in "ab"] == ["made", "made"]


def test_a_child_that_fails_or_hangs_is_one_sentence(tmp_path: Path, module: str) -> None:
    with pytest.raises(ModelProblem, match=r"^blip cannot be loaded: no config$"):
        convert_in_child(module, [f"refuse {tmp_path / 'a'}"], names="blip")
    with pytest.raises(ModelProblem, match="blip: the conversion took longer than 0"):
        convert_in_child(module, [f"sleep {tmp_path / 'a'}"], names="blip", timeout_s=0.5)
