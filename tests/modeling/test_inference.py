"""A detector made ready for inference answers as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import FrozenBatchNorm2d

from sparsedet.modeling import ChannelMapper, TorchvisionResNet, prepare_for_inference
from tests.modeling import small

SIZES = ((64, 96), (96, 70))
CHANNELS = dict(resnet18=(128, 256, 512), resnet50=(512, 1024, 2048))
NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def resnet_detector(name: str, norm: str):
    """A detector whose norms change what passes them."""
    model = small.detector(small.NAMED["sparse"])
    model.backbone = TorchvisionResNet(name, norm=norm, freeze_at=0)
    widths = dict(zip(("res3", "res4", "res5"), CHANNELS[name], strict=True))
    model.neck = ChannelMapper(widths, (8, 16, 32), embed_dim=small.EMBED_DIM)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, NORMS):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.6 + 0.4 * torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "norm"), [("resnet18", "bn"), ("resnet50", "frozen_bn"), ("resnet50", "bn")]
)
def test_norms_are_folded_and_maps_stay(name, norm):
    model = resnet_detector(name, norm).double()
    ready = prepare_for_inference(model)
    assert not any(isinstance(module, NORMS) for module in ready.modules())
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        pairs = [
            (model.neck(model.backbone(images)), ready.neck(ready.backbone(images))),
            (model.backbone(images).values(), ready.backbone(images).values()),
        ]
    for expected, got in pairs:
        for one, other in zip(expected, got, strict=True):
            assert one.std() > 0.01, "too small to tell"
            torch.testing.assert_close(other, one, atol=1e-9, rtol=1e-9)
            assert other.is_contiguous(memory_format=torch.channels_last)


def test_the_model_itself_stays_as_it_is():
    model = resnet_detector("resnet18", "frozen_bn").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ready = prepare_for_inference(model)
    assert model.training and not ready.training
    assert model.state_dict().keys() == before.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in ready.parameters())
    shared = {each.data_ptr() for each in model.parameters()}
    assert shared.isdisjoint(each.data_ptr() for each in ready.parameters())


@pytest.mark.parametrize("name", ["sparse", "focus"])
def test_other_backbones_answer_the_same(name):
    model = small.detector(small.NAMED[name]).eval()
    samples = small.samples(SIZES, (2, 1))
    with torch.no_grad():
        expected, got = (each(samples) for each in (model, prepare_for_inference(model)))
    for one, other in zip(expected, got, strict=True):
        first, second = (each["instances"].scores for each in (one, other))
        torch.testing.assert_close(second, first, atol=1e-4, rtol=1e-4)
        first, second = (each["instances"].pred_boxes.tensor for each in (one, other))
        torch.testing.assert_close(second, first, atol=1e-2, rtol=1e-3)


def test_a_ready_model_becomes_bfloat16():
    model = prepare_for_inference(resnet_detector("resnet18", "frozen_bn")).to(torch.bfloat16)
    with torch.no_grad():
        found = model(small.samples(SIZES, (2, 1)))
    for each in found:
        assert each["instances"].scores.dtype == torch.float32
        assert each["instances"].pred_boxes.tensor.isfinite().all()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_matrix_products_by_onednn_are_those_of_the_linear_layers():
    ready = prepare_for_inference(small.detector(small.NAMED["sparse"]))
    linear = next(each for each in ready.modules() if isinstance(each, nn.Linear))
    x = torch.randn(2, linear.in_features, 7).transpose(1, 2)
    calls = Calls("mkldnn::_linear_pointwise")
    for given in (x, x.contiguous(), x[:, 3], x[:, :0], x[:, ::2]):
        with torch.no_grad(), calls:
            got = linear(given)
        torch.testing.assert_close(got, nn.functional.linear(given, linear.weight, linear.bias))
    assert calls.count == 4, "an empty input is not oneDNN's"
    x.requires_grad_(True)
    linear(x).sum().backward()
    torch.testing.assert_close(x.grad[0, 0], linear.weight.sum(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16


class Calls(TorchDispatchMode):
    """How often an operator runs."""

    def __init__(self, name):
        super().__init__()
        self.name, self.count = name, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name().startswith(self.name)
        return func(*args, **(kwargs or {}))
