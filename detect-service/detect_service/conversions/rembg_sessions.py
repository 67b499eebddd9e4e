"""rembg's sessions with their files given: the one module that imports rembg.

rembg itself is not imported, only its sessions: its first import compiles numba functions for a minute and a half, all
for alpha matting, which is not used here. Nothing is downloaded: where a session would, its file is named.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import onnxruntime
from PIL import Image


def session_classes() -> Mapping[str, type[Any]]:
    """Return rembg's session classes by name."""
    if "rembg" not in sys.modules:
        found = importlib.util.find_spec("rembg")
        assert found is not None
        assert found.submodule_search_locations is not None
        package = types.ModuleType("rembg")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["rembg"] = package
    from rembg.sessions import sessions

    return cast(Mapping[str, type[Any]], sessions)


def open_session(name: str, weights: Path, config: Mapping[str, Any], threads: int) -> Any:
    """Return a rembg session of `weights`: as `config` says (size, mean, std), else rembg's own called `name`.

    It is a `rembg.sessions.base.BaseSession` to be given to `rembg.remove`. What its network was given last stands in
    its `seen` (mean, std, size). KeyError when there is no configuration and rembg knows no such name.
    """
    classes = session_classes()
    # A U²-Net of any width differs from rembg's own in nothing but size, mean and deviation.
    base: type[Any] = classes["u2net"] if config else classes[name]
    own = (tuple(config["mean"]), tuple(config["std"]), (config["size"],) * 2) if config else None

    class Given(base):  # type: ignore[misc]
        """The session with its file given and its normalization written down."""

        seen: tuple[Any, Any, Any] | None = None

        @classmethod
        def download_models(cls, *_: Any, **__: Any) -> str:
            return str(weights)

        def normalize(self, img: Image.Image, mean: Any, std: Any, size: Any, *more: Any, **named: Any) -> Any:
            self.seen = own or (tuple(mean), tuple(std), tuple(size))
            return super().normalize(img, *self.seen, *more, **named)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return Given(name, options, providers=["CPUExecutionProvider"])
