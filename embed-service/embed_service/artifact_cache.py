"""Artifacts by what they are made from; one that is missing is made by a child process.

The child (`conversion.py`) imports torch and open_clip: seconds, and half a gigabyte that goes when it ends.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import structlog

from embed_service.artifacts import Artifact
from embed_service.catalogue import ModelSource
from embed_service.digests import digest_of, file_digest
from embed_service.errors import ModelProblem

FORMAT = 1  # raise when artifacts of before can no longer be used
_LIBRARIES = ("torch", "torchvision", "open-clip-torch", "openvino")
_BESIDE = (".json", ".txt", ".model")  # configuration and tokenizers
_TIMEOUT_S = 1800
log = structlog.get_logger(__name__)


def get_artifact(source: ModelSource, cache_dir: Path) -> Artifact:
    """Return the artifact of `source`, converting it if it has not been. Raises `ModelProblem` when that fails."""
    sha256 = file_digest(source.weights, cache_dir / "digests.json")
    folder = cache_dir / "embed" / f"{source.slot}-{cache_key(source, sha256)[:20]}"
    artifact = Artifact.load(folder)
    if artifact is None:
        log.info("converting", model=source.name, slot=source.slot, folder=str(folder))
        _convert_in_child(source, sha256, folder)
        artifact = Artifact.load(folder)
    if artifact is None:
        raise ModelProblem(f"{source.name}: the conversion left nothing in {folder}.")
    return artifact


def cache_key(source: ModelSource, weights_sha256: str) -> str:
    """Return a digest of all that an artifact depends on: files, the name where it has a meaning, and versions."""
    beside = [path for path in sorted(source.folder.iterdir()) if path.suffix in _BESIDE]
    return digest_of(
        {
            "format": FORMAT,
            "slot": source.slot,
            "weights": weights_sha256,
            "name": source.name if source.config is None else None,
            "beside": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in beside if path.is_file()},
            "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        }
    )


def _convert_in_child(source: ModelSource, weights_sha256: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        order = {**asdict(source), "folder": str(source.folder), "weights": str(source.weights)}
        child = subprocess.run(
            [sys.executable, "-m", "embed_service.conversion", str(draft), weights_sha256],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if child.returncode != 0:
            lines = child.stderr.strip().splitlines()
            raise ModelProblem(lines[-1] if lines else f"{source.name}: the conversion ended with {child.returncode}.")
        if not folder.exists():
            draft.rename(folder)
    except subprocess.TimeoutExpired as error:
        raise ModelProblem(f"{source.name}: the conversion took longer than {_TIMEOUT_S} s.") from error
    except OSError as error:
        if not folder.exists():  # another process may have been faster, which is as good
            raise ModelProblem(f"{source.name}: the conversion cannot be kept in {folder}: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
