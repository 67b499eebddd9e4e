"""Nothing outside the machine is needed: every service and every stage in a network that has only loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

INSIDE = """
import fcntl, os, socket, struct, sys, time
from pathlib import Path

# A new network namespace has a loopback interface that is down: switch it on (SIOCSIFFLAGS, IFF_UP).
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 1))
assert [name for _, name in socket.if_nameindex()] == ["lo"] or all(
    Path(f"/sys/class/net/{name}/operstate").read_text().strip() != "up" for _, name in socket.if_nameindex()
)

from starter_models.scenes import draw_scene
from tests.system import EVERYTHING, running, upload, wait_analysed

with running(Path(sys.argv[1]) / "data", EVERYTHING) as system, system.client() as client:
    system.wait_all_ready()
    outcomes = upload(client, [(f"{place}.jpg", draw_scene("test", place).jpeg()) for place in range(10)])
    for stage in wait_analysed(client).values():
        assert (stage["done"], stage["failed"]) == (10, 0), stage
    hits = client.get("/v1/search", params={"q": "a dog"}).raise_for_status().json()["hits"]
    assert len(hits) == 10, hits
    hits = client.post("/v1/search", json={"terms": [{"color": "#ff0000"}]}).raise_for_status().json()["hits"]
    assert len(hits) == 10, hits
    for outcome in outcomes:
        record = client.get(f"/v1/images/{outcome['image']['id']}").raise_for_status().json()
        assert record["caption"] and record["palette"], record
        client.get(record["links"]["cutout"]).raise_for_status()
    for what in ("caption", "objects", "cutout", "palette"):
        client.post(f"/v1/{what}", json={"image_id": record["id"]}).raise_for_status()
print("found without a network")
"""


def test_the_main_job_needs_no_network(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--net", "--map-root-user", sys.executable, "-c", INSIDE, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "found without a network" in done.stdout
