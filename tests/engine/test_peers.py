"""What befalls one of several processes is named by all, and none waits for it."""

from __future__ import annotations

import os
import socket
import time
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist

from sparsedet.engine import peers
from sparsedet.engine.faults import Fault
from sparsedet.engine.launch import launch
from sparsedet.engine.switchboard import Switchboard, dial
from tests.engine import faulty

HERE = f"on {socket.gethostname()}"
MISSING = "FileNotFoundError: pictures/0017.jpg is not there ("
KILLED = "parent: process 1 was killed by SIGKILL"
GONE = f"{HERE} ended without a message"


pytestmark = pytest.mark.usefixtures("quick_processes")


def _run(folder: Path, kind: str, place: str) -> tuple[int, list[str]]:
    """Exit code and what was said; nothing is left running, and not for long."""
    args, say = (str(folder), kind, place), partial(faulty.say, str(folder))
    code = launch(faulty.work, args, num_processes=2, device_type="cpu", say=say)
    assert time.time() - float((folder / "fault").read_text()) < 30
    for rank in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((folder / f"pid-{rank}").read_text()), 0)
    said = folder / "said.txt"
    return code, said.read_text().splitlines() if said.exists() else []


@pytest.mark.parametrize(
    ("kind", "place", "code", "says"),
    [
        ("none", "together", 0, []),
        ("raise", "together", 3, [f"0: process 1 {HERE} failed: {MISSING}"]),
        ("raise", "apart", 3, [f"0: process 1 {HERE} failed: {MISSING}"]),
        ("raise", "main", 3, [f"0: process 0 {HERE} failed: {MISSING}"]),
        ("raise", "alike", 3, [f"0: {MISSING}"]),
        pytest.param(
            "return 2", "apart", 2, [f"0: process 1 {HERE} failed: it ended with exit code 2."],
            marks=pytest.mark.slow,
        ),
        ("kill", "together", 137, [f"0: process 1 {GONE}", KILLED]),
        ("kill", "apart", 137, [f"0: process 1 {GONE}", KILLED]),
        ("kill", "main", 137, [f"1: process 0 {GONE}", "parent: process 0 was killed by SIGKILL"]),
        ("crash", "apart", 139, [f"0: process 1 {GONE}", KILLED.replace("KILL", "SEGV")]),
        ("exit 0", "together", 3, [f"0: process 1 {GONE}"]),
        pytest.param("exit 7", "apart", 7, [f"0: process 1 {GONE}"], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_faults(tmp_path: Path, kind: str, place: str, code: int, says: list[str]) -> None:
    found, said = _run(tmp_path, kind, place)
    assert found == code, said
    assert len(said) == len(says), said
    for line, begin in zip(said, says, strict=True):
        assert line.startswith(begin)


class Told:
    """A line to the others, over which one of them has said what it ended of."""

    def announce(self, fault: Fault, text: str, *, follows: bool) -> None:
        pass

    def wait(self) -> Fault:
        return Fault("process 1 on node1 failed: KeyError.", 3)


@pytest.mark.parametrize("error", [ConnectionError("gloo"), ValueError("another fault")])
def test_what_is_kept_is_told_by_the_process_that_knows(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a fault of another process; its own has it in the sentence."""
    said: list[str] = []
    monkeypatch.setattr(peers, "_current", Told())
    assert peers.conclude(error, said.append, kept="Iteration 8 is saved.") == 3
    assert said == []
    assert ("Iteration 8 is saved." in caplog.messages) == isinstance(error, ConnectionError)


def test_a_file_that_is_being_written_is_finished_first(tmp_path: Path) -> None:
    """The process that writes is ended by what befell the other one, and not before."""
    code = launch(faulty.write_slowly, (str(tmp_path),), num_processes=2, device_type="cpu")
    assert code == 3
    assert (tmp_path / "file").read_text() == "whole"


@pytest.mark.parametrize(
    ("error", "follows"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:9"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (dist.DistBackendError("timed out"), True),
        (ConnectionResetError("reset by peer"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (FileNotFoundError("a.jpg"), False),
    ],
)
def test_a_broken_connection_may_follow_from_another_fault(
    monkeypatch: pytest.MonkeyPatch, error: Exception, follows: bool
) -> None:
    told: list[bool] = []

    class Others:
        def announce(self, fault: Fault, text: str, *, follows: bool) -> None:
            told.append(follows)

        def wait(self) -> Fault:
            return Fault("process 1 on host1 failed: full disk", 3)

    monkeypatch.setattr(peers, "_current", Others())
    said: list[str] = []
    assert peers.conclude(error, said.append) == 3
    assert told == [follows]
    assert said == []  # the thread that hears what the run ended of says it


def test_processes_that_do_not_come() -> None:
    board = Switchboard(3, patience=0.5)
    board.start()
    lines = [dial(["127.0.0.1"], board.port) for _ in range(2)]
    for rank, line in zip((0, 2), lines, strict=True):
        assert line is not None
        line.send(dict(token=board.token, rank=rank, host="here"))
    assert lines[1] is not None
    (verdict,) = lines[1].receive() or [None]
    for line in lines:
        assert line is not None
        line.close()
    assert verdict is not None and verdict["code"] == 2
    assert "2 of 3 processes connected within 0.5 seconds; missing: 1." in verdict["sentence"]


def test_strangers_are_not_heard() -> None:
    board = Switchboard(1, patience=30)
    board.start()
    stranger = dial(["127.0.0.1"], board.port)
    assert stranger is not None
    stranger.connection.sendall(b"GET / HTTP/1.1\n\n")
    assert stranger.receive() is None
    stranger.close()
    stranger = dial(["127.0.0.1"], board.port)
    assert stranger is not None
    stranger.send(dict(token="guess", rank=0, host="there"))
    stranger.send(dict(kind="left"))
    stranger.close()
    line = dial(["127.0.0.1"], board.port)
    assert line is not None
    line.send(dict(token=board.token, rank=0, host="here"))
    assert line.receive() == [{"kind": "all here"}]
    line.send(dict(kind="left"))
    board.join(10)
    assert not board.is_alive()
    line.close()
