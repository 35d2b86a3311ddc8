"""Sizes and settings that no part can have end in one sentence, and the smallest maps work."""

from __future__ import annotations

import pytest
import torch

from sparsedet.config import ConfigError, LazyCall, instantiate
from sparsedet.layers.positional import SinePositionEmbedding
from sparsedet.modeling import ChannelMapper, CrossEntropyLoss
from sparsedet.registry import DECODERS, DENOISINGS, ENCODERS
from tests.modeling import small

STACKS = [
    *((f"model.{family}", part) for family, parts in (("encoder", ENCODERS), ("decoder", DECODERS))
      for _, part in sorted(parts)),
]  # fmt: skip


@pytest.mark.parametrize(("key", "part"), STACKS, ids=lambda each: getattr(each, "__name__", ""))
@pytest.mark.parametrize(
    "sizes",
    [
        dict(num_layers=-1),
        dict(embed_dim=0),
        dict(num_heads=0),
        dict(num_heads=-2),
        dict(num_heads=3),
        dict(num_heads=64),
        dict(feedforward_dim=0),
    ],
    ids=str,
)
def test_a_size_that_no_layer_has_is_refused_by_its_name(key, part, sizes):
    ((name, value),) = sizes.items()
    with pytest.raises(ValueError, match=rf"^{part.__name__}\.{name} must ") as caught:
        small.build(part, **sizes)
    assert f"got {value}. Set {key}.{name}." in str(caught.value)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_a_map_of_one_cell_may_be_normalized_in_groups_of_one_channel(images, training):
    neck = small.randomize(ChannelMapper({"res5": 4}, [32], embed_dim=32, num_levels=2))
    neck.train(training)
    for level, block in zip(
        neck({"res5": torch.randn(images, 4, 1, 1)}), (neck.convs[0], neck.extra_convs[0]),
        strict=True,
    ):  # fmt: skip
        expected = block[1].bias[:, None, None].expand(images, 32, 1, 1)
        torch.testing.assert_close(level, expected, atol=1e-4, rtol=0)  # x - x by 1 / sqrt(eps)


def test_groups_of_several_channels_are_normalized_as_torch_does():
    neck = small.randomize(ChannelMapper({"res5": 4}, [32], embed_dim=64, num_levels=1))
    x, norm = torch.randn(2, 4, 3, 5), torch.nn.GroupNorm(32, 64)
    norm.load_state_dict(neck.convs[0][1].state_dict())
    assert torch.equal(neck({"res5": x})[0], norm(neck.convs[0][0](x)))


@pytest.mark.parametrize("temperature", [0.0, -20.0, float("nan")])
def test_a_temperature_of_nothing_is_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature must be positive, got .* Set model\.pos"):
        SinePositionEmbedding(temperature=temperature)


@pytest.mark.parametrize("name", sorted(name for name, _ in DENOISINGS))
@pytest.mark.parametrize("classes", [small.NUM_CLASSES - 1, small.NUM_CLASSES + 1])
def test_denoising_knows_the_classes_of_the_detector_and_no_others(name, classes):
    denoising = small.build(DENOISINGS.get(name), num_classes=classes)
    parts = small.parts(small.NAMED["dn_deformable"]) | {"denoising": denoising}
    with pytest.raises(ValueError, match=rf"^{name}\.num_classes must be 3 .* got {classes}\."):
        small.TokenSparseDetector(**parts)


def test_a_weight_in_a_config_is_not_negative_whatever_it_weighs():
    node = LazyCall(CrossEntropyLoss)(weight=1.0, no_object_weight=-0.1)
    with pytest.raises(ConfigError, match=r"no_object_weight must be at least 0, got -0\.1\. Set "):
        instantiate(node)
