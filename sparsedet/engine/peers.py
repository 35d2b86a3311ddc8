"""Faults among the processes of a run: when one process fails, all report its fault and end.

Collectives do not report the cause: gloo says only "Connection closed by peer", and NCCL waits. So
every process also has a connection to a switchboard (`sparsedet.engine.switchboard`) and a thread
that listens to it.
"""

from __future__ import annotations

import _thread
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from sparsedet.engine.faults import BROKEN_OFF, Fault, explain, report
from sparsedet.engine.signals import STOP_SIGNALS
from sparsedet.engine.switchboard import Line, Switchboard, addresses, dial, lost

__all__ = ["Place", "among_peers", "conclude", "fresh_store", "is_broken_connection", "unhurried"]

logger = logging.getLogger(__name__)

_KEY = "sparsedet/switchboard"
# seconds that a process has to end by itself once it knows the fault that ended the run
_LEAVING = 5.0
# seconds that writing a checkpoint may delay this
_WRITING = 60.0
# seconds that a process waits to be told the fault that ended the run
_PATIENCE = 15.0
_MAX_TRACEBACK = 20_000
_current: _Peers | None = None
_writing = threading.Lock()


@dataclass(frozen=True)
class Place:
    """The place of a process in its run.

    Attributes:
        rank: index among all processes.
        local_rank: index among the processes of its machine.
        world_size: number of processes.
        store: store of the process group, to which all processes connect.
        master: name and port of the machine that holds the store.
        join_seconds: seconds within which all processes must connect.
    """

    rank: int
    local_rank: int
    world_size: int
    store: Store
    master: tuple[str, int]
    join_seconds: float


def among_peers(place: Place, body: Callable[[], int], say: Callable[[str], None]) -> int:
    """Connect to the other processes and call `body`; a fault in any process ends this one too.

    Args:
        place: the place of this process.
        body: returns an exit code; it must have called `conclude` if it failed.
        say: prints a sentence for the user; called on the first process of each machine.

    Returns:
        The exit code of `body`: 0, or 128 + n after signal n. After a fault this does not return:
        the process exits immediately, without Python's cleanup, which may take long or hang.
    """
    if place.world_size == 1:
        return body()
    code = _meet_and_call(place, body, say)
    if code != 0 and code <= 128:
        _quit(code)
    return code


def _meet_and_call(place: Place, body: Callable[[], int], say: Callable[[str], None]) -> int:
    global _current
    _current = peers = _Peers(place, say)
    try:
        if not peers.meet():
            return conclude(ConnectionError("the other processes did not connect"), say)
        code = body()
        return code if code == 0 or code > 128 else peers.settle(code)
    except KeyboardInterrupt:
        peers.announce(Fault("interrupted.", 128 + signal.SIGINT), "", follows=False)
        return 128 + signal.SIGINT
    except _Stopped as stopped:
        name = signal.Signals(stopped.number).name
        peers.announce(Fault(f"stopped by {name}.", 128 + stopped.number), "", follows=False)
        return 128 + stopped.number
    except Exception as error:
        return conclude(error, say)
    finally:
        peers.leave()
        _current = None


