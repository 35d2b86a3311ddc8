"""The switchboard of a run with several processes: who is there, what befell one, what ends all.

It is a thread of process 0. Every process holds a connection to it, which the operating system
closes when the process dies, however that happens and whatever its Python is doing; a machine that
is gone is noticed by the probes of TCP.
"""

from __future__ import annotations

import json
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from sparsedet.engine.faults import BROKEN_OFF, REFUSED, Fault

__all__ = ["Line", "Switchboard", "addresses", "dial", "lost"]

# processes that fail within so many seconds and with the same words say it once, for all
_ALIKE = 1.0
_SEND_TIMEOUT = 2.0
_DIAL_TIMEOUT = 3.0
# seconds until a silent machine is probed, between probes, and how many may get lost
_PROBES = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


def lost(rank: int, host: str) -> Fault:
    """What is said of a process that ended, or cannot be reached, without having said why."""
    return Fault(
        f"process {rank} on {host} ended without a message: it was killed (usually because memory "
        "ran out), it crashed in compiled code, or its machine cannot be reached. Check the system "
        f"log of {host}, and add --resume to continue.",
        BROKEN_OFF,
    )


class Line:
    """A connection that carries messages: dicts, as JSON, one in each line of text.

    Args:
        connection: connected; closed by `close`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._begun = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; one to a process that is gone is dropped."""
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that are there, after waiting for the first bytes; None at the end."""
        try:
            received = self.connection.recv(65536)
        except TimeoutError:
            return []
        except OSError:
            return None
        *whole, self._begun = (self._begun + received).split(b"\n")
        try:
            return [json.loads(text) for text in whole] if received else None
        except ValueError:  # a stranger who found the port
            return None

    def close(self) -> None:
        """End the connection, also for a thread that waits in `receive`."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def addresses(master: str, port: int) -> list[str]:
    """By which names the other processes may reach this machine, the likeliest first.

    Args:
        master: name of the machine where all processes met.
        port: of their meeting.
    """
    found = []
    with suppress(OSError):
        family, kind, _, _, there = socket.getaddrinfo(master, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(there)  # sends nothing: asks which way leads there
            found.append(probe.getsockname()[0])
    found += [socket.gethostname(), socket.getfqdn()]
    return list(dict.fromkeys(found))


def _listen(backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
        )
    return socket.create_server(("", 0), backlog=backlog)


def dial(hosts: Sequence[str], port: int) -> Line | None:
    """A line to the switchboard; None where it cannot be reached by any of its names."""
    for host in hosts:
        with suppress(OSError):
            connection = socket.create_connection((host, port), timeout=_DIAL_TIMEOUT)
            connection.settimeout(None)
            return Line(connection)
    return None


class _Report(NamedTuple):
    """What befell a process; `follows`: perhaps because of another; `named`: it says whom."""

    rank: int
    fault: Fault
    traceback: str = ""
    follows: bool = False
    named: bool = False


class Switchboard(threading.Thread):
    """Hears all processes; when one fails, decides what the run ended of and tells all.

    Args:
        world_size: Number of processes.
        patience: Seconds within which all must have come.
    """

    def __init__(self, world_size: int, patience: float) -> None:
        super().__init__(name="switchboard", daemon=True)
        self.token = secrets.token_hex(16)
        self._world_size = world_size
        self._patience = patience
        self._server = _listen(world_size)
        self._selector = selectors.DefaultSelector()
        self._lines: dict[int, Line] = {}
        self._hosts: dict[int, str] = {}
        self._left: set[int] = set()
        self._reports: list[_Report] = []
        self._all_here = False
        self._due: float | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.getsockname()[1]

    def run(self) -> None:
        """Listen until every process has left in peace, or the end is decided and told."""
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        latest = time.monotonic() + self._patience
        with self._server, self._selector:
            while len(self._left) < self._world_size:
                for key, _ in self._selector.select(0.1):
                    hear: Callable[[], None] = key.data
                    hear()
                now = time.monotonic()
                if not (self._all_here or self._reports) and now > latest:
                    self._miss()
                if self._due is not None and (now > self._due or self._all_told()):
                    self._tell(self._verdict())
                    return

    # --- what it hears --------------------------------------------------------------------------

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._server.accept()
            connection.settimeout(_SEND_TIMEOUT)
            line, ranks = Line(connection), []
            self._selector.register(
                connection, selectors.EVENT_READ, lambda: self._hear(line, ranks)
            )

    def _hear(self, line: Line, ranks: list[int]) -> None:
        """Take what came over a line; `ranks` holds whose it is, once that is known."""
        messages = line.receive()
        if messages is None:
            self._selector.unregister(line.connection)
            line.connection.close()
            for rank in ranks:
                self._end(rank)
            return
        for message in messages:
            if not ranks and message.get("token") == self.token:
                ranks.append(message["rank"])
                self._welcome(line, message["rank"], message["host"])
            elif ranks:
                self._take(ranks[0], message)

    def _welcome(self, line: Line, rank: int, host: str) -> None:
        self._lines[rank], self._hosts[rank] = line, host
        if len(self._lines) == self._world_size:
            self._all_here = True
            for each in self._lines.values():
                each.send(dict(kind="all here"))

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        if message["kind"] == "left":
            self._left.add(rank)
        elif message["kind"] == "stop":
            for other, line in self._lines.items():
                if other != rank:
                    line.send(dict(kind="stop", number=message["number"]))
        elif message["kind"] == "fault":
            fault = Fault(message["sentence"], message["code"])
            self._note(_Report(rank, fault, message["traceback"], message["follows"]), _ALIKE)

    def _end(self, rank: int) -> None:
        del self._lines[rank]
        if rank not in self._left and all(report.rank != rank for report in self._reports):
            self._note(_Report(rank, lost(rank, self._hosts[rank]), named=True), 0.0)

    def _miss(self) -> None:
        absent = sorted(set(range(self._world_size)) - self._lines.keys())
        text = (
            f"{len(self._lines)} of {self._world_size} processes connected within "
            f"{self._patience:g} seconds; missing: {', '.join(map(str, absent))}. Check the output "
            "of their machines, and whether they can connect to this one."
        )
        self._note(_Report(0, Fault(text, REFUSED), named=True), 0.0)

    def _note(self, report: _Report, seconds: float) -> None:
        self._reports.append(report)
        due = time.monotonic() + seconds
        self._due = due if self._due is None else min(self._due, due)

    # --- what it says ---------------------------------------------------------------------------

    def _all_told(self) -> bool:
        return len({report.rank for report in self._reports} | self._left) >= self._world_size

    def _verdict(self) -> _Report:
        """The first fault that did not follow from another one."""
        own = [report for report in self._reports if not report.follows]
        first = (own or self._reports)[0]
        alike = len(own) == self._world_size and {r.fault for r in own} == {first.fault}
        if first.named or alike:  # where all failed alike nobody has to be named
            return first
        where = f"process {first.rank} on {self._hosts[first.rank]}"
        return first._replace(
            fault=Fault(f"{where} failed: {first.fault.sentence}", first.fault.code)
        )

    def _tell(self, report: _Report) -> None:
        for rank in sorted(self._lines, reverse=True):  # its own process last: it may end at once
            self._lines[rank].send(
                dict(
                    kind="verdict",
                    rank=report.rank,
                    sentence=report.fault.sentence,
                    code=report.fault.code,
                    traceback=report.traceback,
                    gone=report.rank not in self._lines,
                )
            )
