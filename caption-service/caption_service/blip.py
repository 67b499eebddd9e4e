"""BLIP by transformers, taken apart into what sees and what speaks: the one module that imports torch.

`Eyes` turns pixels into the keys and values that the decoder's cross-attention needs, once for each picture; `Speech`
turns the newest token into the scores of the next one, given the keys and values of those before. Both use the
weights of transformers' own model, and both can be run by torch or traced for OpenVINO. Nothing here reaches a hub.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, which is the next thing to happen

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from pixelgate_common.inference.errors import ModelMissing, ModelProblem
from torch import Tensor, nn
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from caption_service.catalogue import CaptionSource
from caption_service.decoding import MASKED, FloatMatrix, Step, TokenIds
from caption_service.pixels import Pixels, Preprocess
from caption_service.vocabulary import Vocabulary

# The published BLIPs have scores for two tokens that their vocab.txt does not list, and others pad to multiples of 8.
_SPARE_SCORES = 8
_NAMES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True)
class Blip:
    """transformers' model in fp32 and what was read beside it."""

    model: Any
    preprocess: Preprocess
    vocabulary: Vocabulary

    @property
    def layers(self) -> int:
        """How many layers the decoder has."""
        return int(self.model.config.text_config.num_hidden_layers)


def load(source: CaptionSource) -> Blip:
    """Load a folder of transformers' layout in fp32. Raises `ModelProblem` with a sentence that names the file."""
    if source.weights.name not in _NAMES:
        raise ModelProblem(f"{source.weights} must be called {' or '.join(_NAMES)} to be loaded as BLIP.")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, info = transformers.BlipForConditionalGeneration.from_pretrained(
            source.folder,
            local_files_only=True,
            dtype=torch.float32,
            use_safetensors=source.weights.suffix == ".safetensors",
            weights_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged folder can bring the libraries to throw anything
        raise ModelProblem(f"{source.weights} cannot be loaded as BLIP: {error}") from error
    missing = sorted(name for name in info["missing_keys"] if not name.endswith("position_ids"))
    if missing or info["mismatched_keys"]:
        named = ", ".join(missing[:3]) or ", ".join(str(key[0]) for key in list(info["mismatched_keys"])[:3])
        raise ModelProblem(f"{source.weights} does not hold the weights that config.json describes: {named}.")
    preprocess = Preprocess.from_config(source.preprocessor, str(source.folder / "preprocessor_config.json"))
    if preprocess.size_px != model.config.vision_config.image_size:
        raise ModelProblem(
            f"{source.folder}: preprocessor_config.json makes pictures of {preprocess.size_px} px, "
            f"config.json wants {model.config.vision_config.image_size}."
        )
    return Blip(model.eval(), preprocess, _vocabulary(source.folder, model.config.text_config))


def _vocabulary(folder: Path, config: Any) -> Vocabulary:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        # transformers would go on with a tokenizer of five tokens.
        raise ModelMissing(
            f"{folder} has neither tokenizer.json nor vocab.txt; without a tokenizer there are no words."
        )
    try:
        tokenizer = transformers.BertTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise ModelProblem(f"{folder}: its tokenizer cannot be read: {error}") from error
    tokens: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if not config.vocab_size - _SPARE_SCORES <= len(tokens) <= config.vocab_size:
        raise ModelProblem(f"{folder}: the tokenizer knows {len(tokens)} tokens, config.json says {config.vocab_size}.")
    return Vocabulary(
        tokens=tuple(tokens),
        size=int(config.vocab_size),
        begin_id=int(config.bos_token_id),
        end_id=int(config.sep_token_id),
        special_ids=tuple(sorted({*map(int, tokenizer.all_special_ids), int(config.bos_token_id)})),
        max_tokens=int(config.max_position_embeddings),
    )


def reference_pixels(source: CaptionSource, picture: Image.Image) -> npt.NDArray[np.float32]:
    """Return the library's own pixels of `picture`, (3, side, side), normalised."""
    processor = BlipImageProcessorPil.from_pretrained(source.folder, local_files_only=True)
    return np.asarray(processor(picture)["pixel_values"][0], dtype=np.float32)


def reference_tokens(blip: Blip, pixels: npt.NDArray[np.float32], max_new_tokens: int) -> tuple[list[int], FloatMatrix]:
    """Return what the library's own generate() says greedily, without the first token, and each step's scores."""
    with torch.no_grad():
        answer = blip.model.generate(
            torch.from_numpy(pixels)[None],
            generation_config=transformers.GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                output_logits=True,
                return_dict_in_generate=True,
            ),
        )
    return answer.sequences[0, 1:].tolist(), torch.cat(answer.logits).float().numpy()


