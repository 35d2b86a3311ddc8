"""torchvision's detectors behind the interface of ours answer as torchvision does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from sparsedet.modeling import TorchvisionDetector, TorchvisionResNet, prepare_for_inference
from tests.modeling import small

RCNN, RETINA, FCOS = (f"{kind}_resnet50_fpn" for kind in ("fasterrcnn", "retinanet", "fcos"))
SSD = "ssdlite320_mobilenet_v3_large"
KINDS = (RCNN, RETINA, FCOS, SSD)
MEAN, STD = (
    torch.tensor(each).view(3, 1, 1)
    for each in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
)
WIDTHS = dict(res2=64, res3=128, res4=256, res5=512)


def build(name: str, maps: int = 4, **options) -> TorchvisionDetector:
    """A small one: ResNet-18 below the pyramid and few proposals, or SSD as it is."""
    torch.manual_seed(0)
    if name == SSD:
        return TorchvisionDetector(name, num_classes=small.NUM_CLASSES, **options)
    widths = dict(list(WIDTHS.items())[-maps:])
    backbone = TorchvisionResNet("resnet18", out_features=list(widths), freeze_at=2)
    model = TorchvisionDetector(
        name, num_classes=small.NUM_CLASSES, backbone=backbone, in_channels=widths, **options
    )
    if hasattr(model.detector, "roi_heads"):
        model.detector.roi_heads.fg_bg_sampler.batch_size_per_image = 16
        model.detector.rpn._post_nms_top_n = {"training": 200, "testing": 200}
    return model


def own(name: str, size: tuple[int, int]) -> tuple[TorchvisionDetector, nn.Module]:
    """Ours, and torchvision's with the same weights, which resizes images to what they are."""
    torch.manual_seed(0)
    ours = TorchvisionDetector(name, num_classes=small.NUM_CLASSES, max_detections=60)
    sizes = {} if name == SSD else dict(min_size=min(size), max_size=max(size))
    limit = "box_detections_per_img" if name == RCNN else "detections_per_img"
    theirs = get_model(
        name,
        weights=None,
        weights_backbone=None,
        num_classes=small.NUM_CLASSES + (name in (RCNN, SSD)),
        image_mean=[0.0] * 3,  # images come normalized, so that results are equal to the bit
        image_std=[1.0] * 3,
        **{limit: 60},
        **sizes,
    )
    theirs.transform._skip_resize = True  # in training, where it would draw a size
    for module in ours.modules():  # random ones would leave nothing of an image in deep maps
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    ours.train()(small.samples([size, size], [2, 2]))
    theirs.load_state_dict(ours.detector.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", KINDS)
def test_losses_and_detections_are_those_of_torchvision(name):
    size, background = (320, 320) if name == SSD else (64, 96), int(name in (RCNN, SSD))
    ours, theirs = own(name, size)
    samples = small.samples([size, size], [2, 3])
    images = [(sample["image"] - MEAN) / STD for sample in samples]
    wanted = [
        {
            "boxes": sample["instances"].gt_boxes.tensor,
            "labels": sample["instances"].gt_classes + background,
        }
        for sample in samples
    ]
    with torch.no_grad():
        ours.eval(), theirs.eval()
        found, expected = ours(samples), theirs(images)
    for sample, mine, other in zip(samples, found, expected, strict=True):
        instances = mine["instances"]
        assert len(instances) == len(other["scores"]) and set(mine) == {"instances"}
        torch.testing.assert_close(instances.scores, other["scores"], atol=1e-5, rtol=1e-4)
        assert torch.equal(instances.pred_classes, other["labels"] - background)
        scale = sample["width"] / size[1]
        torch.testing.assert_close(
            instances.pred_boxes.tensor, scale * other["boxes"], atol=1e-2, rtol=1e-4
        )
    assert name in (RETINA, FCOS) or len(found[0]["instances"]), "there is nothing to compare"
    losses = []
    for model, arguments in ((ours, (samples,)), (theirs, (images, wanted))):
        model.train()
        torch.manual_seed(1)  # which anchors and proposals are drawn
        losses.append(model(*arguments))
    assert losses[0].keys() == losses[1].keys()
    for key, loss in losses[0].items():
        torch.testing.assert_close(loss, losses[1][key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("counts", [(2, 3), (0, 0)], ids=["objects", "none"])
@pytest.mark.parametrize("name", KINDS)
def test_a_step_reaches_every_parameter(name, counts):
    model = build(name).train()
    losses = model(small.samples([(64, 96), (128, 70)], counts))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert all(key.startswith("detector.backbone.body.") for key in frozen)
    assert bool(frozen) == (name != SSD)


@pytest.mark.parametrize("name", [RCNN, RETINA])
def test_half_precision_keeps_coordinates(name):
    model = build(name, max_detections=30)
    samples = small.samples([(64, 96), (128, 70)], (2, 3))
    seen = []
    generator = getattr(model.detector, "rpn", model.detector).anchor_generator
    generator.register_forward_hook(lambda module, args, out: seen.append(out[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(samples)
        found = model.eval()(samples)
    found += model.to(torch.bfloat16)(samples)
    assert all(loss.isfinite() for loss in losses.values())
    assert {each["instances"].scores.dtype for each in found} == {torch.float32}
    assert {each["instances"].pred_boxes.tensor.dtype for each in found} == {torch.float32}
    assert seen == [torch.float32] * 3


@pytest.mark.parametrize("name", [RCNN, SSD])
def test_one_ready_for_inference_answers_the_same(name):
    model, samples = build(name).eval(), small.samples([(64, 96), (128, 70)], (2, 3))
    with torch.no_grad():
        expected, found = model(samples), prepare_for_inference(model)(samples)
    for one, other in zip(expected, found, strict=True):
        first, second = one["instances"], other["instances"]
        assert len(first) == len(second) == 100
        torch.testing.assert_close(second.scores, first.scores, atol=1e-4, rtol=1e-4)


def test_three_maps_get_two_levels_and_four_get_one():
    for maps in (3, 4):
        for name in (RCNN, RETINA, FCOS):
            model = build(name, maps=maps)
            levels = model.detector.backbone(torch.zeros(1, 3, 64, 96))
            assert len(levels) == 5
            model.train()(small.samples([(64, 96)], [2]))


def test_maps_are_taken_by_their_names():
    backbone = TorchvisionResNet("resnet18", out_features=list(WIDTHS))
    options = dict(num_classes=small.NUM_CLASSES, backbone=backbone)
    three = dict(list(WIDTHS.items())[1:])
    model = TorchvisionDetector(RETINA, in_channels=three, **options)
    assert list(model.detector.backbone(torch.zeros(1, 3, 64, 96))) == [*three, "p6", "p7"]
    backbone = TorchvisionResNet("resnet18")
    model = TorchvisionDetector(RCNN, in_channels=WIDTHS, num_classes=3, backbone=backbone)
    with pytest.raises(ValueError, match=r"names \['res2'\], but the backbone has \['res3'"):
        model(small.samples([(64, 96)], [2]))
    wide = {name: width + 1 for name, width in three.items()}
    model = TorchvisionDetector(RCNN, in_channels=wide, num_classes=3, backbone=backbone)
    with pytest.raises(ValueError, match=r"^Pyramid\.in_channels must be .*Set model\.in_channels"):
        model(small.samples([(64, 96)], [2]))


def test_boxes_of_all_levels_reach_the_heads_of_faster_rcnn():
    """By the names of the maps: a pooler that knows none of them would pool from nothing."""
    assert build(RCNN).detector.roi_heads.box_roi_pool.featmap_names == list(WIDTHS)


def test_anchors_are_scaled():
    plain, half = (build(name, anchor_scale=0.5).detector for name in (RCNN, RETINA))
    assert plain.rpn.anchor_generator.sizes == ((16,), (32,), (64,), (128,), (256,))
    assert half.anchor_generator.sizes[0] == (16, 20, 25)
    assert build(RCNN).detector.rpn.anchor_generator.sizes[0] == (32,)


@pytest.mark.parametrize("suffix", ["", "_v2"])
def test_a_new_pyramid_has_the_norms_of_the_old_one(suffix):
    fpn = build(f"{RCNN}{suffix}").detector.backbone.fpn
    assert any(isinstance(module, nn.BatchNorm2d) for module in fpn.modules()) == bool(suffix)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name="maskrcnn_resnet50_fpn"), r"name must be one of \['fasterrcnn_.*got 'maskrcnn"),
        (dict(num_classes=0), r"TorchvisionDetector\.num_classes must be an integer"),
        (dict(weights="NONE"), r"weights 'NONE' of ssdlite.* could not be loaded .*weights=null"),
        (dict(anchor_scale=0.5), r"SSD keeps.*anchor_scale=0\.5.*Set .*model\.anchor_scale=1"),
        (dict(pixel_std=(1.0, 0.0, 1.0)), r"TorchvisionDetector\.pixel_std must be positive"),
        (
            dict(name=RCNN, anchor_scale=0),
            r"anchor_scale must be positive, got 0\. Set ",
        ),
        (dict(name=RCNN, anchor_scale=-0.5), r"anchor_scale must be positive, got -0\.5"),
        (
            dict(backbone=nn.Identity(), in_channels=WIDTHS),
            r"SSD keeps its backbone.*Identity.*model\.backbone=null",
        ),
        (
            dict(name=RCNN, backbone=nn.Identity()),
            r"in_channels must be of three or four maps.*got \{\}",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionDetector(**{"name": SSD, "num_classes": 3, **options})


def test_samples_are_looked_at():
    model = build(RCNN)
    with pytest.raises(ValueError, match=r"TorchvisionDetector\.batched_inputs\[0\]"):
        model([{"image": torch.zeros(2, 3)}])
    given = small.samples([(64, 96)], [2])
    with pytest.raises(ValueError, match="samples must have 'instances' in training"):
        model.train()([{"image": given[0]["image"]}])
    given[0]["instances"].gt_classes += 5
    with pytest.raises(ValueError, match=r"TorchvisionDetector: gt_classes must be in \[0, 3\)"):
        model(given)
