"""The service as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import httpx
from embed_fakes import jpeg, write_narrow_resnet
from embed_service.artifact_cache import order_for
from embed_service.catalogue import find
from embed_service.conversion import convert
from embed_service.settings import Settings


async def test_it_starts_answers_and_ends_on_sigterm(settings: Settings, tmp_path: Path) -> None:
    folder = write_narrow_resnet(tmp_path / "narrow")
    order = order_for(find(settings, "resnet", str(folder)), settings.cache_dir, half=True)
    with order.draft() as draft:
        convert(order, draft)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {
        **os.environ,
        "PIXELGATE_EMBED_PORT": str(port),
        "PIXELGATE_DATA_DIR": str(settings.data_dir),
        "PIXELGATE_CLIP_MODEL": "none",
        "PIXELGATE_RESNET_MODEL": str(folder),
        "PIXELGATE_EMBED_PRECISION": "bf16",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "embed_service.main", env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            async with asyncio.timeout(60):
                while True:
                    try:
                        ready = await http.get("/readyz")
                        break
                    except httpx.TransportError:
                        assert process.returncode is None
                        await asyncio.sleep(0.05)
            assert ready.json()["ready"] is True
            answers = await asyncio.gather(
                *(http.post("/v1/embed/images?slot=resnet", files={"images": jpeg((40 * n, 9, 9))}) for n in range(6))
            )
            assert [answer.status_code for answer in answers] == [200] * 6
            assert len({answer.json()["items"][0]["vector"] for answer in answers}) == 6
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() in (0, -signal.SIGTERM)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
