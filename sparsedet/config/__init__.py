"""Lazy configuration: Python files that describe calls, which are loaded, overridden and made.

A config file imports classes and wraps them in :class:`LazyCall`; it exports a tree of nodes with a
``_target_`` and keyword arguments. The format is detectron2's, so both loaders read the files and
both instantiators accept the trees. This is the only package that knows omegaconf:
:func:`instantiate` passes plain lists, dicts and values to what it calls.
"""

from sparsedet.config.calls import LazyCall, check_keys, instantiate
from sparsedet.config.lazy import LazyConfig, check_overrides, get_config, read_config, setting
from sparsedet.config.literal import literal, texts
from sparsedet.config.naming import ConfigError
from sparsedet.config.overrides import ComponentSwap, swap_component
from sparsedet.config.packaged import find_config, packaged_configs
from sparsedet.config.trust import trusting

__all__ = [
    "ComponentSwap",
    "ConfigError",
    "LazyCall",
    "LazyConfig",
    "check_keys",
    "check_overrides",
    "find_config",
    "get_config",
    "instantiate",
    "literal",
    "packaged_configs",
    "read_config",
    "setting",
    "swap_component",
    "texts",
    "trusting",
]