def _quit(code: int) -> None:
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Stopped(BaseException):
    """A stop signal arrived while no hook handled it: before training, or in `eval`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _listen_early() -> None:
    """Raise `_Stopped` on a stop signal, so that the other processes are told.

    During training, `StopHook` handles the signals instead.
    """

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a worker process: its parent ends it
            return
        if _current is None or _current.is_leaving:  # it ends anyway
            return
        for each in taken:  # only once: the other processes forward the signal too
            signal.signal(each, lambda number, frame: None)
        raise _Stopped(number)

    owner = os.getpid()
    taken = [number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)


def _let_go_of_signals() -> None:
    """Stop forwarding signals; called at the end, and in forked workers, which inherit it."""
    if _current is not None and threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_signals)


def conclude(
    error: BaseException,
    say: Callable[[str], None],
    *,
    otherwise: int = BROKEN_OFF,
    kept: str = "",
) -> int:
    """Report and log the error that ends this process; return the exit code.

    With several processes, all agree on the fault that came first. The first process of each
    machine prints it, and process 0 logs it with the traceback.

    Args:
        error: What was raised in this process.
        say: Prints a sentence for the user.
        otherwise: See `sparsedet.engine.faults.explain`.
        kept: An additional sentence; it is logged if another process failed.
    """
    follows = _current is not None and is_broken_connection(error)
    fault = _cut_off(error) if follows else report(error, otherwise=otherwise, kept=kept)
    found = None
    if _current is not None:
        text = "".join(traceback.format_exception(error))[-_MAX_TRACEBACK:]
        _current.announce(fault, text, follows=follows)
        found = _current.wait()
    if found is None:
        say(fault.sentence)
        return fault.code
    if follows and kept:  # the failed process did not know this
        logger.warning("%s", kept)
    return found.code


def fresh_store(store: Store) -> Store:
    """An empty part of a store, the same on all processes.

    When torchrun restarts the processes it keeps the store, which still has the old addresses.

    Args:
        store: the store to which the processes are connected.
    """
    return PrefixStore(f"sparsedet/{_current.token if _current is not None else ''}", store)


@contextmanager
def unhurried() -> Iterator[None]:
    """A block, such as writing a file, that a fault in another process does not interrupt."""
    with _writing:
        yield


def is_broken_connection(error: BaseException) -> bool:
    """Whether an error may be due to another process that is gone, which is then the cause."""
    return isinstance(error, (dist.DistError, ConnectionError)) or (
        isinstance(error, RuntimeError)
        and any(word in str(error).lower() for word in ("gloo", "nccl", "connection closed"))
    )


def _cut_off(error: BaseException) -> Fault:
    """The fault to report if no process says what happened to it."""
    if isinstance(error, ConnectionError):
        return explain(error)
    text = " ".join(str(error).split())[:200]
    if "timed out" in text.lower() or "timeout" in text.lower():
        what = "the other processes did not answer, so one of them may hang"
    else:
        what = "the connection to the other processes broke"
    return Fault(f"{what} ({text}). Add --resume to continue.", BROKEN_OFF)


class _Elsewhere(Exception):
    """The error of another process; its traceback is for the log."""

    def __str__(self) -> str:
        return f"in that process:\n{self.args[0]}"


class _Peers:
    """The connection of this process to the switchboard, and the thread that listens to it."""

    def __init__(self, place: Place, say: Callable[[str], None]) -> None:
        self._place = place
        self._say = say
        self._met = threading.Event()
        self._known = threading.Event()
        self._fault: Fault | None = None
        self._announced: Fault | None = None
        self.is_leaving = False
        self._board: Switchboard | None = None
        self._first_host = socket.gethostname()
        self.token = ""
        self._line: Line | None = None
        self._signals, sender = socket.socketpair()
        sender.setblocking(False)
        self._sender = sender

    def meet(self) -> bool:
        """Connect and wait for all other processes; return whether they all connected."""
        place = self._place
        if place.rank == 0:
            self._board = Switchboard(place.world_size, place.join_seconds)
            self._board.start()
            hosts = addresses(*place.master)
            facts = [hosts, self._board.port, self._board.token, self._first_host]
            place.store.set(_KEY, json.dumps(facts))
        self._line = self._dial()
        threading.Thread(target=self._listen, name="peers", daemon=True).start()
        threading.Thread(target=self._pass_on_signals, name="signals", daemon=True).start()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
            _listen_early()
        # the switchboard knows which process is missing and reports it first
        return self._met.wait(place.join_seconds + _PATIENCE) and self._fault is None

    def _dial(self) -> Line:
        latest = time.monotonic() + self._place.join_seconds
        while True:  # after a restart the store may still hold the address of the previous run
            facts = json.loads(self._place.store.get(_KEY))
            hosts, port, self.token, self._first_host = facts
            own = ["127.0.0.1"] if socket.gethostname() == self._first_host else []
            line = dial(own + hosts, port)
            if line is not None:
                line.send(dict(token=self.token, rank=self._place.rank, host=socket.gethostname()))
                return line
            if time.monotonic() > latest:
                raise ConnectionError(
                    f"process {self._place.rank} on {socket.gethostname()} cannot reach process 0 "
                    f"at {' or '.join(hosts)}, port {port}. Allow connections between the machines "
                    "on all ports."
                )
            time.sleep(0.5)

    def announce(self, fault: Fault, text: str, *, follows: bool) -> None:
        """Send the fault of this process, with its traceback, at most once."""
        if self._line is None or self._announced or self._known.is_set():
            return
        self._announced = fault
        self._line.send(
            dict(
                kind="fault",
                sentence=fault.sentence,
                code=fault.code,
                traceback=text,
                follows=follows,
            )
        )

    def wait(self) -> Fault | None:
        """Wait for the fault that ended the run; None if the switchboard does not answer."""
        if self._line is not None:
            self._known.wait(_PATIENCE)
        return self._fault

    def settle(self, code: int) -> int:
        """The exit code of a process that failed; announces the fault if it has not been."""
        self.announce(Fault(f"it ended with exit code {code}.", code), "", follows=False)
        fault = self.wait()
        return code if fault is None else fault.code

    def leave(self) -> None:
        """Close the connection."""
        self.is_leaving = True
        _let_go_of_signals()
        self._sender.close()
        if self._line is not None and not (self._announced or self._known.is_set()):
            self._line.send(dict(kind="left"))
        if self._board is not None:  # the other processes are connected to this one
            self._board.join(_PATIENCE)
        if self._line is not None:
            self._line.close()

    # --- the threads ----------------------------------------------------------------------------

    def _pass_on_signals(self) -> None:
        """Forward the first stop signal to the other processes.

        Python runs signal handlers only after a collective ends, and the collective may wait for a
        process that has not received the signal.
        """
        assert self._line is not None
        told = False
        while numbers := self._signals.recv(64):
            for number in numbers:
                if number in STOP_SIGNALS and not told:
                    self._line.send(dict(kind="stop", number=number))
                    told = True

    def _listen(self) -> None:
        assert self._line is not None
        while self._fault is None:
            messages = self._line.receive()
            if messages is None:
                if not self.is_leaving:
                    self._end(0, lost(0, self._first_host), gone=True)
                return
            for message in messages:
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if message["kind"] == "all here":
            self._met.set()
        elif message["kind"] == "stop":
            # handled like a signal to this process; SIGTERM, since a second SIGINT ends immediately
            number = message["number"]
            _thread.interrupt_main(signal.SIGTERM if number == signal.SIGINT else number)
        elif message["kind"] == "verdict":
            fault = Fault(message["sentence"], message["code"])
            self._end(message["rank"], fault, message["traceback"], gone=message["gone"])

    def _end(self, rank: int, fault: Fault, text: str = "", *, gone: bool) -> None:
        """Report the fault that ended the run; exit if this process does not end by itself."""
        self._fault = fault
        first_here = self._place.rank - self._place.local_rank
        speaks = 1 if gone and rank == first_here else 0
        if self._place.rank == 0 and rank != 0 and self._announced != fault:
            logger.error("%s", fault.sentence, exc_info=_Elsewhere(text or "no traceback"))
        if self._place.local_rank == speaks:
            self._say(fault.sentence)
        self._known.set()
        self._met.set()
        time.sleep(_LEAVING)
        _writing.acquire(timeout=_WRITING)
        _quit(fault.code)
