"""Artifacts by what they are made from; those that are missing are made by a child process (`conversion.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pixelgate_common.digests import file_digest
from pixelgate_common.inference.artifact_cache import cache_key, convert_in_child
from pixelgate_common.inference.errors import ModelProblem

from embed_service.artifacts import Artifact, Order
from embed_service.catalogue import ModelSource

FORMAT = 1  # raise when artifacts of before can no longer be used
_LIBRARIES = ("torch", "torchvision", "open-clip-torch", "openvino")


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
        convert_in_child(
            "embed_service.conversion",
            [order.to_json() for order in missing],
            names=", ".join(f"{order.source.slot}: {order.source.name}" for order in missing),
        )


def order_for(source: ModelSource, cache_dir: Path, *, half: bool) -> Order:
    """Return what must be made from `source`, and where its place in the cache is."""
    sha256 = file_digest(source.weights, cache_dir / "digests.json")
    key = cache_key(
        {
            "format": FORMAT,
            "slot": source.slot,
            "weights": sha256,
            "half": half,
            "name": source.name if source.config is None else None,  # without a configuration the name has a meaning
        },
        libraries=_LIBRARIES,
        folder=source.folder,
    )
    target = cache_dir / "embed" / f"{source.slot}-{key}"
    return Order(source=source, weights_sha256=sha256, target=target, half=half)
