"""What ended a run, in one sentence and an exit code; the traceback goes to `log.txt`."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sparsedet.engine.nonfinite import NonFiniteError

__all__ = ["BROKEN_OFF", "DIVERGED", "REFUSED", "Fault", "explain", "report"]

logger = logging.getLogger(__name__)

DIVERGED = 1
"""Exit code: losses or gradients were not finite."""
REFUSED = 2
"""Exit code: something given is wrong; the same command fails again."""
BROKEN_OFF = 3
"""Exit code: something around the run failed; mend it and go on with `--resume`."""

_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_WRAPPED = re.compile(r"Caught \w+ in (DataLoader worker process|pin memory thread)")
_ERRNO = re.compile(r"\[Errno (\d+)\]")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_HANDLES = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True)
class Fault:
    """Why a run ended.

    Attributes:
        sentence: For a person: what happened, to which file, and what to do.
        code: The exit code of the process.
    """

    sentence: str
    code: int


def report(error: BaseException, *, otherwise: int = BROKEN_OFF, kept: str = "") -> Fault:
    """Explain an error, and log the sentence with the traceback.

    A record with a traceback is for `log.txt`; handlers of the terminal leave it out, and whoever
    calls prints the sentence.

    Args:
        error: What was raised.
        otherwise: The exit code where the error does not decide it by its kind.
        kept: What is said in addition: where the run can be taken up again.
    """
    fault = explain(error, otherwise=otherwise)
    fault = Fault(f"{fault.sentence} {kept}".strip(), fault.code)
    logger.error("%s", fault.sentence, exc_info=error)
    return fault


def explain(error: BaseException, *, otherwise: int = BROKEN_OFF) -> Fault:
    """The sentence and the exit code of an error.

    Args:
        error: What was raised, in this process or in a worker of its data loader.
        otherwise: The exit code where the error does not decide it by its kind: `REFUSED` while
            a run is built, `BROKEN_OFF` afterwards.
    """
    if isinstance(error, NonFiniteError):
        return Fault(str(error), DIVERGED)
    for each in _chain(error):
        if sentence := _of_machine(each):
            return Fault(sentence, BROKEN_OFF)
    return Fault(_of_code(error), otherwise)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _of_machine(error: BaseException) -> str | None:
    """The sentence of an error of the disk, the memory or a process; None for any other."""
    text = _original(error)[1]
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return f"out of memory ({_first_line(text) or 'the system gives no more'})."
    number = _errno(error, text)
    name = getattr(error, "filename", None)
    if number in _FULL:
        return f"the disk is full: {name or 'a file'} cannot be written."
    if number in _HANDLES or "Too many open files" in text:
        return "too many open files."
    if found := _WORKER.search(text):
        return f"a data worker (pid {found[1]}) ended: {_first_line(text)}."
    return None


def _of_code(error: BaseException) -> str:
    kind, text = _original(error)
    if isinstance(error, (ValueError, OSError)):
        return text or kind
    return f"{kind}: {text}" if text else kind


def _original(error: BaseException) -> tuple[str, str]:
    """Name and text of an error; of the one in a data worker that this one stands for."""
    text = str(error)
    if _WRAPPED.match(text) is None:
        return type(error).__name__, text
    lines = text.splitlines()
    last = max((i for i, line in enumerate(lines) if line.startswith("  ")), default=0)
    kind, _, rest = "\n".join(lines[last + 1 :]).partition(": ")
    return kind.rsplit(".", 1)[-1], rest


def _errno(error: BaseException, text: str) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _ERRNO.search(text)
    return int(found[1]) if found else None


def _first_line(text: str) -> str:
    return text.splitlines()[0].strip().rstrip(".") if text else ""
