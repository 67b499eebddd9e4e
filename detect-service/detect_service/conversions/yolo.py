"""An ultralytics checkpoint to a graph: the one module that imports ultralytics.

A checkpoint is a pickle. It is loaded here and nowhere else, in a process that ends; still only one that is trusted may
be used, because a pickle can do whatever this user may do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pixelgate_common.inference.errors import ModelProblem

from detect_service import golden
from detect_service.conversions.made import Made, save_traced
from detect_service.detectors.protocol import MAX_OBJECTS, to_boxes

MAX_IOU = 0.7  # ultralytics' default of predict()


def convert(weights: Path, config: dict[str, Any], graph: Path, *, half: bool) -> Made:
    """Write the graph of `weights`.

    `config` may say, in ultralytics' words, `imgsz` (else the checkpoint must), `nms` (false: the head that needs no
    suppression is used; by default, as by predict(), the other one), `iou` (the overlap from which the less sure box
    goes) and `agnostic_nms` (it goes whatever its label). Raises `ModelProblem` when they do not fit together.
    """
    import torch
    from torch import nn
    from ultralytics import YOLO

    class Pixels(nn.Module):
        """Takes pixels as the service has them: (n, height, width, 3), 0–255, red first."""

        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> Any:
            return self.network(pixels.permute(0, 3, 1, 2).float() / 255)

    model = YOLO(str(weights), task="detect")
    network: Any = model.model
    if getattr(network, "task", None) not in (None, "detect"):
        raise ModelProblem(f"{weights} is a model for the task {network.task}, not for detect.")
    side_px, rows = _side_px(config, network, weights), config.get("nms") is False
    max_iou, agnostic = config.get("iou", MAX_IOU), config.get("agnostic_nms", False)
    if not isinstance(max_iou, int | float) or not 0 < max_iou <= 1 or not isinstance(agnostic, bool):
        raise ModelProblem(f"{weights}: its config.json needs an iou in (0, 1] and true or false for agnostic_nms.")
    head = network.model[-1]
    if rows and getattr(head, "one2one_cv2", None) is None:
        raise ModelProblem(f"{weights}: its config.json says nms false, but it has no head without suppression.")
    labels = tuple(str(network.names[number]) for number in range(len(network.names)))
    stride = max(int(network.stride.max()), 32)
    options: dict[str, Any] = {"nms": False} if rows else {}
    (result,) = model.predict(
        np.ascontiguousarray(np.asarray(golden.picture())[..., ::-1]),  # OpenCV's order of colours
        imgsz=side_px,
        conf=golden.FLOOR,
        iou=max_iou,
        agnostic_nms=agnostic,
        max_det=MAX_OBJECTS,
        device="cpu",
        save=False,
        verbose=False,
        **options,
    )
    found = result.boxes
    answer = golden.of_objects(
        to_boxes(labels, found.xyxy.numpy(), found.conf.numpy(), found.cls.numpy().astype(np.int64))
    )
    network.end2end = rows  # before fuse(), which throws the other head away
    network = network.float().fuse(verbose=False).eval()
    for module in network.modules():
        if hasattr(module, "export"):
            module.export, module.format = True, "openvino"
        if hasattr(module, "dynamic"):
            module.dynamic = True
    if rows:
        # Its choice of the best rows is made here: a trace would fix their number, which small pictures do not have.
        head.postprocess = _unchanged
    # Neither square nor as large as what is served, so that no side is taken for another or for a constant.
    example = torch.zeros(1, 8 * stride, 11 * stride, 3, dtype=torch.uint8)
    save_traced(Pixels(network), example, (1, -1, -1, 3), graph, half=half)
    return Made(
        facts={
            "labels": list(labels),
            "side_px": side_px,
            "stride": stride,
            "rows": rows,
            "max_iou": max_iou,
            "agnostic": agnostic,
        },
        architecture={"library": "ultralytics", "layers": json.loads(json.dumps(network.yaml, default=str))},
        golden=answer,
    )


def _unchanged(predictions: Any) -> Any:
    return predictions


def _side_px(config: dict[str, Any], network: Any, weights: Path) -> int:
    arguments = getattr(network, "args", None) or {}
    trained = arguments.get("imgsz") if isinstance(arguments, dict) else getattr(arguments, "imgsz", None)
    side_px = config.get("imgsz", trained)
    if isinstance(side_px, list | tuple) and len(set(side_px)) == 1:
        side_px = side_px[0]
    if not isinstance(side_px, int) or not 32 <= side_px <= 4096 or side_px % 32:
        raise ModelProblem(
            f"{weights}: neither a config.json beside it nor the checkpoint itself says an imgsz that is a multiple of "
            "32 from 32 to 4096."
        )
    return side_px
