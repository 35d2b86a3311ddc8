"""Losses and gradients that are not finite."""

from __future__ import annotations

__all__ = ["NonFiniteError"]


class NonFiniteError(ArithmeticError):
    """Too many losses or gradients in a row were not finite."""
