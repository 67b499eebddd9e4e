from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from pixelgate_common.inference.download import DamagedFile, HubBusy, HubRefused, HubUnreachable, Patience, PullProblem
from pixelgate_common.inference.errors import ModelChanged, ModelMissing
from pixelgate_common.inference.hubs import HubSettings
from pixelgate_common.inference.known_models import KNOWN, STANDARD, KnownModel, WantedFile, known
from pixelgate_common.inference.pull import ModelFolder, choose
from pixelgate_common.inference.testing import FakeHub, Fault, running_hub

BLIP = STANDARD["caption"]
YOLO = STANDARD["objects"]
WEIGHTS = os.urandom(300_000)
CONTENT = {
    "pytorch_model.bin": WEIGHTS,
    "config.json": b'{"model_type": "blip"}',
    "preprocessor_config.json": b'{"size": 384}',
    "vocab.txt": b"[PAD]\ncat\n",
    "README.md": b"not wanted",
}
YOLO_PATH = "/ultralytics/assets/releases/download/v8.4.0/yolo26n.pt"
STORED = f"/storage{YOLO_PATH}"


@dataclass
class Watcher:
    """Writes down what it hears."""

    seen: list[tuple[str, int, int | None]] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)

    def file(self, row: KnownModel, name: str, done: int, total: int | None) -> None:
        self.seen.append((name, done, total))

    def model(self, row: KnownModel, outcome: str) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub() as hub:
        hub.repositories[BLIP.source] = dict(CONTENT)
        hub.files[YOLO_PATH] = WEIGHTS
        yield hub


@dataclass
class Waits:
    """Stands for waiting, and writes down for how long."""

    waited_s: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> None:
        self.waited_s.append(seconds)


def model_folder(tmp_path: Path, hub: FakeHub, waits: Waits | None = None, **changes: object) -> ModelFolder:
    settings = hub.settings(**changes)
    patience = replace(settings.patience(), sleep=waits or Waits())
    return ModelFolder(tmp_path / "models", settings, patience=patience)


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_model_is_pulled_by_commit_and_recorded_and_then_left_alone(tmp_path: Path, hub: FakeHub) -> None:
    watcher, folder = Watcher(), model_folder(tmp_path, hub)
    folder.pull(BLIP, watcher)
    here = tmp_path / "models" / BLIP.folder
    wanted = set(CONTENT) - {"README.md"}
    assert files_in(here) == wanted
    assert all((here / name).read_bytes() == CONTENT[name] for name in wanted)
    assert watcher.seen[-1][0] == "vocab.txt"
    assert ("pytorch_model.bin", len(WEIGHTS), len(WEIGHTS)) in watcher.seen
    entry = json.loads((tmp_path / "models" / "models.lock").read_text())["files"][f"caption:{BLIP.name}"]
    assert entry["revision"] == hub.commit(BLIP.source)
    assert entry["files"]["pytorch_model.bin"] == {
        "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
        "size_bytes": len(WEIGHTS),
    }
    assert all("/resolve/main/" not in path for path, _ in hub.asked), "files are fetched by commit"
    hub.asked.clear()
    folder.pull(BLIP, watcher)
    assert (watcher.outcomes, hub.asked) == (["pulled", "already there"], [])
    assert folder.verify() == ([BLIP], [])


def test_a_broken_connection_is_gone_on_from_where_it_broke(tmp_path: Path, hub: FakeHub) -> None:
    hub.faults[STORED] = [Fault("cut", 100_000), Fault("cut", 50_000)]
    waits = Waits()
    model_folder(tmp_path, hub, waits).pull(YOLO, Watcher())
    assert (tmp_path / "models/objects/yolo26n.pt").read_bytes() == WEIGHTS
    assert [span for path, span in hub.asked if path == STORED] == [None, "bytes=100000-", "bytes=150000-"]
    assert waits.waited_s == [1.0, 3.0]
    assert files_in(tmp_path / "models/objects") == {"yolo26n.pt"}


def test_a_pull_that_was_given_up_is_gone_on_from_by_the_next(tmp_path: Path, hub: FakeHub) -> None:
    hub.faults[STORED] = [Fault("cut", 100_000)]
    with pytest.raises(HubUnreachable, match=r"connection to 127.0.0.1 broke"):
        model_folder(tmp_path, hub, pull_attempts=1).pull(YOLO, Watcher())
    assert files_in(tmp_path / "models/objects") == {"yolo26n.pt.part", "yolo26n.pt.part.json"}
    assert YOLO.state(tmp_path / "models") == "partly"
    assert not (tmp_path / "models" / "models.lock").exists()
    watcher = Watcher()
    model_folder(tmp_path, hub).pull(YOLO, watcher)
    assert watcher.seen[0] == ("yolo26n.pt", 100_000, len(WEIGHTS))
    assert (tmp_path / "models/objects/yolo26n.pt").read_bytes() == WEIGHTS


