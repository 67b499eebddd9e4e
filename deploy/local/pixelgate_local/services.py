"""The one table of what runs on one machine. A new service is one more row."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STORE_VARIABLES = ("DATABASE_URL", "QDRANT_", "S3_")
"""How the names of variables begin that only the owner of the stores may see."""


@dataclass(frozen=True)
class Service:
    """One process of Pixelgate, in the order in which it is stopped by `rank`."""

    name: str
    module: str
    port: int
    """Its usual port on loopback; for the public one the settings decide."""
    rank: int = 1
    """What is stopped first: 0 what lets work in, 1 what drives work, 2 what does it."""
    owns_stores: bool = False
    public: bool = False
    awaited: bool = True
    """Whether Pixelgate counts as ready only when this is: pictures can be stored and found without the others."""
    niceness: int = 0
    """How far its work stands back when the processors are busy, as `nice` counts it."""

    @property
    def command(self) -> list[str]:
        """How to start it: `-P` keeps folders of the present directory from passing for packages."""
        before = ["nice", "-n", str(self.niceness)] if self.niceness else []
        return [*before, sys.executable, "-P", "-m", self.module]

    @property
    def variable(self) -> str:
        """How the names of its own variables begin."""
        return f"PIXELGATE_{self.name.upper()}"


SERVICES = (
    Service("gateway", "gateway.main", 8004, rank=0, public=True),
    Service("pipeline", "gateway.pipeline", 8107, rank=1),
    Service("embed", "embed_service.main", 8101, rank=2),
    # What takes tenths of a second for a picture stands back behind what takes hundredths, and behind searches.
    Service("caption", "caption_service.main", 8102, rank=2, awaited=False, niceness=10),
    Service("detect", "detect_service.main", 8103, rank=2, awaited=False, niceness=5),
    Service("color", "color_service.main", 8104, rank=2, awaited=False),
    Service("storage", "storage_service.main", 8106, rank=2, owns_stores=True),
)


def environment(
    service: Service,
    ports: Mapping[str, int],
    services: Sequence[Service],
    outside: Mapping[str, str],
    given: Mapping[str, str],
) -> dict[str, str]:
    """Return the environment of `service`: the `outside` one, what is `given` to all, its address, and the others'.

    What opens the stores goes to their owner alone.
    """
    kept = {
        name: value
        for name, value in {**outside, **given}.items()
        if service.owns_stores or not name.startswith(STORE_VARIABLES)
    }
    if not service.public:
        kept |= {f"{service.variable}_HOST": "127.0.0.1", f"{service.variable}_PORT": str(ports[service.name])}
    for other in services:
        if not other.public and other is not service:
            kept[f"{other.variable}_URL"] = f"http://127.0.0.1:{ports[other.name]}"
    return kept
