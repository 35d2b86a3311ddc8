"""Explain in one sentence and an exit code why a run ended; the traceback goes to `log.txt`."""

from __future__ import annotations

import errno
import logging
import re
import shutil
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsedet.child_signals import undisturbed
from sparsedet.engine.nonfinite import NonFiniteError

__all__ = [
    "BROKEN_OFF",
    "DIVERGED",
    "REFUSED",
    "Fault",
    "allow_open_files",
    "explain",
    "is_end_of_worker",
    "report",
]

logger = logging.getLogger(__name__)

DIVERGED = 1
"""Exit code: losses or gradients were not finite."""
REFUSED = 2
"""Exit code: an input is wrong; the same command fails again."""
BROKEN_OFF = 3
"""Exit code: something failed during the run; fix it and add `--resume`."""

_WRAPPED = re.compile(r"Caught \w+ in (?:DataLoader worker process|pin memory thread)")
_PLACE = re.compile(r'  File "(.+)", line (\d+), in (.+)')
_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.+))?"
)
_TIMEOUT = re.compile(r"DataLoader timed out after ([\d.]+) seconds")
_ERRNO = re.compile(r"\[Errno (\d+)\] [^:]+(?:: '(.+)')?|No space left on device \((\d+)\)")
_MEMORY = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")
_MOST_FILES = 65536
_FEW_FILES = 256  # less than PyTorch and its libraries may need
_SHARED_MEMORY = "/dev/shm/any"
_LONGEST = 400  # characters of the text of an error
_OWN_CODE = Path(__file__).parents[1]
_STDLIB = Path(sysconfig.get_path("stdlib"))


@dataclass(frozen=True)
class Fault:
    """Why a run ended.

    Attributes:
        sentence: For the user: what happened, to which file, and what to do.
        code: The exit code of the process.
    """

    sentence: str
    code: int


def report(error: BaseException, *, otherwise: int = BROKEN_OFF, kept: str = "") -> Fault:
    """Explain an error, and log the sentence with the traceback.

    A record with a traceback is for `log.txt`: terminal handlers leave it out, and the caller
    prints the sentence.

    Args:
        error: What was raised.
        otherwise: The exit code if the type of the error does not determine it.
        kept: An additional sentence, such as where the run can be resumed.
    """
    fault = explain(error, otherwise=otherwise)
    fault = Fault(f"{fault.sentence} {kept}".strip(), fault.code)
    logger.error("%s", fault.sentence, exc_info=error)
    return fault


def explain(error: BaseException, *, otherwise: int = BROKEN_OFF) -> Fault:
    """The sentence and the exit code of an error.

    Faults of the disk, memory, file handles and worker processes are recognized anywhere in the
    chain of causes. The message of an error that this package raises is used as it is. Any other
    error is reported with its type and a line of code, preferably in the user's own component
    rather than in a library that it calls.

    Args:
        error: What was raised, in this process or in a worker of its data loader.
        otherwise: The exit code if the type of the error does not determine it: `REFUSED` while
            a run is built, `BROKEN_OFF` afterwards.
    """
    if isinstance(error, NonFiniteError):
        return Fault(str(error), DIVERGED)
    with undisturbed(forget=True):  # more workers may die meanwhile
        loader = _loader(error)
        for sign in (_disk, _handles, _memory, _worker):
            for each in _chain(error):
                if sentence := sign(each, loader):
                    return Fault(sentence, BROKEN_OFF)
        return Fault(_other(error), otherwise)


