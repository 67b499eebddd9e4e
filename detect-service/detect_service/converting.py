"""From a model's files to its artifact in the cache, made by a child process where it is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pixelgate_common.digests import file_digest
from pixelgate_common.inference.artifact_cache import cache_key, convert_in_child
from pixelgate_common.inference.errors import ModelProblem
from pixelgate_common.inference.model_sets import ModelSource

from detect_service.artifacts import Artifact, Family, Order
from detect_service.settings import Settings

FORMAT = 1  # raise when artifacts of before can no longer be used
_LIBRARIES: dict[Family, tuple[str, ...]] = {
    "yolo": ("ultralytics", "torch", "openvino"),
    "detr": ("transformers", "torch", "openvino"),
    "matte": ("rembg", "onnxruntime", "openvino"),
}


def order_for(source: ModelSource, settings: Settings) -> Order:
    """Return what must be made from `source`, and where its place in the cache is."""
    family = cast(Family, source.kind)
    half = settings.first_precision != "fp32"
    # What is computed in bf16 (8 bits of mantissa) loses nothing when its weights lie on disk in half precision (11).
    config = {} if family == "detr" else _config(source, settings)
    # Without a configuration rembg's session of the file's name says what to do.
    name = source.weights.stem if family == "matte" and not config else source.name
    sha256 = file_digest(source.weights, settings.cache_dir / "digests.json")
    key = cache_key(
        {
            "format": FORMAT,
            "family": family,
            "weights": sha256,
            "half": half,
            "config": config,
            "name": name if family == "matte" and not config else None,
        },
        libraries=_LIBRARIES[family],
        folder=source.folder if family == "detr" else None,
    )
    return Order(
        family=family,
        name=name,
        weights=source.weights,
        config=config,
        weights_sha256=sha256,
        target=settings.cache_dir / "detect" / f"{source.slot}-{key}",
        half=half,
    )


def get_artifacts(sources: Sequence[ModelSource], settings: Settings) -> list[Artifact]:
    """Return the artifacts of `sources`, converting those that have not been, all in one child.

    Raises `ModelProblem` when one cannot be converted or kept.
    """
    orders = [order_for(source, settings) for source in sources]
    missing = {order.target: order for order in orders if Artifact.load(order.target) is None}
    if missing:
        convert_in_child(
            "detect_service.conversions",
            [order.to_json() for order in missing.values()],
            names=", ".join(order.name for order in missing.values()),
        )
    return [_load(order) for order in orders]


def _load(order: Order) -> Artifact:
    artifact = Artifact.load(order.target)
    if artifact is None:
        raise ModelProblem(f"{order.name}: the converted model cannot be kept in {order.target}.")
    return artifact


def _config(source: ModelSource, settings: Settings) -> dict[str, Any]:
    """Return what stands beside the weights: NAME.json, or config.json in a folder of the model's own."""
    places = [source.weights.with_suffix(".json")]
    if source.folder != settings.model_dir / source.slot:
        places.append(source.folder / "config.json")
    return next((_read(path) for path in places if path.is_file()), {})


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelProblem(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelProblem(f"{path} is not a JSON object.")
    config.pop("labels", None)  # the checkpoint has them; here they would only make an order long
    return config
