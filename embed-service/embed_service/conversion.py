"""Makes artifacts from models' files: `python -m embed_service.conversion < ORDERS`, one order in each line.

Loads the model by the libraries' own loaders, computes the golden vectors in fp32 with the libraries' own
preprocessing, compares that preprocessing with ours, and writes graphs and facts. The service then needs neither
library. A problem with the model is one line, the last on standard error.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pixelgate_common.digests import digest_of
from pixelgate_common.inference.errors import ModelProblem
from pixelgate_common.inference.openvino_runtime import openvino
from pixelgate_common.vectors import FloatVector, encode_vector
from torch import Tensor

from embed_service import artifacts, golden, light_tokenizer, towers
from embed_service.artifacts import Artifact, Order, TextFacts
from embed_service.tokens import PROBES


def convert(order: Order, folder: Path) -> None:
    """Write the artifact that `order` asks for into `folder`."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    loaded = towers.load(order.source)
    golden.check_preprocess(loaded.reference, loaded.preprocess, order.source.name)
    size = loaded.preprocess.size_px
    with torch.no_grad():
        _write_graph(
            loaded.image,
            torch.zeros(2, size, size, 3, dtype=torch.uint8),
            (-1, size, size, 3),
            folder / artifacts.IMAGE_GRAPH,
            half=order.half,
        )
        text = None if loaded.text is None else _write_text(loaded, loaded.text, folder, half=order.half)
        image_vector = _vector(loaded.image.encode(loaded.reference(golden.picture())[None]))
        text_vector = None if loaded.text is None else _vector(loaded.text.whole(loaded.tokenizer([golden.TEXT])))
    Artifact(
        folder=folder,
        fingerprint=_fingerprint(order, loaded),
        dim=len(image_vector),
        preprocess=loaded.preprocess,
        text=text,
        weights_sha256=order.weights_sha256,
        image_vector=encode_vector(image_vector),
        text_vector=None if text_vector is None else encode_vector(text_vector),
    ).save()


def _fingerprint(order: Order, loaded: towers.Towers) -> str:
    """Return the name of the space: what computes, with which weights, on which input.

    Names of folders and precisions are not in it: the same weights in fp32 and bf16 make vectors of one space as long
    as they agree, which the golden vector decides at every load.
    """
    whole = {
        "architecture": loaded.architecture,
        "weights": order.weights_sha256,
        "preprocess": loaded.preprocess.to_json(),
        "tokens": None if loaded.text is None else np.asarray(loaded.tokenizer(PROBES)).tolist(),
    }
    return f"{order.source.slot}-{digest_of(json.loads(json.dumps(whole)))[:16]}"


def _write_graph(tower: Any, example: Tensor, shape: tuple[int, ...], path: Path, *, half: bool) -> None:
    with warnings.catch_warnings():
        # torch would rather export; OpenVINO's converter traces in any case, and four times slower on its own.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(tower, example, check_trace=False)  # type: ignore[no-untyped-call]
    graph = openvino.convert_model(traced, example_input=example)
    graph.reshape({0: openvino.PartialShape(list(shape))})
    openvino.save_model(graph, path, compress_to_fp16=half)


def _write_text(loaded: towers.Towers, tower: towers.TextTower, folder: Path, *, half: bool) -> TextFacts:
    example = loaded.tokenizer(["a cat", "two dogs on a red bench"])
    if tower.trims:
        example = example[:, : loaded.context // 2].contiguous()
    _write_graph(tower, example, (-1, -1 if tower.trims else loaded.context), folder / artifacts.TEXT_GRAPH, half=half)
    light, clean = light_tokenizer.write(loaded.tokenizer, loaded.context, folder / artifacts.TOKENIZER)
    return TextFacts(context=loaded.context, light=light, clean=clean, trims=tower.trims, end_id=loaded.end_id)


def _vector(vectors: Tensor) -> FloatVector:
    return cast(FloatVector, vectors[0].float().numpy())


def main() -> None:
    """Make the artifacts that standard input orders, and put each in its place."""
    try:
        for line in sys.stdin:
            order = Order.from_json(line)
            with order.draft() as folder:
                convert(order, folder)
    except ModelProblem as error:
        sys.exit(error.detail)  # the last line on standard error, which the parent passes on


if __name__ == "__main__":
    main()
