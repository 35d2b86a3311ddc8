"""The table of published weights; nothing is fetched here, and torch is not imported."""

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
HUB = "hf://"  # before the name of a model of Hugging Face, where it could be a path
CONFIG, WEIGHTS = "config.yaml", "model.safetensors"  # of a folder that holds a model
CATEGORY_IDS = 91  # rows of class heads that count COCO's category ids
_EPOCHS = re.compile(r"_(\d+)ep$")
_FILES = (".pth", ".safetensors", ".zip")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """Weights that their authors have published.

    Attributes:
        name: what they are called here.
        title: what their page calls them.
        page: where the authors list them.
        source: the layout of the file, as :func:`sparsedet.conversion.convert` names it.
        licence: of the weights, as an SPDX identifier.
        classes: rows of the class heads in the file. Of 91 (COCO's category ids) we keep the 80
            that COCO has.
        ap: on COCO val2017, as the page gives it. None = the page gives none.
        config: name of the config whose model they fit.
        overrides: changes of that config.
        address: of the file, as the page gives it; empty where it is a model of Hugging Face.
        hub: the name is that of a model of Hugging Face.
        by_hand: a program cannot fetch the address; it is for a browser.
        sha256: the first digits of the file's SHA-256, where the page tells.
        megabytes: size of the file, where the page tells.
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
        """The address of the file, or that of the model at Hugging Face."""
        return f"https://huggingface.co/{self.name}" if self.hub else self.address

    @property
    def host(self) -> str:
        """Who has the file."""
        return urlsplit(self.where).netloc

    @property
    def file(self) -> str:
        """What the file is called in the cache: as in its address, where that tells."""
        last = WEIGHTS if self.hub else urlsplit(self.address).path.rpartition("/")[2]
        return last if last.endswith(_FILES) else f"{self.name}.pth"

    @property
    def class_names(self) -> list[str] | None:
        """The classes in the order of the model; None where they have no names."""
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
    """The published weights that a name stands for; None for the path of a file.

    A file that exists goes before published weights of the same name, and so does a folder with a
    model in it. A name without its epochs stands for the longest training: ``focus_detr_r50`` for
    ``focus_detr_r50_36ep``.

    Args:
        weights: what a user gave: a name or a path.

    Raises:
        ConfigError: it looks like a name, and there are no published weights of that name.
    """
    if not isinstance(weights, (str, os.PathLike)):
        return None
    name, table = os.fspath(weights), published_weights()
    found = _named(name.removeprefix(HUB), table)
    if found is not None:
        for what, path in (("file", name), ("folder", os.path.join(name, WEIGHTS))):
            if os.path.isfile(path):
                _logger.info("%s is a %s, which goes before the published weights", name, what)
                return None
    elif not os.path.exists(name) and _looks_like_a_name(name, table):
        elsewhere = f" A model of Hugging Face of that name is {HUB}{name}." if "/" in name else ""
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
    """A whole config of published weights: their model, COCO's data and the usual settings.

    It evaluates and predicts; training needs an optimizer and a schedule, which it lacks.

    Args:
        weights: from the table.
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
