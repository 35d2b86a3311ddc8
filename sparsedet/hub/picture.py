"""The picture of a model card: detections, and the tokens that the encoder keeps."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sparsedet.config import instantiate, setting
from sparsedet.hub.run import Run
from sparsedet.modeling import TokenSparseDetector
from sparsedet.predictor import Detections, PictureSource, Predictor
from sparsedet.visualization import token_figure

if TYPE_CHECKING:
    from PIL import Image

_LOOKED_AT = 10  # pictures of the validation set
_SURE = 0.5  # score
_ENOUGH = 6  # objects; more would hide the picture
_logger = logging.getLogger(__name__)


def find_picture(run: Run, predictor: Predictor) -> str | None:
    """A picture of the validation set in which the model finds objects; None without the set.

    Args:
        run: the run, whose config names the set.
        predictor: a predictor with the weights of the run.
    """
    source = setting(run.cfg, "dataloader.test.dataset")
    try:
        records = instantiate(source).records
    except (ValueError, OSError, AttributeError) as error:
        _logger.warning("the card gets no picture: the validation set cannot be read: %s", error)
        return None
    files = [records[index]["file_name"] for index in range(min(_LOOKED_AT, len(records)))]
    found = predictor.stream(
        files, score_threshold=0.0, on_error=lambda error: _logger.warning("%s", error)
    )
    ranks = {each.path: _rank(each) for each in found}
    best: Any = max(ranks, key=lambda path: ranks[path], default=None)
    _logger.info("the card shows %s", best)
    return best


def _rank(found: Detections) -> tuple[int, float]:
    """Prefer pictures with several confident detections, then those with the highest score."""
    best = float(found.scores.max()) if len(found) else 0.0
    return min(len(found.above(_SURE)), _ENOUGH), best


def draw(predictor: Predictor, picture: PictureSource) -> Image.Image:
    """Draw detections and kept tokens; only detections if the model has no tokens.

    Args:
        predictor: the model.
        picture: the picture to process.
    """
    read = predictor.read(picture)
    if not isinstance(predictor.model, TokenSparseDetector):
        return predictor(read).draw(read).convert("RGB")
    found, output = predictor.explain(read)
    drawn = token_figure(read.to_pillow(), output, found.instances, class_names=found.class_names)
    return drawn.convert("RGB")
