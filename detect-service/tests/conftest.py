"""Settings of a test's own, a cache for all of them, and libraries that keep to a temporary folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from detect_service.settings import Settings

# The module beside the tests that makes models for them; pytest's importlib mode adds no folder by itself.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def quiet_libraries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep ultralytics and its kin, which conversions import in this process here, from writing home."""
    folder = str(tmp_path_factory.mktemp("libraries"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "YOLO_OFFLINE": "1",
            "YOLO_AUTOINSTALL": "False",
            "YOLO_CONFIG_DIR": folder,
            "YOLO_VERBOSE": "False",
            "MPLCONFIGDIR": folder,
            "U2NET_HOME": folder,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a service of this test's own; what the machine's environment says does not count."""
    for name in [name for name in os.environ if name.startswith("PIXELGATE_")]:
        monkeypatch.delenv(name)
    return Settings(data_dir=tmp_path / "data", starter_dir=tmp_path / "starter", threads=2)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of converted models for all tests: a conversion takes seconds, and its key is what it is made from."""
    return tmp_path_factory.mktemp("cache")
