"""Trained detectors as folders that load anywhere, and as models of Hugging Face.

A folder has the weights (``model.safetensors``), the whole config (``config.yaml``), a model card
(``README.md``) and a picture with what the model finds and keeps.
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
from sparsedet.files import atomic_write
from sparsedet.hub.card import PICTURE, write_card
from sparsedet.hub.facts import gather
from sparsedet.hub.picture import draw, find_picture
from sparsedet.hub.run import Run, portable, read_run
from sparsedet.loading import load
from sparsedet.predictor import PictureSource, Predictor
from sparsedet.weights.download import DownloadError
from sparsedet.weights.folders import version_line
from sparsedet.weights.hosts import upload
from sparsedet.weights.table import CONFIG, WEIGHTS

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

CARD = "README.md"
_FILES = (CARD, CONFIG, WEIGHTS, "*.jpg", "*.png", "LICENSE*")
_LICENSE = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_AS_WRITTEN = {"picture": "auto", "license": None, "dataset": None}

Source = str | os.PathLike[str]


def from_pretrained(name: Source, device: str | torch.device = "auto") -> torch.nn.Module:
    """``sparsedet.load``, as libraries of Hugging Face call it.

    Args:
        name: a folder of :func:`save_pretrained`, ``owner/model`` at Hugging Face, or what else
            ``sparsedet.load`` takes.
        device: "auto" (the accelerator if there is one), or such as "cpu" or "cuda:1".

    Raises:
        CheckpointError: it cannot be read or fetched, or is no such model.
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
    """Write a trained detector as a folder that loads without its run.

    The folder needs neither a network nor other files to load, and no package of Hugging Face. Its
    config has no paths of this machine. All of it is written, or nothing.

    Args:
        run: the folder of a training run, of which ``model_best.pth`` is taken (else
            ``model_final.pth``), or a checkpoint in it.
        folder: where to write; new or empty.
        name: what the card calls the model, such as ``owner/model``; None = as the folder.
        picture: what the card shows; "auto" is one of the first ten pictures of the validation
            set, None is none. It becomes a part of the folder.
        license: the identifier that Hugging Face has for it, such as ``apache-2.0``.
        dataset: what the data is called, such as ``owner/dataset`` at Hugging Face; None = as the
            folder of its annotations.

    Returns:
        The folder.

    Raises:
        CheckpointError: there are no weights, they hold no config, or do not load.
        ConfigError: the folder is not empty, or the license is no identifier.
        DatasetError: the picture cannot be read.
    """
    target = Path(folder)
    _check_target(target)
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
    return target


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
            uploaded as they are.
        name: owner and model, ``owner/model``; it is made where there is none.
        private: of a model that is made: others do not see it.
        picture: as for :func:`save_pretrained`.
        license: as for :func:`save_pretrained`.
        dataset: as for :func:`save_pretrained`.

    Returns:
        The address of the model.

    Raises:
        CheckpointError: as for :func:`save_pretrained`; or it cannot be uploaded.
        ConfigError: the name is none that a model can have.
    """
    if not _REPOSITORY.fullmatch(name):
        raise ConfigError(f"The name of a model at Hugging Face is owner/model, got {name!r}.")
    folder = Path(source)
    given: dict[str, Any] = dict(picture=picture, license=license, dataset=dataset)
    with TemporaryDirectory() as temporary:
        if not is_model_folder(folder):
            folder = save_pretrained(source, Path(temporary) / "model", name=name, **given)
        elif others := [key for key, value in given.items() if value != _AS_WRITTEN[key]]:
            raise ConfigError(
                f"{folder} is uploaded as it is, so that {' and '.join(others)} would have no "
                f"effect. Change {folder / CARD}, or name the training run."
            )
        else:
            load(folder, "cpu")
        try:
            files = sorted({path for pattern in _FILES for path in folder.glob(pattern)})
            return upload(files, name, private=private)
        except DownloadError as error:
            raise CheckpointError(f"{name} cannot be uploaded: {error}.") from error


def is_model_folder(path: Path) -> bool:
    """Whether a folder is one that :func:`save_pretrained` has written."""
    return path.is_dir() and all((path / each).is_file() for each in (CONFIG, WEIGHTS, CARD))


def _check_target(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty. Name a new folder.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file. Name a new folder.")


def _reload(folder: Path, run: Run) -> Predictor:
    """Load what was written, as everybody will."""
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
