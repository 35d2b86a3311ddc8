"""Our Deformable DETR against that of ``transformers``, run side by side with random weights."""

from __future__ import annotations

import pytest
import torch

from sparsedet.config import LazyConfig, instantiate
from sparsedet.conversion import convert
from tests.modeling.small import randomize
from tests.parity.released import DEFORMABLE, ROOT, SMALL_THEIRS

transformers = pytest.importorskip(
    "transformers", reason="needs transformers: pip install 'sparsedet[parity]'"
)

LOGITS, BOXES = 5e-4, 1e-4
CLASSES = 11
SIZES = [(96, 128), (100, 75)]  # the second one does not divide into cells


def theirs(*, refine: bool, two_stage: bool) -> torch.nn.Module:
    config = transformers.DeformableDetrConfig(
        **SMALL_THEIRS,
        num_labels=CLASSES,
        d_model=32,
        decoder_layers=2,
        two_stage_num_proposals=20,
        with_box_refine=refine,
        two_stage=two_stage,
        disable_custom_kernels=True,
    )
    model = randomize(transformers.DeformableDetrForObjectDetection(config).eval())
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(0.1 * torch.rand_like(buffer))
    return model


def ours(*, refine: bool, two_stage: bool) -> torch.nn.Module:
    name = "two_stage" if two_stage else "refine" if refine else "plain"
    model = LazyConfig.load(ROOT / DEFORMABLE.format(name)).model
    model.num_classes, model.embed_dim = CLASSES, 32
    model.backbone.name = "resnet18"
    model.neck.in_channels = dict(res3=128, res4=256, res5=512)
    for part in (model.encoder, model.decoder):
        part.update(num_layers=2, num_heads=4, feedforward_dim=48)
    model.query_initializer.num_queries = 20
    return instantiate(model).eval()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(dict(refine=False, two_stage=False), id="one_stage"),
        pytest.param(dict(refine=True, two_stage=False), id="one_stage_refine"),
        pytest.param(dict(refine=True, two_stage=True), id="two_stage_refine"),
    ],
)
def test_predictions_agree(kind):
    released, model = theirs(**kind), ours(**kind)
    model.load_state_dict(convert(released.state_dict(), "huggingface"))
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = released(pixel_values=images, pixel_mask=torch.ones(2, *size).long())
            got = model.detect(images, [size, size]).decoder[-1]
        assert expected.logits.std() > 0.1 and expected.pred_boxes.std() > 0.01
        torch.testing.assert_close(got.logits, expected.logits, atol=LOGITS, rtol=0)
        torch.testing.assert_close(got.boxes, expected.pred_boxes, atol=BOXES, rtol=0)
