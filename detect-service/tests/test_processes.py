"""What only a process of its own can show: the child that converts, the service from start to end, its memory."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from detect_fakes import convert_here, encoded, scenery, write_matte, write_matte_folder, write_yolo
from detect_service.converting import order_for
from detect_service.settings import Settings
from pixelgate_common.inference import model_sets

# Loaded by every Python of the test before anything else: there is no network, and who looks for it is written down.
NO_NETWORK = """
import os, socket

def refuse(*args, **kwargs):
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(repr(args) + "\\n")
    raise OSError("no network in this test")

socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
"""


def environment(settings: Settings, tmp_path: Path) -> dict[str, str]:
    """What a process of the test sees: no network, and a home that can be neither written nor made."""
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    named = {
        "PIXELGATE_OBJECTS_MODEL": settings.objects_model,
        "PIXELGATE_CUTOUT_MODEL": settings.cutout_model,
        "PIXELGATE_DATA_DIR": settings.data_dir,
        "PIXELGATE_DETECT_CACHE_DIR": settings.cache_dir_set,
        "PIXELGATE_MODEL_IDLE_S": settings.model_idle_s or None,
    }
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": "/dev/null/home",
        "PYTHONPATH": str(tmp_path / "site"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NETWORK_LOG": str(tmp_path / "network.log"),
        "TMPDIR": str(tmp_path / "tmp"),
        **{name: str(value) for name, value in named.items() if value is not None},
    }


@pytest.fixture
def small(settings: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "tmp").mkdir()
    write_yolo(tmp_path / "yolo" / "model.pt", "yolo11n", side_px=64)
    write_matte_folder(tmp_path / "matte", side_px=64)
    return settings.model_copy(
        update={"objects_model": str(tmp_path / "yolo"), "cutout_model": str(tmp_path / "matte")}
    )


def test_a_first_start_needs_no_network_and_no_home_and_leaves_nothing_behind(small: Settings, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from detect_service.served import Shelf\n"
        "from detect_service.settings import Settings\n"
        "models = Shelf(Settings()).begin()\n"
        "heavy = {'torch', 'ultralytics', 'transformers', 'rembg', 'onnxruntime', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "print([one.fingerprint for one in (*models.detectors, *models.mattes)])\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    child = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(small, tmp_path),
        cwd=work,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert not (tmp_path / "network.log").exists(), (tmp_path / "network.log").read_text()
    assert not list(work.iterdir()), "nothing where it was started"
    assert not list((tmp_path / "tmp").iterdir()), "nothing in the folder for temporary files"
    sources = [model_sets.resolve("objects", small), model_sets.resolve("cutout", small)]
    for source in sources:
        assert order_for(source, small).target.is_dir()


async def test_it_starts_answers_unloads_and_ends_on_sigterm(
    small: Settings, tmp_path: Path, shared_cache: Path
) -> None:
    small = small.model_copy(update={"cache_dir_set": shared_cache, "model_idle_s": 0.5})
    convert_here([model_sets.resolve("objects", small), model_sets.resolve("cutout", small)], small)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "detect_service.main",
        env={**environment(small, tmp_path), "PIXELGATE_DETECT_PORT": str(port), "PYTHONPATH": ""},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            async with asyncio.timeout(120):
                while True:
                    try:
                        ready = await http.get("/readyz")
                        break
                    except httpx.TransportError:
                        assert process.returncode is None
                        await asyncio.sleep(0.05)
            assert ready.json()["ready"] is True
            picture = encoded(scenery(200, 150), "JPEG")
            found, cut = await asyncio.gather(
                http.post("/v1/objects", files={"images": picture}),
                http.post("/v1/cutouts", files={"images": picture}),
            )
            assert (found.status_code, cut.status_code) == (200, 200)
            async with asyncio.timeout(60):
                while {one["state"] for one in (await http.get("/v1/models")).json()["models"]} != {"idle"}:
                    await asyncio.sleep(0.1)
            assert (await http.get("/readyz")).status_code == 200, "idle is ready"
            again = await http.post("/v1/objects", files={"images": picture})
            assert again.json()["items"] == found.json()["items"]
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await process.wait() in (0, -signal.SIGTERM)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_an_unloaded_model_gives_its_memory_back(settings: Settings, tmp_path: Path, shared_cache: Path) -> None:
    (tmp_path / "tmp").mkdir()
    write_matte(settings.model_dir / "cutout" / "u2net.onnx", width=64)
    settings = settings.model_copy(
        update={"objects_model": "none", "cutout_model": "u2net", "cache_dir_set": shared_cache}
    )
    convert_here([model_sets.resolve("cutout", settings)], settings)
    code = (
        "import asyncio, json\n"
        "from detect_service.matte import network_input\n"
        "from detect_service import golden\n"
        "from detect_service.served import Shelf\n"
        "from detect_service.settings import Settings\n"
        "def mb():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096 / 1e6\n"
        "resident = Shelf(Settings()).begin().mattes[0].resident\n"
        "async def main():\n"
        "    await resident.unload()\n"
        "    figures = []\n"
        "    for _ in range(3):\n"
        "        async with resident.use() as loaded:\n"
        "            network = loaded.model\n"
        "            network.find(network_input(golden.picture(), network.facts))\n"
        "            full = mb()\n"
        "        del loaded, network\n"
        "        await resident.unload()\n"
        "        figures.append((full, mb()))\n"
        "    print(json.dumps(figures))\n"
        "asyncio.run(main())\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(settings, tmp_path), "PIXELGATE_CUTOUT_MODEL": "u2net"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    figures = json.loads(child.stdout.strip().splitlines()[-1])
    for full, empty in figures:
        assert full - empty > 15, figures
    assert figures[-1][1] - figures[0][1] < 10, "and nothing is left more each time"


def test_a_model_that_cannot_be_served_ends_the_start_with_one_plain_line(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    settings = settings.model_copy(update={"objects_model": "yolo26n", "cutout_model": "none"})
    ended = subprocess.run(
        [sys.executable, "-m", "detect_service.main"],
        env={**environment(settings, tmp_path), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr + ended.stdout
    last = json.loads((ended.stderr.strip() or ended.stdout.strip()).splitlines()[-1])
    assert last["event"] == "cannot_start"
    assert "pixelgate models pull yolo26n" in last["reason"]
