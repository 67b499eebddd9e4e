"""What a model has been made into: graphs for OpenVINO, a light tokenizer, and the facts to serve and check it.

An artifact is made once by `conversion.py` and kept in the cache folder under a key of everything that went in.
Loading one needs neither torch nor open_clip, which makes a start take a second in place of ten.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pixelgate_common.inference.artifact_cache import draft_of

from embed_service.catalogue import ModelSource
from embed_service.pixels import Preprocess

FACTS = "facts.json"
IMAGE_GRAPH, TEXT_GRAPH, TOKENIZER = "image.xml", "text.xml", "tokenizer.json"
Clean = Literal["lower", "whitespace", "canonicalize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """How texts become tokens.

    `light`: `tokenizer.json` and `clean` do what open_clip's own tokenizer does (compared when the artifact was made);
    otherwise open_clip's own is loaded. `trims`: what stands behind the end of a text does not change its vector, so
    shorter inputs than `context` may be given. `end_id`: the token that ends a text; None: the largest id of all.
    """

    context: int
    light: bool
    clean: Clean
    trims: bool
    end_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a conversion is asked for. `half` keeps the weights in half precision, half the size."""

    source: ModelSource
    weights_sha256: str
    target: Path
    half: bool

    def draft(self) -> AbstractContextManager[Path]:
        """Give an empty folder, which becomes `target` when the block succeeds and vanishes when it fails."""
        return draft_of(self.target)

    def to_json(self) -> str:
        """Return this order as JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` gave."""
        fields = json.loads(text)
        source = fields["source"]
        paths = {"folder": Path(source["folder"]), "weights": Path(source["weights"])}
        return cls(**{**fields, "source": ModelSource(**{**source, **paths}), "target": Path(fields["target"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One converted model. `image_vector` and `text_vector` are base64: the golden answers in fp32 by torch."""

    folder: Path
    fingerprint: str
    dim: int
    preprocess: Preprocess
    text: TextFacts | None
    weights_sha256: str
    image_vector: str
    text_vector: str | None

    @property
    def image_graph(self) -> Path:
        """The graph from pixels to vectors."""
        return self.folder / IMAGE_GRAPH

    @property
    def text_graph(self) -> Path:
        """The graph from tokens to vectors."""
        return self.folder / TEXT_GRAPH

    @property
    def tokenizer(self) -> Path:
        """The light tokenizer."""
        return self.folder / TOKENIZER

    def save(self) -> None:
        """Write the facts into the folder, last of all files: an artifact is whole when they are there."""
        facts: dict[str, Any] = asdict(self)
        del facts["folder"]
        (self.folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Return the artifact in `folder`, None when there is none."""
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        facts["preprocess"] = Preprocess.from_json(facts["preprocess"])
        facts["text"] = TextFacts(**facts["text"]) if facts["text"] else None
        return cls(folder=folder, **facts)