def test_a_person_who_stops_a_pull_keeps_what_came_in(tmp_path: Path, hub: FakeHub) -> None:
    class Stopped(Watcher):
        def file(self, row: KnownModel, name: str, done: int, total: int | None) -> None:
            if done > 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model_folder(tmp_path, hub).pull(YOLO, Stopped())
    assert files_in(tmp_path / "models/objects") == {"yolo26n.pt.part", "yolo26n.pt.part.json"}
    watcher = Watcher()
    model_folder(tmp_path, hub).pull(YOLO, watcher)
    assert watcher.seen[0][1] > 0
    assert (tmp_path / "models/objects/yolo26n.pt").read_bytes() == WEIGHTS


def test_a_part_of_a_file_that_has_changed_since_is_not_joined_to_the_new_one(tmp_path: Path, hub: FakeHub) -> None:
    hub.faults[STORED] = [Fault("cut", 100_000)]
    with pytest.raises(HubUnreachable):
        model_folder(tmp_path, hub, pull_attempts=1).pull(YOLO, Watcher())
    hub.files[YOLO_PATH] = other = os.urandom(200_000)
    model_folder(tmp_path, hub).pull(YOLO, Watcher())
    assert (tmp_path / "models/objects/yolo26n.pt").read_bytes() == other


def test_a_part_that_is_longer_than_the_file_is_begun_anew(tmp_path: Path, hub: FakeHub) -> None:
    hub.faults[STORED] = [Fault("cut", 200_000)]
    with pytest.raises(HubUnreachable):
        model_folder(tmp_path, hub, pull_attempts=1).pull(YOLO, Watcher())
    with (tmp_path / "models/objects/yolo26n.pt.part").open("ab") as part:
        part.write(bytes(200_000))
    model_folder(tmp_path, hub).pull(YOLO, Watcher())
    assert (tmp_path / "models/objects/yolo26n.pt").read_bytes() == WEIGHTS


MATTE = KnownModel(
    slot="cutout",
    name="tiny",
    kind="matte",
    hub="rembg",
    source="v0.0.0",
    folder="cutout",
    files=(WantedFile(names=("tiny.onnx",), md5=hashlib.md5(WEIGHTS, usedforsecurity=False).hexdigest()),),
    licence=None,
)
MATTE_PATH = "/danielgatis/rembg/releases/download/v0.0.0/tiny.onnx"


def test_a_file_with_another_digest_than_published_is_refused_and_nothing_is_left(tmp_path: Path, hub: FakeHub) -> None:
    hub.files[MATTE_PATH] = WEIGHTS[:-1] + b"!"
    with pytest.raises(DamagedFile, match=r"tiny.onnx is not the file that it should be: its md5 is"):
        model_folder(tmp_path, hub).pull(MATTE, Watcher())
    assert files_in(tmp_path / "models/cutout") == set()
    hub.files[MATTE_PATH] = WEIGHTS
    model_folder(tmp_path, hub).pull(MATTE, Watcher())
    assert files_in(tmp_path / "models/cutout") == {"tiny.onnx"}


@pytest.mark.parametrize("content", [WEIGHTS, b"short"], ids=["a large file", "a small file"])
def test_torchvisions_digest_in_the_file_name_is_checked(tmp_path: Path, hub: FakeHub, content: bytes) -> None:
    row = STANDARD["resnet"]
    hub.files["/models/resnet34-b627a593.pth"] = content
    with pytest.raises(DamagedFile, match=r"its sha256 is .*, expected b627a593…"):
        model_folder(tmp_path, hub).pull(row, Watcher())
    assert row.state(tmp_path / "models") == "missing"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "config.json"])
