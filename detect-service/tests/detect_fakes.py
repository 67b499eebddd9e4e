"""Small fakes, and models with random weights in the layouts of real ones."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detect_service.conversions.__main__ import convert
from detect_service.converting import order_for
from detect_service.detectors.protocol import Detector, Prepared, Question
from detect_service.loading import Loaded, Served
from detect_service.matte import MatteFacts, MatteNetwork
from detect_service.served import Models
from detect_service.settings import Settings
from PIL import Image
from pixelgate_common.contracts.detect import Box
from pixelgate_common.inference.artifact_cache import draft_of
from pixelgate_common.inference.model_sets import ModelSource
from pixelgate_common.inference.resident import Resident

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def scenery(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with structure of every size."""
    rng = np.random.default_rng(width * 10_000 + height + seed)
    layers = [
        Image.fromarray(rng.integers(0, 256, (max(1, height // k), max(1, width // k), 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for k in (4, 16, 64)
    ]
    return Image.fromarray(np.mean([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8))


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """A picture's file."""
    file = BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def square_on_black(width: int = 60, height: int = 40) -> Image.Image:
    """A white square in the middle of black."""
    picture = Image.new("RGB", (width, height))
    picture.paste((255, 255, 255), (width // 3, height // 4, 2 * width // 3, 3 * height // 4))
    return picture


class BrightDetector:
    """Finds one thing: what is brighter than half, labelled by the size that it was asked about."""

    decode_side_px = 64

    def __init__(self, workers: int = 2) -> None:
        self.workers = workers
        self.may_go = threading.Event()
        self.may_go.set()
        self.looked_at = 0
        self.error: Exception | None = None

    def prepare(self, picture: Image.Image, size: tuple[int, int]) -> Prepared:
        return Prepared(np.asarray(picture), (picture.size, size))

    def find(self, batch: Sequence[Question]) -> list[list[Box]]:
        assert self.may_go.wait(30)
        if self.error is not None:
            raise self.error
        self.looked_at += len(batch)
        return [self._find(question) for question in batch]

    def _find(self, question: Question) -> list[Box]:
        bright = question.prepared.pixels.mean(axis=2) > 127
        if not bright.any() or question.min_score > 0.8:
            return []
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        (small_w, small_h), (width, height) = question.prepared.place
        left, top = columns[0] * width / small_w, rows[0] * height / small_h
        across, down = len(columns) * width / small_w, len(rows) * height / small_h
        return [Box(label="bright", score=0.8, box=(left, top, across, down))]


class BrightGraph:
    """A network whose map is its input's first channel."""

    def __init__(self, workers: int = 2) -> None:
        self.workers = workers
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, *inputs: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        assert self.may_go.wait(30)
        return [inputs[0][:, :1]]


def fake_detector(detector: Detector | None = None, name: str = "fake", **more: Any) -> Served[Detector]:
    """A detector without weights."""
    chosen = detector or BrightDetector()
    return Served("objects", name, f"objects-{name}", "fp32", Resident(name, lambda: Loaded(chosen, "fp32"), **more))


def fake_matte(name: str = "fake", graph: BrightGraph | None = None, **more: Any) -> Served[MatteNetwork]:
    """A cutout network without weights: what is bright stays."""
    facts = MatteFacts(size_px=32, sigmoid=False, **IMAGENET)
    network = MatteNetwork(graph or BrightGraph(), facts)
    return Served("cutout", name, f"cutout-{name}", "fp32", Resident(name, lambda: Loaded(network, "fp32"), **more))


def fake_models(detector: Detector | None = None, graph: BrightGraph | None = None) -> Models:
    """Both slots without weights."""
    return Models(set="starter", detectors=[fake_detector(detector)], mattes=[fake_matte(graph=graph)])


def convert_here(sources: Sequence[ModelSource], settings: Settings) -> None:
    """Convert in this process, which has the libraries already; a child of its own has a test."""
    for source in sources:
        order = order_for(source, settings)
        if not order.target.exists():
            with draft_of(order.target) as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the libraries' own, of each other
                convert(order, folder)


def write_yolo(path: Path, architecture: str, *, side_px: int = 320, seed: int = 0) -> Path:
    """Write an ultralytics checkpoint with random weights that finds many things."""
    import torch
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(seed)
    model: Any = DetectionModel(f"{architecture}.yaml", nc=80, verbose=False)
    model.names = {number: f"thing {number}" for number in range(80)}
    model.args = {"imgsz": side_px, "task": "detect"}
    head = model.model[-1]
    # Statistics of normalization as of a trained network, so that signals neither die nor explode on their way.
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for number in range(2):
            pixels = np.asarray(scenery(side_px, side_px, number)).transpose(2, 0, 1) / 255
            model(torch.from_numpy(pixels[np.newaxis]).float())
        model.eval()
        pixels = np.asarray(scenery(side_px, side_px, 9)).transpose(2, 0, 1) / 255
        raw = model(torch.from_numpy(pixels[np.newaxis]).float())[1]
        logits = raw.get("one2many", raw)["scores"]
        bias = next(layers[-1].bias.mean() for layers in head.cv3)
        # Scores of every height, and about one place in a hundred above the threshold of 0.25.
        scale = float(1 / logits.std())
        sure = float(((logits - bias) * scale).amax(1).quantile(0.99))
        for heads in (head.cv3, getattr(head, "one2one_cv3", None) or []):
            for layers in heads:
                layers[-1].weight.mul_(scale)
                layers[-1].bias.fill_(-1.1 - sure)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model, "train_args": {"imgsz": side_px}, "epoch": -1}, path)
    return path


def write_matte(path: Path, *, side_px: int = 320, width: int = 4, seed: int = 0) -> Path:
    """Write a small U²-Net-like ONNX with random weights: several outputs of the input's size, the fused one first."""
    import torch
    from torch import nn

    torch.manual_seed(seed)

    class Nested(nn.Module):
        """Two depths, joined as a U²-Net joins its six."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
            self.side_1, self.side_2 = nn.Conv2d(width, 1, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
            self.fuse = nn.Conv2d(2, 1, 1)

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            shallow = torch.relu(self.first(pixels))
            deep = torch.relu(self.second(torch.max_pool2d(shallow, 4)))
            one = self.side_1(shallow)
            two = nn.functional.interpolate(self.side_2(deep), scale_factor=4, mode="bilinear", align_corners=False)
            return torch.sigmoid(self.fuse(torch.cat([one, two], 1))), torch.sigmoid(one), torch.sigmoid(two)

    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Nested().eval(),
            (torch.zeros(1, 3, side_px, side_px),),
            str(path),
            input_names=["input"],
            output_names=["d0", "d1", "d2"],
            dynamic_axes={name: {0: "n"} for name in ("input", "d0", "d1", "d2")},
            dynamo=False,
        )
    return path


def write_matte_folder(folder: Path, *, side_px: int = 64, seed: int = 0, **changes: Any) -> Path:
    """Write a cutout model as the starter set has it; a change to None leaves a field out."""
    write_matte(folder / "model.onnx", side_px=side_px, seed=seed)
    config = {"size": side_px, **IMAGENET, **changes}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def write_detr(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write a small model of a DETR architecture with random weights as transformers writes it: `rt_detr` or `detr`."""
    import torch
    import transformers as t

    torch.manual_seed(seed)
    names = {number: f"thing {number}" for number in range(7)}
    common: dict[str, Any] = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    sizes: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 16, 32, 64], "depths": [1, 1, 1, 1]}
    small: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 30}
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    heads |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    model: Any
    processor: Any
    if kind == "rt_detr":
        backbone: Any = t.RTDetrResNetConfig(layer_type="basic", out_features=["stage2", "stage3", "stage4"], **sizes)
        wide = {"encoder_in_channels": [16, 32, 64], "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3}
        model = t.RTDetrForObjectDetection(t.RTDetrConfig(backbone_config=backbone, **wide, **small, **heads, **common))
        processor = t.RTDetrImageProcessor(size={"height": 160, "width": 160})
    else:
        backbone = t.ResNetConfig(layer_type="basic", out_features=["stage4"], **sizes)
        model = t.DetrForObjectDetection(t.DetrConfig(backbone_config=backbone, **small, **heads, **common))
        processor = t.DetrImageProcessor(size={"shortest_edge": 128, "longest_edge": 213})
    with torch.no_grad():
        # At the start of a training hardly any signal passes and all scores are equal: which of them are the best is
        # decided by the last bit.
        for name, parameter in model.named_parameters():
            if ("class" in name or "score" in name) and parameter.ndim == 2:
                parameter.normal_(0, 0.5)
            elif parameter.ndim >= 2:
                torch.nn.init.kaiming_normal_(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
