"""Models as torch modules, loaded by open_clip and torchvision: the one module that imports torch.

A tower takes what travels between processes (integer pixels, token ids) and gives unit vectors. Importing this module
costs seconds and half a gigabyte, so the service does it only for CUDA and for tokenizers without a light form; else
it happens in the child process that converts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pixelgate_common.inference.errors import ModelProblem

from embed_service.catalogue import ModelSource
from embed_service.pixels import Preprocess

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported: nothing is fetched, ever

import open_clip
import torch
import torchvision
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

FloatMatrix = npt.NDArray[np.float32]
Tokenize = Callable[[list[str]], Tensor]
_RESNET34_BLOCKS = (3, 4, 6, 3)


class ImageTower(nn.Module):
    """Pixels (n, size, size, 3), uint8, to unit vectors (n, dim), float32."""

    def __init__(self, encoder: nn.Module, preprocess: Preprocess) -> None:
        """Put normalisation before and unit length after `encoder`."""
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1) * 255)
        self.dtype = torch.float32

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the vectors of `pixels`."""
        planes = pixels.permute(0, 3, 1, 2).float()
        return self.encode((planes - self.get_buffer("mean")) / self.get_buffer("std"))

    def encode(self, inputs: Tensor) -> Tensor:
        """Return the vectors of inputs that are normalised already, shape (n, 3, size, size), float32."""
        return nn.functional.normalize(self.encoder(inputs.to(self.dtype)).float(), dim=-1)

    def in_precision(self, dtype: torch.dtype) -> ImageTower:
        """Compute in `dtype` from now on; normalisation before and after stays in float32."""
        self.encoder.to(dtype)
        self.dtype = dtype
        return self


