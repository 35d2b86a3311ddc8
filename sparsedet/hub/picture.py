"""The picture of a model card: what the model finds, and what its encoder keeps."""

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
_ENOUGH = 6  # objects, more of which hide the picture
_logger = logging.getLogger(__name__)


def find_picture(run: Run, predictor: Predictor) -> str | None:
    """A file of the validation set with objects that the model finds; None if it is not here.

    Args:
        run: its config says where the set is.
        predictor: of its weights.
    """
    source = setting(run.cfg, "dataloader.test.dataset")
    try:
        records = instantiate(source).records
    except (ValueError, OSError, AttributeError) as error:
        _logger.warning("no picture is shown, since the validation set cannot be read: %s", error)
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
    """Pictures with several sure objects go first, then those with the surest one."""
    best = float(found.scores.max()) if len(found) else 0.0
    return min(len(found.above(_SURE)), _ENOUGH), best


def draw(predictor: Predictor, picture: PictureSource) -> Image.Image:
    """Detections beside kept tokens; detections alone where the model has no tokens.

    Args:
        predictor: of the model.
        picture: what it looks at.
    """
    read = predictor.read(picture)
    if not isinstance(predictor.model, TokenSparseDetector):
        return predictor(read).draw(read).convert("RGB")
    found, output = predictor.explain(read)
    drawn = token_figure(read.to_pillow(), output, found.instances, class_names=found.class_names)
    return drawn.convert("RGB")
