"""Measure models at several keep ratios or look ratios: accuracy, cost, time; JSON and plots."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from sparsedet.config import ConfigError
from sparsedet.modeling.stages import Size
from sparsedet.sweep.measuring import KEEP, LOOK, Share, Subject, load_subject, median_size
from sparsedet.sweep.results import Sheet, content_table, draw, draw_kept, table

__all__ = ["KEEP", "LOOK", "Share", "Sheet", "content_table", "run_sweep", "table"]


def run_sweep(
    config: str,
    weights: str,
    *,
    ratios: Sequence[float],
    share: Share = KEEP,
    beside: Sequence[tuple[str, str]] = (),
    fixed: Sequence[tuple[str, str]] = (),
    overrides: Sequence[str] = (),
    output: Path | None = None,
    image_size: Size | None = None,
    repetitions: int = 20,
    report: Callable[[str], None] = lambda line: None,
) -> Sheet:
    """Measure the missing results, and write all results to `sweep.json` and `sweep.png`.

    If a selector keeps a different share of each image, `kept.png` plots this share against the
    content of the images.

    Args:
        config: name or file of the config of a model that has this share.
        weights: weights of this model.
        ratios: values of the share, in (0, 1].
        share: KEEP, the share of tokens that the encoder updates, or LOOK, the share of tiles that
            the model chooses.
        beside: config and weights of models to sweep as well.
        fixed: config and weights of models to measure unchanged.
        overrides: overrides of all configs.
        output: folder of the results; None = "sweep", or "sweep_look", in ``train.output_dir``.
        image_size: (h, w) for GFLOPs and milliseconds; None = that of the test image of median
            area.
        repetitions: timed passes.
        report: called with a line of text for each measured row.

    Raises:
        ValueError: an input is wrong; nothing has been measured then.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("The plot needs matplotlib. Run: pip install 'sparsedet[plot]'")
    pairs = [(config, weights), *beside]
    swept = [load_subject(*pair, overrides) for pair in pairs]
    for subject in swept:
        _check_ratios(subject, share, ratios)
    others = [load_subject(*pair, overrides) for pair in fixed]
    size = image_size or median_size(swept[0].cfg)
    name = "sweep" if share is KEEP else "sweep_look"
    output = output or Path(swept[0].cfg.train.output_dir) / name
    sheet = Sheet(output / "sweep.json", size, share=share, report=report)
    sheet.add(swept, others)
    for subject in swept:
        selector = share.selector(subject.model)
        for ratio in ratios:
            selector.keep_ratio = ratio
            sheet.complete(subject, ratio, repetitions)
    for subject in others:
        sheet.complete(subject, share.asked(subject.model), repetitions)
    draw(sheet.models, share, output / "sweep.png")
    if sheet.by_content:
        draw_kept(sheet.models, share, output / "kept.png")
    return sheet


def _check_ratios(subject: Subject, share: Share, ratios: Sequence[float]) -> None:
    selector = share.selector(subject.model)
    if selector is None:
        raise ConfigError(
            f"{subject.config} has no {share.key}, so there are no tiles to choose. Name a config "
            "of projects/large_images."
        )
    if not hasattr(selector, "keep_ratio"):
        raise ConfigError(
            f"{type(selector).__name__} has no keep_ratio to sweep. Sweep a model with "
            "TopKSelector or ElasticSelector, and add this one with --fixed."
        )
    try:
        for ratio in ratios:
            selector.keep_ratio = ratio
    except ValueError as error:
        option = "--ratios" if share is KEEP else "--look"
        raise ConfigError(f"{option}: {error}") from error
