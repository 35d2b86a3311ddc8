"""Scalars from anywhere, to whoever listens.

`log_scalar` may be called from any module; it does nothing unless somebody listens. The trainer
keeps a `Recorder`, asks it for the averages at every logging period and hands them to its writers.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from sparsedet.files import atomic_write

__all__ = [
    "ConsoleWriter",
    "JsonWriter",
    "Listener",
    "MLflowWriter",
    "Recorder",
    "TensorBoardWriter",
    "WandbWriter",
    "Writer",
    "listen",
    "log_scalar",
    "service_writers",
]

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Something that hears each scalar when it is logged."""

    def record(self, name: str, value: float | torch.Tensor) -> None:
        """Take one value; a tensor may still be on its device and part of a graph."""
        ...


_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Hand a listener every scalar that is logged from now on, each once however often it asks."""
    if listener not in _listeners:
        _listeners.append(listener)


def log_scalar(name: str, value: float | torch.Tensor) -> None:
    """Hand a scalar to whoever listens; nothing happens when nobody does.

    A tensor is kept as it is (detached), so a call never waits for the device. Inside compiled
    code the call is dropped.

    Args:
        name: What the value is, as `"group/name"`.
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


class Writer(Protocol):
    """Something that takes a row of scalars now and then."""

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Take the scalars of one point in training."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class JsonWriter:
    """One JSON object per line and log; values that are not finite become null.

    Args:
        path: The file, appended to.
        start_iteration: Lines of later iterations (written by a run that ended after its last
            checkpoint), lines that were cut off, and everything when this is 0 are dropped.
        evaluated: Whether the evaluation at `start_iteration` was kept; where it was not, it is
            repeated, and its line is dropped.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, start_iteration: int = 0, evaluated: bool = True
    ) -> None:
        self._path = Path(path)
        kept = _lines_until(self._path, start_iteration, evaluated)
        with atomic_write(self._path) as file:
            file.write("".join(line + "\n" for line in kept).encode())
        self._file: IO[str] = self._path.open("a", encoding="utf-8")

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Append one line, at once on disk for whoever follows the file.

        Raises:
            OSError: It cannot be written; the file is named.
        """
        row: dict[str, Any] = {"iteration": iteration}
        row |= {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            error.filename = str(self._path)
            raise

    def close(self) -> None:
        """Close the file; what could not be written before is let go."""
        with suppress(OSError):
            self._file.close()


def _lines_until(path: Path, iteration: int, evaluated: bool) -> list[str]:
    if iteration == 0 or not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(row, dict) or row.get("iteration", 0) > iteration:
            continue
        repeated = not evaluated and row.get("iteration") == iteration
        if not (repeated and any(name.startswith("eval/") for name in row)):
            kept.append(line)
    return kept


class TensorBoardWriter:
    """Scalars for TensorBoard.

    Args:
        directory: Where the event files go.

    Raises:
        ValueError: The package `tensorboard` is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        _require("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory))

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Add one point per scalar."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbWriter:
    """Scalars, and the config, for Weights & Biases.

    The package has its own settings: `WANDB_MODE=offline` keeps everything on this machine.

    Args:
        directory: Of the run; its files go there, and its `config.yaml` with them.
        resumed: Whether to go on with the run that `wandb_run_id` in `directory` names.
        project: Where the run is listed.
        name: Of the run; None takes that of the directory.

    Raises:
        ValueError: The package `wandb` is not installed.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        resumed: bool = False,
        project: str = "sparsedet",
        name: str | None = None,
    ) -> None:
        _require("wandb")
        import wandb  # pyright: ignore[reportMissingImports]

        folder = Path(directory)
        self._run: Any = wandb.init(
            project=project,
            name=name or folder.resolve().name,
            dir=str(folder),
            id=_kept_id(folder / "wandb_run_id") if resumed else None,
            resume="allow",
        )
        (folder / "wandb_run_id").write_text(self._run.id + "\n", encoding="utf-8")
        if (folder / _CONFIG).is_file():
            self._run.save(str(folder / _CONFIG), base_path=str(folder), policy="now")

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Log the scalars at a step; an evaluation adds to the row of its iteration."""
        self._run.log(_finite(scalars), step=iteration)

    def close(self) -> None:
        """Upload what is left."""
        self._run.finish()


class MLflowWriter:
    """Scalars, and the config, for MLflow.

    Args:
        directory: Of the run; its `config.yaml` becomes an artifact.
        resumed: Whether to go on with the run that `mlflow_run_id` in `directory` names.
        tracking_uri: A server, or a data base such as "sqlite:///mlflow.db"; None takes MLflow's
            own setting. MLflow 3 refuses a plain folder, which was its local store before.
        experiment: Where the run is listed.
        name: Of the run; None takes that of the directory.

    Raises:
        ValueError: The package `mlflow` is not installed, or cannot reach or use the store.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        resumed: bool = False,
        tracking_uri: str | None = None,
        experiment: str = "sparsedet",
        name: str | None = None,
    ) -> None:
        _require("mlflow")
        from mlflow.exceptions import (  # pyright: ignore[reportMissingImports]
            MlflowException,
        )

        folder = Path(directory)
        kept = _kept_id(folder / "mlflow_run_id") if resumed else None
        try:
            self._open(tracking_uri, experiment, name or folder.resolve().name, kept)
        except MlflowException as error:
            raise ValueError(
                f"train.mlflow.tracking_uri: MLflow cannot use {tracking_uri or 'its default'} "
                f"({str(error).splitlines()[0]}). Set it to a server or to sqlite:///mlflow.db."
            ) from error
        (folder / "mlflow_run_id").write_text(self._run_id + "\n", encoding="utf-8")
        if (folder / _CONFIG).is_file():
            self._client.log_artifact(self._run_id, str(folder / _CONFIG))

    def _open(self, uri: str | None, experiment: str, name: str, kept: str | None) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        self._client: Any = MlflowClient(uri)
        if kept is not None:
            self._client.update_run(kept, status="RUNNING")
            self._run_id = kept
            return
        found = self._client.get_experiment_by_name(experiment)
        home = found.experiment_id if found else self._client.create_experiment(experiment)
        self._run_id: str = self._client.create_run(home, run_name=name).info.run_id

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Log the scalars at a step, in one call."""
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(time.time() * 1000)
        rows = [Metric(name, value, now, iteration) for name, value in _finite(scalars).items()]
        self._client.log_batch(self._run_id, metrics=rows)

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run_id)


_CONFIG = "config.yaml"


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise ValueError(
            f"train.{package} needs the package {package}, which is not installed. Run: pip "
            f"install 'sparsedet[{package}]', or switch train.{package} off."
        )


def _kept_id(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _finite(scalars: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in scalars.items() if math.isfinite(value)}


def service_writers(
    directory: str | os.PathLike[str],
    *,
    resumed: bool = False,
    tensorboard: bool = True,
    wandb: Mapping[str, Any] | None = None,
    mlflow: Mapping[str, Any] | None = None,
) -> list[Writer]:
    """The writers of `train.tensorboard`, `train.wandb` and `train.mlflow` that are switched on.

    One that fails during the run is warned about once and does not end it.

    Args:
        directory: Of the run.
        resumed: Whether the run goes on.
        tensorboard: Write TensorBoard files, if the package is installed; a line says so if not.
        wandb: `enabled`, and arguments of `WandbWriter`.
        mlflow: `enabled`, and arguments of `MLflowWriter`.

    Raises:
        ValueError: The package of Weights & Biases or MLflow is not installed.
    """
    writers: list[Writer] = []
    if tensorboard and find_spec("tensorboard"):
        writers.append(TensorBoardWriter(Path(directory) / "tensorboard"))
    elif tensorboard:
        logger.info(
            "no TensorBoard files: the package is not installed (pip install "
            "'sparsedet[tensorboard]'; train.tensorboard=false silences this line)"
        )
    for build, settings in ((WandbWriter, wandb), (MLflowWriter, mlflow)):
        arguments = dict(settings or {})
        if arguments.pop("enabled", False):
            writers.append(build(directory, resumed=resumed, **arguments))
    return [_Tolerated(writer) for writer in writers]


class _Tolerated:
    """A writer whose failures a run outlives: they are said once, and tried again each time."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._failed = False

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        try:
            self._writer.write(iteration, scalars)
        except Exception as error:
            self._say(error)

    def close(self) -> None:
        try:
            self._writer.close()
        except Exception as error:
            self._say(error)

    def _say(self, error: Exception) -> None:
        if self._failed:
            return
        self._failed = True
        logger.warning(
            "%s failed (%s: %s); training continues, and metrics.json has all rows",
            type(self._writer).__name__,
            type(error).__name__,
            (str(error).splitlines() or [""])[0],
        )


