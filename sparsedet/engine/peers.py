"""Faults among the processes of a run: what befalls one is named by all, and none waits for it.

Collectives do not tell: over gloo they say "Connection closed by peer" in place of the cause, over
NCCL they wait. So every process also holds a line to a switchboard (`sparsedet.engine.switchboard`)
and has a thread that listens to it.
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
# seconds that a process has to end by itself once it knows what the run ended of
_LEAVING = 5.0
# seconds that a checkpoint may take meanwhile
_WRITING = 60.0
# seconds that a process waits to hear what its run ended of
_PATIENCE = 15.0
_MAX_TRACEBACK = 20_000
_current: _Peers | None = None
_writing = threading.Lock()


@dataclass(frozen=True)
class Place:
    """Where a process stands in its run.

    Attributes:
        rank: its index among all.
        local_rank: its index on its machine.
        world_size: number of processes.
        store: of the process group, where all processes meet.
        master: name and port of the machine that holds the store.
        join_seconds: within which all processes must have come.
    """

    rank: int
    local_rank: int
    world_size: int
    store: Store
    master: tuple[str, int]
    join_seconds: float


def among_peers(place: Place, body: Callable[[], int], say: Callable[[str], None]) -> int:
    """Meet the other processes and call `body`; what ends one of them ends this one too.

    Args:
        place: of this process.
        body: returns an exit code; has called `conclude` where it failed.
        say: tells a person a sentence; called on the first process of each machine.

    Returns:
        The exit code of `body`: 0, or 128 + n after signal n. With the code of a fault the process
        ends here, and leaves out what Python does at the end, which may take long or hang.
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
    """A signal came while nothing was there to take it: before the training, or in `eval`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _listen_early() -> None:
    """End of a signal in an orderly way: the others are told then. Training listens by itself."""

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a worker process: its parent ends it
            return
        if _current is None or _current.is_leaving:  # it ends anyway
            return
        for each in taken:  # once: others send it too
            signal.signal(each, lambda number, frame: None)
        raise _Stopped(number)

    owner = os.getpid()
    taken = [number for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)


def _let_go_of_signals() -> None:
    """Pass on no more of them; worker processes, which inherit the way to do so, never do."""
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
    """Say what this process ends of, and log it with the traceback; gives the exit code.

    Among several the processes agree on the fault that came first. The first process of each
    machine says it, the first of all logs it.

    Args:
        error: What was raised here.
        say: Tells a person a sentence.
        otherwise: See `sparsedet.engine.faults.explain`.
        kept: What is said in addition; logged where another process failed.
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
    if follows and kept:  # the process that failed did not know
        logger.warning("%s", kept)
    return found.code


def fresh_store(store: Store) -> Store:
    """A part of a store that holds nothing yet, the same on all processes.

    torchrun keeps the store when it starts the processes again, with the addresses of those before.

    Args:
        store: where the processes have met.
    """
    return PrefixStore(f"sparsedet/{_current.token if _current is not None else ''}", store)


@contextmanager
def unhurried() -> Iterator[None]:
    """A block, such as the writing of a file, that the end of another process does not cut off."""
    with _writing:
        yield


def is_broken_connection(error: BaseException) -> bool:
    """Whether an error may come from another process that is gone: then that one is the cause."""
    return isinstance(error, (dist.DistError, ConnectionError)) or (
        isinstance(error, RuntimeError)
        and any(word in str(error).lower() for word in ("gloo", "nccl", "connection closed"))
    )


def _cut_off(error: BaseException) -> Fault:
    """What is said where no process tells what happened to it."""
    if isinstance(error, ConnectionError):
        return explain(error)
    text = " ".join(str(error).split())[:200]
    if "timed out" in text.lower() or "timeout" in text.lower():
        what = "the other processes did not answer, so one of them may hang"
    else:
        what = "the connection to the other processes broke"
    return Fault(f"{what} ({text}). Add --resume to continue.", BROKEN_OFF)


class _Elsewhere(Exception):
    """Another process's error, whose traceback is for the log."""

    def __str__(self) -> str:
        return f"there:\n{self.args[0]}"


class _Peers:
    """This process's line to the others, and the thread that listens to it."""

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
        """Open the line and wait until all processes have; whether they did."""
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
        # the switchboard knows who is missing, and is the first to say so
        return self._met.wait(place.join_seconds + _PATIENCE) and self._fault is None

    def _dial(self) -> Line:
        latest = time.monotonic() + self._place.join_seconds
        while True:  # after a restart the store may still hold the facts of the run before
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
                    f"at {' or '.join(hosts)}, port {port}. Let the machines reach each other on "
                    "all ports."
                )
            time.sleep(0.5)

    def announce(self, fault: Fault, text: str, *, follows: bool) -> None:
        """Tell what befell this process, with the traceback, once."""
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
        """What the run ended of; None if nobody answers."""
        if self._line is not None:
            self._known.wait(_PATIENCE)
        return self._fault

    def settle(self, code: int) -> int:
        """The exit code of a process that failed, whether it has said so or not."""
        self.announce(Fault(f"it ended with exit code {code}.", code), "", follows=False)
        fault = self.wait()
        return code if fault is None else fault.code

    def leave(self) -> None:
        """Close the line."""
        self.is_leaving = True
        _let_go_of_signals()
        self._sender.close()
        if self._line is not None and not (self._announced or self._known.is_set()):
            self._line.send(dict(kind="left"))
        if self._board is not None:  # the others' lines end with this process
            self._board.join(_PATIENCE)
        if self._line is not None:
            self._line.close()

    # --- the threads ----------------------------------------------------------------------------

    def _pass_on_signals(self) -> None:
        """Tell the others what asks this process to stop, once: they pass it on too.

        Python calls handlers when a collective is over, and that may wait for who does not know.
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
            # as if the signal had come here; a second SIGINT would mean "at once"
            number = message["number"]
            _thread.interrupt_main(signal.SIGTERM if number == signal.SIGINT else number)
        elif message["kind"] == "verdict":
            fault = Fault(message["sentence"], message["code"])
            self._end(message["rank"], fault, message["traceback"], gone=message["gone"])

    def _end(self, rank: int, fault: Fault, text: str = "", *, gone: bool) -> None:
        """Say what the run ended of; end this process if it does not do so by itself."""
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
