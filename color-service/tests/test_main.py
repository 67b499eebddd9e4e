"""The service as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

import httpx
from color_pictures import RED, plain


async def test_it_starts_answers_and_ends_on_sigterm() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "color_service.main",
        env={**os.environ, "PIXELGATE_COLOR_PORT": str(port)},
        stderr=asyncio.subprocess.DEVNULL,
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
            answer = await http.post("/v1/palettes", files={"images": plain(RED)})
            assert answer.json()["items"][0]["palette"][0]["hex"] == "#ef4135"
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() in (0, -signal.SIGTERM)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
