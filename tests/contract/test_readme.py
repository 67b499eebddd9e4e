"""Every curl of the README is run, literally, against a new system; later lines build on what earlier ones stored."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.system import System, running, wait_analysed

ROOT = Path(__file__).parents[2]
BLOCKS = [
    block.strip()
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    if block.startswith("curl")
]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "samples", folder / "samples")
    with running(folder / "data") as system:
        yield system


def test_the_readme_has_examples() -> None:
    assert len(BLOCKS) >= 24


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=lambda number: BLOCKS[number].splitlines()[0][:70])
def test_an_example_works_as_printed(system: System, number: int) -> None:
    line = BLOCKS[number].replace("http://127.0.0.1:8004", system.url).replace("curl ", "curl --fail-with-body ", 1)
    done = subprocess.run(
        ["bash", "-c", line], cwd=system.data_dir.parent, capture_output=True, text=True, timeout=60, check=False
    )
    stream = "--max-time" in line  # an event stream has no end: curl says 28, "time is up"
    assert done.returncode == (28 if stream else 0), f"{line}\n{done.stdout}\n{done.stderr}"
    if stream:
        assert "event: stage" in done.stdout
    elif written := re.search(r"-o (\S+)", line):
        with Image.open(system.data_dir.parent / written.group(1)) as picture:
            assert min(picture.size) >= 100
    elif "DELETE" not in line:
        answer = json.loads(done.stdout)
        if "/v1/search" in line:
            assert "hits" in answer
    if "/v1/images" in line and "files=" in line:
        with system.client() as client:
            wait_analysed(client)
