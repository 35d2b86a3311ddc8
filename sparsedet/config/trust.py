"""What a config that is data may call: a file from elsewhere must not run arbitrary code.

A ``.py`` config is code, and the user decides to run it. A ``.yaml`` file and the config inside a
checkpoint only name what is built, so the names are checked before anything is built. Allowed are
parts of detectors, data sets, optimizers and schedules of libraries that are installed anyway.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from sparsedet.config.files import raw_values
from sparsedet.config.naming import ConfigError, Reference, join, locate

LIBRARIES = ("sparsedet", "torch", "torchvision", "timm", "fvcore")

# Modules whose classes and functions a config from a file may name. The rest of these libraries can
# run commands, load pickles, fetch files and compile sources.
_HOMES = (
    "sparsedet.modeling",
    "sparsedet.layers",
    "sparsedet.structures",
    "sparsedet.engine.optim",
    "sparsedet.interop.detrex.attention",
    "sparsedet.interop.detrex.criterion",
    "sparsedet.interop.detrex.encoder",
    "torch.nn",
    "torch.optim",
    "torch.utils.data.dataloader",
    "torch.utils.data.dataset",
    "torch.utils.data.distributed",
    "torch.utils.data.sampler",
    "torch._C._nn",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    "timm.layers",
    "timm.models",
    "timm.optim",
    "timm.scheduler",
    "fvcore.common.param_scheduler",
    "fvcore.nn",
    "fvcore.transforms",
)
_HOMES_OF_CLASSES = ("sparsedet.data", "sparsedet.evaluation")
_FUNCTIONS = ("sparsedet.data.dataset.open_dataset", "timm.models._factory.create_model")
_CLOSED = re.compile(r"timm\.models\._|sparsedet\.interop\.detrex\.configs")

# Arguments that make timm load a weights file unsafely, or from a URL.
_READS_ANYTHING = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "weights_only")
_ELSEWHERE = ("hf-hub", "local-dir")

# References to other keys are data; OmegaConf's resolvers read the environment and make nodes.
_ESCAPED = re.compile(r"(?<!\\)(?:\\\\)*\\\$\{")
_PLAIN_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?[\w.\[\]-]+(?:, ?[\w.+-]*)?\}")
_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_REFERENCE_TO_FORMAT = re.compile(r"\$\{[\w.\[\]]*\bformat\}")

_TRUSTING: ContextVar[bool] = ContextVar("trusting", default=False)


@contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Inside this context, config files may call anything; ``--trust-config`` enters it.

    Args:
        trust: False changes nothing.
    """
    token = _TRUSTING.set(trust or _TRUSTING.get())
    try:
        yield
    finally:
        _TRUSTING.reset(token)


def is_trusting() -> bool:
    """Whether this is inside of :func:`trusting`."""
    return _TRUSTING.get()


def require_trusted(cfg: Any, source: str, key: str = "") -> None:
    """Refuse a config from a file, or a part of it, that would call other code.

    Nothing is called, and only modules of :data:`LIBRARIES` are imported.

    Args:
        cfg: the config as it was read, before any change.
        source: the file, for the message.
        key: the key of the part; empty for a whole config.

    Raises:
        ConfigError: it names something that is not allowed; the message has the name, its key and
            the file. Never raised inside :func:`trusting`.
    """
    if _TRUSTING.get():
        return
    if isinstance(cfg, (DictConfig, ListConfig)):
        _check(raw_values(cfg), key, source)
        _check_composed(cfg, key, source)
    else:
        _check(cfg, key, source)


def _check(value: Any, key: str, source: str) -> None:
    last = key.rpartition(".")[2]
    if isinstance(value, Reference):
        _check_name(value.path, key, source)
    elif isinstance(value, Mapping):
        for name, each in value.items():
            if name in _READS_ANYTHING and each is not None:
                raise _refusal(f"sets {join(key, name)}, which can read any file", source)
            _check(each, join(key, name), source)
    elif isinstance(value, (list, tuple)):
        for place, each in enumerate(value):
            _check(each, join(key, place), source)
    elif isinstance(value, str):
        if last == "_target_" and "." in value:
            _check_name(value, key, source)
        elif last == "format" and _PATH.fullmatch(value):
            _check_name(value, key, source)  # a reader of data sets, by its dotted path
        _check_text(value, key, source)


def _check_composed(node: DictConfig | ListConfig, key: str, source: str) -> None:
    """Check the texts that plain references resolve to."""
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return
    names: Any = node if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        inner: Any = node._get_node(name)
        if isinstance(inner, (DictConfig, ListConfig)):
            _check_composed(inner, join(key, name), source)
        elif inner._is_interpolation():
            with suppress(OmegaConfBaseException, RecursionError):  # an error comes when it is used
                _check_place(node[name], join(key, name), source)


def _check_place(text: Any, key: str, source: str) -> None:
    try:  # as timm does
        scheme = urlsplit(str(text).replace("hf_hub", "hf-hub")).scheme
    except ValueError:
        return
    if scheme in _ELSEWHERE:
        raise _refusal(f"names weights elsewhere, {text!r}, for {key}", source)


def _check_text(text: str, key: str, source: str) -> None:
    _check_place(text, key, source)
    rest = _ESCAPED.sub("", text)
    named = key.rpartition(".")[2]
    if "${" not in rest:
        return
    strange = "${" in _PLAIN_REFERENCE.sub("", rest) or named == "_target_"
    if strange or (named == "format" and not _REFERENCE_TO_FORMAT.fullmatch(rest)):
        raise _refusal(f"computes {key} by {text!r}", source)


def _check_name(path: str, key: str, source: str) -> None:
    try:
        known = _is_known(path)
    except ConfigError as error:  # nothing has that name
        raise type(error)(f"{source}: {key}: {error}") from error
    if not known:
        raise _refusal(f"would call {path} for {key}", source)


def _is_known(path: str) -> bool:
    """Whether any config may name the object at a dotted path."""
    parts = path.split(".")
    private = any(part.startswith("_") for part in parts) and not path.startswith("torch._C._nn.")
    if parts[0] not in LIBRARIES or private:
        return False  # not even imported
    found = locate(path)
    home, name = getattr(found, "__module__", None), getattr(found, "__qualname__", ".")
    if not callable(found) or not isinstance(home, str) or "." in name:
        return False  # a module, a value, or a method, whose first argument could be anything
    if f"{home}.{name}" in _FUNCTIONS:
        return True
    homes = (*_HOMES, *_HOMES_OF_CLASSES) if isinstance(found, type) else _HOMES
    inside = any(f"{home}.".startswith(f"{each}.") for each in homes)
    return inside and not _CLOSED.match(home)


def _refusal(what: str, source: str) -> ConfigError:
    return ConfigError(
        f"{source} {what}. Such a config may only name parts of {', '.join(LIBRARIES)} "
        "that build models, data sets, optimizers and schedules. If you trust it, add "
        "--trust-config."
    )
