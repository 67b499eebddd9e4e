"""Which ports to use: the public one must be free, an inner one gives way."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

from pixelgate_local.errors import LocalError


class InnerPorts:
    """Ports on loopback that no other Pixelgate of this machine is about to use either."""

    def __init__(self) -> None:
        self._marks = ExitStack()

    def take(self, wanted: int) -> int:
        """Return `wanted` when it is free, else a port that is."""
        for port in (wanted, *(_any_free_port() for _ in range(20))):
            if self._mark(port):
                return port
        raise LocalError("No free port was found on 127.0.0.1.")

    def close(self) -> None:
        """Give up the claims."""
        self._marks.close()

    def _mark(self, port: int) -> bool:
        """Claim `port` by a name that lives as long as this process: its service binds it only seconds later."""
        mark = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            mark.bind(f"\0pixelgate-port-{port}")
            _bind("127.0.0.1", port)
        except OSError:
            mark.close()
            return False
        self._marks.callback(mark.close)
        return True


def check_public_port(host: str, port: int) -> None:
    """See that the gateway will be able to listen.

    Raises:
        LocalError: it will not; the line names the port and the setting.
    """
    try:
        _bind(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise LocalError(
                f"Port {port} is in use by another program: stop that one, or set PIXELGATE_PORT to a free port."
            ) from error
        if error.errno == errno.EACCES:
            raise LocalError(f"Port {port} is not open to this user: set PIXELGATE_PORT to one above 1023.") from error
        raise LocalError(f"PIXELGATE_HOST {host!r} is no address of this machine ({error}).") from error


def loopback_of(host: str) -> str:
    """Return the host by which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def url_of(host: str, port: int) -> str:
    """Return the address that a person on this machine can open."""
    name = loopback_of(host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _bind(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the services do: TIME_WAIT is no user
        probe.bind(address)


def _any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
