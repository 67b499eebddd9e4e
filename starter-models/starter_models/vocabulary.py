"""The text tower's tokenizer: byte-level BPE learnt from captions, so that it is small and still takes any text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from starter_models.captions import Facts, describe, describe_part, label_query
from starter_models.labels import BACKGROUND_COLOURS, LABELS

CONTEXT_LENGTH = 32
VOCABULARY_SIZE = 1000
PAD, START, END = "<pad>", "<start>", "<end>"


def build_tokenizer(scenes: list[Facts]) -> PreTrainedTokenizerFast:
    """Learn merges from captions of ``scenes``.

    The end token has the highest id of all: open_clip's text tower pools at the largest id (``argmax``).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(scenes), trainer)
    tokenizer.add_special_tokens([END])
    size = tokenizer.get_vocab_size()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 1), (END, size - 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        model_max_length=CONTEXT_LENGTH,
        padding_side="right",
        truncation_side="right",
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, which open_clip's local-dir loader finds."""
    tokenizer.save_pretrained(str(folder))


def _texts(scenes: list[Facts]) -> Iterator[str]:
    rng = Random(1)
    for facts in scenes:
        yield describe(facts, rng).text
        yield describe_part(facts, rng).text
    for label in LABELS:
        # Every word must become one token, the rare ones too.
        for singular, plural in label.words:
            for paint in ("", *label.colours, *BACKGROUND_COLOURS):
                yield f"a {paint} {singular} and two {paint} {plural}"
        yield label_query(label.name, rng).text
