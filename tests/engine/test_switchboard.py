"""Of all that processes report within a second, one thing is what the run ended of."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sparsedet.engine.switchboard import Line, Switchboard, dial

CODES = {"no space left": 3, "diverged": 1}


def _fault(sentence: str, *, follows: bool = False) -> dict[str, Any]:
    code = CODES.get(sentence, 3)
    return dict(kind="fault", sentence=sentence, code=code, traceback="there", follows=follows)


BROKEN = _fault("connection closed by peer", follows=True)
LEFT, GONE = dict(kind="left"), None


def _connected(board: Switchboard, count: int) -> list[Line]:
    """Lines of all processes, which know that all are here."""
    lines = []
    for rank in range(count):
        line = dial(["127.0.0.1"], board.port)
        assert line is not None
        line.send(dict(token=board.token, rank=rank, host=f"host{rank}"))
        lines.append(line)
    for line in lines:
        assert line.receive() == [{"kind": "all here"}]
    return lines


@pytest.mark.parametrize(
    ("events", "sentence", "code"),
    [
        # what followed from another fault is no cause, though it came first
        ([(0, BROKEN), (1, _fault("diverged"))], "process 1 on host1 failed: diverged", 1),
        # of two causes the first one counts
        ([(1, _fault("diverged")), (0, _fault("no space left"))], "process 1 on host1 failed: ", 1),
        # nothing but consequences: the first
        ([(0, BROKEN), (1, BROKEN)], "process 0 on host0 failed: connection closed by peer", 3),
        # where all fail alike nobody is named
        ([(rank, _fault("no space left")) for rank in (2, 0, 1)], "no space left", 3),
        ([(0, _fault("no space left")), (1, _fault("no space left"))], "process 0 on host0", 3),
        ([(0, _fault("a")), (1, _fault("b")), (2, _fault("a"))], "process 0 on host0 failed: a", 3),
        # who left in peace may go; who did not is dead
        ([(0, LEFT), (0, GONE), (1, GONE)], "process 1 on host1 ended without a message", 3),
        # who has said what befell it may go, too
        ([(1, _fault("diverged")), (1, GONE)], "process 1 on host1 failed: diverged", 1),
    ],
)
def test_what_a_run_ended_of(
    events: list[tuple[int, dict[str, Any] | None]], sentence: str, code: int
) -> None:
    board = Switchboard(3, patience=30)
    board.start()
    lines = _connected(board, 3)
    for rank, message in events:
        if message is None:
            lines[rank].close()
        else:
            lines[rank].send(message)
        time.sleep(0.15)  # they come over different lines
    (verdict,) = lines[2].receive() or [{}]
    for line in lines:
        line.close()
    board.join(10)
    assert not board.is_alive()
    assert (verdict["kind"], verdict["code"]) == ("verdict", code)
    assert verdict["sentence"].startswith(sentence)


def test_a_stop_is_passed_on_to_all_others() -> None:
    board = Switchboard(3, patience=30)
    board.start()
    lines = _connected(board, 3)
    lines[1].send(dict(kind="stop", number=10))
    for rank in (0, 2):
        assert lines[rank].receive() == [dict(kind="stop", number=10)]
    lines[1].connection.settimeout(0.3)
    assert lines[1].receive() == []  # it knows
    for line in lines:
        line.send(LEFT)
    board.join(10)
    assert not board.is_alive()
    for line in lines:
        line.close()
