"""A server of files on this machine, as reliable as a test wants it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """A file, and how it is sent.

    Attributes:
        content: its bytes.
        version: its ETag.
        ranges: whether parts of it can be asked for.
        breaks: bytes after which each connection is closed, one after the other; then none is.
        status: another answer than the file.
        kind: its Content-Type.
        length: whether its length is told.
        pause: seconds before each block.
        careless: whether it sends parts of a file that is another one by now.
        shift: what is added to the first byte of a part.
        headers: more of them.
    """

    content: bytes
    version: str = '"1"'
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)
    status: int = 200
    kind: str = "application/octet-stream"
    length: bool = True
    pause: float = 0.0
    careless: bool = False
    shift: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class Server:
    """What is served, by path, and what was asked for.

    Attributes:
        address: without a slash at the end.
        files: by path, which begins with a slash.
        absent: headers of the answer for what is not there.
        asked: of every request for a file the path and the Range ("" without).
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, Served] = {}
        self.absent: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []


@contextmanager
def serving() -> Iterator[Server]:
    """A server until the block ends."""
    with listening(_Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_port}")
        http.served = server  # pyright: ignore[reportAttributeAccessIssue]
        yield server


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    """A server on a free port until the block ends, with a thread for each request."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield http
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.served.asked.append((self.path, asked))  # pyright: ignore
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        file = self.server.served.files.get(self.path)  # pyright: ignore
        if file is None or file.status != 200:
            self.send_response(404 if file is None else file.status)
            for name, value in self.server.served.absent.items():  # pyright: ignore
                self.send_header(name, value)
            self.end_headers()
            return
        first = self._first_byte(file)
        if first >= len(file.content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(file.content)}")
            self.end_headers()
            return
        content = file.content[first:]
        self.send_response(206 if first else 200)
        if first:
            total = len(file.content)
            self.send_header("Content-Range", f"bytes {first + file.shift}-{total - 1}/{total}")
        if file.length:
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", file.kind)
        for name, value in {"ETag": file.version, **file.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self._send(file, content)

    def _first_byte(self, file: Served) -> int:
        asked = self.headers.get("Range", "")
        same = file.careless or self.headers.get("If-Range", file.version) == file.version
        if not (asked and file.ranges and same):
            return 0
        return int(asked.removeprefix("bytes=").partition("-")[0])

    def _send(self, file: Served, content: bytes) -> None:
        end = file.breaks.pop(0) if file.breaks else len(content)
        size = max(1, len(content) // 20) if file.pause else len(content)
        with suppress(ConnectionError):  # who asked may have had enough
            for start in range(0, min(end, len(content)), size):
                time.sleep(file.pause)
                self.wfile.write(content[start : min(start + size, end)])
