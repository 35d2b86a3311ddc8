"""Log scalars from any module to the listeners.

`log_scalar` may be called from any module; without a listener it does nothing. The trainer has a
`Recorder`, asks it for the averages at every logging period and passes them to its writers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from sparsedet.events.services import (
    MLflowWriter,
    PictureWriter,
    TensorBoardWriter,
    WandbWriter,
    picture_writers,
    service_writers,
)
from sparsedet.events.writers import ConsoleWriter, JsonWriter, Writer

__all__ = [
    "ConsoleWriter",
    "JsonWriter",
    "Listener",
    "MLflowWriter",
    "PictureWriter",
    "Recorder",
    "TensorBoardWriter",
    "WandbWriter",
    "Writer",
    "listen",
    "log_scalar",
    "picture_writers",
    "service_writers",
]


class Listener(Protocol):
    """Receives each scalar when it is logged."""

    def record(self, name: str, value: float | torch.Tensor) -> None:
        """Take one value; a tensor may still be on its device and part of a graph."""
        ...


_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Register a listener for all scalars logged from now on; registering twice has no effect."""
    if listener not in _listeners:
        _listeners.append(listener)


def log_scalar(name: str, value: float | torch.Tensor) -> None:
    """Pass a scalar to all listeners; without one, do nothing.

    A tensor is passed as it is, so a call never waits for the device. Inside compiled code the
    call is dropped.

    Args:
        name: Name of the value, such as `"group/name"`.
        value: A number or a tensor of one element.
    """
    if not _listeners or torch.compiler.is_compiling():
        return
    for listener in _listeners:
        listener.record(name, value)


class Recorder:
    """Scalars since the last flush, averaged by name.

    Use it as a context manager to listen to `log_scalar`.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float | torch.Tensor]] = {}
        self._settled: dict[str, int] = {}

    def __enter__(self) -> Recorder:
        _listeners.append(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _listeners.remove(self)

    def record(self, name: str, value: float | torch.Tensor) -> None:
        """Keep one value; a tensor is detached and stays on its device."""
        if isinstance(value, torch.Tensor):
            value = value.detach()
        self._values.setdefault(name, []).append(value)

    def flush(self) -> dict[str, float]:
        """Averages by name of what was recorded since the last flush (one wait for the device)."""
        averages = self.averages()
        self._values, self._settled = {}, {}
        return averages

    def averages(self) -> dict[str, float]:
        """The same, and what was recorded is kept."""
        values = self._values
        tensors = [v for series in values.values() for v in series if isinstance(v, torch.Tensor)]
        flat = [tensor.reshape(()).to(torch.float32) for tensor in tensors]
        numbers = iter(torch.stack(flat).tolist() if flat else [])
        averages = {}
        for name, series in values.items():
            floats = [next(numbers) if isinstance(v, torch.Tensor) else float(v) for v in series]
            averages[name] = sum(floats) / len(floats)
        return averages

    def settle(self) -> None:
        """Keep what was recorded until now, whatever becomes of the next iteration."""
        self._settled = {name: len(series) for name, series in self._values.items()}

    def go_back(self) -> None:
        """Drop what was recorded since `settle`."""
        self._values = {name: self._values[name][:n] for name, n in self._settled.items()}

    def counts(self) -> dict[str, int]:
        """How many values were kept by `settle`, by name."""
        return dict(self._settled)

    def go_on(self, averages: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Begin with averages of so many values."""
        self._values = {name: [averages[name]] * count for name, count in counts.items()}
