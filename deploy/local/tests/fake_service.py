"""A service of a few lines for the launcher's tests; what it does wrong is told by files in $FAKE_DIR.

`NAME.exit`: ends at start, with this file's text as its last words. `NAME.unready`: `/readyz` says 503 while it is
there. `NAME.mute`: answers nothing while it is there. `NAME.stubborn`: ignores SIGTERM. `NAME.child`: has a child.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(os.environ["FAKE_DIR"])


def note(event: str) -> None:
    with (FOLDER / "events").open("a") as file:
        file.write(f"{event}\n")


def serve(name: str) -> None:
    """Serve `/healthz` and `/readyz` as the service `name`."""

    def told(what: str) -> bool:
        return (FOLDER / f"{name}.{what}").exists()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            while told("mute"):
                time.sleep(0.05)
            ready = self.path != "/readyz" or not told("unready")
            parts = {"model": {"ready": ready, "detail": "loading" if not ready else None}}
            body = json.dumps({"ready": ready, "parts": parts}).encode()
            self.send_response(200 if ready else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    def on_term(number: int, frame: object) -> None:
        note(f"stop {name}")
        sys.exit(0)

    note(f"start {name}")
    (FOLDER / f"{name}.env").write_text(json.dumps(dict(os.environ)))
    signal.signal(signal.SIGTERM, signal.SIG_IGN if told("stubborn") else on_term)
    if told("exit"):
        print((FOLDER / f"{name}.exit").read_text(), file=sys.stderr)
        sys.exit(3)
    if told("child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (FOLDER / f"{name}.child").write_text(str(child.pid))
    port = os.environ["PIXELGATE_PORT" if name == "gateway" else f"PIXELGATE_{name.upper()}_PORT"]
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
