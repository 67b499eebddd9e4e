"""The service as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

import httpx
from blip_folders import png, scenery
from caption_service.settings import Settings


async def test_it_starts_captions_and_ends_on_sigterm(small: Settings) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {
        **os.environ,
        "PIXELGATE_CAPTION_PORT": str(port),
        "PIXELGATE_DATA_DIR": str(small.data_dir),
        "PIXELGATE_CAPTION_CACHE_DIR": str(small.cache_dir),
        "PIXELGATE_CAPTION_MODEL": str(small.caption_model),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "caption_service.main", env=environment, stderr=asyncio.subprocess.DEVNULL
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
            pictures = [png(scenery(90, 60, seed)) for seed in range(6)]
            answers = await asyncio.gather(
                *(http.post("/v1/captions?min_words=3", files={"images": picture}) for picture in pictures)
            )
            assert [answer.status_code for answer in answers] == [200] * 6
            together = await http.post("/v1/captions?min_words=3", files=[("images", p) for p in pictures])
            assert together.json()["items"] == [answer.json()["items"][0] for answer in answers]
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await process.wait() in (0, -signal.SIGTERM)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_model_that_is_not_there_is_one_line_and_status_3(settings: Settings) -> None:
    environment = {
        **os.environ,
        "PIXELGATE_DATA_DIR": str(settings.data_dir),
        "PIXELGATE_CAPTION_MODEL": "blip-image-captioning-large",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "caption_service.main"),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    assert process.returncode == 3
    assert b"pixelgate models pull blip-image-captioning-large" in output
    assert b"Traceback" not in output
