"""The slots that answer about one picture, as their libraries load them: its caption, its objects, its foreground."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from rembg.sessions.base import BaseSession
from transformers import BlipForConditionalGeneration, BlipProcessor

from starter_models.measures import Detection

#: Detections below this score are left out; the low ones still count where precision is read at every recall.
MIN_SCORE = 0.001


class Objects:
    """The objects slot as ultralytics loads it."""

    def __init__(self, folder: Path) -> None:
        """Load ``model.pt``; nothing is fetched, and nothing is written into the home folder."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with quiet_ultralytics():
            from ultralytics import YOLO

            self._model: Any = YOLO(str(folder / "model.pt"), task="detect", verbose=False)
        self._options = {name: config[name] for name in ("imgsz", "iou", "agnostic_nms")}

    def find(self, picture: Image.Image) -> list[Detection]:
        """Return what is in a picture, boxes in its own pixels."""
        result = self._model.predict(picture, conf=MIN_SCORE, max_det=100, verbose=False, **self._options)[0]
        return [
            Detection(result.names[int(label)], score, (box[0], box[1], box[2], box[3]))
            for box, score, label in zip(
                result.boxes.xyxy.tolist(), result.boxes.conf.tolist(), result.boxes.cls.tolist(), strict=True
            )
        ]


class Captions:
    """The caption slot as transformers loads it."""

    def __init__(self, folder: Path) -> None:
        """Load weights, tokenizer and preprocessing from ``folder``."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        self._model: Any = BlipForConditionalGeneration.from_pretrained(folder, local_files_only=True).float().eval()
        self._processor: Any = BlipProcessor.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def tell(self, pictures: Sequence[Image.Image], batch: int = 50) -> list[str]:
        """Return a sentence for each picture, by greedy search."""
        told: list[str] = []
        for start in range(0, len(pictures), batch):
            inputs = self._processor(images=list(pictures[start : start + batch]), return_tensors="pt")
            ids = self._model.generate(**inputs, max_new_tokens=self._model.generation_config.max_new_tokens)
            told += self._processor.batch_decode(ids, skip_special_tokens=True)
        return told


class Cutout(BaseSession):  # type: ignore[misc]
    """The cutout slot as a session of rembg, at the size and with the colours that its config tells."""

    def __init__(self, folder: Path) -> None:
        """Load ``model.onnx`` for the CPU."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._input = tuple(config["mean"]), tuple(config["std"]), (config["size"], config["size"])
        super().__init__(
            "cutout",
            onnxruntime.SessionOptions(),
            model_path=folder / "model.onnx",
            providers=["CPUExecutionProvider"],
        )

    @classmethod
    def download_models(cls, *_: Any, **options: Any) -> str:
        """Return the path of the weights: nothing is downloaded."""
        return str(options["model_path"])

    def predict(self, img: Image.Image, *_: Any, **__: Any) -> list[Image.Image]:
        """Return one mask of the picture's size."""
        fused = self.inner_session.run(None, self.normalize(img, *self._input))[0][0, 0]
        mask = Image.fromarray((fused.clip(0, 1) * 255).round().astype(np.uint8))
        return [mask.resize(img.size, Image.Resampling.LANCZOS)]

    def mask(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Return the foreground's alpha, (height, width), 0–255."""
        return np.asarray(self.predict(picture)[0])


def labels_of(things: Sequence[Any]) -> Counter[str]:
    """Count the labels of a scene's things."""
    return Counter(thing.label for thing in things)


@contextmanager
def quiet_ultralytics() -> Iterator[None]:
    """Let ultralytics be imported without fetching anything or writing into the home folder."""
    os.environ["YOLO_OFFLINE"] = "1"
    os.environ["YOLO_AUTOINSTALL"] = "False"
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("YOLO_CONFIG_DIR")
        os.environ["YOLO_CONFIG_DIR"] = before or folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["YOLO_CONFIG_DIR"]
