"""Checks of constructor arguments."""

from __future__ import annotations


def require_positive(value: int, name: str, *, key: str) -> None:
    """Refuse what is not an integer of at least 1.

    Args:
        value: the argument.
        name: the class and the argument, as ``"DeformableEncoder.num_layers"``.
        key: the config key that sets it.

    Raises:
        ValueError: saying all three.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}. Set {key}.")
