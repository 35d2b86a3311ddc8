"""Published checkpoints convert key by key: all of ours are filled, none of theirs is left."""

from __future__ import annotations

import functools
import zlib

import numpy as np
import pytest
import torch

from sparsedet.config import LazyConfig, instantiate
from sparsedet.conversion import SOURCES, convert
from tests.parity.recipe import FILES, checkpoint, listing
from tests.parity.released import (
    CONDITIONAL,
    DAB,
    DEFORMABLE,
    DETR,
    DINO,
    DN,
    DN_DEFORMABLE,
    EFFICIENT,
    FOCUS,
    MODELS,
    PNP_DETR,
    ROOT,
    SPARSE,
    UP_DETR,
)

# listing -> source, configuration that the weights belong to, changes of it
LISTINGS = {
    "kakao_plain": ("deformable-detr", DEFORMABLE.format("plain"), {}),
    "kakao_two_stage": ("deformable-detr", DEFORMABLE.format("two_stage"), {}),
    "kakao_efficient": ("sparse-detr", EFFICIENT, {}),
    "kakao_sparse": ("sparse-detr", SPARSE, {}),
    "detrex_deformable": ("detrex", DEFORMABLE.format("plain"), {"num_classes": 80}),
    "detrex_deformable_two_stage": ("detrex", DEFORMABLE.format("two_stage_detrex"), {}),
    "detrex_dn_deformable": ("detrex", DN_DEFORMABLE, {}),
    "detrex_dino": ("detrex", DINO, {}),
    "detrex_focus": ("focus-detr", FOCUS, {}),
    "detr_r50": ("detr", DETR.format(""), {}),
    "detr_r50_dc5": ("detr", DETR.format("_dc5"), {}),
    "up_r50": ("up-detr", UP_DETR.format(""), {}),
    "conditional_r50": ("conditional-detr", CONDITIONAL.format(""), {}),
    "dab_r50_dc5_3pat": ("dab-detr", DAB.format("_dc5_3pat"), {}),
    "dn_r50_dc5": ("dn-detr", DN.format("_dc5"), {}),
    "pnp_r50": ("pnp-detr", PNP_DETR.format(""), {}),
    "pnp_r50_dc5": ("pnp-detr", PNP_DETR.format("_dc5"), {}),
    "hf_plain": ("huggingface", DEFORMABLE.format("plain"), {}),
    "hf_two_stage": ("huggingface", DEFORMABLE.format("two_stage"), {}),
}


# sources whose names include those of a source
SAME_NAMES = {
    "deformable-detr": {"deformable-detr", "sparse-detr"},
    "sparse-detr": {"deformable-detr", "sparse-detr"},
    "detr": {"detr", "pnp-detr", "up-detr"},
    "up-detr": {"detr", "pnp-detr", "up-detr"},
    "conditional-detr": {"conditional-detr", "dab-detr", "dn-detr"},
    "dab-detr": {"dab-detr", "dn-detr"},
}


@functools.cache
def numbers() -> np.ndarray:
    """As many as the largest tensor has, and some."""
    return np.random.default_rng(0).standard_normal(5_000_000, dtype=np.float32)


def stretch(key: str, size: tuple[int, ...]) -> np.ndarray:
    """Some of these numbers for a tensor, others for another: all drawn anew take a second."""
    count = int(np.prod(size))
    start = zlib.crc32(key.encode()) % (len(numbers()) - count)
    return numbers()[start : start + count].reshape(size)


@pytest.fixture(scope="module", params=LISTINGS)
def published(request):
    """Name, source, checkpoint and the model's state dict on the meta device."""
    source, config, changes = LISTINGS[request.param]
    cfg = LazyConfig.load(str(ROOT / config)).model
    for name, value in changes.items():
        cfg[name] = value
    with torch.device("meta"):
        target = instantiate(cfg).state_dict()
    return request.param, source, checkpoint(request.param, stretch), target


def test_every_listing_is_converted():
    here = {path.name.split(".")[0] for path in (FILES / "keys").iterdir()}
    assert here == LISTINGS.keys() == {listing for _, listing, _ in MODELS.values()}


def test_keys_are_bijective(published):
    name, source, state, target = published
    converted = convert(state, source)
    assert converted.keys() == target.keys()
    for key, tensor in converted.items():
        assert tensor.shape == target[key].shape, key
    distinct = {row[3] for row in listing(name)}
    apart = sum(key.endswith(".in_proj_weight") for key in target) * 4  # q, k, v as one tensor
    joined = apart if source == "huggingface" else 0
    split = sum(".no_object." in key for key in target)  # rows of the class heads there
    copied = int(SOURCES[source].content_label)  # a row of the label embedding there
    assert len(converted) == len(distinct) - joined + split + copied


def test_every_number_arrives_once(published):
    name, source, state, _ = published
    unique = {row[3]: state[row[0]] for row in listing(name)}
    converted = convert(state, source)
    if SOURCES[source].content_label:
        del converted["query_initializer.embedding.weight"]  # the last row of the labels
    assert magnitude(converted) == pytest.approx(magnitude(unique), rel=1e-9)


def magnitude(state: dict[str, torch.Tensor]) -> float:
    return sum(float(tensor.double().abs().sum()) for tensor in state.values())


def test_a_copy_that_differs_is_refused(published):
    name, source, state, _ = published
    copies = [row[0] for row in listing(name) if row[0] != row[3]]
    if not copies:
        pytest.skip("the file stores nothing twice")
    for key in (copies[0], copies[len(copies) // 2], copies[-1]):
        with pytest.raises(ValueError, match="their values differ"):
            convert({**state, key: state[key] + 1}, source)


def test_shared_tensors_may_be_stored_once(published):
    """As safetensors files have them, under the first of their names."""
    name, source, state, _ = published
    once = {key: state[key] for key in sorted({row[3] for row in listing(name)})}
    converted, expected = convert(once, source), convert(state, source)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


def test_an_unknown_key_is_named(published):
    _, source, state, _ = published
    with pytest.raises(ValueError, match=r"1 keys do not belong to source .*transformer\.surprise"):
        convert({**state, "transformer.surprise": torch.zeros(1)}, source)


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match=r"convert\.source must be one of .*got 'elsewhere'"):
        convert({}, "elsewhere")


def test_a_file_of_another_source_is_refused(published):
    _, source, state, _ = published
    for other in SOURCES:
        if other not in SAME_NAMES.get(source, {source}):
            with pytest.raises(ValueError, match="do not belong to source"):
                convert(state, other)


def test_the_input_is_left_alone(published):
    _, source, state, _ = published
    keys = list(state)
    convert(state, source)
    assert list(state) == keys
