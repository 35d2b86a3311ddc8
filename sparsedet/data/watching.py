"""Batches of worker processes, with a timeout."""

import errno
import logging
import multiprocessing
import multiprocessing.queues
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from sparsedet.child_signals import undisturbed

# Seconds without a batch after which a warning names the loader.
_LONG = 300.0
_LOOK = 1.0
# Seconds that a worker whose connection broke has for ending, so that its exit code tells why.
_ENDING = 10.0
# Exit code of a worker that has run out of file handles.
_NO_HANDLES = 91

_logger = logging.getLogger(__name__)


def watched(batches: Iterable[Any], name: str, timeout: float) -> Iterator[Any]:
    """The batches of a `DataLoader`, with a warning and finally an error if a batch takes too long.

    torch's own `timeout` does not help if a worker is stopped while it sends a batch, and it delays
    the detection of a worker that has died.

    Args:
        batches: the loader, which starts the workers when it is iterated.
        name: config key of the loader.
        timeout: seconds to wait for a batch before the workers are killed; 0 = no limit. Without
            workers there is no timeout.

    Raises:
        RuntimeError: no batch arrived in time.
        OSError: a worker ran out of file handles; see `end_without_handles`.
    """
    before = {child.pid for child in multiprocessing.active_children()}
    iterator = iter(batches)
    workers = [each for each in multiprocessing.active_children() if each.pid not in before]
    watch = _Watch(workers, name, timeout)
    watch.start()
    try:
        while True:
            watch.since = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                with undisturbed(forget=True):
                    reason = _failed(error, watch)
                if reason is error:
                    raise
                raise reason from error
            watch.since = None
            yield batch
    finally:
        watch.done.set()


def _failed(error: Exception, watch: "_Watch") -> Exception:
    """The error that says why there is no batch, after the end of all workers."""
    workers = watch.workers
    if workers and isinstance(error, (EOFError, ConnectionError)):  # a worker is ending
        ended = wait([worker.sentinel for worker in workers], _ENDING)
        for worker in workers:
            if worker.sentinel in ended:
                worker.join()  # its files are closed before it has an exit code
    without_handles = any(worker.exitcode == _NO_HANDLES for worker in workers)
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
    if watch.expired:  # with torch's message
        return RuntimeError(f"DataLoader timed out after {watch.timeout:g} seconds")
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE)) if without_handles else error


def end_without_handles(worker: int) -> None:
    """Make a worker process exit when it has no file handle left to send a batch.

    Otherwise Python prints the error again and again, and the batch never arrives. For
    `DataLoader.worker_init_fn`.

    Args:
        worker: index of the worker.
    """

    def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            os._exit(_NO_HANDLES)
        sys.__excepthook__(kind, error, trace)

    def not_sent(error: Exception, batch: Any) -> None:
        told(type(error), error, error.__traceback__)

    sys.excepthook = told
    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(not_sent)


class _Watch(threading.Thread):
    def __init__(self, workers: list[Any], name: str, timeout: float) -> None:
        super().__init__(name=f"watch of {name}", daemon=True)
        self.since: float | None = None
        self.expired = False
        self.done = threading.Event()
        self.workers = workers
        self.timeout = timeout if workers else 0.0
        self._loader = name

    def run(self) -> None:
        told = False
        while not self.done.wait(_LOOK):
            since = self.since
            waited = 0.0 if since is None else time.monotonic() - since
            if waited > _LONG and not told:
                told = True
                _logger.warning(
                    "%s has given no batch for %.0f s: are its pictures on a slow disk?",
                    self._loader,
                    _LONG,
                )
            if 0 < self.timeout < waited:
                self.expired = True
                for worker in self.workers:
                    worker.kill()
                return
