"""BLIP on a CPU by OpenVINO: one graph that sees, one that speaks, and the keys and values between them.

What the picture gives to the decoder goes from graph to graph as it is, in bf16 and without a copy: 21 MB for each
picture of BLIP base. What was said is small, and lies in an array of fixed room, so that shapes do not change with
every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from pixelgate_common.inference.openvino_runtime import Graph, Precision, openvino

from caption_service.artifacts import Artifact
from caption_service.decoding import MASKED, FloatMatrix, Step, TokenIds
from caption_service.pixels import Pixels


class OpenVinoRunner:
    """Runs the two graphs of one artifact, one batch at a time on all threads.

    A step reads all the decoder's weights, whatever the batch: two batches side by side would read them twice.
    """

    good_batch = 8

    def __init__(self, artifact: Artifact, precision: Precision, threads: int) -> None:
        """Compile the graphs (BLIP base: 0.6 s of a processor)."""
        self._eyes = Graph(artifact.eyes_graph, precision, threads, side_by_side=False)
        self._speech = Graph(artifact.speech_graph, precision, threads, side_by_side=False)
        self._states, self._heads, self._head_width = 2 * artifact.layers, artifact.heads, artifact.head_width

    @contextmanager
    def look(self, pixels: Sequence[Pixels], room: int) -> Iterator[Step]:
        """See `decoding.Runner`."""
        rows, states = len(pixels), self._states
        with self._eyes.request() as eyes, self._speech.request() as speech:
            eyes.infer([np.stack(pixels)], share_inputs=True)
            newest, place = np.zeros((rows, 1), np.int64), np.zeros(1, np.int64)
            mask = np.full((1, 1, 1, room + 1), MASKED, np.float32)
            mask[..., room] = 0  # the new token itself
            said = np.zeros((states, rows, self._heads, room, self._head_width), np.float32)
            for number, array in enumerate([newest, place, mask, *said]):
                speech.set_input_tensor(number, openvino.Tensor(array, shared_memory=True))
            for number in range(states):
                speech.set_input_tensor(3 + states + number, eyes.get_output_tensor(number))

            def step(tokens: TokenIds) -> FloatMatrix:
                newest[:, 0] = tokens
                speech.infer()
                at = int(place[0])
                for number in range(states):
                    said[number, :, :, at] = speech.get_output_tensor(1 + number).data[:, :, 0]
                mask[..., at] = 0
                place[0] = at + 1
                return np.array(speech.get_output_tensor(0).data, dtype=np.float32)

            yield step
