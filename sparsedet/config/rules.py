"""Types and bounds of plain settings, which no constructor checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from sparsedet.config.calls import is_plain, raw_value, value_at
from sparsedet.config.kinds import fits, words
from sparsedet.config.naming import ConfigError, join, shown
from sparsedet.files import ADDRESS

_MOST = 1e12  # the default bound: no run is longer, no picture larger


@dataclass(frozen=True)
class Rule:
    """The valid values of a setting.

    Args:
        kind: an annotation, such as ``int | None``.
        least: inclusive lower bound.
        above: exclusive lower bound.
        most: inclusive upper bound.
        below: exclusive upper bound.
        choices: valid texts; empty = any.
        place: whether it is the path of a file or folder; a number of at least 0 becomes a path.
        here: whether it must be on this machine; URLs are not fetched.
        fetched: prefix of URLs that are fetched nevertheless.
        empty: whether a text may be empty.
    """

    kind: Any
    least: float | None = None
    above: float | None = None
    most: float = _MOST
    below: float | None = None
    choices: tuple[str, ...] = ()
    place: bool = False
    here: bool = False
    fetched: str | None = None
    empty: bool = True

    def allows(self, value: Any) -> bool:
        """Whether a value is of the right type and within the bounds."""
        if not fits(value, self.kind):
            return False
        if isinstance(value, str):
            return (value in self.choices or not self.choices) and (self.empty or bool(value))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        if isinstance(value, int) and abs(value) >= 2**63:
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and value <= self.most  # False for NaN
        )

    def __str__(self) -> str:
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("of at least", self.least),
                ("above", self.above),
                ("below", self.below),
                ("of at most", None if self.most in (_MOST, math.inf) else self.most),
            )
            if bound is not None
        ]
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        kind, _, null = words(self.kind).partition(" or null")
        whole = " ".join([kind, " and ".join(bounds)]).strip()
        whole = "the path of a file or folder" if self.place else whole
        return f"{whole} or null" if null or fits(None, self.kind) else whole


def check_settings(
    settings: Any, rules: Mapping[str, Rule], *, reference: Any = None, path: str = ""
) -> None:
    """Refuse invalid values before they are used.

    A number in place of a path is replaced by text: it is the name of a file or folder.

    Args:
        settings: a group of settings, such as ``cfg.train``.
        rules: rules by dotted key below ``path``.
        reference: the group as it ships; without a rule, a value must be of the type in here.
        path: the key of the group in the config.

    Raises:
        ConfigError: a value is invalid; the message has the key, the valid values and the value.
    """
    for key in list(settings):
        where = join(path, key)
        inner = {k.partition(".")[2]: r for k, r in rules.items() if k.startswith(f"{key}.")}
        shipped = None if reference is None or key not in reference else raw_value(reference, key)
        value = value_at(settings, key, path)
        if is_plain(shipped) or inner:
            if not is_plain(value):
                raise ConfigError(f"{where} must be a group of settings, got {shown(value)}.")
            check_settings(value, inner, reference=shipped, path=where)
            continue
        rule = rules.get(key) or _shipped_rule(shipped)
        if rule is not None:
            _check(settings, key, value, rule, where)


def _check(settings: Any, key: str, value: Any, rule: Rule, where: str) -> None:
    numbered = isinstance(value, (int, float)) and not isinstance(value, bool)
    if rule.place and numbered and 0 <= value < 2**63:
        value = settings[key] = str(value)
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if not rule.allows(plain):
        raise ConfigError(f"{where} must be {rule}, got {shown(plain)}. Set {where}.")
    is_fetched = rule.fetched is not None and str(value).startswith(rule.fetched)
    if rule.here and isinstance(value, str) and ADDRESS.match(value) and not is_fetched:
        raise ConfigError(
            f"{where} must be on this machine, got the URL {shown(value)}. URLs are not "
            f"fetched: download the file, and set {where} to its path."
        )


def _shipped_rule(value: Any) -> Rule | None:
    """The rule for a default value: its type; whole numbers are counts and not negative."""
    if isinstance(value, (bool, str)):
        return Rule(type(value))
    if isinstance(value, (int, float)):
        return Rule(type(value), least=0)
    return None
