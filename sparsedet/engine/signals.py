"""Signals that ask a run to stop."""

from __future__ import annotations

import signal

__all__ = ["STOP_SIGNALS", "StopTraining"]

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)  # not every system has all of them
)


class StopTraining(Exception):
    """The process was told to stop; the state is that after the last complete iteration."""
