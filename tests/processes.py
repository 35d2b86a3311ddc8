"""What tests of several processes need."""

from __future__ import annotations

import socket
import time
from pathlib import Path


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(path: Path, seconds: float) -> None:
    """Wait until another process has written a file."""
    latest = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < latest, f"{path} does not come"
        time.sleep(0.02)
