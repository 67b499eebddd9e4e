from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pixelgate_common.inference.known_models import STANDARD
from pixelgate_common.inference.testing import FakeHub, Fault, running_hub
from pixelgate_local.cli import main

BLIP = STANDARD["caption"]
WEIGHTS = bytes(range(256)) * 1000
YOLO_PATH = "/ultralytics/assets/releases/download/v8.4.0/yolo26n.pt"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in [name for name in os.environ if name.startswith("PIXELGATE_")]:
        monkeypatch.delenv(name)
    starter = tmp_path / "starter" / "caption"
    starter.mkdir(parents=True)
    (starter / "model.safetensors").write_bytes(b"small")
    given = {"PIXELGATE_MODEL_DIR": str(tmp_path / "models"), "PIXELGATE_STARTER_DIR": str(tmp_path / "starter")}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return given


@pytest.fixture
def hub(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as hub:
        hub.repositories[BLIP.source] = {
            "model.safetensors": WEIGHTS,
            "config.json": b"{}",
            "preprocessor_config.json": b"{}",
            "vocab.txt": b"a",
        }
        hub.files[YOLO_PATH] = WEIGHTS
        for name in ("HF", "TORCHVISION", "GITHUB"):
            monkeypatch.setenv(f"PIXELGATE_{name}_ENDPOINT", hub.url)
        yield hub


def test_a_model_is_pulled_listed_and_verified(
    tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "pull", "caption", "yolo26n"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "blip-image-captioning-base: model.safetensors (0.3 MB)" in said.err
    assert "objects yolo26n: pulled" in said.err

    assert main(["models", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    by_slot = {one["slot"]: one for one in listed["slots"]}
    assert (by_slot["caption"]["models"], by_slot["caption"]["set"]) == ([BLIP.name], "standard")
    assert by_slot["clip"]["problem"].startswith("The clip model starter is not on this machine")
    blip = next(one for one in listed["models"] if one["name"] == BLIP.name)
    assert (blip["state"], blip["digest"], blip["in_use"]) == ("whole", "recorded", True)
    assert (blip["revision"], blip["licence"]) == (hub.commit(BLIP.source), "BSD-3-Clause")

    assert main(["models", "list"]) == 0
    table = capsys.readouterr().out
    assert f"{BLIP.name} *" in table
    assert hub.commit(BLIP.source)[:8] in table

    assert main(["models", "verify"]) == 0
    assert capsys.readouterr().out == "2 models checked, 0 differences.\n"


def test_a_second_pull_says_that_all_is_there(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pull", "yolo26n"]) == 0
    assert main(["models", "pull", "yolo26n", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == {"yolo26n": "already there"}


def test_verify_tells_every_difference_with_status_1(
    tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "pull", "caption", "yolo26n"]) == 0
    (tmp_path / "models/objects/yolo26n.pt").write_bytes(WEIGHTS + b"!")
    (tmp_path / "models" / BLIP.folder / "vocab.txt").unlink()
    capsys.readouterr()
    assert main(["models", "verify"]) == 1
    said = capsys.readouterr().out
    assert "yolo26n: yolo26n.pt: yolo26n.pt has 256,001 bytes; it should have 256,000." in said
    assert "blip-image-captioning-base: vocab.txt: is missing" in said
    assert main(["models", "verify", "yolo26n", "--json"]) == 1
    assert [one["file"] for one in json.loads(capsys.readouterr().out)["differences"]] == ["yolo26n.pt"]


def test_one_model_that_fails_does_not_keep_the_others_away(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pull", "cutout", "yolo26n", "--json"]) == 1
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["models"] == {"yolo26n": "pulled"}
    assert answer["problems"][0]["code"] == "hub_refused"
    assert "cutout u2net: 127.0.0.1 has no /danielgatis/rembg/releases/download/v0.0.0/u2net.onnx" in said.err


def test_a_busy_hub_is_status_3_and_its_other_models_are_not_tried(
    hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults[f"/api/models/{BLIP.source}/revision/main"] = [Fault("status", 429, "3600")]
    assert main(["models", "pull", "caption", "yolo26n", "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["problems"][0]["code"] == "hub_busy"
    assert answer["not_tried"] == ["yolo26n"], "the same host"


def test_without_network_it_is_one_plain_message_and_nothing_is_broken(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    ended = subprocess.run(
        [sys.executable, "-m", "pixelgate_local.cli", "models", "pull", "caption", "blip-image-captioning-large"],
        env={**environment, "PIXELGATE_HF_ENDPOINT": nobody, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 3
    (line,) = ended.stderr.strip().splitlines()
    assert "127.0.0.1 cannot be reached" in line
    assert "by hand" in line
    assert not (tmp_path / "models" / "models.lock").exists()


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "says"),
    [
        pytest.param(["pull", "gpt"], {}, 1, "'gpt' is neither a slot", id="an unknown name"),
        pytest.param(["list"], {"PIXELGATE_HF_ENDPOINT": "ftp://x"}, 2, "hf_endpoint", id="another protocol"),
        pytest.param(["list"], {"PIXELGATE_HF_ENDPOINT": "http://hub:port"}, 2, "hf_endpoint", id="no address"),
        pytest.param(["list"], {"PIXELGATE_MODELS": "best"}, 2, "PIXELGATE_MODELS", id="an unknown set"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    variables: dict[str, str],
    status: int,
    says: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["models", *arguments]) == status
    said = capsys.readouterr()
    assert says in said.err
    assert len(said.err.splitlines()) == 1


def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["models"])
    assert ended.value.code == 2
    assert "usage: pixelgate models" in capsys.readouterr().err


def test_a_damaged_lock_is_said_and_left_alone(
    tmp_path: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "models" / "models.lock"
    lock.parent.mkdir()
    lock.write_text("{")
    for action in ("list", "verify", "pull"):
        assert main(["models", action, "--json"]) == 1
        assert "cannot be read" in json.dumps(json.loads(capsys.readouterr().out))
    assert lock.read_text() == "{"
