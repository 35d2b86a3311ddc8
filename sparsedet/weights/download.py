"""Download large files, and resume interrupted downloads."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparsedet import __version__
from sparsedet.config.naming import one_line
from sparsedet.files import write_json

_BLOCK = 1 << 18
_SECONDS = 30  # a connection without data for this long is broken
_TRIES = 5  # connections in a row without new data
_PAUSE = 1.0  # seconds before the second of them; longer before later ones
_BROKEN = (OSError, http.client.HTTPException)


class DownloadError(Exception):
    """A file cannot be downloaded; the text is a clause that gives the reason."""


@dataclass(frozen=True)
class _State:
    """Identifies the file of a partial download, since the file may change on the server.

    Attributes:
        address: URL of the file.
        version: the server's ETag or date of the file; empty if it gives neither.
        total: bytes of the whole file; None if the server does not say.
    """

    address: str
    version: str
    total: int | None


def download(address: str, path: Path) -> None:
    """Download a file, or resume its download.

    The incomplete file is `path` with the suffix `.part`. A download resumes only if the server
    confirms that the file is unchanged; otherwise it restarts. A broken connection is reopened,
    until five connections in a row have brought no data.

    Args:
        address: an http or https URL.
        path: the file to write; its folder exists.

    Raises:
        DownloadError: the server cannot be reached, has no such file, sends a web page instead, or
            the connection breaks repeatedly.
        OSError: the file cannot be written.
    """
    transfer = _Transfer(address, path)
    farthest, idle = transfer.done, 0
    while not transfer.receive():
        idle = 0 if transfer.done > farthest else idle + 1
        farthest = max(farthest, transfer.done)
        if idle >= _TRIES:
            raise DownloadError(
                f"the connection broke {idle} times after {farthest} bytes ({transfer.reason}); "
                "run the command again to resume the download"
            )
        if idle:
            time.sleep(_PAUSE * idle)
    transfer.finish()


class _Transfer:
    """The download of one file over any number of connections.

    Attributes:
        done: bytes written to disk.
        reason: why the last connection ended early.
    """

    def __init__(self, address: str, path: Path) -> None:
        self._address, self._path = address, path
        self._part = path.with_name(f"{path.name}.part")
        self._notes = path.with_name(f"{path.name}.part.json")
        self._state = self._read_state()
        self.done = self._part.stat().st_size if self._state else 0
        self._answered, self.reason = False, ""

    def receive(self) -> bool:
        """Open a connection and receive data; return whether the file is complete."""
        try:
            response = self._open()
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except (*_BROKEN, ValueError) as error:  # the latter for a redirection to no URL
            if not self._answered:  # no network: waiting does not help
                raise DownloadError(_reason(error)) from error
            self.reason = _reason(error)
            return False
        self._answered = True
        with response:
            return self._begin(response) and self._take(response)

    def finish(self) -> None:
        """Rename the complete file to its final name."""
        self._part.replace(self._path)
        self._notes.unlink(missing_ok=True)

    def _read_state(self) -> _State | None:
        """The state of the partial file on disk; None if it cannot be resumed."""
        with suppress(OSError, ValueError, TypeError):
            state = _State(**json.loads(self._notes.read_text(encoding="utf-8")))
            if state.address == self._address and state.version and self._part.is_file():
                return state
        return None

    def _open(self) -> Any:
        headers = {"User-Agent": f"sparsedet/{__version__}", "Accept-Encoding": "identity"}
        if self._state is not None and self._state.version and self.done:
            headers |= {"Range": f"bytes={self.done}-", "If-Range": self._state.version}
        request = urllib.request.Request(self._address, headers=headers)
        return urllib.request.urlopen(request, timeout=_SECONDS)

    def _refused(self, error: urllib.error.HTTPError) -> bool:
        with error:
            if error.code == 416 and self._state is not None:  # there is no data after ours
                return self._state.total == self.done or self._forget("the file has changed")
        if self._answered and error.code >= 500:
            self.reason = f"the server answered {error.code}"
            return False
        raise DownloadError(f"the server answered {error.code} {one_line(error.reason)}".rstrip())

    def _forget(self, reason: str) -> bool:
        """Restart the download; returns False, since the file is not complete."""
        self._state, self.done, self._answered, self.reason = None, 0, True, reason
        return False

    def _begin(self, response: Any) -> bool:
        """Read the headers; return False if they are of another file than the partial one."""
        headers = response.headers
        if "html" in headers.get_content_type():
            raise DownloadError("the server sends a web page instead of the file")
        version = headers.get("ETag", "")
        if not version or version.startswith("W/"):  # a weak ETag cannot be used for ranges
            version = headers.get("Last-Modified", "")
        start, total = _extent(headers, partial=response.status == 206)
        state = _State(self._address, version, total)
        if response.status == 206 and (start != self.done or state != self._state):
            return self._forget("the file on the server has changed")
        if response.status != 206:
            self._state, self.done = state, 0
            self._part.write_bytes(b"")
            write_json(self._notes, asdict(state))
        needed = 0 if total is None else total - self.done
        if needed > (free := shutil.disk_usage(self._path.parent).free):
            raise DownloadError(
                f"{needed >> 20} MB are needed, but {free >> 20} MB are free in {self._path.parent}"
            )
        return True

    def _take(self, response: Any) -> bool:
        assert self._state is not None
        total = self._state.total
        quick = sys.stderr.isatty()  # fewer updates in a log file
        with (
            self._part.open("ab") as file,
            tqdm(
                desc=self._path.name,
                total=total,
                initial=self.done,
                unit="B",
                unit_scale=True,
                mininterval=0.1 if quick else 30,
            ) as bar,
        ):
            while True:
                try:
                    block = response.read1(_BLOCK)
                except _BROKEN as error:
                    self.reason = _reason(error)
                    return False
                if not block:
                    break
                file.write(block)
                self.done += len(block)
                bar.update(len(block))
        if total is not None and self.done > total:
            return self._forget(f"the server sent more than the announced {total} bytes")
        self.reason = "the connection was closed"
        return total is None or self.done == total


def _extent(headers: Any, *, partial: bool) -> tuple[int, int | None]:
    """The offset of the response in the file, and the size of the whole file."""
    if not partial:
        length = headers.get("Content-Length", "")
        return 0, _number(length)
    unit, _, rest = headers.get("Content-Range", "").partition(" ")
    start = _number(rest.partition("-")[0])
    if unit != "bytes" or start is None:
        raise DownloadError("the server does not say which part of the file it sends")
    return start, _number(rest.partition("/")[2])


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,99}", text) else None


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        error = inner
    if isinstance(error, TimeoutError):
        return f"no data for {_SECONDS} seconds"
    text = getattr(error, "strerror", None) or str(error)
    return one_line(text or type(error).__name__).rstrip(".")
