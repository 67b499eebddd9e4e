"""Artifacts by what they are made from; one that is missing is made by a child process.

The child (`conversion.py`) imports torch and open_clip: seconds, and half a gigabyte that goes when it ends.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
from pixelgate_common.digests import digest_of, file_digest

from embed_service.artifacts import Artifact, Order
from embed_service.catalogue import ModelSource
from embed_service.errors import ModelProblem

FORMAT = 1  # raise when artifacts of before can no longer be used
_LIBRARIES = ("torch", "torchvision", "open-clip-torch", "openvino")
_BESIDE = (".json", ".txt", ".model")  # configuration and tokenizers
_TIMEOUT_S = 1800
log = structlog.get_logger(__name__)


def get_artifact(source: ModelSource, cache_dir: Path, *, half: bool) -> Artifact:
    """Return the artifact of `source`, converting it if it has not been; `half`: its weights in half precision.

    Raises `ModelProblem` when the model cannot be converted.
    """
    order = order_for(source, cache_dir, half=half)
    make_missing([order])
    artifact = Artifact.load(order.target)
    if artifact is None:
        raise ModelProblem(f"{source.name}: the converted model cannot be kept in {order.target}.")
    return artifact


def make_missing(orders: Sequence[Order]) -> None:
    """Convert what is not in the cache, all in one child: importing the libraries is most of the work.

    Raises `ModelProblem` when one cannot be converted.
    """
    missing = [order for order in orders if Artifact.load(order.target) is None]
    if missing:
        log.info("converting", models=[f"{order.source.slot}: {order.source.name}" for order in missing])
        _convert_in_child(missing)


def order_for(source: ModelSource, cache_dir: Path, *, half: bool) -> Order:
    """Return what must be made from `source`, and where its place in the cache is."""
    sha256 = file_digest(source.weights, cache_dir / "digests.json")
    target = cache_dir / "embed" / f"{source.slot}-{_cache_key(source, sha256, half)[:20]}"
    return Order(source=source, weights_sha256=sha256, target=target, half=half)


def _cache_key(source: ModelSource, weights_sha256: str, half: bool) -> str:
    """Return a digest of all that an artifact depends on: files, the name where it has a meaning, and versions."""
    beside = [path for path in sorted(source.folder.iterdir()) if path.suffix in _BESIDE]
    return digest_of(
        {
            "format": FORMAT,
            "slot": source.slot,
            "weights": weights_sha256,
            "half": half,
            "name": source.name if source.config is None else None,
            "beside": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in beside if path.is_file()},
            "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        }
    )


def _convert_in_child(orders: Sequence[Order]) -> None:
    names = ", ".join(order.source.name for order in orders)
    try:
        child = subprocess.run(
            [sys.executable, "-m", "embed_service.conversion"],
            input="\n".join(order.to_json() for order in orders),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelProblem(f"{names}: the conversion took longer than {_TIMEOUT_S} s.") from error
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or [f"the conversion ended with status {child.returncode}"]
        log.error("conversion_failed", models=names, stderr=lines[-20:])
        raise ModelProblem(lines[-1])
