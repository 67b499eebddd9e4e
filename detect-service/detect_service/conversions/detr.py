"""A transformers folder with a detector to a graph: the one module that imports transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pixelgate_common.inference.errors import ModelProblem
from pixelgate_common.inference.openvino_runtime import get_core

from detect_service import golden
from detect_service.conversions.made import Made, save_traced
from detect_service.detectors.detr import DetrFacts, Scoring, read_output, resized

_MAX_MEAN_ERROR, _MAX_ERROR = 0.75, 8.0  # of 255: another implementation of the same filter
_MAX_SCORE_ERROR = 0.01


def convert(folder: Path, graph: Path, *, half: bool) -> Made:
    """Write the graph of the model in `folder` (config.json, preprocessor_config.json, *.safetensors).

    Raises `ModelProblem` when it is no detector, or prepares pictures or reads its output in a way not known here.
    """
    import torch
    from torch import nn
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    network: Any = AutoModelForObjectDetection.from_pretrained(
        folder, local_files_only=True, attn_implementation="eager", dtype=torch.float32
    ).eval()
    mean, std = _normalization(processor, folder)

    class Pixels(nn.Module):
        """Takes pixels (n, height, width, 3), 0–255; gives logits and boxes."""

        mean: torch.Tensor
        std: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            values = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
            found = self.network(pixel_values=values)
            return found.logits, found.pred_boxes

    labels = [str(network.config.id2label[number]) for number in sorted(network.config.id2label)]
    facts = _facts(processor, labels, folder)
    picture = golden.picture()
    prepared = processor(images=picture, return_tensors="pt")
    _check_pixels(prepared["pixel_values"].numpy()[0], resized(picture, facts), mean, std, folder)
    pixels = Pixels().eval()
    example = torch.from_numpy(resized(picture, facts)[np.newaxis].copy())
    with torch.no_grad():
        logits, boxes = (part.numpy()[0] for part in pixels(example))
        theirs = processor.post_process_object_detection(
            network(**prepared), threshold=golden.FLOOR, target_sizes=[picture.size[::-1]]
        )[0]
    facts = _with_scoring(facts, logits, boxes, np.sort(theirs["scores"].numpy())[::-1], folder)
    answer = read_output(logits, boxes, facts, picture.size, golden.FLOOR)
    shape = (1, facts.size[1], facts.size[0], 3) if facts.size else (1, -1, -1, 3)
    save_traced(pixels, example, shape, graph, half=half)
    if not facts.size:
        _check_other_shapes(pixels, graph, facts, folder)
    return Made(
        facts={
            "labels": labels,
            "size": facts.size,
            "shortest_px": facts.shortest_px,
            "longest_px": facts.longest_px,
            "resample": facts.resample,
            "scoring": facts.scoring,
        },
        architecture={"library": "transformers", "type": network.config.model_type, "mean": mean, "std": std},
        golden=golden.of_objects(answer),
    )


def _facts(processor: Any, labels: list[str], folder: Path) -> DetrFacts:
    size = dict(processor.size) if processor.do_resize else {}
    if getattr(processor, "pad_size", None):
        raise ModelProblem(f"{folder}: preprocessor_config.json wants pictures padded to a size; that is not known.")
    fixed = (int(size["width"]), int(size["height"])) if size.get("width") and size.get("height") else None
    if not fixed and not (size.get("shortest_edge") and size.get("longest_edge")):
        raise ModelProblem(f"{folder}: preprocessor_config.json says no size that is known (it says {size}).")
    return DetrFacts(
        labels=tuple(labels),
        size=fixed,
        shortest_px=int(size.get("shortest_edge") or 0),
        longest_px=int(size.get("longest_edge") or 0),
        resample=int(processor.resample),
        scoring="softmax",
    )


def _normalization(processor: Any, folder: Path) -> tuple[list[float], list[float]]:
    """Return mean and deviation of pixels in 0–255."""
    if not processor.do_rescale:
        raise ModelProblem(f"{folder}: preprocessor_config.json wants pixels that are not rescaled; that is not known.")
    scale = 1 / float(processor.rescale_factor)
    if not processor.do_normalize:
        return [0.0] * 3, [scale] * 3
    return [value * scale for value in processor.image_mean], [value * scale for value in processor.image_std]


def _check_pixels(
    theirs: npt.NDArray[np.float32], ours: npt.NDArray[np.uint8], mean: list[float], std: list[float], folder: Path
) -> None:
    wanted = theirs.transpose(1, 2, 0) * std + mean
    if wanted.shape != ours.shape:
        raise ModelProblem(f"{folder}: its own preprocessing gives pixels of {wanted.shape}, ours of {ours.shape}.")
    error = np.abs(wanted - ours)
    if error.mean() > _MAX_MEAN_ERROR or error.max() > _MAX_ERROR:
        raise ModelProblem(
            f"{folder}: its own preprocessing gives other pixels than ours "
            f"(mean difference {error.mean():.2f}, largest {error.max():.0f} of 255)."
        )


def _with_scoring(
    facts: DetrFacts,
    logits: npt.NDArray[np.float32],
    boxes: npt.NDArray[np.float32],
    theirs: npt.NDArray[np.float32],
    folder: Path,
) -> DetrFacts:
    """Return `facts` with the way of reading logits that gives the processor's scores."""
    rules: tuple[Scoring, ...] = ("softmax", "sigmoid")
    for scoring in rules:
        tried = replace(facts, scoring=scoring)
        ours = [one.score for one in read_output(logits, boxes, tried, (1000, 1000), golden.FLOOR)]
        count = min(len(ours), len(theirs))
        # A few boxes may be left out here: those without an area.
        if count >= 0.9 * len(theirs) and np.allclose(ours[:count], theirs[:count], atol=_MAX_SCORE_ERROR):
            return tried
    raise ModelProblem(f"{folder}: its processor reads scores in a way that is not known.")


def _check_other_shapes(network: Any, graph: Path, facts: DetrFacts, folder: Path) -> None:
    """Compare graph and network on a picture of another shape: a trace may have taken a side for a constant."""
    import torch

    upright = golden.picture().transpose(Image.Transpose.ROTATE_90).resize((200, 300))
    pixels = resized(upright, facts)[np.newaxis].copy()
    compiled = get_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ours = compiled([pixels])
    with torch.no_grad():
        theirs = [part.numpy() for part in network(torch.from_numpy(pixels))]
    for output, wanted in zip(ours.values(), theirs, strict=True):
        if output.shape != wanted.shape or np.abs(output - wanted).max() > 0.05:
            raise ModelProblem(f"{folder}: the model cannot be converted for pictures of every shape.")
