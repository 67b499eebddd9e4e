"""What a BLIP folder has been made into: two graphs for OpenVINO, its vocabulary, and the facts to serve and check it.

An artifact is made once by `conversion.py` and kept in the cache folder under a key of everything that went in.
Loading one needs neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pixelgate_common.digests import digest_of, file_digest
from pixelgate_common.inference.artifact_cache import cache_key, convert_in_child, draft_of
from pixelgate_common.inference.errors import ModelProblem

from caption_service import decoding, sentences
from caption_service.catalogue import CaptionSource
from caption_service.pixels import Preprocess
from caption_service.vocabulary import Vocabulary

FORMAT = 1  # raise when artifacts of before can no longer be used
EYES, SPEECH, FACTS = "eyes.xml", "speech.xml", "facts.json"
_LIBRARIES = ("torch", "transformers", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says of the golden picture: transformers' own greedy `tokens`, and `scores` along them.

    `scores` is base64 of float32, see `golden.signature`. `caption` is what this service makes of it in fp32.
    """

    tokens: tuple[int, ...]
    scores: str
    caption: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**asdict(self), "tokens": list(self.tokens)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Return what `to_json` gave."""
        return cls(tokens=tuple(fields["tokens"]), scores=str(fields["scores"]), caption=str(fields["caption"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One converted model. `heads` and `head_width` are those of the decoder's `layers`; it looks at `patches`."""

    folder: Path
    fingerprint: str
    weights_sha256: str
    preprocess: Preprocess
    vocabulary: Vocabulary
    layers: int
    heads: int
    head_width: int
    patches: int
    answer: Answer

    @property
    def eyes_graph(self) -> Path:
        """The graph from pixels to the keys and values of the picture."""
        return self.folder / EYES

    @property
    def speech_graph(self) -> Path:
        """The graph from the newest token to the scores of the next."""
        return self.folder / SPEECH

    @property
    def graph_weights(self) -> list[Path]:
        """The files of both graphs' weights."""
        return [path.with_suffix(".bin") for path in (self.eyes_graph, self.speech_graph)]

    @property
    def picture_bytes(self) -> int:
        """Bytes that one picture's keys and values take at most, in fp32."""
        return 2 * self.layers * self.heads * self.head_width * self.patches * 4

    def save(self) -> None:
        """Write the facts into the folder, last of all files: an artifact is whole when they are there."""
        facts = {
            "fingerprint": self.fingerprint,
            "weights_sha256": self.weights_sha256,
            "preprocess": self.preprocess.to_json(),
            "vocabulary": self.vocabulary.to_json(),
            "layers": self.layers,
            "heads": self.heads,
            "head_width": self.head_width,
            "patches": self.patches,
            "answer": self.answer.to_json(),
        }
        (self.folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Return the artifact in `folder`, None when there is none."""
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        facts["preprocess"] = Preprocess.from_json(facts["preprocess"])
        facts["vocabulary"] = Vocabulary.from_json(facts["vocabulary"])
        facts["answer"] = Answer.from_json(facts["answer"])
        return cls(folder=folder, **facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a conversion is asked for. `half`: weights in half precision, and what the picture gives in bf16."""

    source: CaptionSource
    weights_sha256: str
    target: Path
    half: bool

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """Give an empty folder, which becomes `target` when the block succeeds and vanishes when it fails."""
        with draft_of(self.target) as folder:
            yield folder

    def to_json(self) -> str:
        """Return this order as JSON in one line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` gave."""
        fields = json.loads(text)
        return cls(
            source=CaptionSource.from_json(fields["source"]),
            weights_sha256=fields["weights_sha256"],
            target=Path(fields["target"]),
            half=fields["half"],
        )


def fingerprint(source: CaptionSource, weights_sha256: str, preprocess: Preprocess, vocabulary: Vocabulary) -> str:
    """Return one name for architecture, weights, preprocessing, tokens and the way of speaking; not for precision."""
    architecture = {name: source.config[name] for name in ("model_type", "text_config", "vision_config")}
    digest = digest_of(
        {
            "architecture": architecture,
            "weights": weights_sha256,
            "preprocess": preprocess.to_json(),
            "vocabulary": vocabulary.to_json(),
            "decoding": decoding.VERSION,
            "sentences": sentences.VERSION,
        }
    )
    return f"blip-{digest[:16]}"


def get_artifact(source: CaptionSource, cache_dir: Path, *, half: bool) -> Artifact:
    """Return the artifact of `source`, converting it in a child process if it has not been.

    Raises `ModelProblem` when the model cannot be converted.
    """
    order = order_for(source, cache_dir, half=half)
    artifact = Artifact.load(order.target)
    if artifact is None:
        convert_in_child("caption_service.conversion", [order.to_json()], names=f"caption: {source.name}")
        artifact = Artifact.load(order.target)
    if artifact is None:
        raise ModelProblem(f"{source.name}: the converted model cannot be kept in {order.target}.")
    return artifact


def order_for(source: CaptionSource, cache_dir: Path, *, half: bool) -> Order:
    """Return what must be made from `source`, and where its place in the cache is."""
    sha256 = file_digest(source.weights, cache_dir / "digests.json")
    key = cache_key(
        {
            "format": FORMAT,
            "weights": sha256,
            "half": half,
            "decoding": decoding.VERSION,
            "sentences": sentences.VERSION,
        },
        libraries=_LIBRARIES,
        folder=source.folder,
    )
    return Order(source=source, weights_sha256=sha256, target=cache_dir / "caption" / key, half=half)
