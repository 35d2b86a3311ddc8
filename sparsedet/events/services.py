"""Services that take rows of scalars; each has a package of its own."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sparsedet.events.writers import Writer

__all__ = [
    "MLflowWriter",
    "PictureWriter",
    "TensorBoardWriter",
    "WandbWriter",
    "picture_writers",
    "service_writers",
]

logger = logging.getLogger(__name__)


class PictureWriter(Protocol):
    """A writer that also accepts pictures."""

    def write_picture(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        """Write a picture, uint8 (h, w, 3), of one iteration."""
        ...


def picture_writers(writers: Sequence[Writer]) -> list[PictureWriter]:
    """The writers that also accept pictures."""
    return [each for each in writers if getattr(each, "takes_pictures", False)]  # pyright: ignore[reportReturnType]


class TensorBoardWriter:
    """Writes scalars and pictures for TensorBoard.

    Args:
        directory: Folder of the event files.

    Raises:
        ValueError: The package `tensorboard` is not installed.
    """

    takes_pictures = True

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        _require("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory))

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Add one point per scalar."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, iteration)

    def write_picture(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        """Add a picture, uint8 (h, w, 3)."""
        self._writer.add_image(name, pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbWriter:
    """Sends scalars and the config to Weights & Biases.

    The package has its own settings: `WANDB_MODE=offline` keeps everything on this machine.

    Args:
        directory: Folder of the run; local files are written there, and its `config.yaml` is saved.
        resumed: Whether to resume the run that `wandb_run_id` in `directory` names.
        project: Project that lists the run.
        name: Name of the run; None = the name of the directory.

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
        """Upload the remaining data."""
        self._run.finish()


class MLflowWriter:
    """Sends scalars and the config to MLflow.

    Args:
        directory: Folder of the run; its `config.yaml` becomes an artifact.
        resumed: Whether to resume the run that `mlflow_run_id` in `directory` names.
        tracking_uri: A server, or a database such as "sqlite:///mlflow.db"; None = MLflow's own
            setting. MLflow 3 refuses a plain folder, which earlier versions used as local store.
        experiment: Experiment that lists the run.
        name: Name of the run; None = the name of the directory.

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
            f"install 'sparsedet[{package}]', or disable train.{package}."
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
    """The enabled writers of `train.tensorboard`, `train.wandb` and `train.mlflow`.

    If a writer fails during the run, one warning says so and the run continues.

    Args:
        directory: Folder of the run.
        resumed: Whether the run is resumed.
        tensorboard: Write TensorBoard files; if the package is not installed, a log line says so.
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
    """A writer whose failures do not end the run: one warning, and every write is tried again."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._failed = False
        self.takes_pictures = getattr(writer, "takes_pictures", False)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        try:
            self._writer.write(iteration, scalars)
        except Exception as error:
            self._say(error)

    def write_picture(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        try:
            self._writer.write_picture(iteration, name, pixels)
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