class ConsoleWriter:
    """Progress for a person: a bar on a terminal, a log line per row otherwise.

    Args:
        max_iter: Iterations of the whole run, for the time left.
        start_iteration: Where this process begins.
        show_bar: Whether to draw a bar (`tqdm`) rather than log lines.
    """

    def __init__(self, max_iter: int, *, start_iteration: int = 0, show_bar: bool = False) -> None:
        self._max_iter = max_iter
        self._bar: Any = None
        if show_bar:
            from tqdm import tqdm

            # asked here, since tqdm shows nothing on terminals that tell a size of 0
            columns, rows = shutil.get_terminal_size()
            self._bar = tqdm(
                total=max_iter,
                initial=start_iteration,
                unit="it",
                ncols=columns,
                nrows=rows,
                desc="train",
            )

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Show the loss, its terms, the rates and the time left."""
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(_losses(scalars)), refresh=False)
            return
        seconds = scalars.get("seconds_per_iteration")
        left = "" if seconds is None else f"  eta {_clock(seconds * (self._max_iter - iteration))}"
        shown = "  ".join(_losses(scalars) + _rates(scalars))
        logger.info("iteration %d/%d%s  %s", iteration, self._max_iter, left, shown)

    def advance(self, iteration: int) -> None:
        """Move the bar, if there is one, after an iteration."""
        if self._bar is not None:
            self._bar.update(iteration - self._bar.n)

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._bar is not None:
            self._bar.close()


def _losses(scalars: Mapping[str, float]) -> list[str]:
    """The loss, and its terms summed by kind over the stages."""
    terms: dict[str, float] = {}
    for name, value in scalars.items():
        if name.startswith("loss/"):
            kind = name.rsplit("/", 1)[-1]
            terms[kind] = terms.get(kind, 0.0) + value
    shown = [f"loss {scalars['loss']:.4g}"] if "loss" in scalars else []
    return shown + [f"{kind} {value:.3g}" for kind, value in terms.items()]


def _rates(scalars: Mapping[str, float]) -> list[str]:
    shown = [f"lr {scalars['lr']:.2e}"] if "lr" in scalars else []
    if "seconds_per_iteration" in scalars:
        shown.append(f"{scalars['seconds_per_iteration']:.3f} s/it")
    return shown


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"