def test_what_hugging_face_states_of_its_files_is_checked(
    tmp_path: Path, hub: FakeHub, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = hub.listing(BLIP.source)
    monkeypatch.setattr(hub, "listing", lambda repository: listing)
    monkeypatch.setattr(hub, "commit", lambda repository: json.loads(listing)["sha"])
    data = hub.repositories[BLIP.source][name]
    hub.repositories[BLIP.source][name] = data[:-1] + b"?"
    with pytest.raises(DamagedFile, match=f"{name} is not the file that it should be"):
        model_folder(tmp_path, hub).pull(BLIP, Watcher())
    assert not (tmp_path / "models" / BLIP.folder / name).exists()


def test_a_second_pull_must_give_what_the_first_gave(tmp_path: Path, hub: FakeHub) -> None:
    folder, target = model_folder(tmp_path, hub), tmp_path / "models/objects/yolo26n.pt"
    folder.pull(YOLO, Watcher())
    target.unlink()
    hub.files[YOLO_PATH] = other = os.urandom(len(WEIGHTS))
    with pytest.raises(ModelChanged, match=r"another one at its hub than when it was first pulled.*--update"):
        folder.pull(YOLO, Watcher())
    assert files_in(tmp_path / "models/objects") == set()
    folder.pull(YOLO, Watcher(), update=True)
    assert target.read_bytes() == other
    assert folder.verify() == ([YOLO], [])


def test_a_recorded_revision_is_asked_for_again_and_update_takes_the_newest(tmp_path: Path, hub: FakeHub) -> None:
    folder = model_folder(tmp_path, hub)
    folder.pull(BLIP, Watcher())
    first = hub.commit(BLIP.source)
    (tmp_path / "models" / BLIP.folder / "vocab.txt").unlink()
    hub.repositories[BLIP.source]["config.json"] = b"{}"
    with pytest.raises(HubRefused, match=rf"has no /api/models/{BLIP.source}/revision/{first}"):
        folder.pull(BLIP, Watcher())
    folder.pull(BLIP, Watcher(), update=True)
    assert (tmp_path / "models" / BLIP.folder / "config.json").read_bytes() == b"{}"
    assert folder.overview([BLIP])[0].revision == hub.commit(BLIP.source) != first


def test_a_file_on_disk_that_has_changed_is_found_by_pull_and_by_verify(tmp_path: Path, hub: FakeHub) -> None:
    folder = model_folder(tmp_path, hub)
    folder.pull(BLIP, Watcher())
    here = tmp_path / "models" / BLIP.folder
    (here / "pytorch_model.bin").write_bytes(WEIGHTS[::-1])
    (here / "vocab.txt").unlink()
    _, differences = folder.verify()
    assert [(one.file, one.problem.partition(":")[0]) for one in differences] == [
        ("vocab.txt", "is missing"),
        ("pytorch_model.bin", "pytorch_model.bin is not the file that it should be"),
    ]
    with pytest.raises(ModelChanged, match=r"Remove .*pytorch_model.bin and pull again"):
        folder.pull(BLIP, Watcher())
    (here / "pytorch_model.bin").unlink()
    folder.pull(BLIP, Watcher())
    assert folder.verify() == ([BLIP], [])


def test_files_put_there_by_hand_are_taken_when_they_are_right(tmp_path: Path, hub: FakeHub) -> None:
    target = tmp_path / "models/objects/yolo26n.pt"
    target.parent.mkdir(parents=True)
    target.write_bytes(WEIGHTS)
    folder = model_folder(tmp_path, hub)
    assert [one.problem for one in folder.verify()[1]] == [
        "was never recorded; `pixelgate models pull yolo26n` does it"
    ]
    folder.pull(YOLO, Watcher())
    assert (hub.asked, folder.verify()[1]) == ([], [])
    (tmp_path / "models/cutout").mkdir()
    (tmp_path / "models/cutout/tiny.onnx").write_bytes(b"something else")
    hub.files[MATTE_PATH] = WEIGHTS
    with pytest.raises(PullProblem, match=r"tiny.onnx is not the file.*Remove"):
        folder.pull(MATTE, Watcher())
    assert (tmp_path / "models/cutout/tiny.onnx").read_bytes() == b"something else", "nobody's file is overwritten"


@pytest.mark.parametrize(
    ("status", "says"),
    [(404, "127.0.0.1 has no /api/models/Salesforce"), (403, "see PIXELGATE_HF_TOKEN"), (418, "status 418")],
)
def test_a_hub_that_refuses_is_said_plainly(tmp_path: Path, hub: FakeHub, status: int, says: str) -> None:
    path = f"/api/models/{BLIP.source}/revision/main"
    hub.faults[path] = [Fault("status", status)]
    with pytest.raises(HubRefused, match=says):
        model_folder(tmp_path, hub).pull(BLIP, Watcher())
    assert [asked for asked, _ in hub.asked] == [path], "asking again would not help"


def test_a_busy_hub_is_asked_again_when_it_says(tmp_path: Path, hub: FakeHub) -> None:
    waits = Waits()
    hub.faults[STORED] = [Fault("status", 429, "7"), Fault("status", 503), Fault("status", 500)]
    model_folder(tmp_path, hub, waits).pull(YOLO, Watcher())
    assert waits.waited_s == [7.0, 3.0, 10.0]


@pytest.mark.parametrize("date", [False, True], ids=["in seconds", "as a date"])
def test_a_hub_that_wants_to_be_asked_much_later_is_given_up(tmp_path: Path, hub: FakeHub, date: bool) -> None:
    waits = Waits()
    hub.faults[STORED] = [Fault("status", 429, formatdate(time.time() + 3600, usegmt=True) if date else "3600")]
    with pytest.raises(HubBusy, match=r"too much to do; try again in 3[56]\d\d s") as found:
        model_folder(tmp_path, hub, waits).pull(YOLO, Watcher())
    assert waits.waited_s == []
    assert found.value.retry_after_s == pytest.approx(3600, abs=60)


def test_a_hub_that_hangs_is_given_up(tmp_path: Path, hub: FakeHub) -> None:
    hub.faults[STORED] = [Fault("hang")] * 2
    with pytest.raises(HubUnreachable, match=r"127.0.0.1 does not answer within 0.2 s"):
        model_folder(tmp_path, hub, pull_timeout_s=0.2, pull_attempts=2).pull(YOLO, Watcher())
    assert YOLO.state(tmp_path / "models") == "missing"


def test_without_network_one_sentence_names_the_host_and_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    hubs = HubSettings(github_endpoint=f"http://127.0.0.1:{port}")
    with pytest.raises(HubUnreachable, match=r"127.0.0.1 cannot be reached .*by hand.*PIXELGATE_MODELS=starter"):
        ModelFolder(tmp_path / "models", hubs, patience=Patience(attempts=9)).pull(YOLO, Watcher())
    assert YOLO.state(tmp_path / "models") == "missing"
    assert files_in(tmp_path / "models" / "objects") == set()


def test_the_token_goes_to_hugging_face(tmp_path: Path, hub: FakeHub) -> None:
    hub.wants_token = "hf-secret"
    with pytest.raises(HubRefused, match="status 401"):
        model_folder(tmp_path, hub).pull(BLIP, Watcher())
    model_folder(tmp_path, hub, hf_token="hf-secret").pull(BLIP, Watcher())
    with pytest.raises(HubRefused, match="status 401"):
        model_folder(tmp_path, hub, hf_token="hf-secret").pull(YOLO, Watcher())


def test_a_repository_without_a_needed_file_is_refused_before_anything_is_fetched(tmp_path: Path, hub: FakeHub) -> None:
    del hub.repositories[BLIP.source]["pytorch_model.bin"]
    with pytest.raises(HubRefused, match=r"has no model.safetensors or pytorch_model.bin"):
        model_folder(tmp_path, hub).pull(BLIP, Watcher())
    assert not (tmp_path / "models").exists()


def test_a_hub_that_states_no_digests_is_held_to_the_first_pull(tmp_path: Path, hub: FakeHub) -> None:
    hub.states_digests = False
    folder = model_folder(tmp_path, hub)
    folder.pull(BLIP, Watcher())
    assert folder.overview([BLIP])[0].digest == "recorded"


def test_a_folder_that_cannot_be_written_is_said_plainly(tmp_path: Path, hub: FakeHub) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "objects").write_text("a file in the way")
    with pytest.raises(PullProblem, match="cannot be written"):
        model_folder(tmp_path, hub).pull(YOLO, Watcher())


