"""Large files from the web: whole, or continued later where they broke off."""

from __future__ import annotations

import http.client
import json
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
from sparsedet.files import write_json

_BLOCK = 1 << 18
_SECONDS = 30  # without a byte, after which a connection counts as broken
_TRIES = 5  # connections in a row that bring nothing new
_PAUSE = 1.0  # seconds before the second of them; longer before those that follow
_BROKEN = (OSError, http.client.HTTPException)


class DownloadError(Exception):
    """Why a file cannot be downloaded, as half a sentence."""


@dataclass(frozen=True)
class _State:
    """What the beginning of a file belongs to: kept beside it, since the file may change there.

    Attributes:
        address: of the file.
        version: the server's ETag or date of the file; empty where it tells neither.
        total: bytes of the whole file; None where the server does not tell.
    """

    address: str
    version: str
    total: int | None


def download(address: str, path: Path) -> None:
    """Fetch a file; what an earlier call has fetched of it is not fetched again.

    Until it is whole it is called `path` with `.part` at the end. It is continued only where the
    server says that the file is still the same, and begun anew otherwise. A connection that breaks
    is opened again, until five in a row have brought nothing.

    Args:
        address: http or https.
        path: where it goes; its folder exists.

    Raises:
        DownloadError: the server cannot be reached, has no such file, sends a web page instead, or
            breaks off for good.
        OSError: the file cannot be written.
    """
    transfer = _Transfer(address, path)
    farthest, idle = transfer.done, 0
    while not transfer.receive():
        idle = 0 if transfer.done > farthest else idle + 1
        farthest = max(farthest, transfer.done)
        if idle >= _TRIES:
            raise DownloadError(
                f"it broke off {idle} times after {farthest} bytes ({transfer.reason}); what there "
                "is will be continued the next time"
            )
        if idle:
            time.sleep(_PAUSE * idle)
    transfer.finish()


class _Transfer:
    """The download of one file over any number of connections.

    Attributes:
        done: bytes that are on the disk.
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
        """Open a connection and take what comes; whether the file is whole then."""
        try:
            response = self._open()
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except _BROKEN as error:
            if not self._answered:  # no network: waiting will not help
                raise DownloadError(_reason(error)) from error
            self.reason = _reason(error)
            return False
        self._answered = True
        with response:
            return self._begin(response) and self._take(response)

    def finish(self) -> None:
        """Give the whole file its name."""
        self._part.replace(self._path)
        self._notes.unlink(missing_ok=True)

    def _read_state(self) -> _State | None:
        """What the beginning on the disk belongs to; None where it cannot be continued."""
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
            if error.code == 416 and self._state is not None:  # nothing comes after what we have
                return self._state.total == self.done or self._forget("the file has changed")
        if self._answered and error.code >= 500:
            self.reason = f"the server answers {error.code}"
            return False
        raise DownloadError(f"the server answers {error.code} {error.reason}".rstrip())

    def _forget(self, reason: str) -> bool:
        """Begin anew; never the end of the download."""
        self._state, self.done, self._answered, self.reason = None, 0, True, reason
        return False

    def _begin(self, response: Any) -> bool:
        """Know what will come; False where it belongs to another file than what there is."""
        headers = response.headers
        if "html" in headers.get_content_type():
            raise DownloadError("the server sends a web page instead of the file")
        version = headers.get("ETag", "")
        if not version or version.startswith("W/"):  # a weak one is not for parts of a file
            version = headers.get("Last-Modified", "")
        start, total = _extent(headers, partial=response.status == 206)
        state = _State(self._address, version, total)
        if response.status == 206 and (start != self.done or state != self._state):
            return self._forget("the server went on with another file")
        if response.status != 206:
            self._state, self.done = state, 0
            self._part.write_bytes(b"")
            write_json(self._notes, asdict(state))
        needed = 0 if total is None else total - self.done
        if needed > (free := shutil.disk_usage(self._path.parent).free):
            raise DownloadError(
                f"{needed >> 20} MB are to come, and {free >> 20} are free in {self._path.parent}"
            )
        return True

    def _take(self, response: Any) -> bool:
        assert self._state is not None
        total = self._state.total
        quick = sys.stderr.isatty()  # as opposed to a log, which is not to be filled
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
            return self._forget(f"more came than the {total} bytes that were announced")
        self.reason = "the connection was closed"
        return total is None or self.done == total


def _extent(headers: Any, *, partial: bool) -> tuple[int, int | None]:
    """Where the answer begins in the file, and the size of the whole file."""
    if not partial:
        length = headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    unit, _, rest = headers.get("Content-Range", "").partition(" ")
    start, total = rest.partition("-")[0], rest.partition("/")[2]
    if unit != "bytes" or not start.isdigit():
        raise DownloadError("the server does not say which part of the file it sends")
    return int(start), int(total) if total.isdigit() else None


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        error = inner
    if isinstance(error, TimeoutError):
        return f"nothing came for {_SECONDS} seconds"
    text = getattr(error, "strerror", None) or str(error)
    return (text or type(error).__name__).rstrip(".")
