"""The table of published weights; nothing is downloaded here, and torch is not imported."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sparsedet.config.naming import ConfigError, close_matches, nearest

TABLE = Path(__file__).with_name("published.json")
HUB = "hf://"  # prefix of a model on Hugging Face, to distinguish its name from a path
CONFIG, WEIGHTS = "config.yaml", "model.safetensors"  # files of a model folder
CATEGORY_IDS = 91  # rows of class heads with one row per COCO category id
_EPOCHS = re.compile(r"_(\d+)ep$")
_FILES = (".pth", ".safetensors", ".zip")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """Weights that their authors have published.

    Attributes:
        name: name in this package.
        title: name on the authors' page.
        page: URL of the page that lists them.
        source: layout of the file, a source of :func:`sparsedet.conversion.convert`.
        licence: licence of the weights, as an SPDX identifier.
        classes: rows of the class heads in the file. Of 91 (COCO's category ids) we keep the 80
            that COCO uses.
        ap: AP on COCO val2017, as published; None = not published.
        config: name of the config whose model they fit.
        overrides: overrides of that config.
        address: URL of the file; empty for a model on Hugging Face.
        hub: whether the name is that of a model on Hugging Face.
        by_hand: whether only a browser can download the file.
        sha256: the first digits of the file's SHA-256, if the page gives it.
        megabytes: size of the file, if the page gives it.
    """

    name: str
    title: str
    page: str
    source: str
    licence: str
    classes: int
    config: str
    ap: float | None = None
    overrides: tuple[str, ...] = ()
    address: str = ""
    hub: bool = False
    by_hand: bool = False
    sha256: str = ""
    megabytes: int | None = None

    @property
    def where(self) -> str:
        """The URL of the file, or of the model on Hugging Face."""
        return f"https://huggingface.co/{self.name}" if self.hub else self.address

    @property
    def host(self) -> str:
        """The host of the file."""
        return urlsplit(self.where).netloc

    @property
    def file(self) -> str:
        """The name of the file in the cache: that in its URL, if it has one."""
        last = WEIGHTS if self.hub else urlsplit(self.address).path.rpartition("/")[2]
        return last if last.endswith(_FILES) else f"{self.name}.pth"

    @property
    def class_names(self) -> list[str] | None:
        """The classes in the order of the model; None if they have no names."""
        known = self.classes in (CATEGORY_IDS, len(_content(TABLE)["coco_classes"]))
        return list(_content(TABLE)["coco_classes"]) if known else None


@cache
def _content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def published_weights() -> dict[str, Published]:
    """All published weights by name, in the order of the table."""
    found = {}
    for group in _content(TABLE)["groups"]:
        shared = {key: value for key, value in group.items() if key != "files"}
        for name, own in group["files"].items():
            facts = {**shared, **own, "overrides": tuple(own.get("overrides", ()))}
            found[name] = Published(name=name, **facts)
    return found


def find_published(weights: Any) -> Published | None:
    """The published weights with this name; None for a path.

    An existing file, or a folder with a model, takes precedence over published weights of the same
    name. A name without its epochs means the longest training: ``focus_detr_r50`` is
    ``focus_detr_r50_36ep``.

    Args:
        weights: what the user gave: a name or a path.

    Raises:
        ConfigError: it looks like a name, but there are no published weights of that name.
    """
    if not isinstance(weights, (str, os.PathLike)):
        return None
    name, table = os.fspath(weights), published_weights()
    found = _named(name.removeprefix(HUB), table)
    if found is not None:
        for what, path in (("file", name), ("folder", os.path.join(name, WEIGHTS))):
            if os.path.isfile(path):
                _logger.info("using the %s %s, not the published weights of that name", what, name)
                return None
    elif not os.path.exists(name) and _looks_like_a_name(name, table):
        elsewhere = f" For a model on Hugging Face, write {HUB}{name}." if "/" in name else ""
        raise ConfigError(
            f"There are no published weights '{name}', and no such file. {nearest(name, table)} "
            "`sparsedet weights` lists all; the name of a file ends in .pth or .safetensors."
            f"{elsewhere}"
        )
    return found


def _named(name: str, table: dict[str, Published]) -> Published | None:
    if name in table:
        return table[name]
    lengths = {
        int(match[1]): each
        for each in table
        if (match := _EPOCHS.search(each)) and each[: match.start()] == name
    }
    return table[lengths[max(lengths)]] if lengths else None


def _looks_like_a_name(name: str, table: dict[str, Published]) -> bool:
    if not re.fullmatch(r"\w[\w-]*(/[\w-]+)?", name, re.ASCII):
        return False
    return "/" not in name or bool(close_matches(name, table))


def published_config(weights: Published) -> Any:
    """A config for published weights: their model, COCO's data and default settings.

    It is sufficient for evaluation and prediction; it has no optimizer and no schedule.

    Args:
        weights: an entry of the table.
    """
    from sparsedet.config import get_config, read_config

    cfg = get_config("common/data/coco.py")
    cfg.train = get_config("common/train.py").train
    cfg.model = read_config(weights.config, weights.overrides, needs=("model",)).model
    names = weights.class_names
    classes = weights.classes if names is None else len(names)
    cfg.model.num_classes = cfg.dataset.num_classes = classes
    cfg.dataset.class_names = names
    return cfg
