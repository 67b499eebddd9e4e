"""Makes an artifact from a model's files: `python -m embed_service.conversion FOLDER SHA256 < SOURCE`.

Loads the model by the libraries' own loaders, computes the golden vectors in fp32 with the libraries' own
preprocessing, compares that preprocessing with ours, and writes graphs and facts. The service then needs neither
library. A problem with the model is one line, the last on standard error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from pixelgate_common.vectors import encode_vector
from safetensors import safe_open

from embed_service import artifacts, golden, light_tokenizer, towers
from embed_service.artifacts import Artifact, TextFacts
from embed_service.catalogue import ModelSource
from embed_service.digests import digest_of
from embed_service.errors import ModelProblem
from embed_service.runners import openvino


def convert(source: ModelSource, weights_sha256: str, folder: Path) -> Artifact:
    """Write the artifact of `source` into `folder` (heavy: imports torch) and return it."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    loaded = towers.load(source)
    golden.check_preprocess(loaded.reference, loaded.preprocess, source.name)
    half = _is_half(source.weights)

    def write(tower: Any, example: Any, shape: list[int], name: str) -> None:
        traced = torch.jit.trace(tower, example, check_trace=False)
        graph = openvino.convert_model(traced, example_input=example)
        graph.reshape({0: openvino.PartialShape(shape)})
        graph.inputs[0].get_tensor().set_names({"input"})
        # Weights that were stored in half precision lose nothing in it.
        openvino.save_model(graph, folder / name, compress_to_fp16=half)

    with torch.no_grad():
        size = loaded.preprocess.size_px
        image_vector = loaded.image.encode(loaded.reference(golden.picture())[None])[0].numpy()
        write(
            loaded.image,
            torch.zeros(2, size, size, 3, dtype=torch.uint8),
            [-1, size, size, 3],
            artifacts.IMAGE_GRAPH,
        )
        text, text_vector = None, None
        if loaded.text is not None:
            ids = loaded.tokenizer([golden.TEXT])
            text_vector = loaded.text.model.encode_text(ids, normalize=True)[0].float().numpy()
            text = _write_tokenizer(loaded, loaded.text, folder)
            example = loaded.tokenizer(["a cat", "two dogs on a red bench"])
            write(
                loaded.text,
                example if not text.trims else example[:, :16].contiguous(),
                [-1, -1 if text.trims else loaded.context],
                artifacts.TEXT_GRAPH,
            )
    artifact = Artifact(
        folder=folder,
        fingerprint=fingerprint(source.slot, loaded.architecture, weights_sha256, loaded.preprocess.to_json()),
        dim=len(image_vector),
        preprocess=loaded.preprocess,
        text=text,
        weights_sha256=weights_sha256,
        image_vector=encode_vector(image_vector),
        text_vector=None if text_vector is None else encode_vector(text_vector),
    )
    artifact.save()
    return artifact


def fingerprint(slot: str, architecture: dict[str, Any], weights_sha256: str, preprocess: dict[str, Any]) -> str:
    """Return the name of the space: what computes, with which weights, on which input.

    Names of folders and precisions are not in it: the same weights in fp32 and bf16 make vectors of one space as long
    as they agree, which the golden vector decides at every load.
    """
    whole = {"architecture": architecture, "weights": weights_sha256, "preprocess": preprocess}
    return f"{slot}-{digest_of(json.loads(json.dumps(whole)))[:16]}"


def _write_tokenizer(loaded: towers.Towers, text: towers.TextTower, folder: Path) -> TextFacts:
    light, clean = light_tokenizer.write(loaded.tokenizer, loaded.context, folder / artifacts.TOKENIZER)
    return TextFacts(context=loaded.context, light=light, clean=clean, trims=text.trims, end_id=loaded.end_id)


def _is_half(weights: Path) -> bool:
    if weights.suffix != ".safetensors":
        return False
    with safe_open(weights, "np") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 (not a dict)
    return "F32" not in kinds and "F16" in kinds


def main() -> None:
    """Convert the model described on standard input into the folder named as the first argument."""
    folder, weights_sha256 = Path(sys.argv[1]), sys.argv[2]
    order = json.load(sys.stdin)
    source = ModelSource(**{**order, "folder": Path(order["folder"]), "weights": Path(order["weights"])})
    try:
        convert(source, weights_sha256, folder)
    except ModelProblem as error:
        sys.exit(error.detail)  # the last line on standard error, which the parent passes on


if __name__ == "__main__":
    main()
