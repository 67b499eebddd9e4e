"""Settings of a test's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from color_service.settings import Settings

# The module beside the tests that makes pictures for them; pytest's importlib mode adds no folder by itself.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a service of this test's own; what the machine's environment says does not count."""
    for name in [name for name in os.environ if name.startswith("PIXELGATE_")]:
        monkeypatch.delenv(name)
    return Settings(threads=2)
