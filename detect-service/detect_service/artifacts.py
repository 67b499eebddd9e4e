"""What a model has been made into: a graph for OpenVINO, and the facts to serve and check it.

Made once by `conversions`, and kept in the cache folder under a key of everything that went in. Loading one needs
neither torch nor ultralytics, transformers or rembg.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

Family = Literal["yolo", "detr", "matte"]
GRAPH, _FACTS = "graph.xml", "facts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a conversion is asked for. `half` keeps the weights in half precision, half the size."""

    family: Family
    name: str
    weights: Path
    config: dict[str, Any]
    weights_sha256: str
    target: Path
    half: bool

    def to_json(self) -> str:
        """Return this order in one line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` gave."""
        fields = json.loads(text)
        return cls(**{**fields, "weights": Path(fields["weights"]), "target": Path(fields["target"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One converted model. `facts` are those of its family's class; `golden` is the library's own answer in fp32."""

    folder: Path
    family: Family
    fingerprint: str
    weights_sha256: str
    facts: dict[str, Any]
    golden: dict[str, Any]

    @property
    def graph(self) -> Path:
        """The graph's file."""
        return self.folder / GRAPH

    @property
    def size_bytes(self) -> int:
        """The size of graph and weights."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def save(self) -> None:
        """Write the facts into the folder, last of all files: an artifact is whole when they are there."""
        facts: dict[str, Any] = asdict(self)
        del facts["folder"]
        (self.folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Return the artifact in `folder`, None when there is none."""
        try:
            return cls(folder=folder, **json.loads((folder / _FACTS).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
