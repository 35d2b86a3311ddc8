"""What is wrong with a set: faults collected by kind, each kind said once with a count."""

import logging

from ..errors import DatasetError

_logger = logging.getLogger(__name__)
_already_logged: set[str] = set()

_NAMES_SHOWN = 3


class Findings:
    """Faults of one annotation file, grouped by kind.

    Args:
        source: path of the annotation file, the beginning of each message.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._errors: dict[str, list[str]] = {}
        self._warnings: dict[str, list[str]] = {}

    def error(self, name: str, fault: str) -> None:
        """Notes a fault that stops; `fault` says what is wrong and the mend."""
        self._errors.setdefault(fault, []).append(name)

    def warn(self, name: str, fault: str) -> None:
        """Notes a fault that is passed over; `fault` says what is done about it."""
        self._warnings.setdefault(fault, []).append(name)

    def close(self) -> None:
        """Logs the warnings, each once per process, and raises if there are errors.

        Raises:
            DatasetError: one message about all errors.
        """
        for fault, names in self._warnings.items():
            warn_once(f"{self.source}: {_join(names)}: {fault}")
        if self._errors:
            parts = [f"{_join(names)}: {fault}" for fault, names in self._errors.items()]
            rest = (
                f" And {len(parts) - _NAMES_SHOWN} more faults."
                if len(parts) > _NAMES_SHOWN
                else ""
            )
            raise DatasetError(f"{self.source}: " + " Also: ".join(parts[:_NAMES_SHOWN]) + rest)


def warn_once(message: str) -> None:
    """Logs a warning unless this process has logged the same one."""
    if message not in _already_logged:
        _already_logged.add(message)
        _logger.warning(message)


def _join(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    rest = len(names) - _NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
