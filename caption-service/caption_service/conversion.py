"""Makes artifacts from BLIP folders: `python -m caption_service.conversion < ORDERS`, one order in each line.

Loads the model by transformers, asks the golden question in fp32 by its own generate(), compares its preprocessing and
its tokens with ours, and writes graphs and facts. The service then needs neither torch nor transformers. A problem
with the model is one line, the last on standard error.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pixelgate_common.inference.errors import ModelProblem
from pixelgate_common.inference.openvino_runtime import openvino
from torch import nn

from caption_service import artifacts, blip, decoding, golden
from caption_service.artifacts import Answer, Artifact, Order
from caption_service.blip import Blip, Eyes, Speech, TorchRunner
from caption_service.catalogue import CaptionSource
from caption_service.decoding import PlainGuide
from caption_service.pixels import fit


def convert(order: Order, folder: Path) -> None:
    """Write the artifact that `order` asks for into `folder`."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    loaded = blip.load(order.source)
    answer = golden_answer(order.source, loaded)
    config, side = loaded.model.config, loaded.preprocess.size_px
    layers, heads = loaded.layers, int(config.text_config.num_attention_heads)
    width = int(config.text_config.hidden_size) // heads
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
    room, rows = 3, 2
    with torch.no_grad():
        _write_graph(
            Eyes(loaded.model, loaded.preprocess),
            [torch.zeros(rows, side, side, 3, dtype=torch.uint8)],
            {0: (-1, side, side, 3)},
            folder / artifacts.EYES,
            half=order.half,
            bf16_outputs=range(2 * layers),
        )
        first_seen = 3 + 2 * layers
        _write_graph(
            Speech(loaded.model),
            [
                torch.zeros(rows, 1, dtype=torch.long),
                torch.zeros(1, dtype=torch.long),
                torch.zeros(1, 1, 1, room + 1),
                *(torch.zeros(rows, heads, room, width) for _ in range(2 * layers)),
                *(torch.zeros(rows, heads, patches, width) for _ in range(2 * layers)),
            ],
            {
                0: (-1, 1),
                1: (1,),
                2: (1, 1, 1, -1),
                **{number: (-1, heads, -1, width) for number in range(3, first_seen)},
                **{number: (-1, heads, patches, width) for number in range(first_seen, first_seen + 2 * layers)},
            },
            folder / artifacts.SPEECH,
            half=order.half,
            bf16_inputs=range(first_seen, first_seen + 2 * layers),
        )
    Artifact(
        folder=folder,
        fingerprint=artifacts.fingerprint(order.source, order.weights_sha256, loaded.preprocess, loaded.vocabulary),
        weights_sha256=order.weights_sha256,
        preprocess=loaded.preprocess,
        vocabulary=loaded.vocabulary,
        layers=layers,
        heads=heads,
        head_width=width,
        patches=patches,
        answer=answer,
    ).save()


def golden_answer(source: CaptionSource, loaded: Blip) -> Answer:
    """Ask transformers' own model the golden question in fp32.

    Raises `ModelProblem` when its preprocessing or its tokens are others than ours.
    """
    preprocess, vocabulary = loaded.preprocess, loaded.vocabulary
    golden.check_preprocess(blip.reference_pixels(source, golden.picture()), preprocess, source.name)
    pixels = fit(golden.picture(), preprocess)
    values = (pixels / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    tokens, scores = blip.reference_tokens(loaded, values.transpose(2, 0, 1).astype(np.float32), golden.STEPS)
    runner = TorchRunner(loaded, "cpu", "fp32")
    plain = PlainGuide(vocabulary.end_id, golden.STEPS)
    decoding.speak(runner, [pixels], [plain], vocabulary.begin_id)
    if plain.tokens != tokens:
        raise ModelProblem(f"{source.name}: transformers says {tokens} of the known picture, we say {plain.tokens}.")
    _, caption = golden.ask(runner, pixels, vocabulary, tuple(tokens))
    return Answer(tokens=tuple(tokens), scores=golden.encode(golden.signature(scores)), caption=caption)


def _write_graph(
    module: nn.Module,
    example: Sequence[torch.Tensor],
    shapes: Mapping[int, tuple[int, ...]],
    path: Path,
    *,
    half: bool,
    bf16_inputs: Sequence[int] = (),
    bf16_outputs: Sequence[int] = (),
) -> None:
    """Write `module` as a graph; with `half` its weights in fp16, and some inputs and outputs in bf16."""
    with warnings.catch_warnings():
        # Remarks on shapes, which are fixed or given below. OpenVINO's converter would trace several times over.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module.eval(), tuple(example), check_trace=False)  # type: ignore[no-untyped-call]
    graph: Any = openvino.convert_model(traced, example_input=tuple(example))
    graph.reshape({number: openvino.PartialShape(list(shape)) for number, shape in shapes.items()})
    if half:
        prepared = openvino.preprocess.PrePostProcessor(graph)
        for number in bf16_inputs:
            prepared.input(number).tensor().set_element_type(openvino.Type.bf16)
        for number in bf16_outputs:
            prepared.output(number).tensor().set_element_type(openvino.Type.bf16)
        graph = prepared.build()
    openvino.save_model(graph, path, compress_to_fp16=half)


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
