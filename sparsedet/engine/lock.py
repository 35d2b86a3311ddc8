"""One live run per output folder."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["locked"]

logger = logging.getLogger(__name__)

_NAME = "run.lock"
_CANNOT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other runs out of an output folder.

    The lock is a POSIX record lock on `run.lock`; the file names the process that holds it. The
    system releases the lock when that process ends for any reason. The file remains and has no
    meaning by itself. Data workers do not keep the lock. On NFS it works between machines if the
    server supports locks (version 4 does). On a file system without locks a warning says that a
    second run is not prevented.

    Args:
        folder: `train.output_dir`, which exists.

    Raises:
        ValueError: Another process holds the lock.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    path = Path(folder) / _NAME
    with path.open("a+b", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _CANNOT:
                file.seek(0)
                raise ValueError(_refusal(folder, file.read().decode().strip())) from error
            logger.warning("%s: %s, so a second run is not prevented", path, error.strerror)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
        with suppress(OSError):  # the lock works even if the disk is full
            file.truncate(0)
            file.write(holder.encode())
        yield


def _refusal(folder: str | os.PathLike[str], holder: str) -> str:
    return (
        f"train.output_dir={os.fspath(folder)} is in use by another run"
        f"{f': {holder}' if holder else ''}. Wait until it ends, stop it, or set another "
        "train.output_dir."
    )