class TextTower(nn.Module):
    """Token ids (n, length), int64, to unit vectors (n, dim), float32."""

    model: Any

    def __init__(self, model: nn.Module, *, trims: bool) -> None:
        """Take `model`'s text part; with `trims` inputs may be shorter than its context."""
        super().__init__()
        self.model, self.trims = model, trims

    def whole(self, tokens: Tensor) -> Tensor:
        """Return the vectors of tokens of full length by open_clip's own code."""
        return cast(Tensor, self.model.encode_text(tokens, normalize=True)).float()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors of `tokens`."""
        model = self.model
        if not self.trims:
            return self.whole(tokens)
        # As open_clip.CLIP.encode_text, with position and mask cut to the input: attention is causal and the vector is
        # read at the end token, so what would follow it plays no part. Most queries have 10 of 77 tokens.
        length = tokens.shape[1]
        hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
        hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
        ends = _ends(tokens, model)
        hidden = model.ln_final(hidden[torch.arange(hidden.shape[0], device=hidden.device), ends])
        projection = model.text_projection
        if projection is not None:
            hidden = projection(hidden) if isinstance(projection, nn.Linear) else hidden @ projection
        return nn.functional.normalize(hidden.float(), dim=-1)


def _ends(tokens: Tensor, model: Any) -> Tensor:
    end = tokens == model.text_eos_id if model.text_pool_type == "eos" else tokens
    return end.int().argmax(dim=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """A loaded model, in fp32 on the CPU. `architecture` is everything that shapes the computation, as plain values.

    `reference` is the library's own preprocessing of a picture, shape (3, size, size); `tokenize` its own tokenizer.
    """

    image: ImageTower
    text: TextTower | None
    preprocess: Preprocess
    architecture: dict[str, Any]
    reference: Callable[[Image.Image], Tensor]
    tokenizer: Any = None
    context: int = 0
    end_id: int | None = None


def load(source: ModelSource) -> Towers:
    """Load a model from its files. Raises `ModelProblem` when files, configuration and library do not fit together."""
    try:
        with torch.no_grad():
            return _load_clip(source) if source.slot == "clip" else _load_resnet(source)
    except ModelProblem:
        raise
    except Exception as error:  # the libraries raise whatever they stumble over; the person needs the file's name
        raise ModelProblem(f"{source.name} cannot be loaded from {source.weights}: {error}") from error


def _load_clip(source: ModelSource) -> Towers:
    if source.config is not None:
        name, origin = f"local-dir:{source.folder}", str(source.folder / "open_clip_config.json")
        if not isinstance(source.config.get("model_cfg"), dict):
            raise ModelProblem(f"{origin} has no model_cfg.")
        if not isinstance(source.config.get("preprocess_cfg"), dict):
            raise ModelProblem(f"{origin} has no preprocess_cfg; without it the vectors would be wrong in silence.")
        config, preprocessing = source.config["model_cfg"], source.config["preprocess_cfg"]
    else:
        name, tag = source.architecture_and_tag
        origin = f"{name}/{tag}"
        config, preprocessing = open_clip.get_model_config(name), get_pretrained_cfg(name, tag)
        if config is None:
            raise ModelProblem(f"open_clip knows no architecture {name}, and {source.folder} has no configuration.")
        if not preprocessing:
            raise ModelProblem(
                f"open_clip knows no checkpoint {tag} of {name}, so its preprocessing is unknown; "
                f"put its open_clip_config.json into {source.folder}."
            )
        if bool(preprocessing.get("quick_gelu")) != bool(config.get("quick_gelu")):
            raise ModelProblem(f"{origin}: these weights need another activation; use {name}-quickgelu/{tag}.")
    model = open_clip.create_model(name, load_weights=False, pretrained_text=False, pretrained_image=False)
    open_clip.load_checkpoint(model, str(source.weights), weights_only=True)
    model.eval()
    preprocess = Preprocess.from_open_clip(preprocessing, model.visual.image_size, origin)
    text_config = config["text_cfg"]
    return Towers(
        image=ImageTower(_Encoder(model), preprocess).eval(),
        text=TextTower(model, trims=_can_trim(model)).eval(),
        preprocess=preprocess,
        architecture={"library": "open_clip", **config},
        reference=image_transform_v2(
            PreprocessCfg(
                size=preprocess.size_px,
                mean=preprocess.mean,
                std=preprocess.std,
                interpolation=preprocess.interpolation,
                resize_mode=preprocess.resize_mode,
                fill_color=preprocess.fill,
            ),
            is_train=False,
        ),
        tokenizer=_tokenizer(source, name, text_config),
        context=int(model.context_length),
        end_id=getattr(model, "text_eos_id", None) if getattr(model, "text_pool_type", "") == "eos" else None,
    )


class _Encoder(nn.Module):
    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return cast(Tensor, self.model.encode_image(inputs))


def _can_trim(model: nn.Module) -> bool:
    return (
        type(model) is open_clip.CLIP
        and getattr(model, "attn_mask", None) is not None
        and getattr(model, "text_pool_type", None) in ("argmax", "eos")
    )


def _tokenizer(source: ModelSource, name: str, text_config: dict[str, Any]) -> Any:
    if source.config is None and text_config.get("hf_tokenizer_name") and (source.folder / "tokenizer.json").is_file():
        return open_clip.tokenizer.HFTokenizer(
            str(source.folder),
            context_length=text_config.get("context_length", 77),
            tokenizer_mode=text_config.get("tokenizer_mode"),
            **text_config.get("tokenizer_kwargs", {}),
        )
    return open_clip.get_tokenizer(name)


def _load_resnet(source: ModelSource) -> Towers:
    state = open_clip.factory.load_state_dict(str(source.weights), weights_only=True)
    if source.config is not None:
        config, origin = source.config, str(source.folder / "config.json")
        preprocess = _resnet_preprocess(config, origin)
    else:
        name, tag = source.architecture_and_tag
        preset = _torchvision_preset(name, tag)
        config = {"architecture": name, "width": 64}
        preprocess = Preprocess(
            size_px=preset.crop_size[0],
            resize_px=preset.resize_size[0],
            resize_mode="shortest",
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )
    if config.get("architecture") != "resnet34":
        raise ModelProblem(f"{source.name}: the architecture {config.get('architecture')!r} is not resnet34.")
    width, classes = int(config.get("width", 64)), int(state["fc.weight"].shape[0])
    network = resnet34(width, classes)
    network.load_state_dict(state)
    return Towers(
        image=ImageTower(_Features(network), preprocess).eval(),
        text=None,
        preprocess=preprocess,
        architecture={"library": "torchvision", "architecture": "resnet34", "width": width, "output": "avgpool"},
        reference=_torchvision_transform(preprocess),
    )


def resnet34(width: int, classes: int) -> ResNet:
    """Return torchvision's ResNet34 with all channel counts scaled by `width` / 64, with random weights."""
    network = ResNet(BasicBlock, list(_RESNET34_BLOCKS), num_classes=classes)
    if width != 64:
        network.inplanes = width
        network.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        network.bn1 = nn.BatchNorm2d(width)
        for index, blocks in enumerate(_RESNET34_BLOCKS):
            stage = network._make_layer(BasicBlock, width << index, blocks, stride=1 if index == 0 else 2)
            setattr(network, f"layer{index + 1}", stage)
        network.fc = nn.Linear(width * 8, classes)
    return cast(ResNet, network.eval())


