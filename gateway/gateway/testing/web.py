"""A web server on 127.0.0.1 with pictures by path, for what is fetched from URLs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager


@asynccontextmanager
async def pictures_on_the_web(files: Mapping[str, bytes], media_type: str = "image/png") -> AsyncIterator[str]:
    """Serve `files` by path for the length of the block, and yield the server's address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        data = files.get(head.split(b" ", 2)[1].decode())
        status = b"404 Not Found" if data is None else b"200 OK"
        lines = [b"HTTP/1.1 " + status, b"Content-Type: " + media_type.encode(), b"Connection: close"]
        lines.append(f"Content-Length: {len(data or b'')}".encode())
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + (data or b""))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
