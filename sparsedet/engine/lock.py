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

    The lock is a POSIX record lock on `run.lock`, which says who holds it. The system releases it
    when the process ends, however that happens; the file stays, and means nothing by itself. Data
    workers do not hold it on. On NFS it works between machines where the server locks (version 4
    does); on a file system without locks a warning says that nothing keeps a second run out.

    Args:
        folder: `train.output_dir`, which exists.

    Raises:
        ValueError: Another process holds it.
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
        with suppress(OSError):  # on a full disk the lock still holds
            file.truncate(0)
            file.write(holder.encode())
        yield


def _refusal(folder: str | os.PathLike[str], holder: str) -> str:
    return (
        f"train.output_dir={os.fspath(folder)} is in use by another run"
        f"{f': {holder}' if holder else ''}. Wait until it ends, stop it, or set another "
        "train.output_dir."
    )
