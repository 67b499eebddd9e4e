"""Settings of a test's own, and a small BLIP folder and its conversion, made once for all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from caption_service.settings import Settings

# The module beside the tests that makes models for them; pytest's importlib mode adds no folder by itself.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a service of this test's own; what the machine's environment says does not count."""
    for name in [name for name in os.environ if name.startswith("PIXELGATE_")]:
        monkeypatch.delenv(name)
    return Settings(data_dir=tmp_path / "data", starter_dir=tmp_path / "starter", threads=2)


@pytest.fixture(scope="session")
def small_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small BLIP of random weights."""
    from blip_folders import write_blip

    return write_blip(tmp_path_factory.mktemp("blips") / "small")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of converted models for all tests: a conversion takes seconds, and its key is what it is made from."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small(settings: Settings, small_blip: Path, shared_cache: Path) -> Settings:
    """Settings that name the small BLIP, whose conversions to fp32 and bf16 are in the cache already."""
    from blip_folders import convert_here

    chosen = settings.model_copy(update={"caption_model": str(small_blip), "cache_dir_set": shared_cache})
    for half in (False, True):
        convert_here(chosen, half=half)
    return chosen
