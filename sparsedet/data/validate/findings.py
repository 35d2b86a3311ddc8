"""Faults of a data set, grouped by kind, and what training does about each."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from sparsedet.data.errors import DatasetError

_logger = logging.getLogger(__name__)
_already_logged: set[str] = set()

_NAMES_SHOWN = 3


class Effect(Enum):
    """What training does with an entry that has a fault."""

    REFUSED = "refused"  # training does not start
    LEFT_OUT = "left out"
    CHANGED = "changed"  # for example clipped
    KEPT = "kept"  # unchanged


@dataclass(frozen=True)
class Finding:
    """A fault and all entries that have it.

    Args:
        effect: what training does with the entries.
        fault: what is wrong, and the remedy or what is done about it.
        entries: names of the entries; an empty name if the fault concerns the whole data set.
        whole: whether the fault makes the meaning of the whole file doubtful, so that the other
            entries cannot be used either.
    """

    effect: Effect
    fault: str
    entries: list[str] = field(default_factory=list)
    whole: bool = False

    def __str__(self) -> str:
        examples = self.examples()
        return f"{examples}: {self.fault}" if examples else self.fault

    @property
    def count(self) -> int:
        """The number of entries that have it."""
        return len(self.entries)

    def examples(self) -> str:
        """The first entries, and the number of further ones."""
        shown = ", ".join(filter(None, self.entries[:_NAMES_SHOWN]))
        rest = len(self.entries) - _NAMES_SHOWN
        return f"{shown} and {rest} more" if rest > 0 else shown


class Findings:
    """Collects the faults of a data set.

    Args:
        source: path of the annotation file; each message starts with it.
        raises: whether `close` logs and raises. If not, the checks continue with the usable
            entries, and `groups` has all faults at the end.
    """

    def __init__(self, source: str, *, raises: bool = True) -> None:
        self.source = source
        self._raises = raises
        self._groups: dict[tuple, Finding] = {}

    def error(self, name: str, fault: str, *, whole: bool = False) -> None:
        """Adds a fault that is an error.

        Args:
            name: name of the entry.
            fault: what is wrong, and the remedy.
            whole: whether the fault makes the meaning of the whole file doubtful.
        """
        self._note(name, Finding(Effect.REFUSED, fault, whole=whole))

    def warn(self, name: str, fault: str, effect: Effect = Effect.KEPT) -> None:
        """Adds a fault that is not an error.

        Args:
            name: name of the entry.
            fault: what is wrong, and what is done about it.
            effect: what is done about it.
        """
        self._note(name, Finding(effect, fault))

    def _note(self, name: str, finding: Finding) -> None:
        key = finding.effect, finding.fault, finding.whole
        self._groups.setdefault(key, finding).entries.append(name)

    @property
    def groups(self) -> list[Finding]:
        """All findings, errors first."""
        order = list(Effect)
        return sorted(self._groups.values(), key=lambda each: order.index(each.effect))

    @property
    def refused(self) -> bool:
        """Whether there are errors."""
        return any(effect is Effect.REFUSED for effect, *_ in self._groups)

    def close(self) -> None:
        """Logs the warnings, each once per process, and raises if there are errors.

        Raises:
            DatasetError: one message about all errors.
        """
        if not self._raises:
            return
        for finding in self._groups.values():
            if finding.effect is not Effect.REFUSED:
                warn_once(f"{self.source}: {finding}")
        refuse(self.source, self.groups)


def refuse(source: str, findings: Sequence[Finding]) -> None:
    """Raises an error if one of the findings is an error.

    Args:
        source: path of the annotation file.
        findings: findings of the file.

    Raises:
        DatasetError: one message with the first errors and the number of further ones.
    """
    faults = [str(each) for each in findings if each.effect is Effect.REFUSED]
    if faults:
        shown = " Also: ".join(faults[:_NAMES_SHOWN])
        rest = len(faults) - _NAMES_SHOWN
        more = f" And {rest} more fault{'s' * (rest > 1)}." if rest > 0 else ""
        raise DatasetError(f"{source}: {shown}{more}")


def warn_once(message: str) -> None:
    """Logs a warning unless this process has logged the same one."""
    if message not in _already_logged:
        _already_logged.add(message)
        _logger.warning(message)