def allow_open_files() -> None:
    """Raise this process's limit of open files as far as permitted, up to 65536.

    Each tensor from a worker process uses a file handle, and the usual limit of 1024 is soon
    reached.
    """
    try:
        from resource import RLIMIT_NOFILE, getrlimit, setrlimit
    except ImportError:  # not every system has it
        return
    soft, hard = getrlimit(RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard < 0 else min(hard, _MOST_FILES)  # negative: no limit
    if 0 <= soft < wanted:
        with suppress(ValueError, OSError):
            setrlimit(RLIMIT_NOFILE, (wanted, hard))


def is_end_of_worker(error: BaseException) -> bool:
    """Whether an error in the main process was caused by the end of a worker process."""
    return _worker(error, "") is not None or "Pin memory thread exited" in str(error)


# --- known faults -------------------------------------------------------------------------------


def _disk(error: BaseException, loader: str) -> str | None:
    number, name = _errno(error)
    if number == errno.EFBIG:
        return (
            f"{name or 'A file'} cannot be written: it exceeds the size limit of its file system "
            "or of this process (ulimit -f). Raise the limit, or set another train.output_dir."
        )
    if number not in (errno.ENOSPC, errno.EDQUOT):
        return None
    if "shared memory" in str(error):
        return _shared_memory(loader)
    why = "the disk is full" if number == errno.ENOSPC else "the disk quota is exceeded"
    return f"{name or 'A file'} cannot be written: {why}{_room(name)}. Free some space."


def _handles(error: BaseException, loader: str) -> str | None:
    number, name = _errno(error)
    if number not in (errno.EMFILE, errno.ENFILE) and not (
        "Too many open files" in str(error) or "received 0 items of ancdata" in str(error)
    ):
        return None
    last = f"; {name} could not be opened" if name else ""
    most = _file_limit()
    limit = "" if most is None else f" (the limit is {most})"
    return (
        f"Too many files are open{limit}{last}. Raise the file descriptor limit (ulimit -n), or "
        f"lower {loader}.num_workers."
    )


def _memory(error: BaseException, loader: str) -> str | None:
    kind, text = _original(error)
    wanted = _MEMORY.search(text)
    if isinstance(error, torch.OutOfMemoryError) or "CUDA out of memory" in text:
        what = ". ".join(text.split(". ")[:2]).rstrip(".")
    elif wanted:
        what = f"Out of memory: {int(wanted[1]) / 1e9:.3g} GB could not be allocated"
    elif isinstance(error, MemoryError) or _errno(error)[0] == errno.ENOMEM:
        what = f"Out of memory: {_short(text)}" if text and kind != text else "Out of memory"
    else:
        return None
    if loader == "dataloader.test":
        return f"{what}. Lower dataloader.test.batch_size, num_workers or dataset.max_size."
    return (
        f"{what}. Lower dataloader.train.total_batch_size (and raise train.accumulation_steps to "
        "compensate), num_workers or dataset.max_size."
    )


def _worker(error: BaseException, loader: str) -> str | None:
    text = str(error)
    if found := _TIMEOUT.search(text):
        return (
            f"The worker processes of {loader} gave no batch for {float(found[1]):g} s. One may "
            "hang, for example on a network folder that does not respond. Check the folder, or "
            f"raise {loader}.timeout."
        )
    found = _WORKER.search(text)
    signal_name = (found[2] or "").split(". ")[0].strip(" .") if found else ""
    if signal_name == "Bus error" or "unable to allocate shared memory" in text:
        return _shared_memory(loader)
    lost = isinstance(error, (ConnectionError, EOFError)) and _passes(error, "multiprocessing")
    if found is None and not lost:
        return None
    who = f"Worker process {found[1]} of {loader}" if found else f"A worker process of {loader}"
    if signal_name == "Segmentation fault":
        return f"{who} crashed ({signal_name}). {loader}.num_workers=0 shows where."
    how = f"was killed by a signal ({signal_name})" if signal_name else "ended unexpectedly"
    most = _file_limit()
    if most is not None and most < _FEW_FILES:  # a worker may end if it cannot open a file
        return (
            f"{who} {how}, perhaps because it may open only {most} files. Raise the file "
            f"descriptor limit (ulimit -n), or set {loader}.num_workers=0."
        )
    return f"{who} {how}, usually because memory ran out. Lower {loader}.num_workers."


def _shared_memory(loader: str) -> str:
    return (
        f"Shared memory (/dev/shm) is full{_room(_SHARED_MEMORY)}. Enlarge it (docker run "
        f"--shm-size=8g), or set {loader}.num_workers=0."
    )


def _other(error: BaseException) -> str:
    kind, text = _original(error)
    number, name = _errno(error)
    frames = _frames(error)
    if isinstance(error, OSError) and number is not None and name:
        reason = (error.strerror or text).lower()
        return f"{name} cannot be used: {reason}."
    own = bool(frames) and Path(frames[-1][0]).is_relative_to(_OWN_CODE)
    if own and isinstance(error, (ValueError, OSError)):
        return text or kind
    said = f"{kind}: {_short(text).rstrip('.')}" if text else kind
    place = _blame(frames)
    return f"{said} ({place})." if place else f"{said}."


# --- errors -------------------------------------------------------------------------------------


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _original(error: BaseException) -> tuple[str, str]:
    """Type name and text of an error, or of the worker's error that it wraps."""
    text = str(error)
    if _WRAPPED.match(text) is None:
        return type(error).__name__, text
    lines = text.rstrip().splitlines()
    last = max((i for i, line in enumerate(lines) if line.startswith("  ")), default=0)
    kind, _, rest = "\n".join(lines[last + 1 :]).partition(": ")
    return kind.rsplit(".", 1)[-1], rest


def _frames(error: BaseException) -> list[tuple[str, int, str]]:
    """File, line and function of each call, down to the one that raised the error."""
    if _WRAPPED.match(str(error)):  # in the worker
        return [(found[1], int(found[2]), found[3]) for found in _PLACE.finditer(str(error))]
    summary = traceback.extract_tb(error.__traceback__)
    return [(frame.filename, frame.lineno or 0, frame.name) for frame in summary]


def _passes(error: BaseException, folder: str) -> bool:
    return any(folder in Path(name).parts for name, _, _ in _frames(error))


def _loader(error: BaseException) -> str:
    """The loader that an error concerns: the test loader if an evaluation was running."""
    frames = [frame for each in _chain(error) for frame in _frames(each)]
    evaluates = any(Path(name).is_relative_to(_OWN_CODE / "evaluation") for name, _, _ in frames)
    return "dataloader.test" if evaluates else "dataloader.train"


def _blame(frames: list[tuple[str, int, str]]) -> str:
    """The innermost line in the user's own code; else in ours; else anywhere."""
    ours = [frame for frame in frames if Path(frame[0]).is_relative_to(_OWN_CODE)]
    theirs = [frame for frame in frames if frame not in ours and not _is_installed(frame[0])]
    for found in (theirs, ours, frames):
        if found:
            return "{}, line {}, in {}".format(*found[-1])
    return ""


def _is_installed(name: str) -> bool:
    path = Path(name)
    packages = {"site-packages", "dist-packages"} & {*path.parts}
    return name.startswith("<") or bool(packages) or path.is_relative_to(_STDLIB)


def _errno(error: BaseException) -> tuple[int | None, str]:
    """Number and file of a system error; they may have to be parsed from its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno, str(error.filename or "")
    kind, text = _original(error)
    known = isinstance(error, OSError) or "Error" in kind
    found = _ERRNO.search(text) if known else None
    if found is None:
        return None, ""
    return int(found[1] or found[3]), found[2] or ""


def _short(text: str) -> str:
    """The first line of a text, truncated if it is very long."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _room(name: str) -> str:
    try:
        usage = shutil.disk_usage(Path(name).parent)
    except OSError:
        return ""
    return f" ({usage.free / 1e9:.2g} GB of {usage.total / 1e9:.2g} GB are free)"


def _file_limit() -> int | None:
    """The number of files that this process may open; None if there is no limit."""
    try:
        from resource import RLIMIT_NOFILE, getrlimit
    except ImportError:  # not every system has it
        return None
    soft = getrlimit(RLIMIT_NOFILE)[0]
    return soft if soft >= 0 else None
