"""What model hubs have: their addresses, the revision that a branch stands for, and what they say of each file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

import httpx
from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from pixelgate_common.inference.download import Expected, HubRefused, Patience, ask
from pixelgate_common.inference.known_models import KnownModel, WantedFile

_BRANCH = "main"
_MAX_LISTING_BYTES = 16 * 1024 * 1024
_COMMIT = re.compile(r"[0-9a-f]{40}")


def _http_url(value: str) -> str:
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must be an http or https address")
    return value.rstrip("/")


Endpoint = Annotated[str, AfterValidator(_http_url)]


class HubSettings(BaseSettings):
    """Where the hubs are and how long they are waited for; a mirror is named by its address."""

    model_config = SettingsConfigDict(env_prefix="PIXELGATE_", frozen=True, extra="ignore", env_ignore_empty=True)

    hf_endpoint: Endpoint = "https://huggingface.co"
    torchvision_endpoint: Endpoint = "https://download.pytorch.org"
    github_endpoint: Endpoint = "https://github.com"
    hf_token: SecretStr | None = Field(None, description="For repositories that are not public.")
    pull_timeout_s: float = Field(30.0, gt=0, le=3600, description="A hub that is silent for this long is given up.")
    pull_attempts: int = Field(4, ge=1, le=20)
    pull_max_wait_s: float = Field(
        120.0, ge=0, le=3600, description="A hub that wants to be asked still later is given up."
    )

    def patience(self) -> Patience:
        """Return how long a hub is waited for."""
        return Patience(timeout_s=self.pull_timeout_s, attempts=self.pull_attempts, max_wait_s=self.pull_max_wait_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file at its hub: the name it gets on disk, where to fetch it, and what is known of it."""

    name: str
    url: str
    expected: Expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What a model is at its hub now, or was at a `revision`: a commit, or the name of a release."""

    revision: str
    files: tuple[RemoteFile, ...]


def look_up(
    client: httpx.Client, row: KnownModel, settings: HubSettings, patience: Patience, *, revision: str | None = None
) -> Release:
    """Return what `row` is at its hub; `revision` asks for that one instead of the newest.

    Only Hugging Face is asked: the other hubs' files have fixed addresses. Raises as `download.ask` does.
    """
    if row.hub == "huggingface":
        return _hugging_face(client, row, settings, patience, revision)
    base = {
        "torchvision": f"{settings.torchvision_endpoint}/{row.source}",
        "ultralytics": f"{settings.github_endpoint}/ultralytics/assets/releases/download/{row.source}",
        "rembg": f"{settings.github_endpoint}/danielgatis/rembg/releases/download/{row.source}",
    }[row.hub]
    files = tuple(
        RemoteFile(name=file.names[0], url=f"{base}/{file.names[0]}", expected=published(file)) for file in row.files
    )
    return Release(revision=row.source, files=files)


def host_of(row: KnownModel, settings: HubSettings) -> str:
    """Return the host that `row` comes from."""
    endpoints = {"huggingface": settings.hf_endpoint, "torchvision": settings.torchvision_endpoint}
    return httpx.URL(endpoints.get(row.hub, settings.github_endpoint)).host


def published(file: WantedFile) -> Expected:
    """Return what the publisher, or the library that loads it, states of the file."""
    return Expected(sha256_prefix=file.sha256_prefix, md5=file.md5)


def _hugging_face(
    client: httpx.Client, row: KnownModel, settings: HubSettings, patience: Patience, revision: str | None
) -> Release:
    wanted = quote(revision or _BRANCH, safe="")
    url = f"{settings.hf_endpoint}/api/models/{row.source}/revision/{wanted}?blobs=true"
    listing = _json(client, url, settings, patience)
    commit, siblings = listing.get("sha"), listing.get("siblings")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or not isinstance(siblings, list):
        raise HubRefused(f"{httpx.URL(url).host} answers for {row.source} with what is not a list of its files.")
    there = {
        one["rfilename"]: one for one in siblings if isinstance(one, dict) and isinstance(one.get("rfilename"), str)
    }
    files = []
    for file in row.files:
        name = next((name for name in file.names if name in there), None)
        if name is None and file.required:
            raise HubRefused(f"{row.source} at {httpx.URL(url).host} has no {' or '.join(file.names)}.")
        if name is not None:
            files.append(
                RemoteFile(
                    name=name,
                    url=f"{settings.hf_endpoint}/{row.source}/resolve/{commit}/{quote(name)}",
                    expected=_stated(there[name]),
                )
            )
    return Release(revision=commit, files=tuple(files))


def _stated(sibling: dict[str, Any]) -> Expected:
    """Return what the listing says of a file: a SHA-256 of a large one, git's own name of a small one."""
    large = sibling.get("lfs")
    size = sibling.get("size")
    known_size = size if isinstance(size, int) else None
    if isinstance(large, dict) and isinstance(large.get("sha256"), str):
        return Expected(size_bytes=known_size, sha256=large["sha256"])
    blob = sibling.get("blobId")
    is_blob = isinstance(blob, str) and bool(_COMMIT.fullmatch(blob)) and large is None
    return Expected(size_bytes=known_size, git_sha1=blob if is_blob else None)


def _json(client: httpx.Client, url: str, settings: HubSettings, patience: Patience) -> dict[str, Any]:
    body = bytearray()

    def receive(response: httpx.Response) -> bool:
        body.clear()
        for chunk in response.iter_bytes():
            body.extend(chunk)
            if len(body) > _MAX_LISTING_BYTES:
                raise HubRefused(f"{response.url.host} answers with more than a list of files can be.")
        return True

    ask(client, url, receive, patience=patience, headers=lambda: authorization(settings))
    try:
        content = json.loads(bytes(body))
    except ValueError as error:
        raise HubRefused(f"{httpx.URL(url).host} answers with what is not JSON.") from error
    return content if isinstance(content, dict) else {}


def authorization(settings: HubSettings) -> dict[str, str]:
    """Return the header that says who asks Hugging Face; empty without a token."""
    token = settings.hf_token
    return {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