class _Features(nn.Module):
    """The pooled features, shape (n, 8 × width), in front of the classifier."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        network.fc = nn.Identity()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return cast(Tensor, self.network(inputs))


def _resnet_preprocess(config: dict[str, Any], origin: str) -> Preprocess:
    size = config.get("image_size")
    if not isinstance(size, int):
        raise ModelProblem(f"{origin} says no image_size.")
    for name in ("resize_mode", "interpolation"):
        if name not in config:
            raise ModelProblem(f"{origin} says no {name}; nothing is assumed here.")
    base = Preprocess.from_open_clip(config, size, origin)
    resize_px = int(config.get("resize_size", size))
    return Preprocess.from_json({**base.to_json(), "resize_px": resize_px})


def _torchvision_preset(name: str, tag: str) -> Any:
    try:
        enum = torchvision.models.get_model_weights(name)
        return enum[tag].transforms()
    except (ValueError, KeyError) as error:
        raise ModelProblem(f"torchvision knows no weights {tag} of {name}; put a config.json beside them.") from error


def _torchvision_transform(preprocess: Preprocess) -> Callable[[Image.Image], Tensor]:
    steps = torchvision.transforms
    mode = steps.InterpolationMode(preprocess.interpolation)
    resize: Any = preprocess.resize_px
    if preprocess.resize_mode == "squash":
        resize = (preprocess.size_px, preprocess.size_px)
    elif preprocess.resize_mode != "shortest":
        raise ModelProblem("resize_mode longest is not known for this slot.")
    return cast(
        Callable[[Image.Image], Tensor],
        steps.Compose(
            [
                steps.Resize(resize, mode),
                steps.CenterCrop(preprocess.size_px),
                steps.ToTensor(),
                steps.Normalize(preprocess.mean, preprocess.std),
            ]
        ),
    )


class TorchRunner:
    """Runs one tower on one device: lists of arrays in, float32 out, as `runners.Runner` says."""

    workers, good_batch = 1, 64

    def __init__(self, tower: ImageTower | TextTower, device: str, precision: str) -> None:
        """Move `tower` to `device`; bf16 turns its weights to bfloat16."""
        if precision == "bf16":
            if isinstance(tower, ImageTower):
                tower.in_precision(torch.bfloat16)
            else:
                tower.to(torch.bfloat16)
        self._tower, self._device = tower.to(device), device

    def __call__(self, batch: Sequence[npt.NDArray[Any]]) -> FloatMatrix:
        """Return unit vectors (n, dim) for arrays of one shape."""
        with torch.inference_mode():
            inputs = torch.from_numpy(np.stack(batch)).to(self._device, non_blocking=True)
            return cast(FloatMatrix, self._tower(inputs).float().cpu().numpy())


def cuda_is_available() -> bool:
    """Whether torch can compute on a GPU here."""
    return bool(torch.cuda.is_available())
