"""Write trained detectors to folders that load anywhere, and push them to Hugging Face.

A folder has the weights (``model.safetensors``), the complete config (``config.yaml``), a model
card (``README.md``) and a picture that shows detections and kept tokens.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from sparsedet.checkpoint import CheckpointError, model_weights, save_checkpoint
from sparsedet.config import ConfigError
from sparsedet.config.files import dump_yaml
from sparsedet.files import atomic_write, require_writable
from sparsedet.hub.card import PICTURE, write_card
from sparsedet.hub.facts import gather
from sparsedet.hub.picture import draw, find_picture
from sparsedet.hub.run import Run, portable, read_run
from sparsedet.loading import load
from sparsedet.predictor import PictureSource, Predictor
from sparsedet.weights.download import DownloadError
from sparsedet.weights.folders import REPOSITORY, version_line
from sparsedet.weights.hosts import upload
from sparsedet.weights.table import CONFIG, WEIGHTS

__all__ = ["from_pretrained", "push_to_hub", "require_name", "save_pretrained"]

CARD = "README.md"
_FILES = (CARD, CONFIG, WEIGHTS, "*.jpg", "*.png", "LICENSE*")
_LICENSE = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")

_AS_WRITTEN = {"picture": "auto", "license": None, "dataset": None}

Source = str | os.PathLike[str]


def from_pretrained(name: Source, device: str | torch.device = "auto") -> torch.nn.Module:
    """``sparsedet.load`` under the name that Hugging Face's libraries use.

    Args:
        name: a folder of :func:`save_pretrained`, ``owner/model`` on Hugging Face, or anything
            else that ``sparsedet.load`` takes.
        device: "auto" (the accelerator if there is one), or a device such as "cpu" or "cuda:1".

    Raises:
        CheckpointError: the model cannot be read or downloaded, or is not one of this package.
        ValueError: this machine has no such device.
    """
    return load(name, device)


def save_pretrained(
    run: Source,
    folder: Source,
    *,
    name: str | None = None,
    picture: PictureSource | Literal["auto"] | None = "auto",
    license: str | None = None,
    dataset: str | None = None,
) -> Path:
    """Write a trained detector to a folder that loads without its training run.

    Loading the folder needs no network, no other files and no package of Hugging Face. Its config
    has no paths of this machine. The folder is written completely or not at all.

    Args:
        run: the folder of a training run, from which ``model_best.pth`` (else ``model_final.pth``)
            is taken, or a checkpoint in it.
        folder: the folder to write; new or empty.
        name: name of the model in the card, such as ``owner/model``; None = that of the folder.
        picture: picture for the card; "auto" chooses one of the first ten pictures of the
            validation set, None omits it. It is copied to the folder.
        license: Hugging Face's identifier of the license, such as ``apache-2.0``.
        dataset: name of the data set, such as ``owner/dataset`` on Hugging Face; None = the name
            of the folder of its annotations.

    Returns:
        The folder.

    Raises:
        CheckpointError: there are no weights, they have no config, or they do not load.
        ConfigError: the folder is not empty, or the license is not an identifier.
        DatasetError: the picture cannot be read.
        OSError: the folder cannot be written.
    """
    target = Path(os.path.realpath(folder))
    _check_target(target)
    if name is not None and not name.isprintable():
        raise ConfigError(f"name must be one line, got {name!r}.")
    if license is not None and not _LICENSE.fullmatch(license):
        raise ConfigError(
            f"license must be an identifier such as apache-2.0, mit or other, got {license!r}. "
            "https://huggingface.co/docs/hub/repositories-licenses lists them."
        )
    found = read_run(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        made = Path(temporary) / target.name
        made.mkdir()
        _write_model(found, made)
        predictor = _reload(made, found)
        chosen = isinstance(picture, str) and picture == "auto"
        shown = find_picture(found, predictor) if chosen else picture
        if shown is not None:
            draw(predictor, shown).save(made / PICTURE, quality=90)
        facts = gather(found, made, shown, name=name or target.name, dataset=dataset)
        card = write_card(facts, license=license)
        with atomic_write(made / CARD) as file:
            file.write(card.encode())
        os.replace(made, target)
    return Path(folder)


def push_to_hub(
    source: Source,
    name: str,
    *,
    private: bool = False,
    picture: PictureSource | Literal["auto"] | None = "auto",
    license: str | None = None,
    dataset: str | None = None,
) -> str:
    """Upload a trained detector to Hugging Face; its files replace those of an earlier upload.

    Args:
        source: as for :func:`save_pretrained`; or a folder that it has written, whose files are
            uploaded unchanged.
        name: ``owner/model``; the model is created if it does not exist.
        private: make a newly created model private.
        picture: as for :func:`save_pretrained`.
        license: as for :func:`save_pretrained`.
        dataset: as for :func:`save_pretrained`.

    Returns:
        The URL of the model.

    Raises:
        CheckpointError: as for :func:`save_pretrained`; or the model cannot be uploaded.
        ConfigError: the name is not valid.
    """
    require_name(name)
    folder = Path(source)
    given: dict[str, Any] = dict(picture=picture, license=license, dataset=dataset)
    with TemporaryDirectory() as temporary:
        if not is_model_folder(folder):
            folder = save_pretrained(source, Path(temporary) / "model", name=name, **given)
        elif others := [key for key, value in given.items() if value != _AS_WRITTEN[key]]:
            raise ConfigError(
                f"{folder} is uploaded unchanged, so {' and '.join(others)} would have no effect. "
                f"Edit {folder / CARD}, or name the training run."
            )
        else:
            load(folder, "cpu")
        try:
            files = sorted({path for pattern in _FILES for path in folder.glob(pattern)})
            return upload(files, name, private=private)
        except DownloadError as error:
            raise CheckpointError(f"{name} cannot be uploaded: {error}.") from error


def require_name(name: str) -> None:
    """Check the name of a model on Hugging Face.

    Raises:
        ConfigError: it is not ``owner/model``.
    """
    if not REPOSITORY.fullmatch(name):
        raise ConfigError(f"A model on Hugging Face must be named owner/model, got {name!r}.")


def is_model_folder(path: Path) -> bool:
    """Whether a folder was written by :func:`save_pretrained`."""
    return path.is_dir() and all((path / each).is_file() for each in (CONFIG, WEIGHTS, CARD))


def _check_target(folder: Path) -> None:
    if folder == Path.cwd():
        raise ConfigError("The current folder would be replaced. Name a new folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty. Name a new folder.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file. Name a new folder.")
    if not folder.exists():
        require_writable(folder)


def _reload(folder: Path, run: Run) -> Predictor:
    """Load the written folder, as its users will."""
    try:
        return Predictor(folder)
    except ValueError as error:
        reason = str(error).replace(str(folder / WEIGHTS), str(run.path))
        raise CheckpointError(reason.replace(str(folder), str(run.path))) from error


def _write_model(run: Run, folder: Path) -> None:
    save_checkpoint({"model": model_weights(run.checkpoint)}, folder / WEIGHTS)
    text = version_line() + dump_yaml(portable(run.cfg))
    with atomic_write(folder / CONFIG) as file:
        file.write(text.encode())
