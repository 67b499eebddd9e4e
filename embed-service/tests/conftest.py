"""Settings of a test's own, and a model folder made once for all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from embed_service.settings import Settings

# The module beside the tests that makes models for them; pytest's importlib mode adds no folder by itself.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a service of this test's own; what the machine's environment says does not count."""
    for name in [name for name in os.environ if name.startswith("PIXELGATE_")]:
        monkeypatch.delenv(name)
    return Settings(data_dir=tmp_path / "data", starter_dir=tmp_path / "starter", threads=2)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights of the real architectures, in the files that their publishers use."""
    import open_clip
    import torch
    import torchvision
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(20)
    clip = folder / "clip" / "ViT-B-32" / "laion2b_s34b_b79k"
    clip.mkdir(parents=True)
    model = open_clip.create_model("ViT-B-32", pretrained=None)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, clip / "open_clip_model.safetensors"
    )
    resnet = folder / "resnet" / "resnet34" / "IMAGENET1K_V1"
    resnet.mkdir(parents=True)
    torch.save(torchvision.models.resnet34().state_dict(), resnet / "resnet34-b627a593.pth")
    return folder


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of converted models for all tests: a conversion takes seconds, and its key is what it is made from."""
    return tmp_path_factory.mktemp("cache")
