"""A program: the detector with the shapes of its signatures checked, one report for each part.

The checks are built in when a module is imported, so they need a process of their own; importing
so takes longer than all that runs here. Prints a JSON object: what failed, or null, for each part.
"""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Callable
from functools import partial

VARIANTS = {
    "quickstart": [],
    "dense": [
        "model.criterion.unmatched=[]",
        "model.scorer=null",
        "model.selector._target_=DenseSelector",
        "model.encoder._target_=DeformableEncoder",
    ],
    "decoder attention": [
        "model.scorer._target_=DAMPredictor",
        "model.criterion.unmatched=[{_target_: DecoderAttentionLoss, weight: 1.0}]",
    ],
    "objectness": ["model.scorer._target_=ObjectnessScorer", "model.criterion.unmatched=[]"],
    "adaptive": [
        "model.selector._target_=AdaptiveSelector",
        "model.selector.keep_ratio=0.4",
        "model.criterion.unmatched=[{_target_: SalienceLoss, weight: 1.0}]",
    ],
    "anchors": [
        "model.query_initializer._target_=AnchorQueries",
        "model.denoising._target_=Denoising",
        "model.decoder.scale_pos=true",
    ],
    "learned queries": [
        "model.query_initializer._target_=LearnedQueries",
        "model.denoising=null",
        "model.decoder.makes_pos=false",
    ],
    "two stages": [
        "model.query_initializer._target_=TwoStageQueries",
        "model.denoising=null",
        "model.decoder.makes_pos=false",
    ],
    "no refinement": [
        "model.decoder.refine=false",
        "model.decoder.look_forward_twice=false",
        "model.query_initializer._target_=LearnedQueries",
        "model.denoising=null",
        "model.decoder.makes_pos=false",
    ],
}
PARTS = ("a wrong shape", "named systems", "pairs of choices", *VARIANTS)


def a_wrong_shape() -> None:
    import torch

    from sparsedet.modeling.stages import Prediction

    try:
        Prediction(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4))
    except Exception as error:
        assert "TypeCheckError" in type(error).__name__, error
    else:
        raise AssertionError("the shapes are not checked")


def named_systems() -> None:
    import torch

    from tests.modeling import small

    for combination in small.NAMED.values():
        model = small.detector(combination)
        batch = small.samples(((64, 96), (128, 70)), (2, 0))
        with torch.no_grad():  # gradients have no signatures
            model.train()(batch)
            model.eval()(batch)


def pairs_of_choices() -> None:
    from tests.modeling import small

    for combination in small.pairwise_cover()[len(small.NAMED) :]:
        small.detector(combination).train()(small.samples(((64, 96), (8, 8)), (2, 1)))


def variant(overrides: list[str]) -> None:
    """The quickstart's detector as it is, with other parts."""
    import torch

    from sparsedet.config import LazyConfig, get_config, instantiate
    from tests.modeling import small

    cfg = LazyConfig.apply_overrides(get_config("quickstart.py"), overrides)
    cfg.dataset.num_classes = 3
    model = instantiate(cfg.model)
    batch = small.samples(((64, 96), (96, 64)), (2, 0))
    sum(model.train()(batch).values()).backward()
    with torch.no_grad():
        detections = model.eval()(batch)
    assert [each["instances"].image_size for each in detections] == [(128, 192), (192, 128)]


def report(part: Callable[[], None]) -> str | None:
    try:
        part()
    except Exception:
        return traceback.format_exc()
    return None


def main() -> None:
    from jaxtyping import install_import_hook

    warnings.simplefilter("ignore")
    with install_import_hook("sparsedet.modeling", "beartype.beartype"):
        import sparsedet.modeling  # noqa: F401
    import torch

    torch.set_num_threads(1)
    parts = [a_wrong_shape, named_systems, pairs_of_choices]
    parts += [partial(variant, overrides) for overrides in VARIANTS.values()]
    print(json.dumps({name: report(part) for name, part in zip(PARTS, parts, strict=True)}))


if __name__ == "__main__":
    main()
