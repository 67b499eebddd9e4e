from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from storage_service.app import object_store
from storage_service.objects.directory import DirectoryObjects
from storage_service.objects.s3 import S3Objects
from storage_service.settings import Settings

AUTOMATIC = ("clip", "resnet", "palette", "objects", "caption")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("QDRANT_URL", "QDRANT_API_KEY", "S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", "postgresql://pixelgate@localhost/pixelgate")
    monkeypatch.setenv("PIXELGATE_DATA_DIR", str(tmp_path))
    return monkeypatch


def test_defaults(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings()
    assert (settings.port, settings.host, settings.stages) == (8106, "127.0.0.1", AUTOMATIC)
    assert (settings.max_upload_bytes, settings.max_pixels) == (25 << 20, 50_000_000)
    assert settings.data_dir == tmp_path
    assert isinstance(object_store(settings), DirectoryObjects)


def test_stages_are_put_in_order(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PIXELGATE_STORAGE_STAGES", "cutout, caption, clip")
    assert Settings().stages == ("clip", "caption", "cutout")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PIXELGATE_STORAGE_STAGES", "dreams", "stages"),
        ("PIXELGATE_STORAGE_DECODERS", "0", "decoders"),
        ("PIXELGATE_STORAGE_PORT", "99999", "port"),
        ("PIXELGATE_MAX_UPLOAD_MB", "0", "PIXELGATE_MAX_UPLOAD_MB"),
        ("PIXELGATE_STORAGE_MAX_CUTOUT_MB", "0", "max_cutout_mb"),
        ("PIXELGATE_STORAGE_MAX_ATTEMPTS", "0", "max_attempts"),
        ("S3_ENDPOINT", "minio:9000", "S3_ACCESS_KEY"),
        ("DATABASE_URL", "changeme", "placeholder"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    environment: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    environment.setenv(name, value)
    with pytest.raises(ValidationError, match=message):
        Settings()


def test_a_database_must_be_named(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("DATABASE_URL")
    with pytest.raises(ValidationError, match="DATABASE_URL"):
        Settings()


def test_an_s3_server_is_used_where_one_is_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("S3_ENDPOINT", "minio:9000")
    environment.setenv("S3_ACCESS_KEY", "pixelgate")
    environment.setenv("S3_SECRET_KEY", "not-a-placeholder")
    settings = Settings()
    assert isinstance(object_store(settings), S3Objects)
    assert "not-a-placeholder" not in repr(settings)
