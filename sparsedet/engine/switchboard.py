"""The switchboard of a run with several processes: it collects faults and ends the whole run.

It is a thread of process 0. Every process holds a connection to it. The operating system closes
this connection when the process dies for any reason, even while its Python code is blocked. TCP
keepalive probes detect a machine that is gone.
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

# faults with the same message within this many seconds are reported once
_ALIKE = 1.0
_SEND_TIMEOUT = 2.0
_DIAL_TIMEOUT = 3.0
# seconds until a silent machine is probed, seconds between probes, and probes that may be lost
_PROBES = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


def lost(rank: int, host: str) -> Fault:
    """The fault of a process that ended or became unreachable without a message."""
    return Fault(
        f"process {rank} on {host} ended without a message: it was killed (usually because memory "
        "ran out), it crashed in compiled code, or its machine cannot be reached. Check the system "
        f"log of {host}, and add --resume to continue.",
        BROKEN_OFF,
    )


class Line:
    """A connection that carries messages: one dict as JSON per line.

    Args:
        connection: a connected socket; closed by `close`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._begun = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; it is dropped if the other process is gone."""
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Wait for bytes and return the complete messages; None when the connection is closed."""
        try:
            received = self.connection.recv(65536)
        except TimeoutError:
            return []
        except OSError:
            return None
        *whole, self._begun = (self._begun + received).split(b"\n")
        try:
            return [json.loads(text) for text in whole] if received else None
        except ValueError:  # not one of our processes
            return None

    def close(self) -> None:
        """Close the connection; a thread that waits in `receive` returns."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def addresses(master: str, port: int) -> list[str]:
    """Names by which other processes may reach this machine, the most likely first.

    Args:
        master: name of the machine that holds the store.
        port: port of the store.
    """
    found = []
    with suppress(OSError):
        family, kind, _, _, there = socket.getaddrinfo(master, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(there)  # sends nothing; it only selects the local address
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
    """Connect to the switchboard; None if no name reaches it."""
    for host in hosts:
        with suppress(OSError):
            connection = socket.create_connection((host, port), timeout=_DIAL_TIMEOUT)
            connection.settimeout(None)
            return Line(connection)
    return None


class _Report(NamedTuple):
    """The fault of a process.

    Attributes:
        rank: of the process.
        fault: the sentence and the exit code.
        traceback: for the log.
        follows: whether a fault in another process may have caused it.
        named: whether the sentence already names the process.
    """

    rank: int
    fault: Fault
    traceback: str = ""
    follows: bool = False
    named: bool = False


class Switchboard(threading.Thread):
    """Listens to all processes; when one fails, chooses the fault to report and tells all.

    Args:
        world_size: Number of processes.
        patience: Seconds within which all processes must connect.
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
        """The port on which it listens."""
        return self._server.getsockname()[1]

    def run(self) -> None:
        """Listen until every process has left normally, or a verdict was sent."""
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

    # --- messages received ----------------------------------------------------------------------

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._server.accept()
            connection.settimeout(_SEND_TIMEOUT)
            line, ranks = Line(connection), []
            self._selector.register(
                connection, selectors.EVENT_READ, lambda: self._hear(line, ranks)
            )

    def _hear(self, line: Line, ranks: list[int]) -> None:
        """Handle what came over a line; `ranks` holds its process, once that is known."""
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

    # --- messages sent --------------------------------------------------------------------------

    def _all_told(self) -> bool:
        return len({report.rank for report in self._reports} | self._left) >= self._world_size

    def _verdict(self) -> _Report:
        """The first fault that no other process caused."""
        own = [report for report in self._reports if not report.follows]
        first = (own or self._reports)[0]
        alike = len(own) == self._world_size and {r.fault for r in own} == {first.fault}
        if first.named or alike:  # if all failed in the same way, no process need be named
            return first
        where = f"process {first.rank} on {self._hosts[first.rank]}"
        return first._replace(
            fault=Fault(f"{where} failed: {first.fault.sentence}", first.fault.code)
        )

    def _tell(self, report: _Report) -> None:
        for rank in sorted(self._lines, reverse=True):  # process 0 last: it may end immediately
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
