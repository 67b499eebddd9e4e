"""Converted models by what they are made from: made once, in a child process, into a folder that appears whole.

The child imports what only a conversion needs (torch and its kin: seconds, and up to a gigabyte), and all of that
goes when it ends. The cache may be shared by several processes and deleted at any time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from pixelgate_common.digests import digest_of
from pixelgate_common.inference.errors import ModelProblem

CONVERSION_TIMEOUT_S = 1800.0
_BESIDE = (".json", ".txt", ".model", ".yaml")  # configuration and tokenizers
log = structlog.get_logger(__name__)


def cache_key(facts: Mapping[str, Any], *, libraries: Sequence[str], folder: Path | None = None) -> str:
    """Return a digest (20 hex digits) of all that an artifact depends on.

    `facts` are plain values, the weights' digest among them; `libraries` are the distributions whose versions count;
    the small files in `folder` (configuration, tokenizers) count with their content.
    """
    beside = [] if folder is None else [path for path in sorted(folder.iterdir()) if path.suffix in _BESIDE]
    whole = {
        **facts,
        "beside": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in beside if path.is_file()},
        "libraries": {name: importlib.metadata.version(name) for name in libraries},
    }
    return digest_of(whole)[:20]


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """Give an empty folder, which becomes `target` when the block succeeds and vanishes when it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        with suppress(OSError):  # another process was faster, which is as good; the reader finds out
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def convert_in_child(
    module: str, orders: Iterable[str], *, names: str, timeout_s: float = CONVERSION_TIMEOUT_S
) -> None:
    """Run `python -m MODULE` with `orders`, one in each line, on its standard input, and wait for its end.

    The module ends with a status other than 0 and one plain sentence as the last line on standard error when it
    cannot do its work (`sys.exit(sentence)`). Raises `ModelProblem` with that sentence; `names` says in logs and
    messages what is being converted.
    """
    log.info("converting", models=names)
    try:
        child = subprocess.run(
            [sys.executable, "-m", module],
            input="\n".join(orders),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelProblem(f"{names}: the conversion took longer than {timeout_s:.0f} s.") from error
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or [f"the conversion ended with status {child.returncode}"]
        log.error("conversion_failed", models=names, stderr=lines[-20:])
        raise ModelProblem(lines[-1])