def test_a_file_for_which_there_is_no_space_is_refused_before_it_comes(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=60_000_000))
    with pytest.raises(PullProblem, match=r"objects has 60 MB free; 0 MB and some to spare are needed"):
        model_folder(tmp_path, hub).pull(YOLO, Watcher())
    assert files_in(tmp_path / "models/objects") == set()


def test_a_hub_that_sends_to_an_address_without_encryption_is_not_followed(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.scheme == "https":
            return httpx.Response(302, headers={"Location": "http://elsewhere.example/yolo26n.pt"})
        return httpx.Response(200, content=b"from anybody")

    with httpx.Client(transport=httpx.MockTransport(answer), follow_redirects=True) as client:
        folder = ModelFolder(tmp_path / "models", HubSettings(), client=client)
        with pytest.raises(HubRefused, match=r"sends to elsewhere.example without encryption"):
            folder.pull(YOLO, Watcher())
    assert YOLO.state(tmp_path / "models") == "missing"


def test_two_pulls_of_one_file_do_not_mix(tmp_path: Path, hub: FakeHub) -> None:
    second: list[str] = []

    class Meddling(Watcher):
        def file(self, row: KnownModel, name: str, done: int, total: int | None) -> None:
            if not second:
                with pytest.raises(PullProblem, match=r"Another process is fetching yolo26n.pt") as found:
                    model_folder(tmp_path, hub).pull(YOLO, Watcher())
                second.append(found.value.detail)

    model_folder(tmp_path, hub).pull(YOLO, Meddling())
    assert second
    assert (tmp_path / "models/objects/yolo26n.pt").read_bytes() == WEIGHTS


def test_names_and_slots_can_be_asked_for() -> None:
    assert choose([]) == list(STANDARD.values())
    assert choose(["cutout", "u2net", "u2netp"]) == [STANDARD["cutout"], known("cutout", "u2netp")]
    with pytest.raises(ModelMissing, match="neither a slot"):
        choose(["u2net", "gpt"])
    assert len({row.name for row in KNOWN}) == len(KNOWN), "a name alone says which model is meant"
