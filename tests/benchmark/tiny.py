"""Command lines of the benchmark that measure as little as there can be."""

from __future__ import annotations

import re

from sparsedet.benchmark.cases import SMALL_MODEL

_TINY = {
    "op": "--image-size 64x96 --no-memory",
    "encoder": "--image-size 64x96 --batch 1 --keep-ratio dense 0.3",
    "model": "--image-size 64x96 --batch 1 --keep-ratio 0.3 --no-memory",
    "train-step": "--image-size 64x96 --batch 1 --dtype float32 --no-memory",
    "large": "--small --image-size 256x384 --tile 256",
    "deploy": "--image-size 64x96 --forms eager .pt2",
    "dataloader": "--max-images 2 --shapes-size 64x96",
    "eval": "--max-images 2 --shapes-size 64x96",
}


# Of what a command compares, one.
_ONE = {
    "encoder": "--keep-ratio 0.3",
    "train-step": "--keep-ratio 0.3",
    "large": "--systems glance",
    "deploy": "--forms eager",
    "model": "--config-file focus_detr_r50_12ep",
}
_SMALL = re.compile("photos|quickstart")  # configs of models that are small by themselves


def tiny(mode: str, *words: str) -> list[str]:
    """The words of a mode, of which the last of an option counts, with those that make it small."""
    is_small = mode in ("op", "large") or any(map(_SMALL.search, words))
    options = f"{_TINY[mode]} --seconds 0 --rounds 1 --warm-up 0".split()
    if "--look-ratio" in words:
        options += ["--look-ratio", "0.5"]
    return [mode, *([] if is_small else SMALL_MODEL), *words, *options]


def tiniest(mode: str, *words: str) -> list[str]:
    """The same, with one of the models or settings that it compares."""
    one = "" if mode == "model" and any(map(_SMALL.search, words)) else _ONE.get(mode, "")
    return [*tiny(mode, *words), *one.split()]