class Eyes(nn.Module):
    """Pixels (n, side, side, 3), uint8, to keys and values, (n, heads, patches, width): first all keys, then values."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Any, preprocess: Preprocess) -> None:
        """Use the weights of `model`."""
        super().__init__()
        self.vision, self.layers = model.vision_model, model.text_decoder.bert.encoder.layer
        self.heads = int(model.config.text_config.num_attention_heads)
        self.register_buffer("scale", 1 / (255 * torch.tensor(preprocess.std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (torch.tensor(preprocess.mean) / torch.tensor(preprocess.std)).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        dtype = self.vision.embeddings.class_embedding.dtype
        values = (pixels.permute(0, 3, 1, 2).float() * self.scale - self.shift).to(dtype)
        x = self.vision.embeddings(values)
        for layer in self.vision.encoder.layers:
            x = x + self._attend(layer.self_attn, layer.layer_norm1(x))
            x = x + layer.mlp(layer.layer_norm2(x))
        x = self.vision.post_layernorm(x)
        attentions = [layer.crossattention.self for layer in self.layers]
        return tuple(_heads(project(x), self.heads) for project in [a.key for a in attentions]) + tuple(
            _heads(project(x), self.heads) for project in [a.value for a in attentions]
        )

    @staticmethod
    def _attend(attention: Any, x: Tensor) -> Tensor:
        n, patches, width = x.shape
        query, key, value = (
            attention.qkv(x)
            .view(n, patches, 3, attention.num_heads, attention.head_dim)
            .permute(2, 0, 3, 1, 4)
            .unbind()
        )
        seen = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
        return cast(Tensor, attention.projection(seen.transpose(1, 2).reshape(n, patches, width)))


class Speech(nn.Module):
    """One step of the decoder.

    Takes the newest token of each row (n, 1), its place (1,), what may be looked at (1, 1, 1, room + 1) as 0 or far
    below 0, and keys and values: of earlier tokens (n, heads, room, width), then of the picture. Gives the scores of
    the next token (n, vocabulary) and the new token's keys and values (n, heads, 1, width). Each group of keys and
    values is all layers' keys, then all layers' values.
    """

    def __init__(self, model: Any) -> None:
        """Use the weights of `model`."""
        super().__init__()
        decoder = model.text_decoder
        self.embeddings, self.layers, self.head = decoder.bert.embeddings, decoder.bert.encoder.layer, decoder.cls
        self.heads = int(model.config.text_config.num_attention_heads)

    def forward(self, tokens: Tensor, place: Tensor, mask: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        count = len(self.layers)
        keys, values, seen_keys, seen_values = (states[part * count : (part + 1) * count] for part in range(4))
        embedded = self.embeddings.word_embeddings(tokens) + self.embeddings.position_embeddings(place)[None]
        x = self.embeddings.LayerNorm(embedded)
        new_keys, new_values = [], []
        for number, layer in enumerate(self.layers):
            attention = layer.attention.self
            new_keys.append(_heads(attention.key(x), self.heads))
            new_values.append(_heads(attention.value(x), self.heads))
            said = F.scaled_dot_product_attention(
                _heads(attention.query(x), self.heads),
                torch.cat((keys[number].to(x.dtype), new_keys[-1]), dim=2),
                torch.cat((values[number].to(x.dtype), new_values[-1]), dim=2),
                attn_mask=mask.to(x.dtype),
            )
            x = layer.attention.output(_flat(said), x)
            seen = F.scaled_dot_product_attention(
                _heads(layer.crossattention.self.query(x), self.heads),
                seen_keys[number].to(x.dtype),
                seen_values[number].to(x.dtype),
            )
            x = layer.crossattention.output(_flat(seen), x)
            x = layer.feed_forward_chunk(x)
        return (self.head(x)[:, 0].float(), *(state.float() for state in (*new_keys, *new_values)))


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def _flat(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def cuda_is_available() -> bool:
    """Whether torch can compute on a CUDA device here."""
    return bool(torch.cuda.is_available())


def good_batch(device: str) -> int:
    """Return the size of batches that `device` (`cpu` or `cuda`) works well with."""
    return 8 if device == "cpu" else 32


class TorchRunner:
    """Runs `Eyes` and `Speech` by torch, on `device` (`cpu` or `cuda`), one batch at a time."""

    def __init__(self, blip: Blip, device: str, precision: str) -> None:
        """Move the model to `device` in `precision`; it is changed by that and must not be used elsewhere."""
        self.good_batch = good_batch(device)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._device = device
        self._eyes = Eyes(blip.model, blip.preprocess).to(device).eval()
        self._speech = Speech(blip.model).to(device).eval()
        blip.model.to(device, self._dtype)
        self._states = 2 * blip.layers
        self._heads = self._speech.heads
        self._head_width = int(blip.model.config.text_config.hidden_size) // self._heads

    @contextmanager
    def look(self, pixels: Sequence[Pixels], room: int) -> Iterator[Step]:
        """See `decoding.Runner`."""
        shape = (self._states, len(pixels), self._heads, room, self._head_width)
        with torch.inference_mode():
            seen = self._eyes(torch.from_numpy(np.stack(pixels)).to(self._device))
            said = torch.zeros(shape, dtype=self._dtype, device=self._device)
            mask = torch.full((1, 1, 1, room + 1), MASKED, device=self._device)
            mask[..., room] = 0  # the new token itself
        at = 0

        def step(tokens: TokenIds) -> FloatMatrix:
            nonlocal at
            with torch.inference_mode():
                newest = torch.from_numpy(tokens[:, None]).to(self._device)
                place = torch.full((1,), at, device=self._device)
                scores, *new = self._speech(newest, place, mask, *said, *seen)
                for number, state in enumerate(new):
                    said[number, :, :, at] = state[:, :, 0].to(self._dtype)
                mask[..., at] = 0
            at += 1
            return cast(FloatMatrix, scores.cpu().numpy())

        yield step
