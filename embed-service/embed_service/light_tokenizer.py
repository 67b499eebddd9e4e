"""Writes open_clip's tokenizers in the form of the `tokenizers` library; runs only while a model is converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from embed_service.artifacts import Clean
from embed_service.tokens import PROBES, LightTokenizer

_CLEANS: dict[str, Clean] = {
    "_clean_lower": "lower",
    "_clean_whitespace": "whitespace",
    "_clean_canonicalize": "canonicalize",
}


def write(own: Any, context: int, path: Path) -> tuple[bool, Clean]:
    """Write the light form of open_clip's tokenizer `own` to `path`.

    Returns whether there is one that gives the same ids for all of `PROBES`, and how texts are cleaned before.
    """
    made = _from_simple(own, context) if isinstance(own, open_clip.SimpleTokenizer) else _from_fast(own, context)
    clean = _CLEANS.get(getattr(getattr(own, "clean_fn", None), "__name__", ""))
    if made is None or clean is None:
        return False, "whitespace"
    try:
        ids = LightTokenizer(made, clean, context)(PROBES)
    except ValueError:
        return False, clean
    same = np.array_equal(ids, np.asarray(own(PROBES, context_length=context)))
    if same:
        made.save(str(path))
    return same, clean


def _from_simple(own: Any, context: int) -> Tokenizer | None:
    """Return CLIP's byte-pair encoding as a `Tokenizer`, from the vocabulary that `own` has loaded."""
    if own.reduction_fn is not None:
        return None
    ranked = sorted(own.bpe_ranks, key=own.bpe_ranks.get)
    tokenizer = Tokenizer(models.BPE(vocab=own.encoder, merges=ranked, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = "<start_of_text>", "<end_of_text>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, own.sot_token_id), (end, own.eot_token_id)]
    )
    tokenizer.enable_truncation(context)
    tokenizer.enable_padding(length=context, pad_id=0, pad_token="!")
    return tokenizer


def _from_fast(own: Any, context: int) -> Tokenizer | None:
    """Return the `Tokenizer` inside a fast tokenizer of transformers, with the padding and cutting of `own`."""
    inner: Any = getattr(own, "tokenizer", None)
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None or own.tokenizer_mode or own.strip_sep_token:
        return None
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.enable_truncation(context, direction=inner.truncation_side)
    tokenizer.enable_padding(
        length=context,
        direction=inner.padding_side,
        pad_id=inner.pad_token_id,
        pad_token=inner.pad_token,
        pad_type_id=inner.pad_token_type_id,
    )
    return tokenizer
