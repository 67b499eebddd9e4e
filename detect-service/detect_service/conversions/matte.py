"""A cutout network in ONNX to a graph, with the preprocessing that rembg's session for it uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from pixelgate_common.inference.errors import ModelProblem
from pixelgate_common.inference.openvino_runtime import openvino

from detect_service import golden
from detect_service.conversions.made import Made
from detect_service.conversions.rembg_sessions import open_session, session_classes
from detect_service.matte import MatteFacts, network_input, to_alpha

_MAX_INPUT_ERROR = 1e-3  # of values from about -2 to 3; float32 in place of rembg's float64
_MAX_ALPHA_ERROR = 1  # of 255: what is cut off instead of rounded


def convert(name: str, weights: Path, config: dict[str, Any], graph: Path, *, half: bool) -> Made:
    """Write the graph of `weights`; `config` says size, mean and std, or is empty for a model that rembg knows.

    Raises `ModelProblem` when the configuration lacks something, rembg knows no such model, or its session does more
    than is done here.
    """
    _check(config, weights)
    if not config and name not in session_classes():
        raise ModelProblem(
            f"rembg knows no model {name}, and no config.json beside {weights} says its size, mean and std."
        )
    try:
        session = open_session(name, weights, config, len(os.sched_getaffinity(0)))
    except Exception as error:  # onnxruntime raises what its parser stumbles over
        raise ModelProblem(f"{name} cannot be loaded from {weights}: {error}") from error
    picture = golden.picture()
    masks = session.predict(picture)
    if len(masks) != 1 or session.seen is None or session.seen[2][0] != session.seen[2][1]:
        raise ModelProblem(f"{name}: rembg's session for it is not one picture in, one mask out.")
    mean, std, size = session.seen
    whole = np.asarray(masks[0])
    theirs = next(iter(session.normalize(picture, mean, std, size).values()))
    found = session.inner_session.run(None, {session.inner_session.get_inputs()[0].name: theirs})[0]
    for sigmoid in (False, True):
        facts = MatteFacts(size_px=size[0], mean=mean, std=std, sigmoid=sigmoid)
        ours = to_alpha(found[0, 0], picture.size, facts)
        if np.abs(ours.astype(np.int16) - whole).max() <= _MAX_ALPHA_ERROR:
            break
    else:
        raise ModelProblem(f"{name}: rembg's session makes an alpha of the network's map in a way that is not known.")
    if np.abs(network_input(picture, facts) - theirs).max() > _MAX_INPUT_ERROR:
        raise ModelProblem(f"{name}: rembg's session prepares pictures in a way that is not known.")
    _save(weights, facts.size_px, graph, half=half)
    return Made(
        facts={"size_px": facts.size_px, "mean": list(mean), "std": list(std), "sigmoid": facts.sigmoid},
        architecture={"library": "rembg", "output": "first"},
        golden=golden.of_alpha(whole),
    )


def _check(config: dict[str, Any], weights: Path) -> None:
    if not config:
        return
    size = config.get("size")
    if not isinstance(size, int) or not 16 <= size <= 4096:
        raise ModelProblem(f"The config.json beside {weights} says no size from 16 to 4096; nothing is assumed here.")
    for key in ("mean", "std"):
        values = config.get(key)
        if not isinstance(values, list) or len(values) != 3 or not all(isinstance(one, int | float) for one in values):
            raise ModelProblem(f"The config.json beside {weights} says no {key} of three numbers.")


def _save(weights: Path, size_px: int, path: Path, *, half: bool) -> None:
    """Write the graph for one picture at a time, with its first output only: the others are for training."""
    graph = openvino.convert_model(weights)
    graph = openvino.Model([graph.outputs[0]], graph.get_parameters(), "matte")
    graph.reshape([1, 3, size_px, size_px])
    openvino.save_model(graph, path, compress_to_fp16=half)
